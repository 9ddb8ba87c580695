"""Quality against network calls with error bars (EDM Figs. 2 and 4), and errors of steps."""

from __future__ import annotations

import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edm_jax.figures import files
from edm_jax.figures.ticks import log_axes

CALLS = "network calls per image (NFE)"
MARKERS = "os^Dv<>Pp*"
Point = tuple[float, float, float]


def _legend(fig: Any, handles: Sequence[Any]) -> None:
    """Beneath the axes, where it covers no curve."""
    if len(handles) > 1:
        columns = 1 if len(handles) > 12 else 2
        fig.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def line_with_bars(
    axes: Any, x: np.ndarray, mean: np.ndarray, error: np.ndarray, **style: Any
) -> Any:
    """A line with bars of the errors that are above 0; ``style`` is that of the line.

    Returns:
      What stands for it in a legend.
    """
    there = np.asarray(error) > 0
    if not np.any(there):
        return axes.plot(x, mean, **style)[0]
    bars = np.where(there, error, np.nan)
    return axes.errorbar(x, mean, bars, capsize=1.5, elinewidth=0.7, **style)


def quality_curves(
    path: pathlib.Path,
    lines: Mapping[str, Sequence[Point]],
    ylabel: str,
    xlabel: str = CALLS,
    *,
    title: str = "",
    note: str = "",
) -> None:
    """A line for each label: a measure against network calls, or against a setting.

    Args:
      path: file to write, .png, .pdf or .svg.
      lines: label -> ``(x, mean, standard error)``, in the order of x; an error of 0 has no
        bar.
      ylabel, xlabel: of the axes, with units; positive values spread over a decade and more
        get a logarithmic axis.
      title: above the axes.
      note: what the bars are, said where there are some.
    """
    values = np.array([point for points in lines.values() for point in points], float)
    if not values.size:
        raise ValueError("nothing to draw: the lines have no points")
    with files.style():
        height = 2.5 + 0.14 * -(-len(lines) // (1 if len(lines) > 12 else 2))
        fig, axes = files.subplots(size=(files.COLUMN, height))
        handles = []
        for i, (name, points) in enumerate(lines.items()):
            x, mean, error = np.array(points, float).T
            style = {
                "color": files.colour(i),
                "ls": files.dashes(i),
                "ms": 3,
                "label": files.plain(name),
            }
            style["marker"] = MARKERS[i % len(MARKERS)]
            handles.append(line_with_bars(axes, x, mean, error, **style))
        # A line longer than the axis is high would be cut off.
        axes.set(xlabel=xlabel, ylabel=textwrap.fill(ylabel, 30), title=files.plain(title, 60))
        for which, column in (("x", 0), ("y", 1)):
            low, high = values[:, column].min(), values[:, column].max()
            if low > 0 and high > 8 * low:
                log_axes(axes, which)
        if axes.get_xscale() == "log":
            _plain_ticks(axes, values[:, 0])
        if note and np.any(values[:, 2] > 0):
            axes.annotate(note, (0.98, 0.97), xycoords="axes fraction", ha="right", va="top",
                          fontsize=6, color="#555555")  # fmt: skip
        axes.grid(alpha=0.3, which="both", lw=0.4)
        _legend(fig, handles)
        files.save(fig, path)


def _plain_ticks(axes: Any, x: np.ndarray) -> None:
    """Powers of two, or of ten for a wide range, as plain numbers."""
    low, high = x.min(), x.max()
    base = 2.0 if high / low < 200 else 10.0
    powers = base ** np.arange(np.floor(np.log(low) / np.log(base)),
                               np.ceil(np.log(high) / np.log(base)) + 1)  # fmt: skip
    axes.set_xticks(powers, [f"{p:g}" for p in powers])
    axes.minorticks_off()
    axes.set_xlim(low / 1.2, high * 1.2)


def step_error_curves(
    path: pathlib.Path, curves: Mapping[str, Mapping[str, Sequence[float]]], *, title: str = ""
) -> None:
    """Local truncation error against the noise level at which a step begins (EDM Fig. 13).

    Args:
      path: file to write, .png, .pdf or .svg.
      curves: label -> ``{"sigmas": [...], "errors": [...]}``.
      title: above the axes.
    """
    if not curves:
        raise ValueError("nothing to draw: there are no curves")
    with files.style():
        height = 2.5 + 0.14 * -(-len(curves) // (1 if len(curves) > 12 else 2))
        fig, axes = files.subplots(size=(files.COLUMN, height))
        for i, (name, curve) in enumerate(curves.items()):
            # Of a line a point is a mark; alone it is all there is.
            axes.plot(curve["sigmas"], curve["errors"], color=files.colour(i),
                      ls=files.dashes(i), marker=MARKERS[i % len(MARKERS)], label=files.plain(name),
                      ms=2.5 if len(curve["sigmas"]) > 1 else 6)  # fmt: skip
        log_axes(axes)
        axes.set(xlabel=r"noise level $\sigma_i$ (data units)", title=files.plain(title, 60),
                 ylabel="RMS error of one step (data units)")  # fmt: skip
        axes.grid(alpha=0.3, which="major", lw=0.4)
        _legend(fig, axes.get_lines())
        files.save(fig, path)
