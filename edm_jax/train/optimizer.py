"""Adam as EDM trains with it: a linear ramp of the learning rate, gradients made finite."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from edm_jax.arguments import check_number
from edm_jax.typing import Array, ArrayLike, PyTree

MAX_GRAD = 1e5  # what an infinite gradient element becomes (EDM training program)


def learning_rate(nimg: ArrayLike, peak: float, rampup_nimg: float) -> ArrayLike:
    """``peak * min(nimg / rampup_nimg, 1)``: linear ramp, then constant.

    The very first step (nimg = 0) has learning rate 0, as in the published training.
    Python numbers give a Python number, with no work for the device.
    """
    share = nimg / max(rampup_nimg, 1e-8)
    return peak * (min(share, 1.0) if isinstance(share, float) else jnp.minimum(share, 1.0))


def sanitize_gradients(grads: PyTree) -> tuple[PyTree, Array]:
    """NaN -> 0, +inf -> 1e5, -inf -> -1e5; also the number of elements replaced.

    The number is float32, exact up to 2^24: an int32 would overflow over a window of
    steps without a single good gradient.
    """
    bad = sum(jnp.sum(~jnp.isfinite(g), dtype=jnp.float32) for g in jax.tree.leaves(grads))
    clean = jax.tree.map(
        lambda g: jnp.nan_to_num(g, nan=0.0, posinf=MAX_GRAD, neginf=-MAX_GRAD), grads
    )
    return clean, bad


def make_optimizer(
    *,
    batch_size: int,
    lr: float,
    lr_rampup_kimg: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    grad_clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """Adam with the linear ramp of `learning_rate`, counted in images.

    ``grad_clip_norm`` bounds the global norm of the gradient first; 0 does not.

    Raises:
      ValueError: for a number that no training can have.
    """
    check_number("lr", lr, least=0)
    check_number("lr_rampup_kimg", lr_rampup_kimg, least=0)
    check_number("b1", b1, least=0, below=1)
    check_number("b2", b2, least=0, below=1)
    check_number("eps", eps, above=0)
    check_number("grad_clip_norm", grad_clip_norm, least=0)

    def schedule(count: Array) -> Array:
        return learning_rate(count.astype(jnp.float32) * batch_size, lr, lr_rampup_kimg * 1000)

    adam = optax.adam(schedule, b1=b1, b2=b2, eps=eps)
    if not grad_clip_norm:
        return adam
    return optax.chain(optax.clip_by_global_norm(grad_clip_norm), adam)
