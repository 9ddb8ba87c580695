"""The network of autoregressive diffusion on sequences: a bidirectional Transformer encoder."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from edm_jax.models.ardm_unet import TimeMapping, check_class_labels
from edm_jax.models.blocks import QKV, dropout, dropout_seeds
from edm_jax.models.ops.attention import attention
from edm_jax.models.ops.initializers import Init
from edm_jax.models.ops.layers import Linear
from edm_jax.models.unet import DTYPES, REMAT, require
from edm_jax.typing import Array

_TABLE_STD = 0.02  # of embeddings, as in BERT


class LayerNorm(nn.Module):
    """Layer normalisation with float32 statistics, in the dtype of its input."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``(B, L, C) -> (B, L, C)``."""
        norm = nn.LayerNorm(
            epsilon=1e-6,
            scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("channels",)),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("channels",)),
            name="norm",
        )
        return norm(x.astype(jnp.float32)).astype(x.dtype)


class EncoderBlock(nn.Module):
    """Attention over all positions, then two layers; each on a norm, added to its input.

        x = x + dropout(proj(attention(qkv(norm0(x)))))
        x = x + dropout(mlp1(gelu(mlp0(norm1(x) + affine(emb)))))

    Attributes:
      num_heads: of the attention.
      mlp_channels: width between the two layers.
      dropout: rate.
    """

    num_heads: int
    mlp_channels: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, emb: Array, seeds: Array | None = None) -> Array:
        """Apply the block.

        Args:
          x: ``(B, L, C)``.
          emb: ``(B, emb_channels)`` float32.
          seeds: ``(B, 4)`` uint32, two for each dropout; None: no dropout.
        """
        channels = x.shape[-1]

        def dropped(h: Array, which: int) -> Array:
            if seeds is None or self.dropout == 0:
                return h
            return dropout(h, self.dropout, seeds[:, 2 * which : 2 * which + 2])

        h = attention(*QKV(self.num_heads, Init(), name="qkv")(LayerNorm(name="norm0")(x)))
        axes = ("channels_in", "channels_out")
        h = Linear(channels, axes=axes, name="proj")(h.reshape(x.shape))
        x = x + dropped(h, 0)
        p = Linear(channels, axes=("embed", "channels_out"), name="affine")(emb)
        h = LayerNorm(name="norm1")(x) + p[:, None].astype(x.dtype)
        h = jax.nn.gelu(Linear(self.mlp_channels, axes=axes, name="mlp0")(h))
        return x + dropped(Linear(channels, axes=axes, name="mlp1")(h), 1)


