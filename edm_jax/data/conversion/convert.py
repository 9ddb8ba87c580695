"""Conversion of any image collection to the EDM format (EDM dataset_tool conventions).

Images are decoded and resized by many threads and written in order by one, so the
result is the same for any number of threads.  A killed conversion goes on where it
stopped and ends with the same bytes; the final name appears only when all is written.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from edm_jax.data.conversion.output import Output, open_output
from edm_jax.data.sources.decode import encode_png
from edm_jax.data.sources.raw_images import Label, RawImages, open_raw_images

if TYPE_CHECKING:
    from PIL import Image

TRANSFORMS = ("center-crop", "center-crop-wide")

# What a kill -9 loses at most; committing is cheap, but not free.
_COMMIT_IMAGES = 1000
_COMMIT_SECONDS = 5.0

Resolution = tuple[int, int]  # width, height


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something about one image that the user should know.

    Attributes:
      name: of the image.
      text: what is odd.
      used: whether the image was converted all the same.
    """

    name: str
    text: str
    used: bool


@dataclasses.dataclass(frozen=True)
class Report:
    """The outcome of a conversion.

    Attributes:
      dest: where the result is.
      written, skipped: numbers of images.
      width, height, channels: of the written images.
      labels: what labels were written, in words.
      resumed: how many of them were there from an earlier, interrupted run.
      problems: odd and unusable images, in order.
      notes: remarks on the whole.
    """

    dest: str
    written: int
    skipped: int
    width: int
    height: int
    channels: int
    labels: str
    resumed: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def parse_resolution(text: str | None) -> Resolution | None:
    """``"64x64"`` or ``"64,64"`` -> (width, height).

    Raises:
      ValueError: for any other text.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)[x,](\d+)", text)
    if not match or "0" in match.groups():
        raise ValueError(f"resolution must be WxH, such as 64x64, got {text!r}")
    return int(match[1]), int(match[2])


def make_transform(
    transform: str | None, resolution: Resolution | None
) -> Callable[[Image.Image], Image.Image]:
    """The change of shape as a function of one image, Lanczos throughout.

    Args:
      transform: None resizes without keeping the aspect ratio; "center-crop" keeps the
        central square; "center-crop-wide" keeps a central band of the aspect ratio of
        ``resolution`` and puts it on a black square.
      resolution: (width, height); None keeps the size, for ``transform=None`` alone.

    Returns:
      A function that raises ValueError for an image too small for "center-crop-wide".

    Raises:
      ValueError: if the result would not be a square with a power of two as its side.
    """
    if transform is not None and transform not in TRANSFORMS:
        raise ValueError(f"transform must be one of {', '.join(TRANSFORMS)}, got {transform!r}")
    if resolution is None:
        if transform is not None:
            raise ValueError(f"transform {transform} needs a resolution; add one such as 64x64")
        return lambda image: image
    width, height = resolution
    square = width == height or (transform == "center-crop-wide" and height <= width)
    if not square or width & (width - 1) or not width:
        shape = "WxH with H <= W" if transform == "center-crop-wide" else "square"
        raise ValueError(
            f"resolution must be {shape}, the width a power of two, got {width}x{height}"
        )
    shapes = {None: _resize, "center-crop": _center_crop, "center-crop-wide": _center_crop_wide}
    return lambda image: shapes[transform](image, width, height)


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    from PIL import Image

    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _center_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    w, h = image.size
    crop = min(w, h)
    left, top = (w - crop) // 2, (h - crop) // 2
    image = image.crop((left, top, (w + crop) // 2, (h + crop) // 2))
    return _resize(image.convert("RGB"), width, height)


def _center_crop_wide(image: Image.Image, width: int, height: int) -> Image.Image:
    from PIL import Image

    w, h = image.size
    crop = int(np.round(width * h / w))
    if w < width or crop < height:
        raise ValueError(f"{w}x{h} pixels are too few for {width}x{height}")
    image = image.crop((0, (h - crop) // 2, w, (h + crop) // 2))
    canvas = Image.new("RGB", (width, width))
    canvas.paste(_resize(image.convert("RGB"), width, height), (0, (width - height) // 2))
    return canvas


@dataclasses.dataclass(frozen=True)
class _Converted:
    """One image after a thread is done with it; no PNG if it cannot be used."""

    png: bytes | None
    shape: tuple[int, int, int]
    problems: tuple[Problem, ...]


def _convert_one(
    images: RawImages, transform: Callable[[Image.Image], Image.Image], index: int
) -> _Converted:
    name = images.names[index]
    try:
        image, notes = images.load(index)
        pixels = np.asarray(transform(image))
    except ValueError as error:
        text = str(error).removeprefix(f"{name}: ")
        return _Converted(None, (0, 0, 0), (Problem(name, text, used=False),))
    shape = (*pixels.shape[:2], pixels.shape[2] if pixels.ndim == 3 else 1)
    problems = tuple(Problem(name, note, used=True) for note in notes)
    return _Converted(encode_png(pixels), shape, problems)


def _in_order(
    convert: Callable[[int], _Converted], start: int, stop: int, num_workers: int
) -> Iterator[_Converted]:
    """``convert(start)``, ..., computed ahead by threads, a bounded number of them."""
    with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        waiting: collections.deque[concurrent.futures.Future[_Converted]] = collections.deque()
        ahead = 4 * num_workers
        try:
            for index in range(start, stop):
                waiting.append(pool.submit(convert, index))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def check_first(name: str, shape: tuple[int, int, int]) -> None:
    """ValueError unless the first image is a square with a power of two as its side."""
    height, width, _ = shape
    if height != width or width & (width - 1):
        raise ValueError(
            f"{name} is {width}x{height}: images must be square, the side a power of two; give a "
            "resolution such as 64x64, and perhaps transform=center-crop"
        )


def convert(
    source: str | os.PathLike,
    dest: str | os.PathLike,
    *,
    resolution: Resolution | None = None,
    transform: str | None = None,
    max_images: int | None = None,
    num_workers: int | None = None,
    strict: bool = False,
    progress: bool = True,
) -> Report:
    """Convert a collection of images to the EDM format.

    Image i of the source becomes ``<i // 1000, 5 digits>/img<i, 8 digits>.png``; one
    that cannot be used leaves a gap.  Labels are written if every written image has one.

    Args:
      source: see `edm_jax.data.sources.raw_images.open_raw_images`.
      dest: a file ending in .zip, or a folder that is empty or absent.
      resolution: (width, height) of the result; None keeps that of the source.
      transform: see `make_transform`.
      max_images: convert the first so many.
      num_workers: threads; None: one per processor, at most 32.
      strict: fail at the first odd or unusable image instead of listing it.
      progress: show a progress bar.

    Raises:
      ValueError: for bad arguments, an unusable source or destination, too little space,
        or, when ``strict``, an odd image.
      OSError: if writing fails; the same call continues.
    """
    source, dest = os.fspath(source), os.path.abspath(os.fspath(dest))
    # Everything that can be checked without work.
    change = make_transform(transform, resolution)
    if max_images is not None and max_images < 1:
        raise ValueError(f"max_images must be at least 1, got {max_images}")
    num_workers = min(32, os.cpu_count() or 1) if num_workers is None else num_workers
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    _check_apart(source, dest)
    output = open_output(dest)
    images = open_raw_images(source)
    count = min(len(images), max_images or len(images))
    job = {
        "source": os.path.abspath(source),
        "images": images.fingerprint(),
        "resolution": list(resolution) if resolution else None,
        "transform": transform,
        "count": count,
        "versions": _versions(),
    }
    try:
        with output.begin(job):
            resumed = output.next_index
            run = _Run(images, output, count, strict)
            run.check_resumed()
            run.write_all(change, num_workers, progress)
            return run.finish(dest, resumed)
    except OSError as error:  # a full disk, most likely
        raise OSError(
            f"writing dest {dest} failed ({error}); the same command goes on from here"
        ) from error


def _versions() -> str:
    """Libraries that the pixels of a resized image depend on."""
    import PIL

    return f"pillow {PIL.__version__}"


def _check_apart(source: str, dest: str) -> None:
    source = os.path.realpath(source)
    inside = os.path.realpath(dest)
    if inside == source or (os.path.isdir(source) and inside.startswith(source + os.sep)):
        raise ValueError(
            f"dest {dest} lies in the source {source}, where it would be read as images; choose "
            "a place beside it"
        )


class _Run:
    """The writing half of a conversion: takes converted images in order."""

    def __init__(self, images: RawImages, output: Output, count: int, strict: bool):
        self.images, self.output, self.count, self.strict = images, output, count, strict

    def check_resumed(self) -> None:
        if self.strict and self.output.problems:
            self._fail(Problem(*self.output.problems[0][1:]))

    def _fail(self, problem: Problem) -> None:
        raise ValueError(
            f"{problem.name}: {problem.text}; repair or remove it, or convert without strict. "
            "The same command goes on from here"
        )

    def write_all(
        self, change: Callable[[Image.Image], Image.Image], num_workers: int, progress: bool
    ) -> None:
        from tqdm import tqdm

        output, start = self.output, self.output.next_index

        def work(index: int) -> _Converted:
            return _convert_one(self.images, change, index)

        bar = tqdm(total=self.count, initial=start, unit="img", disable=not progress)
        committed = time.monotonic()
        try:
            with bar:
                results = _in_order(work, start, self.count, num_workers)
                for index, result in enumerate(results, start):
                    self._take(index, result)
                    bar.update()
                    late = time.monotonic() - committed > _COMMIT_SECONDS
                    if output.uncommitted >= _COMMIT_IMAGES or late:
                        output.commit()
                        committed = time.monotonic()
        finally:  # also after Ctrl-C: nothing finished is lost
            output.commit()

    def _take(self, index: int, result: _Converted) -> None:
        output, name = self.output, self.images.names[index]
        problems, png = result.problems, result.png
        if png is not None and output.shape is None:
            check_first(name, result.shape)
            output.require_space(len(png), self.count - index)
            output.shape = result.shape
        elif png is not None and result.shape != output.shape:
            (h, w, c), (height, width, channels) = result.shape, output.shape
            text = f"{w}x{h}x{c} (width, height, channels), others {width}x{height}x{channels}"
            problems, png = (*problems, Problem(name, text, used=False)), None
        if problems and self.strict:
            self._fail(problems[0])
        output.add(index, png, [(index, p.name, p.text, p.used) for p in problems])

    def finish(self, dest: str, resumed: int) -> Report:
        output = self.output
        problems = tuple(Problem(*rest) for _, *rest in output.problems)
        if not output.entries:
            text = f"{problems[0].name}: {problems[0].text}"
            raise ValueError(f"none of {self.count} images can be used, for example {text}")
        labels = [[e.name, self.images.labels[i]] for i, e in output.entries]
        if any(label is None for _, label in labels):
            labels = None
        output.finish(json.dumps({"labels": labels}).encode())
        written = len(output.entries)
        height, width, channels = output.shape
        return Report(
            dest=dest,
            written=written,
            skipped=self.count - written,
            width=width,
            height=height,
            channels=channels,
            labels=_describe([label for _, label in labels or []]),
            resumed=resumed,
            problems=problems,
            notes=self.images.notes,
        )


def _describe(labels: list[Label]) -> str:
    if not labels:
        return "no labels"
    if isinstance(labels[0], list):
        return f"label vectors of {len(labels[0])} numbers"
    return f"{len(set(labels))} classes, labels up to {max(labels)}"
