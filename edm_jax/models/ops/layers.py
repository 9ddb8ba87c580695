"""Layers of the EDM networks: linear, convolution with resampling, norm, embeddings.

Images are ``(B, H, W, C)``, convolution kernels HWIO, linear kernels ``(in, out)``.
Parameters are float32; a layer casts them to the dtype of the activation it receives.
Every parameter carries logical axis names (`flax.linen.with_logical_partitioning`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from edm_jax.models.ops import kernel_gradient, resample, target, winograd
from edm_jax.models.ops.initializers import Init
from edm_jax.models.ops.stored import stored, stored_gradient
from edm_jax.typing import Array


def _rank_like(v: Array, x: Array) -> Array:
    """``(C,)`` or ``(B, C)`` -> the rank of x, to broadcast over what lies between."""
    return v.reshape(v.shape[:-1] + (1,) * (x.ndim - v.ndim) + v.shape[-1:])


class Biased(NamedTuple):
    """Feature maps whose channels each lack a number, ``x + bias``.

    The gradient of a bias is a sum over all images.  A norm has it from sums that it takes
    anyway; who adds the bias reads the gradients of the images once more.  Networks keep biases
    apart where that was found to be faster (`biases_apart`).

    Attributes:
      x: ``(B, H, W, C)``.
      bias: ``(C,)`` float32; None: nothing.
    """

    x: Array
    bias: Array | None

    def __repr__(self) -> str:
        return f"Biased(x {self.x.dtype}{list(self.x.shape)})"


def biases_apart() -> bool:
    """Whether the blocks of a network leave their biases to norms: on TPUs."""
    return target.takes_forms_of("tpu")


def biased(x: Array | Biased) -> Biased:
    """x, if need be without a bias."""
    return x if isinstance(x, Biased) else Biased(x, None)


def joined(x: Array | Biased) -> Array:
    """``x + bias``, in the dtype of x."""
    if not isinstance(x, Biased):
        return x
    return x.x if x.bias is None else x.x + _rank_like(x.bias.astype(x.x.dtype), x.x)


class Linear(nn.Module):
    """``y = x @ kernel + bias``.

    Attributes:
      features: output channels.
      use_bias: whether there is a bias.
      initial: distribution of the initial values.
      axes: logical names of the two axes of the kernel.
    """

    features: int
    use_bias: bool = True
    initial: Init = Init()
    axes: tuple[str, str] = ("embed_in", "embed_out")

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``(..., in) -> (..., features)``, in the dtype of x."""
        fans = (x.shape[-1], self.features)
        kernel_init = nn.with_logical_partitioning(self.initial.kernel(*fans), self.axes)
        kernel = self.param("kernel", kernel_init, fans, jnp.float32)
        y = matmul(x, kernel.astype(x.dtype))
        if self.use_bias:
            bias_init = nn.with_logical_partitioning(self.initial.offset(*fans), self.axes[1:])
            bias = self.param("bias", bias_init, fans[1:], jnp.float32)
            y = y + _rank_like(bias.astype(x.dtype), y)
        return y


