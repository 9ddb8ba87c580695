"""What training carries from step to step."""

from __future__ import annotations

import jax.numpy as jnp

from edm_jax.pytree import pytree_dataclass
from edm_jax.typing import Array, PyTree

# Edges of the noise-level bins of the running loss, in sigma; the first and last bin
# are open.  They cover every distribution of EDM Table 1.
SIGMA_BIN_EDGES = tuple(10 ** (-3 + i / 4) for i in range(21))
NUM_SIGMA_BINS = len(SIGMA_BIN_EDGES) + 1


@pytree_dataclass
class Metrics:
    """Sums over the steps since the last log line, kept on the device.

    Attributes:
      num_steps: () int32, steps summed.
      loss: () float32, sum over steps of the mean weighted loss per element.
      grad_norm: () float32, sum over steps of the global gradient norm.
      num_bad_grads: () float32, gradient elements that were not finite.
      num_bad_steps: () int32, steps whose loss or gradient was not finite.
      bin_loss: ``(NUM_SIGMA_BINS,)`` float32, loss per element summed over the images
        of each noise-level bin.
      bin_count: ``(NUM_SIGMA_BINS,)`` float32, images in each bin.
    """

    num_steps: Array
    loss: Array
    grad_norm: Array
    num_bad_grads: Array
    num_bad_steps: Array
    bin_loss: Array
    bin_count: Array

    @classmethod
    def zeros(cls) -> Metrics:
        """Metrics of no steps."""
        bins = (NUM_SIGMA_BINS,)
        return cls(
            num_steps=jnp.zeros((), jnp.int32),
            loss=jnp.zeros(()),
            grad_norm=jnp.zeros(()),
            num_bad_grads=jnp.zeros((), jnp.float32),
            num_bad_steps=jnp.zeros((), jnp.int32),
            bin_loss=jnp.zeros(bins),
            bin_count=jnp.zeros(bins),
        )


@pytree_dataclass
class TrainState:
    """Everything a run needs to go on as if it had never stopped.

    Attributes:
      step: () int32, optimizer steps taken; images seen = step * batch size.
      params: raw weights, float32.
      buffers: constants of the network that are saved but not trained.
      ema: averaged weights by name (`ema_name`).
      opt_state: of the optax optimizer.
      metrics: running sums since the last log line.
      bad_streak: () int32, how many of the last steps in a row had a loss or gradient that
        was not finite.
      failed_step: () int32, first step of the first such streak that was too long; -1 if
        there was none.
    """

    step: Array
    params: PyTree
    buffers: PyTree
    ema: dict[str, PyTree]
    opt_state: PyTree
    metrics: Metrics
    bad_streak: Array
    failed_step: Array


def ema_name(halflife_kimg: float) -> str:
    """Name of an EMA variant, for example ``ema_500kimg``."""
    return f"ema_{halflife_kimg:g}kimg"
