"""DDPM tables of noise levels, and the respacing rules that visit part of one.

The networks of DDPM, iDDPM and ADM know M levels.  Sampling in fewer steps keeps a
subset of their indices, and the variances follow from the kept levels alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edm_jax.grids import as_sigmas
from edm_jax.schedules import append_zero, ddpm_levels
from edm_jax.typing import ArrayLike

__all__ = ["ddpm_levels", "respaced_indices", "respaced_sigmas"]


def _count(text: str, steps: str) -> int:
    if not text.strip().isdecimal():
        raise ValueError(
            f"steps must be 'K', 'K,L,...' or 'ddimK' with whole numbers, got {steps!r}"
        )
    return int(text)


def respaced_indices(num_levels: int, steps: str | int | Sequence[int]) -> np.ndarray:
    """Which of a network's M indices a shorter ancestral or DDIM run visits.

    Args:
      num_levels: M.
      steps: K (an int, or "K"), K evenly spread indices from 0 to M - 1; a list of
        counts (or "10,20,30"), one for each of as many equal sections of the
        indices; or "ddimK", the smallest stride that gives K indices 0, i, 2i, ...

    Returns:
      Increasing integers in [0, M).
    """
    if isinstance(steps, str) and steps.startswith("ddim"):
        count = _count(steps[len("ddim") :], steps)
        for stride in range(1, num_levels + 1):
            if -(-num_levels // stride) == count:
                return np.arange(0, num_levels, stride)
        raise ValueError(f"no stride over {num_levels} levels gives {count} steps")
    if isinstance(steps, str):
        counts = [_count(part, steps) for part in steps.split(",")]
    else:
        counts = list(steps) if np.ndim(steps) else [steps]
    if not counts or not all(isinstance(count, int | np.integer) for count in counts):
        raise ValueError(f"steps must be a count, or a list of counts, got {steps!r}")
    size, extra = divmod(num_levels, len(counts))
    indices, start = [], 0
    for section, count in enumerate(counts):
        section_size = size + (section < extra)
        if not 1 <= count <= section_size:
            raise ValueError(
                f"a section of {section_size} levels cannot give {count} steps (steps={steps!r})"
            )
        stride = (section_size - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0
        for _ in range(count):
            # A running sum, rounded half to even: other roundings pick other indices.
            indices.append(start + round(position))
            position += stride
        start += section_size
    return np.array(indices)


def respaced_sigmas(levels: ArrayLike, indices: ArrayLike) -> np.ndarray:
    """The grid that visits the given indices of a table, largest level first.

    Args:
      levels: ``(M+1,)`` decreasing table ending in 0 (`ddpm_levels`).
      indices: ``(K,)`` network indices (`respaced_indices`).

    Returns:
      ``(K+1,)``, last entry 0.
    """
    levels = as_sigmas(levels)
    indices = np.unique(indices)
    if not indices.size:
        raise ValueError("indices must hold at least one index, got none")
    if indices[0] < 0 or indices[-1] > len(levels) - 2:
        raise ValueError(f"indices must lie in [0, {len(levels) - 2}], got {indices}")
    return append_zero(levels[len(levels) - 2 - indices[::-1]])
