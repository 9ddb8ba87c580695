"""The residual block of the EDM networks, with its attention and dropout."""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from edm_jax.models.ops import attention_kernel
from edm_jax.models.ops.attention import attention, heads_alone, in_one_kernel
from edm_jax.models.ops.initializers import Init
from edm_jax.models.ops.layers import (
    Biased,
    Conv2d,
    GroupNorm,
    Linear,
    biased,
    conv_parameters,
    joined,
    matmul,
)
from edm_jax.typing import Array, Key


def dropout_seeds(key: Key, image_ids: Array, num_layers: int) -> Array:
    """``(num_layers, B, 2)`` uint32: what the masks of each layer and image grow from."""

    def words(layer: Array, image: Array) -> Array:
        folded = jax.random.fold_in(jax.random.fold_in(key, image), layer)
        return jax.random.key_data(folded)[:2]

    per_image = jax.vmap(words, in_axes=(None, 0))
    layers = jnp.arange(num_layers, dtype=jnp.uint32)
    return jax.vmap(per_image, in_axes=(0, None))(layers, image_ids.astype(jnp.uint32))


def _hash(x: Array) -> Array:
    # Avalanching integer hash of two multiplications ("lowbias32", C. Wellons).
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def dropout(x: Array, rate: float, seeds: Array) -> Array:
    """Zero elements with probability ``rate``, scale the others by 1 / (1 - rate).

    The mask of an image is a function of its seeds and of the position within the
    image alone.  It is a hash of the position: unlike a draw of `jax.random` it fuses
    into the passes that use it, forwards and backwards.

    Args:
      x: ``(B, H, W, C)``.
      rate: in [0, 1).
      seeds: ``(B, 2)`` uint32 from `dropout_seeds`.
    """
    size = math.prod(x.shape[1:])
    position = jnp.arange(size, dtype=jnp.uint32).reshape((1,) + x.shape[1:])
    first, second = (seeds[:, i].reshape((-1,) + (1,) * (x.ndim - 1)) for i in (0, 1))
    bits = _hash(_hash(position + first) ^ second)
    keep = bits >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
    return jnp.where(keep, x * jnp.asarray(1 / (1 - rate), x.dtype), jnp.zeros((), x.dtype))


class QKV(nn.Module):
    """The 1x1 convolution that makes queries, keys and values.

    Attributes:
      heads: attention heads.
      initial: distribution of the initial values.
    """

    heads: int
    initial: Init

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array, Array]:
        """``(B, T, C)`` -> q, k, v, each ``(B, T, heads, C / heads)``."""
        return _project(x, *_qkv_parameters(self, x.shape[-1], self.heads, self.initial))


class SelfAttention(QKV):
    """`QKV` and what the queries find, in one kernel, where `in_one_kernel` says so."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``(B, T, C)`` to the same; the parameters are those of `QKV`."""
        kernel, bias = _qkv_parameters(self, x.shape[-1], self.heads, self.initial)
        return attention_kernel.attend(x, kernel, bias)


