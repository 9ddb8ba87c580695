"""Batches of a model of kind "ardm", from seeds to images or sequences; one program."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from edm_jax import seeds as seeds_lib
from edm_jax.ardm.registry import model_predictor
from edm_jax.ardm.sample import Path, sample_ardm
from edm_jax.typing import Array


def to_unit_range(x: Array, num_values: int) -> Array:
    """Values 0..K-1 -> float32 in [-1, 1], as images are everywhere else."""
    return x.astype(jnp.float32) * (2 / (num_values - 1)) - 1


@functools.partial(jax.jit, static_argnames=("trajectory", "mesh"))
def draw_batch(
    model: Any,
    seeds: Array,
    rows: Array | None,
    *,
    policies: Array,
    guidance: None = None,
    trajectory: bool = False,
    mesh: jax.sharding.Mesh | None = None,
) -> Array | Path:
    """One batch; compiled once per (network, shape, calls), and mesh.

    Args:
      model: of kind "ardm".
      seeds: ``(B,)`` bits of the seeds (`seeds.seed_bits`).
      rows: ``(B, num_classes)``, or None.
      policies: ``(S, n + 1)``.
      guidance: there is none.
      mesh: over which the batch is split (`edm_jax.models.ops.target.batch_over`).
      trajectory: return every state, in values 0..K-1.

    Returns:
      Images ``(B, H, W, C)`` float32 in [-1, 1], sequences ``(B, L)`` int32, or a `Path`.
    """
    del guidance
    predict, process = model_predictor(model, rows)
    keys, shape = seeds_lib.image_keys(seeds), model.image_shape
    drawn = sample_ardm(predict, process, keys, shape, policies, trajectory=trajectory)
    if trajectory or len(shape) == 1:
        return drawn
    return to_unit_range(drawn, process.num_values)
