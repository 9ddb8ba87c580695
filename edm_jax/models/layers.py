"""Layers of the EDM networks: linear, convolution with resampling, norm, embeddings.

Images are ``(B, H, W, C)``, convolution kernels HWIO, linear kernels ``(in, out)``.
Parameters are float32; a layer casts them to the dtype of the activation it receives.
Every parameter carries logical axis names (`flax.linen.with_logical_partitioning`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from edm_jax.models import resample
from edm_jax.models.initializers import Init
from edm_jax.typing import Array


def _rank_like(v: Array, x: Array) -> Array:
    """``(C,)`` or ``(B, C)`` -> the rank of x, to broadcast over what lies between."""
    return v.reshape(v.shape[:-1] + (1,) * (x.ndim - v.ndim) + v.shape[-1:])


class Linear(nn.Module):
    """``y = x @ kernel + bias``.

    Attributes:
      features: output channels.
      use_bias: whether there is a bias.
      init: distribution of the initial values.
      axes: logical names of the two axes of the kernel.
    """

    features: int
    use_bias: bool = True
    init: Init = Init()
    axes: tuple[str, str] = ("embed_in", "embed_out")

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``(..., in) -> (..., features)``, in the dtype of x."""
        fans = (x.shape[-1], self.features)
        kernel_init = nn.with_logical_partitioning(self.init.kernel(*fans), self.axes)
        kernel = self.param("kernel", kernel_init, fans, jnp.float32)
        y = jnp.dot(x, kernel.astype(x.dtype))
        if self.use_bias:
            bias_init = nn.with_logical_partitioning(self.init.offset(*fans), self.axes[1:])
            bias = self.param("bias", bias_init, fans[1:], jnp.float32)
            y = y + _rank_like(bias.astype(x.dtype), y)
        return y


