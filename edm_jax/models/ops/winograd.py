"""3x3 convolutions of many channels with half the multiplications, for CPUs.

XLA's CPU backend runs a large convolution at the speed of its matrix products, so only fewer
products make it faster.  Along the height, four rows of the result come from six products
with rows instead of twelve (Winograd's F(4, 3), at the points 0, 1, -1, 2, -2 and
infinity); along the width, each product is a convolution with a 1x3 kernel:

    y[4 t + a] = sum_j A[a, j] (V_j[t] * U_j),
    V_j[t] = sum_a B[j, a] x[4 t + a - 1],    U_j = sum_r G[j, r] kernel[r]

Rounding is relative to the largest of the six rows that meet in a product, not to the row
itself: beside rows a thousand times larger, a row keeps three digits less than with plain sums.

Source: Lavin & Gray 2015, *Fast Algorithms for Convolutional Neural Networks*, section 4.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from edm_jax.models.ops import target
from edm_jax.models.ops.stored import stored
from edm_jax.typing import Array

ROWS = 4  # of the result, from one set of products
_B = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_A = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
# With fewer channels the sums cost what the products save.
LEAST_CHANNELS = 192
# With fewer pixels, those of the kernels do.  Of an image, not of a batch: an image must not
# depend, in its rounding, on those beside it.
LEAST_PIXELS = 256


def worthwhile(x: Array, kernel: Array, padding: int) -> bool:
    """Whether `conv3x3` computes this convolution, and faster than XLA does.

    That is so on CPUs; where they are not the default, nobody waits for them.

    Args:
      x: ``(B, H, W, in)``.
      kernel: ``(h, w, in, out)``.
      padding: zeros on each side.
    """
    return (
        target.takes_forms_of("cpu")
        and isinstance(x.shape[1] * x.shape[2], int)  # no symbol of an export
        and kernel.shape[:2] == (3, 3)
        and padding == 1
        and x.shape[1] % ROWS == 0
        and min(kernel.shape[2:]) >= LEAST_CHANNELS
        and x.shape[1] * x.shape[2] >= LEAST_PIXELS
        and x.dtype == jnp.float32
    )


def conv3x3(x: Array, kernel: Array) -> Array:
    """Correlation with a 3x3 kernel and padding 1: ``(B, H, W, in)`` -> ``(B, H, W, out)``.

    H must be a multiple of ROWS.
    """
    batch, height, width, channels = x.shape
    # Split and concatenated rather than sliced, so that the gradient is no sum of padded images.
    bands = lax.split(x.reshape(batch, -1, ROWS, width, channels), (1,) * ROWS, axis=2)
    bands = [band.squeeze(2) for band in bands]
    rows = [_shifted(bands[-1], 1), *bands, _shifted(bands[0], -1)]
    kernels = jnp.einsum("jr,rwio->jwio", jnp.asarray(_G, kernel.dtype), kernel)
    products = [
        lax.conv_general_dilated(
            _weighted_sum(_B[j], rows),
            kernels[j][None],
            window_strides=(1, 1),
            padding=((0, 0), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        for j in range(ROWS + 2)
    ]
    result = jnp.stack([_weighted_sum(weights, products) for weights in _A], axis=2)
    result = result.reshape(batch, height, width, -1)
    return stored(result)  # or each sum that reads a gradient would compute it anew


def _shifted(rows: Array, by: int) -> Array:
    """The rows of the band before (by = 1) or after (-1); zeros beyond the image."""
    return lax.pad(rows, jnp.zeros((), rows.dtype), [(0, 0, 0), (by, -by, 0), (0, 0, 0), (0, 0, 0)])


def _weighted_sum(weights: Sequence[float], arrays: Sequence[Array]) -> Array:
    terms = [
        array if weight == 1 else weight * array
        for weight, array in zip(weights, arrays, strict=True)
        if weight
    ]
    return functools.reduce(operator.add, terms)
