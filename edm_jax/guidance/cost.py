"""What a guided sampling costs, in images through each network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.guidance import base
from edm_jax.typing import Array, ArrayLike, DenoiseFn


def visited_levels(
    sample: Callable[[DenoiseFn, Array], Any], *, size: int = 1, dtype: jnp.dtype = jnp.float32
) -> list[np.ndarray]:
    """The noise levels at which a sampler evaluates D, in order, found by running it once.

    Args:
      sample: ``sample(denoise, x)``; samples of an adaptive solver depend on D, whose stand-in
        here is that of normal data.
      size: images of the stand-in batch.
      dtype: of its state.

    Returns:
      A scalar or ``(B,)`` for each evaluation.
    """
    levels: list[np.ndarray] = []

    def denoise(x: Array, sigma: ArrayLike) -> Array:
        jax.debug.callback(lambda s: levels.append(np.array(s)), jnp.asarray(sigma), ordered=True)
        return x / (1 + base.column(jnp.square(jnp.asarray(sigma)), x))

    jax.block_until_ready(sample(denoise, jnp.ones((size, 1), dtype)))
    jax.effects_barrier()
    return levels


def network_rows(
    guidance: base.Guidance | None, levels: Iterable[ArrayLike], batch_size: int = 1
) -> dict[str, int]:
    """Images that go through each network while D_g is evaluated at the given levels.

    Classifier-free guidance counts twice where it acts, and once where the interval or w
    switches it off, whether its halves go together or apart.

    Args:
      guidance: None for none.  Its numbers must be known.
      levels: of the evaluations, as `visited_levels` finds them.
      batch_size: images of a batch.

    Returns:
      ``{"denoiser": rows, "weaker": rows, ...}``; one row of "classifier" is its value and
      its gradient.
    """
    total: dict[str, int] = {}
    for sigma in levels:
        counts = {"denoiser": 1} if guidance is None else guidance.evaluations(sigma)
        for name, count in counts.items():
            total[name] = total.get(name, 0) + count * batch_size
    return total
