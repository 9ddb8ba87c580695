"""Running metrics of training: sums and counts by name, kept on the device between log lines.

    {"loss": {"sum": (), "count": ()}, "loss_per_level": {"sum": (K,), "count": (K,)}, ...}

A metric is one entry of `of_step`.  Checkpoints hold them apart from the state that must be
restored exactly: one they lack begins anew, and one that is no longer kept is left there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.typing import Array

Metrics = dict[str, dict[str, Array]]

# Edges of the noise-level bins of the running loss, in sigma; the first and last bin
# are open.  They cover every distribution of EDM Table 1.
SIGMA_BIN_EDGES = tuple(10 ** (-3 + i / 4) for i in range(21))
NUM_SIGMA_BINS = len(SIGMA_BIN_EDGES) + 1

# Name -> where the first checkpoints (format of before metrics had names) kept sum and count.
FIRST_FORMAT = {
    "loss": ("loss", "num_steps"),
    "grad_norm": ("grad_norm", "num_steps"),
    "bad_grads": ("num_bad_grads", "num_steps"),
    "bad_steps": ("num_bad_steps", "num_steps"),
    "loss_per_level": ("bin_loss", "bin_count"),
}
FIRST_FORMAT_SHAPES = {
    "num_steps": ((), jnp.int32),
    "loss": ((), jnp.float32),
    "grad_norm": ((), jnp.float32),
    "num_bad_grads": ((), jnp.float32),
    "num_bad_steps": ((), jnp.int32),
    "bin_loss": ((NUM_SIGMA_BINS,), jnp.float32),
    "bin_count": ((NUM_SIGMA_BINS,), jnp.float32),
}


def of_step(
    loss: Array,
    level: Array,
    grad_norm: Array,
    num_bad: Array,
    bad: Array,
    edges: Sequence[float] = SIGMA_BIN_EDGES,
) -> Metrics:
    """What one step adds.

    Args:
      loss: ``(B,)`` per element.
      level: ``(B,)`` noise levels.
      grad_norm: () global norm of the gradient.
      num_bad: () gradient elements that were not finite.
      bad: () whether loss or gradient was not finite.
      edges: of the bins of the levels, as many as SIGMA_BIN_EDGES.
    """
    index = jnp.searchsorted(jnp.asarray(edges, level.dtype), level)
    finite = jnp.isfinite(loss)  # one NaN would spread over all bins
    member = jax.nn.one_hot(index, NUM_SIGMA_BINS) * finite[:, None]  # a matmul, no scatter

    def per_step(value: Array) -> dict[str, Array]:
        return {"sum": value.astype(jnp.float32), "count": jnp.ones(())}

    return {
        "loss": per_step(jnp.mean(loss)),
        "grad_norm": per_step(grad_norm),
        "bad_grads": per_step(num_bad),
        "bad_steps": per_step(bad),
        "loss_per_level": {
            "sum": jnp.where(finite, loss, 0) @ member,
            "count": jnp.sum(member, axis=0),
        },
    }


def edges(objective: Any) -> tuple[float, ...]:
    """Edges of the bins of an objective's levels: its ``level_edges``, or those of sigma."""
    return tuple(getattr(objective, "level_edges", SIGMA_BIN_EDGES))


def zeros() -> Metrics:
    """Metrics of no steps."""
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    one = jax.ShapeDtypeStruct((1,), jnp.float32)
    shapes = jax.eval_shape(of_step, one, one, scalar, scalar, scalar)
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def add(metrics: Metrics, increment: Metrics, fresh: Array) -> Metrics:
    """Sums after one more step; ``fresh`` starts a new window."""
    return jax.tree.map(lambda old, new: jnp.where(fresh, 0, old) + new, metrics, increment)


def means(metrics: Metrics) -> dict[str, Any]:
    """Name -> float64 mean over the window, on the host; 0 where nothing was counted."""
    return {
        name: np.asarray(m["sum"], np.float64) / np.maximum(np.asarray(m["count"]), 1)
        for name, m in metrics.items()
    }


def from_stored(stored: Mapping[str, Any], known: Metrics) -> Metrics:
    """Stored metrics as far as they are still kept; the others as in ``known``.

    Args:
      stored: of a checkpoint, NumPy arrays; this format or the first.
      known: the metrics of a fresh state.
    """
    if "num_steps" in stored:
        stored = {
            name: {"sum": stored[total], "count": stored[count]}
            for name, (total, count) in FIRST_FORMAT.items()
        }

    def pick(name: str, part: str, fresh: Any) -> Any:
        found = stored.get(name)
        found = found.get(part) if isinstance(found, Mapping) else None
        same = found is not None and np.shape(found) == fresh.shape
        return np.asarray(found, fresh.dtype) if same else np.zeros(fresh.shape, fresh.dtype)

    return {
        name: {part: pick(name, part, fresh) for part, fresh in m.items()}
        for name, m in known.items()
    }
