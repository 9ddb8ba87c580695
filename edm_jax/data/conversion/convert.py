"""Conversion of any image collection to the EDM format (EDM dataset_tool conventions).

Images are decoded and resized by many threads and written in order by one, so the
result is the same for any number of threads.  A killed conversion goes on where it
stopped and ends with the same bytes; the final name appears only when all is written.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edm_jax.data.conversion.output import Output, open_output
from edm_jax.data.conversion.transforms import (
    TRANSFORMS,
    Resolution,
    make_transform,
    parse_resolution,
)
from edm_jax.data.sources.decode import encode_png, parse_background
from edm_jax.data.sources.names import shown
from edm_jax.data.sources.raw_images import Label, RawImages, open_raw_images

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["TRANSFORMS", "Problem", "Report", "convert", "parse_resolution"]

# What a kill -9 loses at most; committing is cheap, but not free.
_COMMIT_IMAGES = 1000
_COMMIT_SECONDS = 5.0


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
      label_names: of the classes, where they are known.
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
    label_names: tuple[str, ...] | None
    resumed: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Converted:
    """One image after a thread is done with it; no PNG if it cannot be used."""

    png: bytes | None
    shape: tuple[int, int, int]
    problems: tuple[Problem, ...]


def _convert_one(
    images: RawImages,
    transform: Callable[[Image.Image], Image.Image],
    mode: str,
    index: int,
) -> _Converted:
    name = images.names[index]
    try:
        image, notes = images.load(index)
        # Colour before shape: the same pixels as if the file had been in colour.
        pixels = np.asarray(transform(image if image.mode == mode else image.convert(mode)))
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


def _mode(images: RawImages, count: int) -> str:
    """RGB if one image has colour, else L: looks no further than the first that has."""
    return "RGB" if any(images.coloured(index) for index in range(count)) else "L"


def convert(
    source: str | os.PathLike,
    dest: str | os.PathLike,
    *,
    resolution: Resolution | None = None,
    transform: str | None = None,
    background: str | None = None,
    max_images: int | None = None,
    num_workers: int | None = None,
    strict: bool = False,
    unlabelled: bool = False,
    progress: bool = True,
) -> Report:
    """Convert a collection of images to the EDM format.

    Image i of the source becomes ``<i // 1000, 5 digits>/img<i, 8 digits>.png``; one that
    cannot be used leaves a gap.  All become colour if one has colour, and stay grey else; they
    are turned upright as their cameras say (EXIF).  Without a resolution, the first that can be
    used decides the size.  Labels, and the names of classes where they are known, go into
    dataset.json.

    Args:
      source: see `edm_jax.data.sources.raw_images.open_raw_images`.
      dest: a file ending in .zip, or a folder that is empty or absent.
      resolution: (width, height) of the result; None keeps that of the source.
      transform: see `make_transform`.
      background: a colour that transparent images are laid on, such as ``white`` or
        ``#ff8000``; None: they cannot be used.
      max_images: convert the first so many.
      num_workers: threads; None: one per processor, at most 32.
      strict: fail at the first image that cannot be used instead of listing it.
      unlabelled: leave labels out, whatever there is.
      progress: show a progress bar.

    Raises:
      ValueError: for bad arguments, an unusable source or destination, labels for some of
        the images only, too little space, or, when ``strict``, an image that cannot be used.
      OSError: if writing fails; the same call continues.
    """
    source = os.path.expanduser(os.fspath(source))
    dest = os.path.abspath(os.path.expanduser(os.fspath(dest)))
    # Everything that can be checked without work.
    change = make_transform(transform, resolution)
    colour = parse_background(background)
    if max_images is not None and max_images < 1:
        raise ValueError(f"max_images must be at least 1, got {max_images}")
    num_workers = min(32, os.cpu_count() or 1) if num_workers is None else num_workers
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    _check_apart(source, dest)
    output = open_output(dest)
    images = open_raw_images(source, background=colour, use_labels=not unlabelled)
    count = min(len(images), max_images or len(images))
    images.check_labelled(count)
    mode = _mode(images, count)
    job = {
        "source": os.path.abspath(source),
        "images": images.fingerprint(),
        "resolution": list(resolution) if resolution else None,
        "transform": transform,
        "background": None if colour is None else list(colour),
        "mode": mode,
        "count": count,
        "versions": _versions(),
    }
    try:
        with output.begin(job):
            resumed = output.next_index
            run = _Run(images, output, count, strict)
            run.check_resumed()
            run.write_all(
                functools.partial(_convert_one, images, change, mode), num_workers, progress
            )
            return run.finish(dest, resumed)
    except OSError as error:  # a full disk, most likely
        raise OSError(
            f"writing dest {shown(dest)} failed ({error}); the same command goes on from here"
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
        self._fail_if_strict([Problem(*rest) for _, *rest in self.output.problems])

    def _fail_if_strict(self, problems: Sequence[Problem]) -> None:
        for problem in problems:
            if self.strict and not problem.used:
                raise ValueError(
                    f"{problem.name}: {problem.text}; repair or remove it, or convert without "
                    "strict. The same command goes on from here"
                )

    def write_all(
        self, work: Callable[[int], _Converted], num_workers: int, progress: bool
    ) -> None:
        from tqdm import tqdm

        output, start = self.output, self.output.next_index
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
            output.require_space(len(png), self.count - index)
            output.shape = result.shape
        elif png is not None and result.shape != output.shape:
            (h, w, _), (height, width, _) = result.shape, output.shape
            text = f"{w}x{h} pixels, the first image {width}x{height}; give a resolution"
            problems, png = (Problem(name, text, used=False),), None
        self._fail_if_strict(problems)
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
        label_names = self.images.label_names if labels else None
        metadata = {"labels": labels}
        if label_names is not None:
            metadata["label_names"] = list(label_names)
        output.finish(json.dumps(metadata).encode())
        written = len(output.entries)
        height, width, channels = output.shape
        return Report(
            dest=dest,
            written=written,
            skipped=self.count - written,
            width=width,
            height=height,
            channels=channels,
            labels=_describe([label for _, label in labels or []], label_names),
            label_names=label_names,
            resumed=resumed,
            problems=problems,
            notes=self.images.notes,
        )


# Classes that are named in a report.
_NAMES_SHOWN = 10


def _describe(labels: list[Label], label_names: tuple[str, ...] | None) -> str:
    if not labels:
        return "no labels"
    if isinstance(labels[0], list):
        return f"label vectors of {len(labels[0])} numbers"
    present = sorted(set(labels))
    text = f"{len(present)} classes, labels up to {max(labels)}"
    if label_names is None:
        return text
    named = [f"{label} {label_names[label]}" for label in present[:_NAMES_SHOWN]]
    more = ", ..." if len(present) > _NAMES_SHOWN else ""
    empty = [name for label, name in enumerate(label_names) if label not in set(present)]
    missing = f"; without an image: {', '.join(empty[:_NAMES_SHOWN])}" if empty else ""
    return f"{text} ({', '.join(named)}{more}{missing})"
