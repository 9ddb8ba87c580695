"""Pictures of latent codes: strips of images between images, and errors against steps."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from edm_jax.figures import files
from edm_jax.figures.ticks import log_axes
from edm_jax.generate import to_uint8
from edm_jax.likelihood.code_errors import CodeErrors

LEVEL = 1 / 127.5  # one 8-bit level of images in [-1, 1]
LEAST_SIDE = 64  # pixels of a tile on a strip, so that small images can be seen
COLOURS = files.COLOURS
STYLES = {"latent": "-", "image": "--", "round_trip": ":"}
WORDS = {"latent": "code", "image": "image from an exact code", "round_trip": "round trip"}


def strip(frames: np.ndarray, *, gap: int = 4, side: int = LEAST_SIDE) -> np.ndarray:
    """Frames between pairs of images, one pair a row, on white.

    The ends, which are the images themselves, stand a little apart.

    Args:
      frames: ``(B, F, H, W, C)`` in [-1, 1], as `interpolate` returns them.
      gap: pixels between tiles.
      side: least height of a tile; smaller images are magnified by whole numbers.

    Returns:
      ``(H', W', C)`` uint8.
    """
    frames = np.asarray(frames)
    if frames.ndim != 5 or not frames.size:
        raise ValueError(f"frames must have shape (B, F, H, W, C), got {frames.shape}")
    scale = max(1, -(-side // frames.shape[2]))
    tiles = to_uint8(frames).repeat(scale, axis=2).repeat(scale, axis=3)
    rows, count, height, width, channels = tiles.shape
    left = [gap + i * (width + gap) + (gap if i else 0) for i in range(count)]
    left[-1] += gap if count > 1 else 0
    shape = (gap + rows * (height + gap), left[-1] + width + gap, channels)
    sheet = np.full(shape, 255, np.uint8)
    for i, row in enumerate(tiles):
        top = gap + i * (height + gap)
        for at, tile in zip(left, row, strict=True):
            sheet[top : top + height, at : at + width] = tile
    return sheet


def plot_code_errors(axis: Any, measured: Sequence[CodeErrors]) -> None:
    """Errors against N on axes of matplotlib, one colour for each solver."""
    for colour, errors in zip(COLOURS, measured, strict=False):
        for name, style in STYLES.items():
            axis.plot(errors.num_steps, getattr(errors, name), style, color=colour, marker="o",
                      ms=3, label=f"{errors.solver}: {WORDS[name]}")  # fmt: skip
    axis.axhline(LEVEL, color="#888888", lw=0.8)
    steps = measured[0].num_steps
    axis.annotate("one 8-bit level", (steps[0], LEVEL), va="bottom", fontsize=8, color="#555555")
    log_axes(axis)
    axis.set_xticks(steps, [str(n) for n in steps])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("steps N")
    axis.set_ylabel("root mean square error per element")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)


def draw_code_errors(measured: Sequence[CodeErrors], path: str | pathlib.Path) -> None:
    """Errors of codes and decoded images against N, as a picture.

    Args:
      measured: of `code_errors`, one for each solver.
      path: PNG, PDF or SVG file.
    """
    if not measured:
        raise ValueError("nothing to draw: pass what code_errors returns, in a list")
    with files.style():
        figure, axis = files.subplots(size=(1.4 * files.COLUMN, 3.2))
        plot_code_errors(axis, measured)
        files.save(figure, pathlib.Path(path))
