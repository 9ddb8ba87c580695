"""Decoding in progress: what is known of an image and what is not, step by step."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edm_jax.figures.sheets import sample_grid
from edm_jax.typing import ArrayLike

MAX_COLUMNS = 12
_TINT = np.array([66, 133, 244])  # of what is unknown


def decoding_frames(x: ArrayLike, known: ArrayLike, num_values: int) -> np.ndarray:
    """States of a decoding as pictures: known values in grey or colour, unknown ones tinted blue.

    Args:
      x: ``(n, H, W, C)`` integers 0..K-1: states, as `ardm.sample.Path` has them.
      known: ``(n, H, W, C or 1)`` bool.
      num_values: K.

    Returns:
      ``(n, H, W, 3)`` uint8.  A pixel of which some channels are known is tinted in part.
    """
    x, known = np.asarray(x, np.float64), np.asarray(known)
    grey = np.broadcast_to(x * (255 / (num_values - 1)), (*x.shape[:3], 3))
    share = 1 - known.mean(axis=-1, keepdims=True)
    return np.rint(grey * (1 - 0.7 * share) + _TINT * 0.7 * share).astype(np.uint8)


def shown_steps(num_steps: int, num_columns: int = MAX_COLUMNS) -> np.ndarray:
    """Which of the states 0..num_steps are shown: evenly, both ends among them."""
    count = min(num_columns, num_steps + 1)
    return np.unique(np.rint(np.linspace(0, num_steps, count)).astype(int))


def decoding_sheet(
    path: pathlib.Path,
    x: ArrayLike,
    known: ArrayLike,
    num_values: int,
    *,
    names: Sequence[str] | None = None,
    title: str = "",
    told: Mapping[str, Any] | None = None,
    num_columns: int = MAX_COLUMNS,
) -> None:
    """A row per image, from the state in which nothing is drawn to the image.

    Args:
      path: file to write, .png or .pdf.
      x: ``(N + 1, n, H, W, C)`` integers.
      known: ``(N + 1, n, H, W, C or 1)`` bool.
      num_values: K.
      names: of the rows.
      title, told: see `sheets.sample_grid`.
      num_columns: at most so many states, evenly spaced.
    """
    x, known = np.asarray(x), np.asarray(known)
    steps = shown_steps(len(x) - 1, num_columns)
    rows = [decoding_frames(x[steps, i], known[steps, i], num_values) for i in range(x.shape[1])]
    sample_grid(path, np.concatenate(rows), len(steps), row_names=names, title=title, told=told)
