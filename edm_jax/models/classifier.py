"""The noisy classifier of ADM: half a U-Net and attention pooling (Dhariwal & Nichol 2021).

It reads a noisy image and its noise label and gives class logits.  Blocks and embedding
are those of the ADM U-Net; its norms have 32 groups at every width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from edm_jax.models.blocks import QKV, UNetBlock
from edm_jax.models.ops.attention import attention
from edm_jax.models.ops.initializers import Init
from edm_jax.models.ops.layers import (
    Biased,
    Conv2d,
    GroupNorm,
    Linear,
    PositionalEmbedding,
    biased,
    biases_apart,
    silu,
)
from edm_jax.models.ops.remat import remat
from edm_jax.models.plan import Entry, encoder_plan
from edm_jax.models.unet import DTYPES, REMAT, require
from edm_jax.typing import Array, Key

GROUPS = 32
_INIT = Init("kaiming_uniform", weight=math.sqrt(1 / 3), bias=math.sqrt(1 / 3))
_INIT_ZERO = Init("kaiming_uniform", weight=0.0, bias=0.0)

# Published at each image size; the rest are the defaults of the network.
PUBLISHED = {
    64: {"channel_mult": (1, 2, 3, 4), "num_blocks": 4},
    128: {"channel_mult": (1, 1, 2, 3, 4), "num_blocks": 2},
    256: {"channel_mult": (1, 1, 2, 2, 4, 4), "num_blocks": 2},
    512: {"channel_mult": (0.5, 1, 1, 2, 2, 4, 4), "num_blocks": 2},
}


class AttentionPool(nn.Module):
    """From a feature map to one vector: what the mean of all positions attends to.

    Tokens are the mean of all positions, then the positions row by row, each plus a
    learned embedding; the result is the first token's attention, projected.

    Attributes:
      features: of the result.
      heads: attention heads.
    """

    features: int
    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``(B, H, W, C) -> (B, features)``."""
        channels = x.shape[-1]
        x = x.reshape(x.shape[0], -1, channels)
        x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)

        def embedding(key: Key, shape: tuple[int, ...]) -> Array:
            return jax.random.normal(key, shape) / math.sqrt(channels)

        init = nn.with_logical_partitioning(embedding, ("positions", "channels"))
        x = x + self.param("positional_embedding", init, x.shape[1:]).astype(x.dtype)[None]
        q, k, v = QKV(self.heads, _INIT, name="qkv")(x)
        pooled = attention(q[:, :1], k, v).reshape(x.shape[0], channels)
        axes = ("channels_in", "labels")
        return Linear(self.features, initial=_INIT, axes=axes, name="proj")(pooled)


