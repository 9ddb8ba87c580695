"""Training states of the EDM program: what tells them, and how far they are."""

from __future__ import annotations

from edm_jax.store.errors import WeightsError, show
from edm_jax.store.tensors import Tensor

_MAX_STEP = 2**53


def is_training_state(root: object) -> bool:
    """Whether an unpickled object is a training state."""
    return isinstance(root, dict) and "net" in root and "optimizer_state" in root


def optimizer_step(optimizer: object) -> int | None:
    """The number of updates in an ``optimizer_state``; None if it holds none."""
    states = optimizer.get("state") if isinstance(optimizer, dict) else None
    first = next(iter(states.values()), None) if isinstance(states, dict) else None
    if not isinstance(first, dict):
        return None
    step = first.get("step")
    if isinstance(step, Tensor) and step.numel == 1:
        step = step.array().reshape(())[()].item()
    if not isinstance(step, int | float) or not 0 <= step <= _MAX_STEP or step != int(step):
        raise WeightsError(f"optimizer state 0: step is {show(step)}, expected a count")
    return int(step)
