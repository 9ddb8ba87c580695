"""Figures to files: whole or not at all, and readable in a column of a paper."""

from __future__ import annotations

import contextlib
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

# A column of a two-column page, in inches.  Text of 7 to 8 points stays legible there.
COLUMN = 3.35
FORMATS = ("png", "pdf", "svg")
LONGEST = 40  # characters of a name: about half a column
# Okabe & Ito (2008): told apart with every kind of colour vision, and in grey by their order;
# yellow, too light on white, is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#222222")
_DASHES = ("-", "--", ":", "-.")
STYLE = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "lines.linewidth": 1.2,
    "axes.linewidth": 0.6,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,  # text stays text
    "text.usetex": False,  # names of classes and files are no TeX
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The style of these figures, for what is drawn and saved within."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def subplots(rows: int = 1, columns: int = 1, *, size: tuple[float, float], **options: Any) -> Any:
    """A figure and its axes; without pyplot, whose state belongs to the user."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=size, layout="constrained")
    return fig, fig.subplots(rows, columns, **options)


def colour(index: int) -> str:
    """Of the line with a number."""
    return COLOURS[index % len(COLOURS)]


def dashes(index: int) -> str:
    """Of the line with a number: lines of one colour differ."""
    return _DASHES[index // len(COLOURS) % len(_DASHES)]


def one_line(text: Any, most: int = LONGEST) -> str:
    """What somebody named, on one line and no longer than fits: its start and its end."""
    shown = "".join(c if c.isprintable() else " " for c in str(text))
    shown = " ".join(shown.split())
    if len(shown) <= most:
        return shown
    head = (most - 1) // 2
    return f"{shown[:head]}…{shown[len(shown) - (most - 1 - head) :]}"


def plain(text: Any, most: int = LONGEST) -> str:
    r"""A name (of a class, a file, a run) as matplotlib shows it: ``$`` begins no formula.

    Whatever is written from names into a figure of matplotlib goes through this; in a picture
    of Pillow, which knows no formulas, through `one_line`.
    """
    return one_line(text, most).replace("$", r"\$")


# Whose errors are those of drawing.
_DRAW = ("builtins", "matplotlib", "numpy", "PIL", "pyparsing")


@contextlib.contextmanager
def costing_nothing_else(path: pathlib.Path) -> Iterator[None]:
    """What goes wrong with drawing a figure costs this figure and one line, and no more.

    Errors of the system, such as a full disk, and those that others define, such as a request to
    stop, are none of drawing.
    """
    try:
        yield
    except Exception as error:  # drawing is a library's, whose errors are of any kind
        if isinstance(error, OSError) or type(error).__module__.split(".")[0] not in _DRAW:
            raise
        why = one_line(error, 200) or type(error).__name__
        warnings.warn(f"the figure {path} could not be drawn: {why}", stacklevel=3)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A name to write to, which becomes ``path`` when the file is whole: never half a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save(fig: Any, path: pathlib.Path, *, dpi: float = 300) -> None:
    """Write a figure of matplotlib in the format of the file's ending; dpi is of a PNG."""
    kind = path.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise ValueError(f"a figure must end in one of {', '.join(FORMATS)}, got {path.name!r}")
    # Without a date the same figure is the same file.
    stamp = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
    with replacing(path) as temporary:
        fig.savefig(temporary, dpi=dpi, format=kind, metadata=stamp)