class NoisyClassifier(nn.Module):
    """Encoder of the ADM U-Net with attention pooling; the defaults are 64x64 as published.

    Attributes:
      img_resolution: R, height and width of the images.
      in_channels: of the images.
      num_classes: K.
      model_channels: base width.
      channel_mult: width of each level, in model_channels; may be fractional.
      num_blocks: residual blocks per level (the published "depth").
      attn_resolutions: resolutions with attention; the middle has it anyhow.
      channels_per_head: of the attention, in the pooling too.
      dtype: of the feature maps: float32, bfloat16 or float16.  Parameters, embeddings,
        norms and pooling are float32 in any case.
      remat: ``none``, or ``blocks``: recompute every block in the backward pass.
    """

    img_resolution: int
    in_channels: int = 3
    num_classes: int = 1000
    model_channels: int = 128
    channel_mult: Sequence[float] = (1, 2, 3, 4)
    num_blocks: int = 4
    attn_resolutions: Sequence[int] = (32, 16, 8)
    channels_per_head: int = 64
    dtype: str = "float32"
    remat: str = "none"

    def __post_init__(self) -> None:
        for name in ("channel_mult", "attn_resolutions"):
            if isinstance(getattr(self, name), list):  # hashable, to be static in jit
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if not isinstance(self.dtype, str):
            object.__setattr__(self, "dtype", jnp.dtype(self.dtype).name)
        self._check()
        super().__post_init__()

    @property
    def plan(self) -> tuple[Entry, ...]:
        """The steps of the encoder and the two blocks in the middle."""
        encoder = encoder_plan(self, int(self.model_channels * self.channel_mult[0]))
        width = encoder[-1].out_channels
        middle = [
            Entry("mid_block0", "block", width, width, attention=True),
            Entry("mid_block1", "block", width, width),
        ]
        return (*encoder, *middle)

    @nn.compact
    def __call__(
        self,
        x: Array,
        c_noise: Array,
        class_labels: None = None,
        augment_labels: None = None,
        *,
        train: bool = False,
        image_ids: Array | None = None,
    ) -> Array:
        """Logits of the classes.

        Args:
          x: ``(B, R, R, in_channels)``, scaled by c_in.
          c_noise: scalar or ``(B,)``.
          class_labels, augment_labels: None; a classifier is told neither.
          train, image_ids: without effect, there is no dropout.

        Returns:
          ``(B, num_classes)`` float32.
        """
        if class_labels is not None or augment_labels is not None:
            raise ValueError("a classifier takes no labels; leave class and augment labels out")
        r = self.img_resolution
        if x.ndim != 4 or x.shape[1:] != (r, r, self.in_channels):
            raise ValueError(
                f"x must have shape (B, {r}, {r}, {self.in_channels}) for this classifier, "
                f"got {x.shape}"
            )
        c_noise = jnp.asarray(c_noise, jnp.float32).reshape(-1)
        if c_noise.shape[0] not in (1, x.shape[0]):
            raise ValueError(
                f"c_noise must be a scalar or have shape ({x.shape[0]},), got {c_noise.shape}"
            )
        width = 4 * self.model_channels
        emb = PositionalEmbedding(self.model_channels, name="map_noise")(c_noise)
        emb = silu(Linear(width, initial=_INIT, name="map_layer0")(emb))
        emb = silu(Linear(width, initial=_INIT, name="map_layer1")(emb))

        x = jnp.asarray(x).astype(self.dtype)
        for entry in self.plan:
            if entry.kind == "conv":
                x = Conv2d(entry.out_channels, 3, initial=_INIT, name=entry.module_name)(x)
            else:
                x = self._block(entry)(x, emb)
        x, bias = biased(x)
        x = Biased(x.astype(jnp.float32), bias)
        x = GroupNorm(silu=True, groups=GROUPS, name="out_norm")(x)
        heads = x.shape[-1] // self.channels_per_head
        return AttentionPool(self.num_classes, heads, name="pool")(x)

    def _block(self, entry: Entry) -> nn.Module:
        recompute = self.remat == "blocks" and not self.is_initializing()
        block_type = remat(UNetBlock) if recompute else UNetBlock
        return block_type(
            out_channels=entry.out_channels,
            down=entry.down,
            attention=entry.attention,
            channels_per_head=self.channels_per_head,
            norm_groups=GROUPS,
            biases_apart=biases_apart(),
            initial=_INIT,
            initial_zero=_INIT_ZERO,
            name=entry.module_name,
        )

    def _check(self) -> None:
        """Raise a ValueError for the first argument no network can be built from."""
        for name in (
            "img_resolution", "in_channels", "num_classes", "model_channels", "num_blocks",
            "channels_per_head",
        ):  # fmt: skip
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            require(whole and value >= 1, name, "a positive integer", value)
        require(self.model_channels % 2 == 0, "model_channels", "even", self.model_channels)
        mult = self.channel_mult
        good = isinstance(mult, tuple) and all(isinstance(m, int | float) and m > 0 for m in mult)
        require(good and len(mult) > 0, "channel_mult", "a list of positive numbers", mult)
        good = isinstance(self.attn_resolutions, tuple)
        require(good, "attn_resolutions", "a list of integers", self.attn_resolutions)
        require(self.dtype in DTYPES, "dtype", f"one of {', '.join(DTYPES)}", self.dtype)
        require(self.remat in REMAT, "remat", f"one of {', '.join(REMAT)}", self.remat)
        divisor = 2 ** (len(mult) - 1)
        rule = f"divisible by {divisor}, as channel_mult has {len(mult)} levels"
        require(self.img_resolution % divisor == 0, "img_resolution", rule, self.img_resolution)
        for entry in self.plan:
            width, rule = entry.out_channels, f"a multiple of the {GROUPS} groups of a norm"
            require(width % GROUPS == 0, f"the width of {entry.name}", rule, width)
        width, rule = self.plan[-1].out_channels, f"a multiple of {self.channels_per_head}"
        require(width % self.channels_per_head == 0, "the last width", rule, width)
