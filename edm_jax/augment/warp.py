"""Affine resampling of images through an orthogonal wavelet filter (EDM section F.2).

Reflect-pad, upsample by 2, sample bilinearly, downsample by 2, with the 12 taps of
sym6, which are orthonormal to their even shifts: an image that is not moved comes back
unchanged to 1e-5.  Padding, upsampling and downsampling are linear maps of one axis,
made once as small matrices; what remains per image is the bilinear step.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.typing import Array

# Low-pass taps of the sym6 wavelet, sum sqrt(2).
SYM6 = np.array(
    [0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
     0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
     -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148]
)  # fmt: skip
_TAPS = len(SYM6)
_CROP = _TAPS // 4  # output samples on either side that only feed the filter
# Positions of the sampling grid that no kept output sample reads: one at either end.
_UNREAD = 1

# Products of float32 numbers: the default of accelerators keeps 8 or 11 bits of them.
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def reflect(index: np.ndarray | Array, length: int) -> np.ndarray | Array:
    """Where ``index`` falls after reflections at the ends, edge samples not repeated."""
    if length == 1:
        return index * 0
    return (length - 1) - abs((length - 1) - index % (2 * length - 2))


@functools.cache
def upsample_matrix(length: int) -> np.ndarray:
    """Reflect-pad by length - 1 on both sides, then upsample by 2.

    Returns:
      ``(2 (3 length - 2), length)`` float64.
    """
    padded = 3 * length - 2
    pad = np.zeros((padded, length))
    pad[np.arange(padded), reflect(np.arange(padded) - (length - 1), length)] = 1
    # Zeros between samples, half the taps of zeros around, correlated with the reversed
    # taps: output q meets input k with tap q + 6 - 2k + ... of the unreversed ones.
    up = np.zeros((2 * padded, padded))
    for k in range(padded):
        for tap in range(_TAPS):
            q = 2 * k + _TAPS // 2 - (_TAPS - 1 - tap)
            if 0 <= q < 2 * padded:
                up[q, k] = SYM6[tap]
    return up @ pad


@functools.cache
def downsample_matrix(length: int) -> np.ndarray:
    """Filter, keep every second sample and crop, to ``length`` samples.

    Returns:
      ``(length, 2 (length + 6) - 2)`` float64; the columns are the sampling grid without
      its first and last position, which nothing reads.
    """
    down = np.zeros((length, 2 * (length + 2 * _CROP)))
    for k in range(length):
        start = 2 * (k + _CROP) - (_TAPS - 2) // 2
        down[k, start : start + _TAPS] = SYM6
    return down[:, _UNREAD:-_UNREAD]


def _positions(matrix: Array, height: int, width: int) -> tuple[Array, Array]:
    """Where the sampling grid falls on the upsampled image.

    Args:
      matrix: ``(B, 3, 3)`` output position to input position, in pixels from the centre.

    Returns:
      x and y, ``(B, 2H+10, 2W+10)`` each: indices into the upsampled image.
    """

    def centred(length: int) -> Array:
        grid = 2 * (length + 2 * _CROP)
        return jnp.arange(_UNREAD, grid - _UNREAD, dtype=jnp.float32) + (1 - grid / 2)

    # T(-1/2) S(2) G S(1/2) T(1/2) on pixel centres, then from the centre to an index.
    column, row = centred(width)[None, None, :], centred(height)[None, :, None]
    entry = matrix.astype(jnp.float32)[:, :, :, None, None]
    x = entry[:, 0, 0] * column + entry[:, 0, 1] * row + (2 * entry[:, 0, 2] + (3 * width - 3))
    y = entry[:, 1, 0] * column + entry[:, 1, 1] * row + (2 * entry[:, 1, 2] + (3 * height - 3))
    return x, y


def _split(position: Array, length: int) -> tuple[Array, Array]:
    """Lower neighbour and weight of the upper one, in an axis with a zero at both ends."""
    # Beyond the zeros everything is zero, so clipping there changes nothing.
    position = jnp.clip(position, -1, length) + 1
    lower = jnp.minimum(jnp.floor(position), length)
    return lower.astype(jnp.int32), position - lower


def _sample_gather(images: Array, x: Array, y: Array) -> Array:
    """Bilinear samples ``(B, C, 2H+10, 2W+10)`` from four neighbours each."""
    height, width = images.shape[1:3]
    up_y, up_x = (
        jnp.asarray(np.pad(upsample_matrix(n), ((1, 1), (0, 0))), jnp.float32)
        for n in (height, width)
    )
    # Channels first: the three of them as the innermost axis cost a factor of four.
    up = _einsum("ph,bhwc->bcpw", up_y, images)
    up = _einsum("qw,bcpw->bcpq", up_x, up)
    rows, columns = up.shape[2:]
    (x0, fx), (y0, fy) = _split(x, columns - 2), _split(y, rows - 2)

    def sample(up: Array, first: Array, fx: Array, fy: Array) -> Array:
        """One channel of one image."""

        def corner(offset: int) -> Array:
            return up.ravel().at[first + offset].get(mode="promise_in_bounds")

        top = corner(0) * (1 - fx) + corner(1) * fx
        bottom = corner(columns) * (1 - fx) + corner(columns + 1) * fx
        return top * (1 - fy) + bottom * fy

    per_image = jax.vmap(sample, in_axes=(0, None, None, None))
    return jax.vmap(per_image)(up, y0 * columns + x0, fx, fy)


def _sample_matmul(images: Array, x: Array, y: Array) -> Array:
    """The same without gathers: weights against every input row and column.

    Twenty times the arithmetic, all of it matrix products, which is the better deal on
    hardware that gathers one element at a time (TPUs).
    """
    height, width = images.shape[1:3]

    def weights(position: Array, length: int) -> Array:
        up = jnp.asarray(upsample_matrix(length), jnp.float32)
        sample = jnp.arange(up.shape[0], dtype=jnp.float32)[None, None]
        hat = jnp.maximum(0, 1 - jnp.abs(position[..., None] - sample))
        return _einsum("bpq,qn->bpn", hat, up)

    def one_row(carry: None, position: tuple[Array, Array]) -> tuple[None, Array]:
        row_x, row_y = position
        part = _einsum("bpw,bhwc->bchp", weights(row_x, width), images)
        return carry, jnp.sum(jnp.moveaxis(weights(row_y, height), 2, 1)[:, None] * part, axis=2)

    # Row by row of the grid: the weights of all of it at once would be gigabytes.
    rows = (jnp.moveaxis(x, 1, 0), jnp.moveaxis(y, 1, 0))
    return jnp.moveaxis(jax.lax.scan(one_row, None, rows)[1], 0, 2)


def affine_warp(images: Array, matrix: Array, *, method: str = "auto") -> Array:
    """Resample every image at the positions ``matrix`` gives.

    Margins are the largest useful ones (W-1, H-1), the same for every image, so the
    shapes are fixed and an image does not depend on its batch.  What lies further out
    reads 0.

    Args:
      images: ``(B, H, W, C)`` float32.
      matrix: ``(B, 3, 3)``, homogeneous, of ``(x, y, 1)`` in pixels from the image
        centre, x to the right, y down: output position to input position.
      method: "gather", "matmul" or "auto": matmul on TPUs, else gather.  They differ by
        rounding alone.

    Returns:
      ``(B, H, W, C)`` float32.
    """
    if method not in ("auto", "gather", "matmul"):
        raise ValueError(f"method must be 'auto', 'gather' or 'matmul', got {method!r}")
    height, width = images.shape[1:3]
    x, y = _positions(matrix, height, width)
    if method == "auto":
        sampled = jax.lax.platform_dependent(
            images, x, y, tpu=_sample_matmul, default=_sample_gather
        )
    else:
        sampled = (_sample_gather if method == "gather" else _sample_matmul)(images, x, y)
    down_y, down_x = (jnp.asarray(downsample_matrix(n), jnp.float32) for n in (height, width))
    sampled = _einsum("qw,bcpw->bcpq", down_x, sampled)
    return _einsum("ph,bchw->bpwc", down_y, sampled)
