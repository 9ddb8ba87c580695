"""Improved precision and recall, density and coverage: by balls around nearest neighbours.

The ball of an image reaches to its k-th nearest neighbour within its own set.

    precision  share of generated images in the ball of any real image
    recall     share of real images in the ball of any generated image
    density    mean number of real balls that a generated image lies in, over k
    coverage   share of real images whose ball has a generated image in it

Distances are computed on the device in blocks; the sets stay on the host, and nothing is as
large as the product of their sizes.

Sources: Kynkaanniemi et al. 2019, *Improved Precision and Recall Metric*; Naeem et al. 2020,
*Reliable Fidelity and Diversity Metrics*.  As in their programs, a point on the sphere is
inside for the first two and outside for the others.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.metrics.reference import Reference
from edm_jax.metrics.result import Accumulated, Result, enough
from edm_jax.typing import Array

NEIGHBOURS = 3
_BLOCK = 2048  # rows of either set whose distances are in memory at once


def _squared_distances(x: Array, y: Array) -> Array:
    """``(n, D)`` and ``(m, D)`` -> ``(n, m)``, in full float32."""
    products = jnp.matmul(x, y.T, precision="highest")
    squares = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None, :]
    return jnp.maximum(squares - 2 * products, 0)


@jax.jit
def _nearer(nearest: Array, x: Array, y: Array, apart: Array, size: Array) -> Array:
    """The smallest distances so far, ``(n, k)``, with those to another block among them.

    Args:
      nearest: squared distances, any order.
      x, y: blocks of one set.
      apart: index of the first row of x within y; a row is no neighbour of itself.
      size: rows of y that count.
    """
    found = _squared_distances(x, y)
    columns = jnp.arange(len(y))[None, :]
    itself = columns == apart + jnp.arange(len(x))[:, None]
    found = jnp.where(itself | (columns >= size), jnp.inf, found)
    both = jnp.concatenate([nearest, found], axis=1)
    return -jax.lax.top_k(-both, nearest.shape[1])[0]


@jax.jit
def _inside(
    generated: Array, real: Array, generated_radii: Array, real_radii: Array
) -> tuple[Array, Array, Array, Array]:
    """Who lies in whose ball, of two blocks; padding has the radius -1 and lies nowhere.

    Returns:
      Of each generated image whether a real ball has it, and how many have it inside; of each
      real image whether a generated ball has it, and whether its own has one inside.
    """
    squared = _squared_distances(generated, real)
    there = (generated_radii >= 0)[:, None] & (real_radii >= 0)[None, :]
    squared = jnp.where(there, squared, jnp.inf)
    within = squared < real_radii[None, :]
    return (
        jnp.any(squared <= real_radii[None, :], axis=1),
        jnp.sum(within, axis=1),
        jnp.any(squared <= generated_radii[:, None], axis=0),
        jnp.any(within, axis=0),
    )


def _blocks(rows: np.ndarray, block: int, fill: float = 0) -> Iterator[tuple[int, int, np.ndarray]]:
    """Start, number of rows, and rows filled up to the size of a block."""
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        padding = ((0, block - len(part)), *[(0, 0)] * (rows.ndim - 1))
        yield start, len(part), np.pad(part, padding, constant_values=fill)


def squared_radii(features: np.ndarray, k: int, block: int = _BLOCK) -> np.ndarray:
    """Squared distance of every row to its k-th nearest neighbour, itself not counted.

    Args:
      features: ``(n, D)`` float32.
      k: less than n.
      block: rows whose distances are in memory at once.

    Returns:
      ``(n,)`` float32.
    """
    if not 1 <= k < len(features):
        raise ValueError(f"k must be 1 to {len(features) - 1}, the other images, got {k}")
    block = min(block, len(features))
    radii = []
    for start, size, rows in _blocks(features, block):
        nearest, x = jnp.full((block, k), jnp.inf), jnp.asarray(rows)
        for other, there, columns in _blocks(features, block):
            nearest = _nearer(nearest, x, columns, start - other, there)
        radii.append(np.asarray(nearest).max(axis=1)[:size])
    return np.concatenate(radii)


def precision_recall(
    generated: np.ndarray, real: np.ndarray, k: int = NEIGHBOURS, block: int = _BLOCK
) -> dict[str, float]:
    """The four shares, by name.

    Args:
      generated, real: ``(n, D)`` and ``(m, D)`` features.
      k: which neighbour a ball reaches to.
      block: rows whose distances are in memory at once.

    Returns:
      ``precision``, ``recall`` and ``coverage`` in [0, 1], ``density`` from 0 on.

    Raises:
      ValueError: k is not below the number of rows, or the widths differ.
    """
    if generated.shape[1:] != real.shape[1:]:
        raise ValueError(
            f"features of {generated.shape[1]} and {real.shape[1]} numbers have no distance; "
            "take both from the same extractor"
        )
    # The digits that a common offset would cost are needed for the differences.
    centre = np.float32(np.mean(real, axis=0, dtype=np.float64))
    generated, real = (np.float32(features - centre) for features in (generated, real))
    radii = [squared_radii(features, k, block) for features in (generated, real)]

    generated_block, real_block = (min(block, len(features)) for features in (generated, real))
    # Padding is told by its radius.
    generated_balls = [r for _, _, r in _blocks(radii[0], generated_block, -1)]
    real_balls = [r for _, _, r in _blocks(radii[1], real_block, -1)]
    reached, inside = np.zeros(len(generated), bool), np.zeros(len(generated), np.int64)
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for (start, size, x), x_radii in zip(
        _blocks(generated, generated_block), generated_balls, strict=True
    ):
        for (other, there, y), y_radii in zip(_blocks(real, real_block), real_balls, strict=True):
            found = _inside(x, y, x_radii, y_radii)
            any_real, count, any_generated, has = (np.asarray(a) for a in found)
            rows, columns = slice(start, start + size), slice(other, other + there)
            reached[rows] |= any_real[:size]
            inside[rows] += count[:size]
            recalled[columns] |= any_generated[:there]
            covered[columns] |= has[:there]
    return {
        "precision": float(reached.mean()),
        "recall": float(recalled.mean()),
        "density": float(inside.mean() / k),
        "coverage": float(covered.mean()),
    }


def measure(accumulated: Accumulated, reference: Reference | None) -> dict[str, Result]:
    """Precision, recall, density and coverage of the accumulated features."""
    assert reference is not None and reference.features is not None
    features = accumulated["features"].result()
    enough(len(features), NEIGHBOURS + 1, "precision and recall")
    enough(len(reference.features), NEIGHBOURS + 1, "the reference of precision and recall")
    found = precision_recall(features, reference.features)
    remarks = (
        f"{len(features)} generated and {len(reference.features)} real images, k = {NEIGHBOURS}; "
        "the numbers depend on all three",
    )
    return {name: Result(value, remarks=remarks) for name, value in found.items()}
