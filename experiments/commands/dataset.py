r"""Convert images of any kind to the EDM zip format.

    python experiments/main.py --mode=dataset --source=images/ --dest=images-64x64.zip \
        --resolution=64x64 --transform=center-crop

The source is a folder (also an LSUN one ending in _lmdb), a .zip, cifar-10-python.tar.gz or
train-images-idx3-ubyte.gz.  Interrupted, it goes on where it stopped when the same command
is repeated.

Labels are those of a dataset.json, else the class folders (--unlabelled leaves them out).  Grey
images become colour where there is colour; transparent ones need a --background=white; hidden
files and folders of other programs are left out.
"""

from __future__ import annotations

import os
import pathlib
import sys
import types
from typing import TYPE_CHECKING, Any

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
        "How images get another shape; by default they are resized as they are.",
        example="center-crop",
    ),
    flags.text(
        "background",
        "A colour that transparent images are laid on; by default they cannot be used.",
        example="white",
    ),
    flags.integer("max_images", "Stop after this many.", least=1, example="1000"),
    flags.integer("num_workers", "Threads; by default one per core.", least=1, example="8"),
    flags.switch("strict", "End with an error at the first unusable image."),
    flags.switch("unlabelled", "Leave labels out, whatever there is."),
)

# More than that is no longer read on a screen; the rest goes to a file.
_LISTED = 50


def run(values: types.SimpleNamespace) -> None:
    """Convert and report."""
    names = {flag.name for flag in FLAGS} - {"source", "dest"}
    convert_images(values.source, values.dest, **{name: getattr(values, name) for name in names})


class MostSkipped(RuntimeError):
    """A conversion that wrote what it could, which was less than half."""


def convert_images(
    source: str | os.PathLike,
    dest: str | os.PathLike,
    *,
    resolution: str | tuple[int, int] | None = None,
    progress: bool = True,
    **options: Any,
) -> None:
    """Convert ``source`` and print what came out, odd images by name.

    Args:
      source: folder (also an LSUN one ending in _lmdb), .zip, cifar-10-python.tar.gz or
        train-images-idx3-ubyte.gz.
      dest: .zip file, or a folder that is empty or absent.
      resolution: "WxH" or (width, height).
      progress: show a progress bar.
      **options: of `edm_jax.data.conversion.convert.convert`.

    Raises:
      ValueError, OSError: as `edm_jax.data.conversion.convert.convert`.
      MostSkipped: after the report, if fewer images were written than skipped.
    """
    from edm_jax.data.conversion import convert

    if isinstance(resolution, str):
        resolution = convert.parse_resolution(resolution)
    report = convert.convert(source, dest, resolution=resolution, progress=progress, **options)
    _print_report(report)


def _say(text: str) -> None:
    """Print; what the terminal has no letters for is escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def _print_report(report: Report) -> None:
    from edm_jax.data.sources.names import shown

    dest = shown(report.dest)
    for note in report.notes:
        _say(f"Note: {note}.")
    lines = [
        f"{'used' if problem.used else 'SKIPPED'}  {problem.name}: {problem.text}"
        for problem in report.problems
    ]
    if lines:
        _say(f"{len(lines)} remarks on images:")
        _say("\n".join(f"  {line}" for line in lines[:_LISTED]))
    if len(lines) > _LISTED:
        path = f"{report.dest}.problems.txt"
        pathlib.Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
        _say(f"  ... and {len(lines) - _LISTED} more; all are in {shown(path)}")
    again = f" ({report.resumed} were there already)" if report.resumed else ""
    _say(
        f"{dest}: {report.written} images written, {report.skipped} skipped{again}; "
        f"{report.width}x{report.height}, {report.channels} channels, {report.labels}."
    )
    if report.skipped > report.written:
        skipped = [problem for problem in report.problems if not problem.used]
        raise MostSkipped(
            f"most images were skipped, {report.skipped} of {report.skipped + report.written}, "
            f"such as {skipped[0].name}: {skipped[0].text}"
        )
