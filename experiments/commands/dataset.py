r"""Convert images of any kind to the EDM zip format.

    python experiments/main.py --mode=dataset --source=images/ --dest=images-64x64.zip \
        --resolution=64x64 --transform=center-crop

The source is a folder (also an LSUN one ending in _lmdb), a .zip, cifar-10-python.tar.gz or
train-images-idx3-ubyte.gz.  Interrupted, it goes on where it stopped when the same command
is repeated.
"""

from __future__ import annotations

import os
import pathlib
import types
from typing import TYPE_CHECKING

from experiments import flags

if TYPE_CHECKING:
    from edm_jax.data.conversion.convert import Report

FLAGS = (
    flags.path("source", "Folder, archive or original download.", example="images/", required=True),
    flags.path(
        "dest",
        "A .zip file, or a folder that is empty or absent.",
        example="images-64x64.zip",
        required=True,
    ),
    flags.text("resolution", "Size of the images written; by default theirs.", example="64x64"),
    flags.choice(
        "transform",
        ("center-crop", "center-crop-wide"),
        "How images become square; by default they are resized as they are.",
        example="center-crop",
    ),
    flags.integer("max_images", "Stop after this many.", least=1, example="1000"),
    flags.integer("num_workers", "Threads; by default one per core.", least=1, example="8"),
    flags.switch("strict", "End with an error at the first unusable image."),
)

# More than that is no longer read on a screen; the rest goes to a file.
_LISTED = 50


def run(values: types.SimpleNamespace) -> None:
    """Convert and report."""
    options = ("resolution", "transform", "max_images", "num_workers", "strict")
    convert_images(values.source, values.dest, **{name: getattr(values, name) for name in options})


def convert_images(
    source: str | os.PathLike,
    dest: str | os.PathLike,
    *,
    resolution: str | tuple[int, int] | None = None,
    transform: str | None = None,
    max_images: int | None = None,
    num_workers: int | None = None,
    strict: bool = False,
    progress: bool = True,
) -> None:
    """Convert ``source`` and print what came out, odd images by name.

    Args:
      source: folder (also an LSUN one ending in _lmdb), .zip, cifar-10-python.tar.gz or
        train-images-idx3-ubyte.gz.
      dest: .zip file, or a folder that is empty or absent.
      resolution: "WxH" or (width, height).
      transform, max_images, num_workers, strict, progress: see
        `edm_jax.data.conversion.convert.convert`.

    Raises:
      ValueError, OSError: as `edm_jax.data.conversion.convert.convert`.
    """
    from edm_jax.data.conversion import convert

    if isinstance(resolution, str):
        resolution = convert.parse_resolution(resolution)
    report = convert.convert(
        source,
        dest,
        resolution=resolution,
        transform=transform,
        max_images=max_images,
        num_workers=num_workers,
        strict=strict,
        progress=progress,
    )
    _print_report(report)


def _print_report(report: Report) -> None:
    for note in report.notes:
        print(f"Note: {note}.")
    lines = [
        f"{'used' if problem.used else 'SKIPPED'}  {problem.name}: {problem.text}"
        for problem in report.problems
    ]
    if lines:
        print(f"{len(lines)} remarks on images:")
        print("\n".join(f"  {line}" for line in lines[:_LISTED]))
    if len(lines) > _LISTED:
        path = f"{report.dest}.problems.txt"
        pathlib.Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"  ... and {len(lines) - _LISTED} more; all are in {path}")
    again = f" ({report.resumed} were there already)" if report.resumed else ""
    print(
        f"{report.dest}: {report.written} images written, {report.skipped} skipped{again}; "
        f"{report.width}x{report.height}, {report.channels} channels, {report.labels}."
    )
    if report.skipped > report.written:
        print("Most images were skipped: check the first one, which all others must resemble.")
