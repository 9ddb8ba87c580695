"""Converts folders, archives and original downloads to data sets for training.

    python experiments/commands/dataset.py --source=DIR --dest=imagenet-64x64.zip \\
        --resolution=64x64 --transform=center-crop

Interrupted, it goes on where it stopped when the same command is repeated.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

# Run as a script, Python sees this folder, not the one above it.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from edm_jax.data.conversion import convert

# More than that is no longer read on a screen; the rest goes to a file.
_LISTED = 50


def run(
    source: str | os.PathLike,
    dest: str | os.PathLike,
    *,
    resolution: str | tuple[int, int] | None = None,
    transform: str | None = None,
    max_images: int | None = None,
    num_workers: int | None = None,
    strict: bool = False,
    progress: bool = True,
) -> int:
    """Convert ``source`` and print what came out, odd images by name.

    Args:
      source: folder (also an LSUN one ending in _lmdb), .zip, cifar-10-python.tar.gz or
        train-images-idx3-ubyte.gz.
      dest: .zip file, or a folder that is empty or absent.
      resolution: "WxH" or (width, height).
      transform, max_images, num_workers, strict, progress: see
        `edm_jax.data.conversion.convert.convert`.

    Returns:
      The exit code of the program: 0.

    Raises:
      ValueError, OSError: as `edm_jax.data.conversion.convert.convert`.
    """
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
    return 0


def _print_report(report: convert.Report) -> None:
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


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, help="folder, archive or original download")
    parser.add_argument("--dest", required=True, help=".zip file, or an empty or absent folder")
    parser.add_argument("--resolution", help="WxH of the result, such as 64x64")
    parser.add_argument("--transform", choices=convert.TRANSFORMS, help="default: resize only")
    parser.add_argument("--max_images", "--max-images", type=int, help="only the first so many")
    parser.add_argument("--num_workers", type=int, help="threads (default: one per processor)")
    parser.add_argument("--strict", action="store_true", help="fail at the first odd image")
    options = vars(parser.parse_args(argv))
    try:
        return run(options.pop("source"), options.pop("dest"), **options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
