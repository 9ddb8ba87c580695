"""A measure at every step of a sequence of changes, as the rows of EDM Table 2."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from edm_jax.figures import files
from edm_jax.figures.nfe import MARKERS, line_with_bars
from edm_jax.figures.ticks import log_axes

# Values further apart are drawn on a logarithmic axis.
LOG_RANGE = 10


def ladder(
    path: pathlib.Path,
    steps: Sequence[str],
    lines: Mapping[str, Sequence[Sequence[float]]],
    ylabel: str,
    *,
    title: str = "",
) -> None:
    """A line for each label over named steps: mean, standard error, and every value.

    Args:
      path: file to write, .png, .pdf or .svg.
      steps: names, in order.
      lines: label -> values of every repetition at each step; a step without any is left out.
      ylabel: the measure, with its unit.
      title: above the axes.
    """
    with files.style():
        fig, axes = files.subplots(size=(files.COLUMN, 2.5))
        handles = []
        for i, (name, points) in enumerate(lines.items()):
            shift = 0.08 * (i - (len(lines) - 1) / 2)
            there = [(k, np.asarray(v, float)) for k, v in enumerate(points) if len(v)]
            if not there:
                continue
            x = np.array([k + shift for k, _ in there])
            mean = [v.mean() for _, v in there]
            error = [v.std(ddof=1) / np.sqrt(len(v)) if len(v) > 1 else 0.0 for _, v in there]
            style = {
                "color": files.colour(i),
                "marker": MARKERS[i],
                "ms": 4,
                "label": files.plain(name),
            }
            handles.append(line_with_bars(axes, x, mean, error, **style))
            for at, (_, values) in zip(x, there, strict=True):
                axes.plot(np.full(len(values), at), values, ".", color=files.colour(i), ms=2.5,
                          alpha=0.5)  # fmt: skip
        axes.set_xticks(range(len(steps)), [files.plain(step) for step in steps])
        axes.set(ylabel=ylabel, title=files.plain(title, 60), xlabel="training configuration\n"
                 "(bars: standard error; dots: single runs)")  # fmt: skip
        values = [v for points in lines.values() for step in points for v in step]
        if values and min(values) > 0 and max(values) > LOG_RANGE * min(values):
            log_axes(axes, "y")
        else:
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3, lw=0.4)
        if handles:
            axes.legend(handles=handles, framealpha=0.7)
        files.save(fig, path)
