"""The U-Net of autoregressive diffusion: one resolution, integers in, any outputs.

Width and depth are those of VDM (Hoogeboom et al. 2022, appendix): residual blocks down, two
in the middle with attention between them, one more than down on the way up.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from edm_jax.models.blocks import UNetBlock, dropout_seeds
from edm_jax.models.ops.initializers import Init
from edm_jax.models.ops.layers import (
    Conv2d,
    GroupNorm,
    Linear,
    biases_apart,
    num_groups,
    silu,
)
from edm_jax.models.ops.remat import remat
from edm_jax.models.unet import DTYPES, REMAT, require
from edm_jax.typing import Array

INPUTS = ("embed", "one_hot", "float")
ATTENTION = ("middle", "all")
_FREQUENCY_RANGE = 10000.0
_TIME_SCALE = 1000.0
_EPS = 1e-6  # of the norms; Flax's default, which the release uses


def time_embedding(time: Array, channels: int) -> Array:
    """``[sin(1000 time f_i), cos(1000 time f_i)]``, f_i falling from 1 to 1/10000.

    Args:
      time: ``(B,)`` share of the steps that is done, in [0, 1).
      channels: even, at least 4.

    Returns:
      ``(B, channels)`` float32.
    """
    half = channels // 2
    frequency = jnp.exp(-math.log(_FREQUENCY_RANGE) / (half - 1) * jnp.arange(half))
    phase = _TIME_SCALE * time.astype(jnp.float32)[:, None] * frequency[None]
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)


class TimeMapping(nn.Module):
    """Embedding of the time and of a class with two layers: dense, silu, dense, silu.

    Attributes:
      channels: C of the embedding; 4 C come out.
      label_dim: size of the class labels; 0: unconditional.
    """

    channels: int
    label_dim: int = 0

    @nn.compact
    def __call__(self, time: Array, class_labels: Array | None = None) -> Array:
        """``(B,)`` and ``(B, label_dim)`` (None: no class) ``-> (B, 4 channels)`` float32."""
        width = 4 * self.channels
        e = Linear(width, name="map_layer0")(time_embedding(time, self.channels))
        if self.label_dim:
            if class_labels is None:
                class_labels = jnp.zeros((time.shape[0], self.label_dim))
            # As in SongUNet: rows of unit variance over the classes.
            rows = class_labels.astype(jnp.float32) * math.sqrt(self.label_dim)
            e = e + Linear(width, axes=("labels", "embed_out"), name="map_label")(rows)
        # Every block begins with a silu, which is the same one.
        return silu(Linear(width, name="map_layer1")(silu(e)))


def check_class_labels(class_labels: Array | None, batch: int, label_dim: int) -> None:
    """Raise ValueError unless labels are rows of a conditional network, or None."""
    if class_labels is not None and class_labels.shape != (batch, label_dim):
        rule = f"have shape ({batch}, {label_dim})" if label_dim else "be left out: there are none"
        raise ValueError(f"class_labels must {rule}, got {class_labels.shape}")


class DiscreteInput(nn.Module):
    """Integers and what is known of them -> features.

        float     [2 x / classes - 1, mask, stage] -> 3x3 convolution
        embed     the same to 3/4 of the features; the rest is an embedding of every channel
        one_hot   float, and the one-hot values besides

    Attributes:
      features: C.
      num_inputs: classes of x, an absorbing one included.
      num_stages: S; a one-hot stage is an input where there is more than one.
      kind: of INPUTS.
      dtype: of the result.
    """

    features: int
    num_inputs: int
    num_stages: int
    kind: str
    dtype: str

    @nn.compact
    def __call__(self, x: Array, known: Array, stage: Array) -> Array:
        """``(B, H, W, ch)`` int32, ``(B, H, W, 1 or ch)`` bool, ``(B,)`` -> ``(B, H, W, C)``."""
        inputs = [2 * x.astype(jnp.float32) / self.num_inputs - 1, known.astype(jnp.float32)]
        if self.num_stages > 1:
            rows = jax.nn.one_hot(stage, self.num_stages)[:, None, None, :]
            inputs.append(jnp.broadcast_to(rows, (*x.shape[:3], self.num_stages)))
        if self.kind == "one_hot":
            inputs.append(jax.nn.one_hot(x, self.num_inputs).reshape(*x.shape[:3], -1))
        inputs = jnp.concatenate(inputs, axis=-1).astype(self.dtype)
        embedded = self.features // 4 if self.kind == "embed" else 0
        h = Conv2d(self.features - embedded, 3, name="conv")(inputs)
        if not embedded:
            return h
        table_init = nn.with_logical_partitioning(
            nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0),
            ("labels", "channels"),
        )
        table = self.param("table", table_init, (self.num_inputs, embedded), jnp.float32)
        e = table.astype(self.dtype)[x].reshape(*x.shape[:3], -1)
        e = Linear(embedded, axes=("channels_in", "channels_out"), name="embed")(e)
        return jnp.concatenate([h, e], axis=-1)


class ArdmUNet(nn.Module):
    """Predicts every variable of an image from those that are known.

    Defaults are those of CIFAR-10 in the paper.

    Attributes:
      img_resolution: R, height and width.
      in_channels: of the images.
      out_channels: outputs per pixel, `Process.num_outputs`.
      num_inputs: classes the network is shown, `Process.num_inputs`.
      num_stages: S.
      mask_channels: of the mask; that of the images, or 1 where a pixel is one variable.
      label_dim: size of the class labels; 0: unconditional.
      model_channels: C.
      num_blocks: residual blocks on the way down.
      attention: ``middle`` (the paper) or ``all``, after every block too (the release).
      inputs: of INPUTS.
      position_map: whether a learned map is added to the features of the input.
      dropout: rate within the blocks.
      dtype: of the feature maps.
      remat: ``none``, or ``blocks``: recompute every block in the backward pass.
    """

    img_resolution: int
    in_channels: int
    out_channels: int
    num_inputs: int
    num_stages: int = 1
    mask_channels: int | None = None
    label_dim: int = 0
    model_channels: int = 256
    num_blocks: int = 32
    attention: str = "middle"
    inputs: str = "embed"
    position_map: bool = False
    dropout: float = 0.0
    dtype: str = "float32"
    remat: str = "none"

    def __post_init__(self) -> None:
        if not isinstance(self.dtype, str):
            object.__setattr__(self, "dtype", jnp.dtype(self.dtype).name)
        if self.mask_channels is None:
            object.__setattr__(self, "mask_channels", self.in_channels)
        self._check()
        super().__post_init__()

    def _check(self) -> None:
        for name in (
            *("img_resolution", "in_channels", "out_channels", "num_inputs", "num_stages"),
            *("mask_channels", "model_channels", "num_blocks"),
        ):
            value = getattr(self, name)
            good = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            require(good, name, "a positive integer", value)
        choices = {"attention": ATTENTION, "inputs": INPUTS, "dtype": DTYPES, "remat": REMAT}
        for name, known in choices.items():
            value = getattr(self, name)
            require(value in known, name, f"one of {', '.join(known)}", value)
        require(0 <= self.dropout < 1, "dropout", "a number in [0, 1)", self.dropout)
        good = self.mask_channels in (1, self.in_channels)
        require(good, "mask_channels", f"1 or in_channels = {self.in_channels}", self.mask_channels)
        require(
            self.model_channels % 4 == 0, "model_channels", "divisible by 4", self.model_channels
        )
        good = isinstance(self.label_dim, int) and self.label_dim >= 0
        require(good, "label_dim", "an integer >= 0", self.label_dim)
        for width in (self.model_channels, 2 * self.model_channels):
            num_groups(width)

    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct | None, ...]:
        """Shapes of the arguments for one example."""
        r = self.img_resolution
        return (
            jax.ShapeDtypeStruct((1, r, r, self.in_channels), jnp.int32),
            jax.ShapeDtypeStruct((1,), jnp.float32),
            jax.ShapeDtypeStruct((1, r, r, self.mask_channels), jnp.bool_),
            jax.ShapeDtypeStruct((1,), jnp.int32),
            jax.ShapeDtypeStruct((1, self.label_dim), jnp.float32) if self.label_dim else None,
        )

    @nn.compact
    def __call__(
        self,
        x: Array,
        time: Array,
        known: Array,
        stage: Array | None = None,
        class_labels: Array | None = None,
        *,
        train: bool = False,
        image_ids: Array | None = None,
    ) -> Array:
        """Outputs of every pixel, of which those of known variables mean nothing.

        Args:
          x: ``(B, R, R, in_channels)`` integers below num_inputs; what is shown.
          time: ``(B,)`` share of all steps that is done, in [0, 1).
          known: ``(B, R, R, mask_channels)`` bool.
          stage: ``(B,)`` integers below num_stages; not needed where there is one.
          class_labels: ``(B, label_dim)``, one-hot; None or zeros: no class.
          train: whether dropout is on; it needs ``rngs={"dropout": key}``.
          image_ids: ``(B,)`` integers that, with the key, decide the dropout of an image.

        Returns:
          ``(B, R, R, out_channels)`` float32.
        """
        self._check_inputs(x, known)
        check_class_labels(class_labels, x.shape[0], self.label_dim)
        stage = jnp.zeros(x.shape[0], jnp.int32) if stage is None else stage
        seeds = self._dropout_seeds(x.shape[0], image_ids) if train else None
        emb = TimeMapping(self.model_channels, self.label_dim, name="time")(time, class_labels)
        settings = (self.model_channels, self.num_inputs, self.num_stages, self.inputs, self.dtype)
        h = DiscreteInput(*settings, name="input")(x, known, stage)
        if self.position_map:
            shape = (self.img_resolution, self.img_resolution, self.model_channels)
            axes = ("height", "width", "channels")
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, axes)
            h = h + self.param("position_map", zeros, shape, jnp.float32).astype(h.dtype)[None]

        names = self._blocks()
        seed_of = dict.fromkeys(names) if seeds is None else dict(zip(names, seeds, strict=True))
        skips = [h]
        for name in names:
            down, up = name.startswith("down"), name.startswith("up")
            given = (h, skips.pop()) if up else h
            h = self._block(name)(given, emb, seed_of[name])
            skips += [h] if down else []
        h = GroupNorm(_EPS, silu=True, name="out_norm")(h)
        # Zero at the start: a uniform distribution, or nearly so.
        out = Conv2d(self.out_channels, 3, initial=Init(weight=0.0), name="out_conv")
        return out(h).astype(jnp.float32)

    def _blocks(self) -> list[str]:
        """Names of the residual blocks in order; an upward one has a skip of each downward one
        and of the input."""
        down = [f"down_block{i}" for i in range(self.num_blocks)]
        up = [f"up_block{i}" for i in range(self.num_blocks + 1)]
        return [*down, "middle_block0", "middle_block1", *up]

    def _block(self, name: str) -> nn.Module:
        recompute = self.remat == "blocks" and not self.is_initializing()
        block_type = remat(UNetBlock) if recompute else UNetBlock
        everywhere = self.attention == "all" and not name.startswith("middle")
        return block_type(
            out_channels=self.model_channels,
            attention=everywhere or name == "middle_block0",
            num_heads=1,
            dropout=self.dropout,
            eps=_EPS,
            adaptive_scale=False,
            biases_apart=biases_apart(),
            name=name,
        )

    def _dropout_seeds(self, batch: int, image_ids: Array | None) -> Array | None:
        """``(blocks, B, 2)`` uint32."""
        if self.dropout == 0:
            return None
        ids = jnp.arange(batch) if image_ids is None else jnp.asarray(image_ids)
        return dropout_seeds(self.make_rng("dropout"), ids, len(self._blocks()))

    def _check_inputs(self, x: Array, known: Array) -> None:
        r, batch = self.img_resolution, x.shape[0]
        if x.shape[1:] != (r, r, self.in_channels):
            raise ValueError(
                f"x must have shape (B, {r}, {r}, {self.in_channels}) for this network, got "
                f"{x.shape}; sequences go to ArdmTransformer"
            )
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"x must hold integers below {self.num_inputs}, got {x.dtype}")
        if known.shape != (batch, r, r, self.mask_channels):
            raise ValueError(
                f"known must have shape ({batch}, {r}, {r}, {self.mask_channels}), got "
                f"{known.shape}"
            )
