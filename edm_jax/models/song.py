"""SongUNet: DDPM++ and NCSN++ of score-SDE (Song et al. 2021) as EDM configures them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from edm_jax.models.ops.initializers import Init
from edm_jax.models.ops.layers import FourierEmbedding, Linear, PositionalEmbedding, silu
from edm_jax.models.plan import DECODER_TYPES, ENCODER_TYPES, Entry, song_plan
from edm_jax.models.unet import UNet, require
from edm_jax.typing import Array

_INIT = Init("xavier_uniform")


class SongUNet(UNet):
    """The U-Net of DDPM++ and NCSN++; the defaults are DDPM++ at 64x64.

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
      embedding_type: ``positional`` (DDPM++) or ``fourier`` (NCSN++).
      channel_mult_noise: size of the noise embedding, in model_channels: 1 (DDPM++) or
        2 (NCSN++).
      encoder_type: ``standard`` (DDPM++), ``residual`` (NCSN++) or ``skip``.
      decoder_type: ``standard`` or ``skip``.
      resample_filter: ``[1, 1]`` (DDPM++) or ``[1, 3, 3, 1]`` (NCSN++).
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
    model_channels: int = 128
    channel_mult: Sequence[int] = (1, 2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attn_resolutions: Sequence[int] = (16,)
    dropout: float = 0.10
    label_dropout: float = 0.0
    embedding_type: str = "positional"
    channel_mult_noise: int = 1
    encoder_type: str = "standard"
    decoder_type: str = "standard"
    resample_filter: Sequence[float] = (1, 1)
    dtype: str = "float32"
    remat: str = "none"

    @property
    def plan(self) -> tuple[Entry, ...]:
        """The steps of encoder and decoder."""
        return song_plan(self)

    @property
    def mapping_order(self) -> tuple[str, ...]:
        """Mapping layers as they were registered."""
        return ("map_noise", "map_label", "map_augment", "map_layer0", "map_layer1")

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of every block."""
        return {
            "num_heads": 1,
            "skip_scale": math.sqrt(0.5),
            "eps": 1e-6,
            "resample_filter": self.resample_filter,
            "resample_proj": True,
            "adaptive_scale": False,
            "initial": _INIT,
            "initial_zero": Init("xavier_uniform", weight=1e-5),
            "initial_attn": Init("xavier_uniform", weight=math.sqrt(0.2)),
        }

    def embedding(
        self,
        c_noise: Array,
        class_labels: Array | None,
        augment_labels: Array | None,
    ) -> Array:
        """Labels join the noise level before the mapping layers."""
        width = self.model_channels * self.channel_mult_noise
        if self.embedding_type == "fourier":
            e = FourierEmbedding(width, name="map_noise")(c_noise)
        else:
            e = PositionalEmbedding(width, endpoint=True, name="map_noise")(c_noise)
        e = jnp.roll(e, width // 2, axis=-1)  # sines first
        axes = ("labels", "embed_out")
        if class_labels is not None:
            map_label = Linear(width, initial=_INIT, axes=axes, name="map_label")
            e = e + map_label(class_labels * math.sqrt(self.label_dim))
        if augment_labels is not None:
            map_augment = Linear(width, False, initial=_INIT, axes=axes, name="map_augment")
            e = e + map_augment(augment_labels)
        width = self.model_channels * self.channel_mult_emb
        e = silu(Linear(width, initial=_INIT, name="map_layer0")(e))
        return silu(Linear(width, initial=_INIT, name="map_layer1")(e))

    def _check(self) -> None:
        super()._check()
        self._check_choice("embedding_type", ("positional", "fourier"))
        self._check_choice("encoder_type", ENCODER_TYPES)
        self._check_choice("decoder_type", DECODER_TYPES)
        taps = self.resample_filter
        rule = "a list of an even number of taps whose sum is not 0"
        good = isinstance(taps, tuple) and len(taps) % 2 == 0 and sum(taps) != 0
        require(good, "resample_filter", rule, taps)
        width = self.model_channels * self.channel_mult_noise
        require(width % 2 == 0, "model_channels * channel_mult_noise", "even", width)
        self._check_norms()