def conv2d(x: Array, kernel: Array, padding: int) -> Array:
    """Correlation with zero padding, stride 1: NHWC with HWIO -> NHWC."""
    if kernel.shape[:2] == (1, 1) and padding == 0:
        # As a matrix product: XLA computes the weight gradient of a 1x1 convolution
        # several times slower than that of the product it is (benchmarks/networks.py).
        return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class Conv2d(nn.Module):
    """Convolution, optionally up- or downsampling by two on the way.

    The order of operations (f_pad and w_pad are the paddings of filter and kernel):

        plain, not fused   resample (padding f_pad), convolve (w_pad)
        up, fused          upsample (max(f_pad - w_pad, 0)), convolve (max(w_pad - f_pad, 0))
        down, fused        convolve at full resolution (w_pad + f_pad), decimate (0)

    Attributes:
      features: output channels; those of the input if ``kernel_size`` is 0.
      kernel_size: odd, or 0 for resampling without any weight.
      up, down: resample by two; not both.
      resample_filter: one-dimensional filter, see `resample`.
      fused_resample: the fused order; without a kernel there is nothing to fuse.
      init: distribution of the initial values.
      axes: logical names of the channel axes of the kernel.
    """

    features: int
    kernel_size: int
    up: bool = False
    down: bool = False
    resample_filter: Sequence[float] = (1, 1)
    fused_resample: bool = False
    init: Init = Init()
    axes: tuple[str, str] = ("channels_in", "channels_out")

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``(B, H, W, in) -> (B, H', W', features)``, in the dtype of x."""
        if self.up and self.down:
            raise ValueError("a convolution resamples up or down, not both")
        taps = self.resample_filter
        if self.kernel_size == 0:
            if self.features != x.shape[-1]:
                raise ValueError(
                    f"kernel_size 0 keeps the {x.shape[-1]} channels, got features={self.features}"
                )
            x = resample.upsample(x, taps) if self.up else x
            return resample.downsample(x, taps) if self.down else x

        kernel, bias = self._parameters(x.shape[-1])
        kernel = kernel.astype(x.dtype)
        f_pad, w_pad = (len(taps) - 1) // 2, self.kernel_size // 2
        if self.fused_resample and self.down:
            y = resample.downsample(conv2d(x, kernel, w_pad + f_pad), taps, 0)
        elif self.fused_resample and self.up:
            x = resample.upsample(x, taps, max(f_pad - w_pad, 0))
            y = conv2d(x, kernel, max(w_pad - f_pad, 0))
        else:
            x = resample.upsample(x, taps) if self.up else x
            x = resample.downsample(x, taps) if self.down else x
            y = conv2d(x, kernel, w_pad)
        return y + _rank_like(bias.astype(x.dtype), y)

    def _parameters(self, in_channels: int) -> tuple[Array, Array]:
        size = self.kernel_size
        fans = (in_channels * size**2, self.features * size**2)
        kernel_init = nn.with_logical_partitioning(
            self.init.kernel(*fans), ("height", "width", *self.axes)
        )
        bias_init = nn.with_logical_partitioning(self.init.offset(*fans), self.axes[1:])
        shape = (size, size, in_channels, self.features)
        kernel = self.param("kernel", kernel_init, shape, jnp.float32)
        return kernel, self.param("bias", bias_init, (self.features,), jnp.float32)


def num_groups(channels: int) -> int:
    """Groups of a norm: 32, or fewer so that a group has at least four channels.

    Raises:
      ValueError: if the channels cannot be split so.
    """
    groups = min(32, channels // 4)
    if groups == 0 or channels % groups:
        raise ValueError(
            f"a norm of {channels} channels needs a multiple of min(32, channels // 4) = "
            f"{groups} groups and at least 4 channels; choose model_channels and channel_mult so"
        )
    return groups


class GroupNorm(nn.Module):
    """Group normalisation with what surrounds it in the EDM networks, in one pass.

        y = norm(x + shift) * scale + bias;   y * (1 + a) + b;   silu

    Attributes:
      eps: added to the variance.
      silu: whether the activation follows.
    """

    eps: float = 1e-5
    silu: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        shift: Array | None = None,
        modulation: tuple[Array, Array] | None = None,
    ) -> Array:
        """Normalise.

        Args:
          x: ``(B, H, W, C)``.
          shift: ``(B or 1, C)`` added to x beforehand.
          modulation: ``(a, b)``, each ``(B or 1, C)``.

        Returns:
          The shape and dtype of x; statistics are float32.
        """
        channels = x.shape[-1]
        scale_init = nn.with_logical_partitioning(nn.initializers.ones, ("channels",))
        bias_init = nn.with_logical_partitioning(nn.initializers.zeros, ("channels",))
        scale = self.param("scale", scale_init, (channels,), jnp.float32)
        bias = self.param("bias", bias_init, (channels,), jnp.float32)
        groups = num_groups(channels)

        y = x.astype(jnp.float32)
        if shift is not None:
            y = y + _rank_like(shift.astype(jnp.float32), y)
        grouped = y.reshape(y.shape[0], -1, groups, channels // groups)
        mean = grouped.mean((1, 3), keepdims=True)
        var = jnp.square(grouped - mean).mean((1, 3), keepdims=True)
        y = ((grouped - mean) * lax.rsqrt(var + self.eps)).reshape(y.shape)
        y = y * _rank_like(scale, y) + _rank_like(bias, y)
        if modulation is not None:
            a, b = (_rank_like(v.astype(jnp.float32), y) for v in modulation)
            y = y * (1 + a) + b
        return (jax.nn.silu(y) if self.silu else y).astype(x.dtype)


class PositionalEmbedding(nn.Module):
    """``[cos(x f_k), sin(x f_k)]``, f_k falling geometrically from 1 to 1/max_positions.

    Attributes:
      channels: even size of the embedding.
      max_positions: ratio of the frequencies.
      endpoint: whether the last frequency is 1/max_positions itself.
    """

    channels: int
    max_positions: float = 10000.0
    endpoint: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``(B,) -> (B, channels)`` float32."""
        half = self.channels // 2
        k = jnp.arange(half, dtype=jnp.float32) / (half - (1 if self.endpoint else 0))
        phase = x[:, None] * jnp.exp(-math.log(self.max_positions) * k)[None, :]
        return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)


class FourierEmbedding(nn.Module):
    """``[cos(2 pi x f), sin(2 pi x f)]`` with random frequencies, drawn once.

    The frequencies are the variable ``freqs`` of the collection ``buffers``: part of
    the model, never trained.

    Attributes:
      channels: even size of the embedding.
      scale: standard deviation of the frequencies.
    """

    channels: int
    scale: float = 16.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``(B,) -> (B, channels)`` float32."""
        shape = (self.channels // 2,)
        freqs = self.variable(
            "buffers",
            "freqs",
            lambda: self.scale * jax.random.normal(self.make_rng("params"), shape, jnp.float32),
        ).value
        phase = x[:, None] * (2 * math.pi * freqs)[None, :]
        return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)
