"""Many images on one sheet, with what was asked of them."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edm_jax.arguments import check_count
from edm_jax.figures import files
from edm_jax.generate import to_uint8
from edm_jax.typing import ArrayLike

INK = "#222222"


def image_sheet(
    images: np.ndarray, num_columns: int, *, pad: int = 1, fill: int = 255
) -> np.ndarray:
    """Images in rows on one sheet: ``(n, H, W, C)`` in [-1, 1] -> ``(H', W', C)`` uint8."""
    count, height, width, channels = images.shape
    num_rows = -(-count // num_columns)
    shape = (num_rows * (height + pad) + pad, num_columns * (width + pad) + pad, channels)
    sheet = np.full(shape, fill, np.uint8)
    for i, image in enumerate(images if images.dtype == np.uint8 else to_uint8(images)):
        row, column = divmod(i, num_columns)
        top, left = pad + row * (height + pad), pad + column * (width + pad)
        sheet[top : top + height, left : left + width] = image
    return sheet


def to_pil(array: np.ndarray) -> Any:
    """``(H, W, C)`` uint8 as a Pillow image, mode L or RGB."""
    from PIL import Image

    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def image_grid(
    images: ArrayLike,
    labels: Sequence[Any] | ArrayLike | None = None,
    *,
    num_columns: int | None = None,
    scale: int | None = None,
    row_names: Sequence[str] | None = None,
) -> Any:
    """Images as one picture, which a notebook shows by itself.

    Args:
      images: ``(n, H, W, C)``, floats in [-1, 1] or uint8, C 1 or 3.
      labels: one for each image or for all, written beneath it (a class, a seed); None for none.
      num_columns: images in a row; by default about as many as rows.
      scale: enlargement, pixels kept square; by default small images become 40 pixels high.
      row_names: one for each row, written in front of it; None for none.

    Returns:
      A Pillow image in RGB.

    Raises:
      ValueError: for images of another shape, or another number of labels or names.
    """
    images = np.asarray(images)
    if images.ndim != 4 or not len(images) or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images must have shape (n, H, W, 1) or (n, H, W, 3) with n >= 1, got {images.shape}"
        )
    if labels is not None and np.ndim(labels) == 0:
        labels = [labels] * len(images)
    if num_columns is not None:
        check_count("num_columns", num_columns)
    if scale is not None:
        check_count("scale", scale)
    names = (
        None if labels is None else [files.one_line(label) for label in np.asarray(labels).tolist()]
    )
    if names is not None and len(names) != len(images):
        raise ValueError(f"one label for each of {len(images)} images, got {len(names)}")
    num_columns = num_columns or max(1, round(len(images) ** 0.5))
    num_rows = -(-len(images) // num_columns)
    if row_names is not None and len(row_names) != num_rows:
        raise ValueError(f"one name for each of {num_rows} rows, got {len(row_names)}")
    scale = scale or max(1, 40 // images.shape[1])
    pixels = images if images.dtype == np.uint8 else to_uint8(images)
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    strip = 0 if names is None else 14  # pixels for the label beneath
    tiles = np.pad(pixels, ((0, 0), (0, strip), (0, 0), (0, 0)), constant_values=255)
    sheet = to_pil(image_sheet(tiles, num_columns, pad=2)).convert("RGB")
    height, width = pixels.shape[1:3]
    if names is not None:
        middles = [
            (2 + column * (width + 2) + width / 2, 2 + row * (height + strip + 2) + height + 7)
            for row, column in (divmod(i, num_columns) for i in range(len(names)))
        ]
        _write(sheet, names, middles, anchor="mm")
    if row_names is None:
        return sheet
    sheet, margin = _with_margin(sheet, row_names)
    heights = [2 + row * (height + strip + 2) + height / 2 for row in range(num_rows)]
    _write(sheet, row_names, [(margin - 6, at) for at in heights], anchor="rm")
    return sheet


def _write(
    sheet: Any, words: Sequence[str], places: Sequence[tuple[float, float]], *, anchor: str
) -> None:
    """Words on a Pillow image."""
    from PIL import ImageDraw, ImageFont

    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for word, place in zip(words, places, strict=True):
        draw.text(place, word, fill=INK, font=font, anchor=anchor)


def _with_margin(sheet: Any, names: Sequence[str]) -> tuple[Any, int]:
    """A sheet with room for names on its left, and how much."""
    from PIL import Image, ImageFont

    font = ImageFont.load_default(size=11)
    margin = 12 + max(math.ceil(font.getlength(name)) for name in names)
    wider = Image.new("RGB", (sheet.width + margin, sheet.height), "white")
    wider.paste(sheet, (margin, 0))
    return wider, margin


def save_image(path: pathlib.Path, array: np.ndarray) -> None:
    """Write ``(H, W, C)`` uint8 as PNG, whole or not at all."""
    with files.replacing(path) as temporary:
        to_pil(array).save(temporary, format="PNG")


def sample_grid(
    path: pathlib.Path,
    images: np.ndarray,
    num_columns: int,
    *,
    row_names: Sequence[str] | None = None,
    title: str = "",
    told: Mapping[str, Any] | None = None,
) -> None:
    """A sheet of samples with a title, and a name in front of every row.

    Args:
      path: file to write, .png or .pdf.
      images: ``(n, H, W, C)`` in [-1, 1], row by row.
      num_columns: images per row.
      row_names: one for each row, or None.
      title: above the sheet.
      told: JSON values about the images (seeds, labels, settings), kept in the file itself: in
        a PNG as its text ``edm_jax``, in a PDF as its subject; `read_told` reads them.
    """
    from PIL import Image, ImageDraw, ImageFont
    from PIL.PngImagePlugin import PngInfo

    size = images.shape[1]
    scale = max(1, 40 // size)  # small images are enlarged, pixels kept square
    sheet = to_pil(image_sheet(images, num_columns).repeat(scale, 0).repeat(scale, 1))
    font = ImageFont.load_default(size=14)
    names = [files.one_line(name) for name in row_names or []]
    title = files.one_line(title, 120)
    margin = 8 + max((int(font.getlength(name)) + 10 for name in names), default=0)
    width = max(sheet.width + margin, int(font.getlength(title)) + 8) + 8
    canvas = Image.new("RGB", (width, sheet.height + 34), "white")
    canvas.paste(sheet, (margin, 26))
    draw = ImageDraw.Draw(canvas)
    draw.text((8 if width > sheet.width + margin + 8 else margin, 5), title, fill=INK, font=font)
    step = (size + 1) * scale
    for row, name in enumerate(names):
        draw.text((8, 26 + row * step + step // 2), name, fill=INK, font=font, anchor="lm")
    options: dict[str, Any] = {}
    if path.suffix == ".png" and told is not None:
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text("edm_jax", json.dumps(told))
    elif told is not None:
        options["subject"] = json.dumps(told)
    with files.replacing(path) as temporary:
        canvas.save(temporary, format=path.suffix.removeprefix(".").upper(), **options)


def read_told(path: pathlib.Path) -> dict[str, Any] | None:
    """What `sample_grid` was told about the images of a file; None if nothing."""
    from PIL import Image
    from PIL.PdfParser import PdfParser

    if path.suffix == ".pdf":
        with PdfParser(str(path)) as document:
            subject = getattr(document.info, "Subject", None)  # as text, not bytes
        return None if subject is None else json.loads(subject)
    with Image.open(path) as picture:
        text = getattr(picture, "text", {}).get("edm_jax")
    return None if text is None else json.loads(text)