class ArdmTransformer(nn.Module):
    """Predicts every token of a sequence from those that are known.

    Defaults are those of text8 in the paper.

    Attributes:
      length: L, of the sequences.
      out_channels: outputs per token, `Process.num_outputs`.
      num_inputs: classes the network is shown, `Process.num_inputs`.
      num_stages: S.
      label_dim: size of the class labels; 0: unconditional.
      model_channels: width.
      num_blocks: layers.
      num_heads: of the attention.
      mlp_channels: width within the layers.
      dropout: rate within the layers.
      dtype: of the features.
      remat: ``none``, or ``blocks``: recompute every layer in the backward pass.
    """

    length: int
    out_channels: int
    num_inputs: int
    num_stages: int = 1
    label_dim: int = 0
    model_channels: int = 768
    num_blocks: int = 12
    num_heads: int = 12
    mlp_channels: int = 3072
    dropout: float = 0.0
    dtype: str = "float32"
    remat: str = "none"

    def __post_init__(self) -> None:
        if not isinstance(self.dtype, str):
            object.__setattr__(self, "dtype", jnp.dtype(self.dtype).name)
        for name in (
            *("length", "out_channels", "num_inputs", "num_stages", "model_channels"),
            *("num_blocks", "num_heads", "mlp_channels"),
        ):
            value = getattr(self, name)
            good = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            require(good, name, "a positive integer", value)
        for name, known in {"dtype": DTYPES, "remat": REMAT}.items():
            value = getattr(self, name)
            require(value in known, name, f"one of {', '.join(known)}", value)
        good = isinstance(self.label_dim, int) and self.label_dim >= 0
        require(good, "label_dim", "an integer >= 0", self.label_dim)
        require(0 <= self.dropout < 1, "dropout", "a number in [0, 1)", self.dropout)
        rule = f"even and divisible by num_heads = {self.num_heads}"
        good = self.model_channels % self.num_heads == 0 and self.model_channels % 2 == 0
        require(good and self.model_channels >= 4, "model_channels", rule, self.model_channels)
        super().__post_init__()

    @property
    def image_shape(self) -> tuple[int]:
        """``(L,)``: shape of one example."""
        return (self.length,)

    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct | None, ...]:
        """Shapes of the arguments for one example."""
        return (
            jax.ShapeDtypeStruct((1, self.length), jnp.int32),
            jax.ShapeDtypeStruct((1,), jnp.float32),
            jax.ShapeDtypeStruct((1, self.length), jnp.bool_),
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
        """Outputs of every token, of which those of known ones mean nothing.

        Args:
          x: ``(B, L)`` integers below num_inputs; what is shown.
          time: ``(B,)`` share of all steps that is done, in [0, 1).
          known: ``(B, L)`` bool.
          stage: ``(B,)`` integers below num_stages; not needed where there is one.
          class_labels: ``(B, label_dim)``, one-hot; None or zeros: no class.
          train: whether dropout is on; it needs ``rngs={"dropout": key}``.
          image_ids: ``(B,)`` integers that, with the key, decide the dropout of a sequence.

        Returns:
          ``(B, L, out_channels)`` float32.
        """
        self._check_inputs(x, known)
        check_class_labels(class_labels, x.shape[0], self.label_dim)
        emb = TimeMapping(self.model_channels, self.label_dim, name="time")(time, class_labels)
        tokens = self._table("tokens", self.num_inputs)[x]
        # Coarse values look alike whether they are final or not; the mask tells.
        h = tokens + self._table("mask", 2)[known.astype(jnp.int32)]
        h = h + self._table("positions", self.length)[None]
        if self.num_stages > 1:
            stage = jnp.zeros(x.shape[0], jnp.int32) if stage is None else stage
            h = h + self._table("stages", self.num_stages)[stage][:, None]
        h = h.astype(self.dtype)
        seeds = self._dropout_seeds(x.shape[0], image_ids) if train else None
        recompute = self.remat == "blocks" and not self.is_initializing()
        block_type = nn.remat(EncoderBlock) if recompute else EncoderBlock
        for i in range(self.num_blocks):
            block = block_type(self.num_heads, self.mlp_channels, self.dropout, name=f"block{i}")
            h = block(h, emb, None if seeds is None else seeds[i])
        h = LayerNorm(name="out_norm")(h)
        # Zero at the start: a uniform distribution.
        out = Linear(self.out_channels, initial=Init(weight=0.0), name="out")
        return out(h).astype(jnp.float32)

    def _table(self, name: str, size: int) -> Array:
        init = nn.with_logical_partitioning(
            nn.initializers.normal(_TABLE_STD), ("labels", "channels")
        )
        return self.param(name, init, (size, self.model_channels), jnp.float32)

    def _dropout_seeds(self, batch: int, image_ids: Array | None) -> Array | None:
        """``(blocks, B, 4)`` uint32: two dropouts in every block."""
        if self.dropout == 0:
            return None
        ids = jnp.arange(batch) if image_ids is None else jnp.asarray(image_ids)
        words = dropout_seeds(self.make_rng("dropout"), ids, 2 * self.num_blocks)
        pairs = words.reshape(self.num_blocks, 2, batch, 2)
        return jnp.moveaxis(pairs, 1, 2).reshape(self.num_blocks, batch, 4)

    def _check_inputs(self, x: Array, known: Array) -> None:
        if x.ndim != 2 or x.shape[1] != self.length:
            raise ValueError(
                f"x must have shape (B, {self.length}) for this network, got {x.shape}; images go "
                "to ArdmUNet"
            )
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"x must hold integers below {self.num_inputs}, got {x.dtype}")
        if known.shape != x.shape:
            raise ValueError(f"known must have the shape of x, {x.shape}, got {known.shape}")
