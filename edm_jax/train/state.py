"""What training carries from step to step."""

from __future__ import annotations

import dataclasses

from edm_jax.pytree import pytree_dataclass
from edm_jax.train.metrics import Metrics
from edm_jax.typing import Array, PyTree


@pytree_dataclass
class TrainState:
    """Everything a run needs to go on as if it had never stopped.

    Attributes:
      step: () int32, optimizer steps taken; images seen = step * batch size.
      params: raw weights, float32.
      buffers: constants of the network that are saved but not trained.
      ema: averaged weights by name (`averaging.ema_name`).
      opt_state: of the optax optimizer.
      metrics: running sums since the last log line (`train.metrics`).
      bad_streak: () int32, how many of the last steps in a row had a loss or gradient that
        was not finite.
      failed_step: () int32, first step of the first such streak that was too long; -1 if
        there was none.
      objective: history of the objective (`StatefulObjective`); empty for most.
    """

    step: Array
    params: PyTree
    buffers: PyTree
    ema: dict[str, PyTree]
    opt_state: PyTree
    metrics: Metrics
    bad_streak: Array
    failed_step: Array
    objective: PyTree = dataclasses.field(default_factory=dict)
