"""Separable resampling by two, as the convolutions of the EDM networks define it.

A one-dimensional filter f, divided by its sum, is applied along height and width:

    down:  y[o] = sum_k f[k] x[2 o - padding + k]
    up:    y[o] = 2 sum_{i, k: 2 i - padding + k = o} f[k] x[i]

with zeros outside the image.  ``[1, 1]`` is pixel averaging and replication.  Written
as a few shifted sums of slices rather than as a depthwise convolution: compilers for CPUs
and GPUs fuse them into one pass over the image, forwards and backwards.  That for TPUs does
so with sums over windows, which ``[1, 1]`` is there; on CPUs it is a sum over two axes and its
transpose, as the gradient of slices is a padded array, slow to add to others.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from edm_jax.models.ops import target
from edm_jax.typing import Array


def _taps(resample_filter: Sequence[float], gain: float) -> list[float]:
    total = float(sum(resample_filter))
    return [gain * float(f) / total for f in resample_filter]


def _pad(x: Array, axis: int, low: int, high: int) -> Array:
    if low == high == 0:
        return x
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (low, high, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _weighted_sum(terms: list[tuple[float, Array]]) -> Array:
    total = None
    for tap, term in terms:
        if tap == 0:
            continue
        term = term if tap == 1 else tap * term
        total = term if total is None else total + term
    return jnp.zeros_like(terms[0][1]) if total is None else total


def _down_axis(x: Array, taps: list[float], padding: int, axis: int) -> Array:
    x = _pad(x, axis, padding, padding)
    length = (x.shape[axis] - len(taps)) // 2 + 1
    terms = []
    for k, tap in enumerate(taps):
        terms.append((tap, lax.slice_in_dim(x, k, k + 2 * length - 1, stride=2, axis=axis)))
    return _weighted_sum(terms)


def _up_axis(x: Array, taps: list[float], padding: int, axis: int) -> Array:
    # The two phases of the output, even and odd m = o + padding, each see every other tap.
    taps = taps + [0.0] * (len(taps) % 2)
    reach = len(taps) // 2 - 1
    length = x.shape[axis] + reach
    x = _pad(x, axis, reach, reach)
    phases = []
    for phase in (0, 1):
        terms = []
        for j, tap in enumerate(taps[phase::2]):
            terms.append((tap, lax.slice_in_dim(x, reach - j, reach - j + length, axis=axis)))
        phases.append(_weighted_sum(terms))
    shape = x.shape[:axis] + (2 * length,) + x.shape[axis + 1 :]
    return jnp.stack(phases, axis + 1).reshape(shape)


def _is_box(taps: list[float], padding: int, platform: str) -> bool:
    """Whether pixels are averaged or repeated, and for this platform.

    On TPUs slices and stacks get layouts of their own, and copies that change them take longer
    than the sums; a window takes one pass.
    """
    box = len(taps) == 2 and taps[0] == taps[1] and padding == 0
    return box and target.takes_forms_of(platform)


def _window_sum(x: Array, stride: int, dilation: int) -> Array:
    """Sum over 2x2 windows of float32 images, with zeros between pixels if dilated."""
    pads = ((0, 0), *(((dilation - 1,) * 2,) * 2), (0, 0))
    strides, dilations = (1, stride, stride, 1), (1, dilation, dilation, 1)
    return lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), strides, pads, dilations)


def downsample(x: Array, resample_filter: Sequence[float], padding: int | None = None) -> Array:
    """Filter and keep every second pixel.

    Args:
      x: ``(B, H, W, C)``.
      resample_filter: the K taps of the filter; their sum is divided out.
      padding: zeros added on each side; by default ``(K - 1) // 2``.

    Returns:
      ``(B, H', W', C)`` with ``H' = (H + 2 padding - K) // 2 + 1``; for even K and the
      default padding that is H / 2.  The dtype of x; sums are taken in float32.
    """
    taps = _taps(resample_filter, 1.0)
    padding = (len(taps) - 1) // 2 if padding is None else padding
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if _is_box(taps, padding, "tpu"):
        return (0.25 * _window_sum(y, 2, 1)).astype(x.dtype)
    b, h, w, c = y.shape
    if _is_box(taps, padding, "cpu") and h % 2 == w % 2 == 0:
        return (0.25 * y.reshape(b, h // 2, 2, w // 2, 2, c).sum((2, 4))).astype(x.dtype)
    for axis in (1, 2):
        y = _down_axis(y, taps, padding, axis)
    return y.astype(x.dtype)


def upsample(x: Array, resample_filter: Sequence[float], padding: int | None = None) -> Array:
    """Insert zeros between pixels and filter, with gain 4 (a transposed convolution).

    Args:
      x: ``(B, H, W, C)``.
      resample_filter: the K taps of the filter; their sum is divided out.
      padding: pixels cropped on each side; by default ``(K - 1) // 2``.

    Returns:
      ``(B, H', W', C)`` with ``H' = 2 (H - 1) + K - 2 padding``; for even K and the
      default padding that is 2 H.  The dtype of x; sums are taken in float32.
    """
    taps = _taps(resample_filter, 2.0)
    padding = (len(taps) - 1) // 2 if padding is None else padding
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if _is_box(taps, padding, "tpu"):
        return _window_sum(y, 1, 2).astype(x.dtype)
    if _is_box(taps, padding, "cpu"):
        b, h, w, c = y.shape
        y = jnp.broadcast_to(y[:, :, None, :, None], (b, h, 2, w, 2, c))
        return y.reshape(b, 2 * h, 2 * w, c).astype(x.dtype)
    for axis in (1, 2):
        length = 2 * (y.shape[axis] - 1) + len(taps) - 2 * padding
        y = _up_axis(y, taps, padding, axis)
        y = lax.slice_in_dim(y, padding, padding + length, axis=axis)
    return y.astype(x.dtype)
