"""Adam as EDM trains with it: a linear ramp of the learning rate, gradients made finite.

And what ADM's classifier needs beside it: weights that decay, a rate that falls to 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from edm_jax.arguments import check_number
from edm_jax.typing import Array, ArrayLike, PyTree

MAX_GRAD = 1e5  # what an infinite gradient element becomes (EDM training program)


def learning_rate(
    nimg: ArrayLike, peak: float, rampup_nimg: float, end_nimg: float = 0.0
) -> ArrayLike:
    """``peak * min(nimg / rampup_nimg, 1) * max(1 - nimg / end_nimg, 0)``.

    A linear ramp, then constant, or with ``end_nimg`` along a straight line from the first
    image to 0 there (guided-diffusion's training of classifiers).  The very first step
    (nimg = 0) has learning rate 0, as in the published training of EDM; that of a falling rate
    without a ramp has all of it, as in that of classifiers.  Python numbers give a Python
    number, with no work for the device.

    Args:
      nimg: images seen before the step.
      peak: the rate.
      rampup_nimg: images of the ramp; 0 for none.
      end_nimg: images after which the rate is 0; 0 for never.
    """
    known = isinstance(nimg, int | float)
    least, most = (min, max) if known else (jnp.minimum, jnp.maximum)
    rate = peak
    if rampup_nimg or not end_nimg:
        rate = peak * least(nimg / max(rampup_nimg, 1e-8), 1.0)
    return rate * most(1 - nimg / end_nimg, 0.0) if end_nimg else rate


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
    weight_decay: float = 0.0,
    lr_end_kimg: float = 0.0,
) -> optax.GradientTransformation:
    """Adam with the rate of `learning_rate`, counted in images.

    Args:
      batch_size: global.
      lr, lr_rampup_kimg, lr_end_kimg: of `learning_rate`, in thousands of images.
      b1, b2, eps: of Adam.
      grad_clip_norm: bounds the global norm of the gradient first; 0 does not.
      weight_decay: all weights w lose lr weight_decay w in a step (AdamW), at the rate of the
        step; 0 for none.

    Raises:
      ValueError: for a number that no training can have.
    """
    check_number("lr", lr, least=0)
    check_number("lr_rampup_kimg", lr_rampup_kimg, least=0)
    check_number("b1", b1, least=0, below=1)
    check_number("b2", b2, least=0, below=1)
    check_number("eps", eps, above=0)
    check_number("grad_clip_norm", grad_clip_norm, least=0)
    check_number("weight_decay", weight_decay, least=0)
    check_number("lr_end_kimg", lr_end_kimg, least=0)
    if lr_end_kimg and lr_end_kimg <= lr_rampup_kimg:
        raise ValueError(
            f"lr_end_kimg must be 0 or above lr_rampup_kimg={lr_rampup_kimg:g}, got {lr_end_kimg:g}"
        )

    def schedule(count: Array) -> Array:
        nimg = count.astype(jnp.float32) * batch_size
        return learning_rate(nimg, lr, lr_rampup_kimg * 1000, lr_end_kimg * 1000)

    # Without decay the state is that of Adam, as checkpoints of older runs hold it.
    adam = optax.adam(schedule, b1=b1, b2=b2, eps=eps)
    if weight_decay:
        adam = optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    if not grad_clip_norm:
        return adam
    return optax.chain(optax.clip_by_global_norm(grad_clip_norm), adam)
