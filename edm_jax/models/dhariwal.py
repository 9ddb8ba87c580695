"""DhariwalUNet: the ADM network of Dhariwal & Nichol 2021 as EDM configures it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from edm_jax.models.ops.initializers import Init
from edm_jax.models.ops.layers import Linear, PositionalEmbedding, silu
from edm_jax.models.plan import Entry, dhariwal_plan
from edm_jax.models.unet import UNet, require
from edm_jax.typing import Array

_INIT = Init("kaiming_uniform", weight=math.sqrt(1 / 3), bias=math.sqrt(1 / 3))
_INIT_ZERO = Init("kaiming_uniform", weight=0.0, bias=0.0)


class DhariwalUNet(UNet):
    """The ADM U-Net; the defaults are ImageNet at 64x64.

    Attention has 64 channels per head; a level narrower than 64 channels has none, even
    if its resolution is listed.

    Attributes:
      img_resolution: R, height and width of the images.
      in_channels, out_channels: of the images.
      label_dim: size of the class labels; 0: unconditional.
      augment_dim: size of the augmentation labels; 0: none.
      model_channels: base width.
      channel_mult: width of each level, in model_channels.
      channel_mult_emb: size of the embedding, in model_channels.
      num_blocks: residual blocks per level.
      attn_resolutions: resolutions with attention.
      dropout: rate within the blocks.
      label_dropout: probability of zeroing the class label of an image in training.
      dtype: of the feature maps: float32, bfloat16 or float16.  Parameters, embeddings,
        statistics of norms and softmax are float32 in any case.
      remat: ``none``, or ``blocks``: recompute every block in the backward pass, which
        then keeps only their inputs.
    """

    img_resolution: int
    in_channels: int
    out_channels: int
    label_dim: int = 0
    augment_dim: int = 0
    model_channels: int = 192
    channel_mult: Sequence[int] = (1, 2, 3, 4)
    channel_mult_emb: int = 4
    num_blocks: int = 3
    attn_resolutions: Sequence[int] = (32, 16, 8)
    dropout: float = 0.10
    label_dropout: float = 0.0
    dtype: str = "float32"
    remat: str = "none"

    @property
    def plan(self) -> tuple[Entry, ...]:
        """The steps of encoder and decoder."""
        return dhariwal_plan(self)

    @property
    def mapping_order(self) -> tuple[str, ...]:
        """Mapping layers as they were registered."""
        return ("map_noise", "map_augment", "map_layer0", "map_layer1", "map_label")

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of every block."""
        return {
            "channels_per_head": 64,
            "skip_scale": 1.0,
            "eps": 1e-5,
            "resample_filter": (1, 1),
            "resample_proj": False,
            "adaptive_scale": True,
            "initial": _INIT,
            "initial_zero": _INIT_ZERO,
        }

    def embedding(
        self,
        c_noise: Array,
        class_labels: Array | None,
        augment_labels: Array | None,
    ) -> Array:
        """The augmentation joins before the mapping layers, the class after them."""
        width = self.model_channels
        e = PositionalEmbedding(width, name="map_noise")(c_noise)
        axes = ("labels", "embed_out")
        if augment_labels is not None:
            map_augment = Linear(width, False, initial=_INIT_ZERO, axes=axes, name="map_augment")
            e = e + map_augment(augment_labels)
        width = self.model_channels * self.channel_mult_emb
        e = silu(Linear(width, initial=_INIT, name="map_layer0")(e))
        e = Linear(width, initial=_INIT, name="map_layer1")(e)
        if class_labels is not None:
            # Entries of variance 1: a one-hot label then has the scale of a table row.
            init = Init("kaiming_normal", weight=math.sqrt(self.label_dim))
            e = e + Linear(width, False, initial=init, axes=axes, name="map_label")(class_labels)
        return silu(e)

    def _check(self) -> None:
        super()._check()
        require(self.model_channels % 2 == 0, "model_channels", "even", self.model_channels)
        self._check_norms()
