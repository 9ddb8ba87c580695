"""Gradients of convolution kernels as sums over parts of a batch, for CPUs.

XLA's library for CPUs computes the gradient of a kernel as one convolution of images with
images, whose operands, several MB, it reads from memory again and again.  Those of a few images
stay in the caches.  The convolution itself is untouched, so an image does not depend on the
others; the gradient differs by the order of its sum.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from edm_jax.models.ops import target
from edm_jax.typing import Array

Convolution = Callable[[Array, Array], Array]
MOST_PARTS = 4  # more take longer to compile and gain nothing
# Images of a part: no fewer, and a multiple, so that the devices that share a batch share each
# part of it.
LEAST_IMAGES = 8


def parts(x: Array) -> int:
    """In how many parts a batch is taken; 1 where that does not help.

    Args:
      x: ``(B, H, W, C)``.
    """
    known = isinstance(x.shape[0], int)
    if not target.takes_forms_of("cpu") or not known or x.dtype != jnp.float32:
        return 1
    count = MOST_PARTS
    while count > 1 and x.shape[0] % (count * LEAST_IMAGES):
        count //= 2
    return count


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def in_parts(convolve: Convolution, count: int, x: Array, kernel: Array) -> Array:
    """``convolve(x, kernel)``, the gradient of whose kernel is a sum of so many.

    Part i holds images i, i + count, ...: each device keeps its own.

    Args:
      convolve: linear in both arguments.
      count: divides B.
      x: ``(B, H, W, in)``.
      kernel: ``(h, w, in, out)``.
    """
    return convolve(x, kernel)


def _in_parts_jvp(
    convolve: Convolution, count: int, primals: tuple[Array, Array], tangents: tuple[Any, Any]
) -> tuple[Array, Any]:
    (x, kernel), (dx, dkernel) = primals, tangents
    y = in_parts(convolve, count, x, kernel)
    dy = []
    if not isinstance(dx, SymbolicZero):
        dy.append(convolve(dx, kernel))
    if not isinstance(dkernel, SymbolicZero):
        images = x.reshape(-1, count, *x.shape[1:])
        each = [convolve(images[:, i], dkernel) for i in range(count)]
        dy.append(jnp.stack(each, 1).reshape(y.shape))
    return y, sum(dy[1:], dy[0]) if dy else jnp.zeros_like(y)


in_parts.defjvp(_in_parts_jvp, symbolic_zeros=True)
