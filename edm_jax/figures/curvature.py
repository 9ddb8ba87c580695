"""How much the paths of a sampler bend under a schedule (what EDM Fig. 3 sketches, measured)."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np

from edm_jax.figures import files
from edm_jax.figures.ticks import log_axes
from edm_jax.typing import ArrayLike


def turning_angles(states: ArrayLike, times: ArrayLike) -> np.ndarray:
    """By how much the direction of a path in (t, x) turns at each of its inner points.

        v_i = ((x_{i+1} - x_i) / |x_N - x_0|, (t_{i+1} - t_i) / |t_N - t_0|)
        angle_i = the angle between v_{i-1} and v_i

    A straight path turns nowhere, and a solver of any order is exact on it.

    Args:
      states: ``(N+1, B, ...)`` states of B paths, in the variable that the solver steps in.
      times: ``(N+1,)`` strictly monotone.

    Returns:
      ``(N-1,)`` in radians, the mean over the paths.
    """
    states, times = np.asarray(states, np.float64), np.asarray(times, np.float64)
    if states.ndim < 2 or len(states) != len(times) or len(times) < 3:
        raise ValueError(
            f"needs states (N+1, B, ...) and times (N+1,) with N >= 2, got {states.shape} and "
            f"{times.shape}"
        )
    flat = states.reshape(*states.shape[:2], -1)
    length = np.linalg.norm(flat[-1] - flat[0], axis=-1)
    moves = np.diff(flat, axis=0) / np.maximum(length, 1e-30)[None, :, None]
    spans = np.diff(times)[:, None, None] / np.abs(times[-1] - times[0])
    arrows = np.concatenate([moves, np.broadcast_to(spans, (*moves.shape[:2], 1))], axis=-1)
    arrows /= np.linalg.norm(arrows, axis=-1, keepdims=True)
    # From the difference: the cosine of a small angle has lost it.
    half = np.linalg.norm(np.diff(arrows, axis=0), axis=-1) / 2
    return 2 * np.arcsin(np.clip(half, 0, 1)).mean(axis=-1)


def curvature_curves(
    path: pathlib.Path,
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str = "",
) -> None:
    """The sum of turns from the noise down to each level, a line for each schedule.

    Args:
      path: file to write, .png, .pdf or .svg.
      curves: label -> noise levels ``(N-1,)`` and `turning_angles` ``(N-1,)`` there.
      title: above the axes.
    """
    if not curves:
        raise ValueError("nothing to draw: there are no curves")
    with files.style():
        fig, axes = files.subplots(size=(files.COLUMN, 2.4))
        for i, (name, (sigmas, angles)) in enumerate(curves.items()):
            axes.plot(sigmas, np.degrees(np.cumsum(angles)), color=files.colour(i),
                      ls=("-", "--", ":", "-.")[i % 4], label=files.plain(name))  # fmt: skip
        axes.set(xlabel=r"noise level $\sigma$ (data units)", title=files.plain(title, 60),
                 ylabel="turn of the path so far (degrees)")  # fmt: skip
        log_axes(axes, "x")
        axes.invert_xaxis()
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3, lw=0.4)
        axes.legend(framealpha=0.7)
        files.save(fig, path)