def _qkv_parameters(
    module: nn.Module, channels: int, heads: int, initial: Init
) -> tuple[Array, Array]:
    """Kernel ``(channels, heads, 3, c)`` and bias ``(heads, 3, c)`` of queries, keys, values."""
    if channels % heads:
        raise ValueError(f"num_heads must divide {channels} channels, got {heads}")
    axes = ("channels_in", "qkv")
    kernel, bias = conv_parameters(module, 1, channels, 3 * channels, initial, axes)

    def sort(v: Array) -> Array:
        # Outputs are stored as (head, channel of the head, q/k/v), the last fastest.
        # Sorting the kernel is cheaper than picking every third channel of the image.
        return jnp.moveaxis(v.reshape(*v.shape[:-1], heads, channels // heads, 3), -1, -2)

    return sort(kernel[0, 0]), sort(bias)


def _project(x: Array, kernel: Array, bias: Array) -> tuple[Array, Array, Array]:
    """q, k, v, each ``(B, T, heads, c)``, of x ``(B, T, C)``."""
    batch, tokens, channels = x.shape
    heads = bias.shape[0]
    # All queries, then all keys, then all values: whole blocks of channels.
    kernel = jnp.moveaxis(kernel, 2, 1).reshape(channels, 3 * channels).astype(x.dtype)
    bias = jnp.moveaxis(bias, 1, 0).reshape(3 * channels).astype(x.dtype)
    if heads_alone(x.dtype, tokens):
        qkv = jnp.einsum("btc,cd->bdt", x, kernel) + bias[None, :, None]
        parts = (p.reshape(batch, heads, -1, tokens) for p in jnp.split(qkv, 3, axis=1))
        return tuple(jnp.moveaxis(part, 3, 1) for part in parts)
    qkv = matmul(x, kernel) + bias.reshape(1, 1, -1)
    shape = (batch, tokens, heads, channels // heads)
    q, k, v = (part.reshape(shape) for part in jnp.split(qkv, 3, axis=-1))
    return q, k, v


class UNetBlock(nn.Module):
    """Residual block: two norm-silu-conv, the embedding in between, then attention.

        h = conv0(silu(norm0(x)))
        h = silu(norm1(h) * (1 + scale) + shift)   if adaptive, (scale, shift) = affine(emb)
        h = silu(norm1(h + affine(emb)))           else
        x = (conv1(dropout(h)) + skip(x)) * skip_scale
        x = (proj(attention(qkv(norm2(x)))) + x) * skip_scale

    ``conv0`` and ``skip`` resample.  ``skip`` is the identity where shapes agree.

    Attributes:
      out_channels: of the result.
      up, down: resample by two; not both.
      attention: whether attention follows.
      num_heads: of the attention; by default ``out_channels // channels_per_head``.
        Where that is 0 the block has no attention.
      channels_per_head: see num_heads.
      dropout: rate.
      skip_scale: see above.
      eps: of the norms.
      norm_groups: groups of every norm; None: as many as its channels ask for.
      resample_filter: one-dimensional filter, see `resample`.
      resample_proj: whether a resampling skip has a 1x1 kernel even if channels agree.
      adaptive_scale: see above.
      biases_apart: return `Biased`, and leave all biases of the block to its norms.
      initial, initial_zero, initial_attn: initial values of the layers, of conv1 and proj, and
        of qkv (None: as initial).
    """

    out_channels: int
    up: bool = False
    down: bool = False
    attention: bool = False
    num_heads: int | None = None
    channels_per_head: int = 64
    dropout: float = 0.0
    skip_scale: float = 1.0
    eps: float = 1e-5
    norm_groups: int | None = None
    resample_filter: Sequence[float] = (1, 1)
    resample_proj: bool = False
    adaptive_scale: bool = True
    biases_apart: bool = False
    initial: Init = Init()
    initial_zero: Init = Init(weight=0.0)
    initial_attn: Init | None = None

    @property
    def heads(self) -> int:
        """Attention heads the block really has."""
        if not self.attention:
            return 0
        if self.num_heads is not None:
            return self.num_heads
        return self.out_channels // self.channels_per_head

    @nn.compact
    def __call__(
        self, x: Array | Biased | tuple[Array | Biased, ...], emb: Array, seeds: Array | None = None
    ) -> Array | Biased:
        """Apply the block.

        Args:
          x: ``(B, H, W, in)``, or several to be joined along their channels.
          emb: ``(B or 1, emb_channels)`` float32.
          seeds: ``(B, 2)`` uint32 seeds of the dropout; None: no dropout.

        Returns:
          ``(B, H', W', out_channels)`` in the dtype of x.
        """
        out = self.out_channels
        sampling = {"up": self.up, "down": self.down, "resample_filter": self.resample_filter}
        apart = {"bias_apart": self.biases_apart}
        conv = {"features": out, "initial": self.initial, **apart}
        several = isinstance(x, tuple) and not isinstance(x, Biased)  # which is a tuple too
        parts = [biased(part) for part in (x if several else (x,))]
        x = _side_by_side(parts)

        norm0 = GroupNorm(self.eps, silu=True, groups=self.norm_groups, name="norm0")
        h = norm0(x, parts=tuple(part.x for part in parts))
        h = biased(Conv2d(kernel_size=3, **conv, **sampling, name="conv0")(h))
        width = 2 * out if self.adaptive_scale else out
        affine = Linear(width, initial=self.initial, axes=("embed", "channels_out"), name="affine")
        # The embedding takes the precision of the feature map only here.
        p = affine(emb).astype(h.x.dtype)
        norm1 = GroupNorm(self.eps, silu=True, groups=self.norm_groups, name="norm1")
        if self.adaptive_scale:
            h = norm1(h, modulation=(p[:, :out], p[:, out:]))
        else:
            h = norm1(h, shift=p)
        if seeds is not None and self.dropout > 0:
            h = dropout(h, self.dropout, seeds)
        h = biased(Conv2d(out, 3, **apart, initial=self.initial_zero, name="conv1")(h))

        residual = x
        if x.x.shape[-1] != out or self.up or self.down:
            size = int(self.resample_proj or x.x.shape[-1] != out)
            residual = biased(Conv2d(kernel_size=size, **conv, **sampling, name="skip")(x))
        x = self._sum(h, residual)
        x = self._attend(x) if self.heads else x
        return x if self.biases_apart else joined(x)

    def _attend(self, x: Biased) -> Biased:
        b, height, width, channels = x.x.shape
        heads, tokens = self.heads, height * width
        norm2 = GroupNorm(self.eps, groups=self.norm_groups, name="norm2")
        h = norm2(x).reshape(b, tokens, channels)
        initial = self.initial if self.initial_attn is None else self.initial_attn
        if in_one_kernel(h.dtype, b, tokens, heads, channels // heads):
            a = SelfAttention(heads, initial, name="qkv")(h)
        else:
            a = attention(*QKV(heads, initial, name="qkv")(h)).reshape(x.x.shape)
        apart = {"bias_apart": self.biases_apart, "initial": self.initial_zero}
        a = biased(Conv2d(channels, 1, **apart, name="proj")(a))
        return self._sum(Biased(a.x.reshape(x.x.shape), a.bias), x)

    def _sum(self, h: Biased, x: Biased) -> Biased:
        """``(h + x) skip_scale``, of which x may have no bias yet."""
        bias = h.bias if x.bias is None else h.bias + x.bias
        if bias is not None:
            bias = bias * self.skip_scale
        return Biased((h.x + x.x) * self.skip_scale, bias)


def _side_by_side(parts: list[Biased]) -> Biased:
    """The parts joined along their channels."""
    if len(parts) == 1:
        return parts[0]
    x = jnp.concatenate([part.x for part in parts], axis=-1)
    if all(part.bias is None for part in parts):
        return Biased(x, None)
    none = (jnp.zeros(part.x.shape[-1]) if part.bias is None else part.bias for part in parts)
    return Biased(x, jnp.concatenate(list(none)))