def matmul(x: Array, kernel: Array) -> Array:
    """``(..., in) x (in, out) -> (..., out)``: a 1x1 convolution as the product it is.

    XLA for CPU computes the weight gradient of a 1x1 convolution several times slower
    than that of a matrix product, and transposes whole images for that of a product with
    more than two axes; so the leading axes are merged first, but for TPUs, where merging them
    would keep the compiler from reading x in another order of axes.
    """
    if target.takes_forms_of("tpu"):
        return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    y = lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())))
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def conv2d(x: Array, kernel: Array, padding: int) -> Array:
    """Correlation with zero padding, stride 1: NHWC with HWIO -> NHWC.

    Large float32 ones take half the products on CPUs, see `winograd`.
    """
    if kernel.shape[:2] == (1, 1) and padding == 0:
        return stored_gradient(matmul(x, kernel[0, 0]))
    plain = functools.partial(
        lax.conv_general_dilated,
        window_strides=(1, 1),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    if winograd.worthwhile(x, kernel, padding):
        return lax.platform_dependent(x, kernel, cpu=winograd.conv3x3, default=plain)
    count = kernel_gradient.parts(x)
    y = plain(x, kernel) if count == 1 else kernel_gradient.in_parts(plain, count, x, kernel)
    return stored_gradient(y)


def conv_parameters(
    module: nn.Module,
    size: int,
    in_channels: int,
    features: int,
    initial: Init,
    axes: tuple[str, str],
) -> tuple[Array, Array]:
    """Kernel ``(size, size, in_channels, features)`` and bias of a module's convolution."""
    fans = (in_channels * size**2, features * size**2)
    kernel_axes = ("height", "width", *axes)
    kernel_init = nn.with_logical_partitioning(initial.kernel(*fans), kernel_axes)
    bias_init = nn.with_logical_partitioning(initial.offset(*fans), axes[1:])
    shape = (size, size, in_channels, features)
    kernel = module.param("kernel", kernel_init, shape, jnp.float32)
    return kernel, module.param("bias", bias_init, (features,), jnp.float32)


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
      bias_apart: return `Biased`, for a norm to take the bias as its ``shift``.
      initial: distribution of the initial values.
      axes: logical names of the channel axes of the kernel.
    """

    features: int
    kernel_size: int
    up: bool = False
    down: bool = False
    resample_filter: Sequence[float] = (1, 1)
    fused_resample: bool = False
    bias_apart: bool = False
    initial: Init = Init()
    axes: tuple[str, str] = ("channels_in", "channels_out")

    @nn.compact
    def __call__(self, x: Array | Biased) -> Array | Biased:
        """``(B, H, W, in) -> (B, H', W', features)``, in the dtype of x.

        Of a `Biased` x the bias takes a way of its own, if it is the same for every pixel of
        the result.
        """
        if isinstance(x, Biased) and self.bias_apart and self._keeps_constants():
            return self._apply(*x)
        y = self._apply(joined(x), None)
        return y if self.bias_apart else joined(y)

    @nn.nowrap
    def _keeps_constants(self) -> bool:
        """Whether it makes an image of one colour of another: repeats or averages pixels alone."""
        whole = tuple(self.resample_filter) == (1, 1) or not (self.up or self.down)
        return self.kernel_size <= 1 and whole

    @nn.nowrap
    def _apply(self, x: Array, given: Array | None) -> Biased:
        """Of x ``(B, H, W, in)`` that lacks the bias ``given`` ``(in,)``."""
        if self.up and self.down:
            raise ValueError("a convolution resamples up or down, not both")
        taps = self.resample_filter
        if self.kernel_size == 0:
            if self.features != x.shape[-1]:
                raise ValueError(
                    f"kernel_size 0 keeps the {x.shape[-1]} channels, got features={self.features}"
                )
            x = resample.upsample(x, taps) if self.up else x
            x = resample.downsample(x, taps) if self.down else x
            return Biased(x, given)

        kernel, bias = conv_parameters(
            self, self.kernel_size, x.shape[-1], self.features, self.initial, self.axes
        )
        if given is not None:
            bias = bias + jnp.matmul(given, kernel[0, 0], precision="highest")
        kernel = kernel.astype(x.dtype)
        f_pad, w_pad = (len(taps) - 1) // 2, self.kernel_size // 2
        if self.fused_resample and self.down:
            y = resample.downsample(conv2d(x, kernel, w_pad + f_pad), taps, 0)
        elif self.fused_resample and self.up:
            x = resample.upsample(x, taps, max(f_pad - w_pad, 0))
            y = conv2d(x, kernel, max(w_pad - f_pad, 0))
        elif self.up and self.kernel_size == 1:
            y = resample.upsample(conv2d(x, kernel, 0), taps)  # the same, of a quarter as many
        else:
            x = resample.upsample(x, taps) if self.up else x
            x = resample.downsample(x, taps) if self.down else x
            y = conv2d(x, kernel, w_pad)
        return Biased(y, bias)


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
      groups: their number; None: `num_groups` of the channels.
    """

    eps: float = 1e-5
    silu: bool = False
    groups: int | None = None

    @nn.compact
    def __call__(
        self,
        x: Array | Biased,
        shift: Array | None = None,
        modulation: tuple[Array, Array] | None = None,
        parts: tuple[Array, ...] | None = None,
    ) -> Array:
        """Normalise.

        Args:
          x: ``(B, H, W, C)``; the bias of a `Biased` is part of the shift.
          shift: ``(B or 1, C)`` added to x beforehand.
          modulation: ``(a, b)``, each ``(B or 1, C)``.
          parts: the arrays that x is joined of along its channels, if it is.  Moments are those
            of a channel: taken of the parts, they are found where a part is made, and once for
            one that several norms read, not by reading x again.

        Returns:
          The shape and dtype of x; statistics are float32.
        """
        x, lacking = biased(x)
        if lacking is not None:
            shift = lacking[None] if shift is None else shift + lacking[None]
        channels = x.shape[-1]
        scale_init = nn.with_logical_partitioning(nn.initializers.ones, ("channels",))
        bias_init = nn.with_logical_partitioning(nn.initializers.zeros, ("channels",))
        scale = self.param("scale", scale_init, (channels,), jnp.float32)
        bias = self.param("bias", bias_init, (channels,), jnp.float32)
        y = x.astype(jnp.float32)
        if shift is not None:
            shift = jnp.broadcast_to(shift.astype(jnp.float32), (y.shape[0], channels))
        parts = (y,) if parts is None else tuple(part.astype(jnp.float32) for part in parts)
        once = jnp.finfo(x.dtype).bits <= 16
        moments = [channel_moments(part, once) for part in parts]
        centre, gain = _group_statistics(moments, shift, self.eps, self.groups)
        gain = gain * scale[None]
        offset = bias[None] - centre * gain
        if modulation is not None:
            factor = 1 + modulation[0].astype(jnp.float32)
            gain, offset = gain * factor, offset * factor + modulation[1].astype(jnp.float32)
        y = y * _rank_like(stored(gain), y) + _rank_like(stored(offset), y)
        return stored(silu(y) if self.silu else y).astype(x.dtype)


@jax.custom_jvp
def silu(x: Array) -> Array:
    """``x * sigmoid(x)``."""
    return x * jax.nn.sigmoid(x)


@silu.defjvp
def _silu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    # The sigmoid by another formula than in the forward pass: a compiler that recognised
    # it would keep the array from there instead of recomputing it from x.
    s = 0.5 + 0.5 * jnp.tanh(0.5 * x)
    return silu(x), dx * (s * (1 + x * (1 - s)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def channel_moments(x: Array, once: bool = False) -> tuple[Array, Array]:
    """Mean and biased variance of each channel.

    Args:
      x: ``(B, H, W, C)`` float32.
      once: as E[x^2] - E[x]^2, two sums that a compiler takes where x is made, without reading
        it again.  They lose ``2^-24 (E[x]^2 + var)`` or little more: less than the variance of
        the rounding, 2^-9 of each number, of what was bfloat16, and as little for float16 unless
        the mean is a thousand deviations.  Else in two passes over x.

    Returns:
      Two arrays ``(B, C)``.
    """
    mean = x.mean((1, 2))
    if once:
        return mean, jnp.maximum(jnp.square(x).mean((1, 2)) - jnp.square(mean), 0)
    return mean, jnp.square(x - _rank_like(mean, x)).mean((1, 2))


@channel_moments.defjvp
def _channel_moments_jvp(
    once: bool, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Any, Any]:
    (x,), (dx,) = primals, tangents
    mean, var = channel_moments(x, once)
    # In terms of x alone, so that no centred copy of it is kept for the gradient.
    dmean = stored_gradient(dx.mean((1, 2)))
    return (mean, var), (dmean, 2 * (stored_gradient((x * dx).mean((1, 2))) - mean * dmean))


def _group_statistics(
    moments: Sequence[tuple[Array, Array]],
    shift: Array | None,
    eps: float,
    groups: int | None = None,
) -> tuple[Array, Array]:
    """``(B, C)`` centre and gain with ``norm(x + shift) = (x - centre) * gain``.

    The moments are those of the parts that x is joined of along its channels.

    Moments are taken per channel, where memory is contiguous, and combined within the
    groups on small arrays.  Whatever surrounds the norm is then one pass over the image:
    neither x + shift nor a normalised image is ever stored.
    """
    mean, var = (jnp.concatenate(each, -1) for each in zip(*moments, strict=True))
    batch, channels = mean.shape
    groups = num_groups(channels) if groups is None else groups
    grouped = (batch, groups, channels // groups)
    mean = (mean if shift is None else mean + shift).reshape(grouped)
    group_mean = mean.mean(-1, keepdims=True)
    deviation = jnp.square(mean - group_mean)
    group_var = (var.reshape(grouped) + deviation).mean(-1, keepdims=True)

    def per_channel(v: Array) -> Array:
        return jnp.broadcast_to(v, mean.shape).reshape(batch, channels)

    centre = per_channel(group_mean)
    centre = centre if shift is None else centre - shift
    return centre, per_channel(lax.rsqrt(group_var + eps))


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
