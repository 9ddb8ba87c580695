"""How the images of a conversion change their shape."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

TRANSFORMS = ("center-crop", "center-crop-wide")
Resolution = tuple[int, int]  # width, height
# No network takes a side of one pixel; and what is enlarged by more than this is a blur.
_LEAST_SIDE = 2
_MAX_ENLARGEMENT = 16


def parse_resolution(text: str | None) -> Resolution | None:
    """``"64x64"`` or ``"64,64"`` -> (width, height).

    Raises:
      ValueError: for any other text.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)[x,](\d+)", text)
    if not match:
        raise ValueError(f"resolution must be WxH, such as 64x64, got {text!r}")
    width, height = int(match[1]), int(match[2])
    if min(width, height) < _LEAST_SIDE:
        raise ValueError(
            f"resolution must be WxH, both at least {_LEAST_SIDE}, such as 64x64, got {text!r}"
        )
    return width, height


def make_transform(
    transform: str | None, resolution: Resolution | None
) -> Callable[[Image.Image], Image.Image]:
    """The change of shape as a function of one image, Lanczos throughout.

    Args:
      transform: None resizes without keeping the aspect ratio; "center-crop" keeps the
        central part of the aspect ratio of ``resolution``; "center-crop-wide" keeps a central
        band of it and puts that on a black square.
      resolution: (width, height); None keeps the size, for ``transform=None`` alone.

    Returns:
      A function that keeps the mode, grey or RGB, and raises ValueError for an image that is
      too small.

    Raises:
      ValueError: for an unknown transform, or one without the resolution it needs.
    """
    if transform is not None and transform not in TRANSFORMS:
        raise ValueError(f"transform must be one of {', '.join(TRANSFORMS)}, got {transform!r}")
    if resolution is None:
        if transform is not None:
            raise ValueError(f"transform {transform} needs a resolution; add one such as 64x64")
        return _as_it_is
    width, height = resolution
    if min(width, height) < _LEAST_SIDE:
        raise ValueError(
            f"resolution must be at least {_LEAST_SIDE}x{_LEAST_SIDE}, got {width}x{height}"
        )
    if transform == "center-crop-wide" and height > width:
        raise ValueError(
            f"resolution must be WxH with H <= W for center-crop-wide, got {width}x{height}"
        )
    shapes = {None: _resize, "center-crop": _center_crop, "center-crop-wide": _center_crop_wide}
    return lambda image: shapes[transform](image, width, height)


def _as_it_is(image: Image.Image) -> Image.Image:
    if min(image.size) < _LEAST_SIDE:
        raise ValueError(f"{image.width}x{image.height} pixels are too few for a network")
    return image


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    from PIL import Image

    if image.size == (width, height):
        return image
    w, h = image.size
    if min(w, h) < _LEAST_SIDE or width > w * _MAX_ENLARGEMENT or height > h * _MAX_ENLARGEMENT:
        raise ValueError(f"{w}x{h} pixels are too few for {width}x{height}")
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _center_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    w, h = image.size
    scale = min(w / width, h / height)
    keep_w, keep_h = max(round(width * scale), 1), max(round(height * scale), 1)
    # Of the published program, for squares; the odd pixel too.
    box = ((w - keep_w) // 2, (h - keep_h) // 2, (w + keep_w) // 2, (h + keep_h) // 2)
    return _resize(image.crop(box), width, height)


def _center_crop_wide(image: Image.Image, width: int, height: int) -> Image.Image:
    from PIL import Image

    w, h = image.size
    crop = int(np.round(width * h / w))
    if w < width or crop < height:
        raise ValueError(f"{w}x{h} pixels are too few for {width}x{height}")
    image = image.crop((0, (h - crop) // 2, w, (h + crop) // 2))
    canvas = Image.new(image.mode, (width, width))
    canvas.paste(_resize(image, width, height), (0, (width - height) // 2))
    return canvas
