"""The U-Net that both published architectures are: checks, inputs, and the run of a plan."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from edm_jax.models.blocks import UNetBlock, dropout_seeds
from edm_jax.models.ops.initializers import Init
from edm_jax.models.ops.layers import (
    Conv2d,
    GroupNorm,
    biases_apart,
    joined,
    num_groups,
)
from edm_jax.models.ops.remat import remat
from edm_jax.models.plan import Entry
from edm_jax.typing import Array

DTYPES = ("float32", "bfloat16", "float16")
REMAT = ("none", "blocks")
_COUNTS = (
    "img_resolution", "in_channels", "out_channels", "model_channels", "channel_mult_emb",
    "channel_mult_noise", "num_blocks",
)  # fmt: skip


def require(condition: bool, name: str, rule: str, value: Any) -> None:
    """Raise a ValueError naming argument, rule and value unless the condition holds."""
    if not condition:
        raise ValueError(f"{name} must be {rule}, got {value!r}")


def _is_count(value: Any, least: int) -> bool:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and value >= least


class UNet(nn.Module):
    """Base of the networks; a subclass has the fields, the plan and the embedding."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, list):  # hashable, so that a network can be static in jit
                object.__setattr__(self, name, tuple(value))
        if not isinstance(self.dtype, str):
            object.__setattr__(self, "dtype", jnp.dtype(self.dtype).name)
        self._check()
        super().__post_init__()

    # What a subclass defines.

    @property
    def plan(self) -> tuple[Entry, ...]:
        """The steps of encoder and decoder."""
        raise TypeError(f"{type(self).__name__} must define its plan")

    @property
    def mapping_order(self) -> tuple[str, ...]:
        """Names of the layers of the embedding in the order of published states."""
        raise TypeError(f"{type(self).__name__} must define its mapping_order")

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of every `UNetBlock`; some serve the layers around them too."""
        raise TypeError(f"{type(self).__name__} must define its settings")

    def embedding(
        self,
        c_noise: Array,
        class_labels: Array | None,
        augment_labels: Array | None,
    ) -> Array:
        """``(B or 1, emb_channels)`` float32 from the conditions; labels are optional."""
        raise TypeError(f"{type(self).__name__} must define its embedding")

    # What they share.

    @nn.compact
    def __call__(
        self,
        x: Array,
        c_noise: Array,
        class_labels: Array | None = None,
        augment_labels: Array | None = None,
        *,
        train: bool = False,
        image_ids: Array | None = None,
    ) -> Array:
        """``F(x; c_noise)``.

        Args:
          x: ``(B, R, R, in_channels)``, scaled by c_in.
          c_noise: scalar or ``(B,)``.
          class_labels: ``(B or 1, label_dim)``, one-hot; None or zeros: no class.
          augment_labels: ``(B or 1, augment_dim)``; None: not augmented.
          train: whether dropout is on; it needs ``rngs={"dropout": key}``.
          image_ids: ``(B,)`` integers; with the key, the id decides the dropout of an
            image.  By default its index in the batch.

        Returns:
          ``(B, R, R, out_channels)`` float32.
        """
        c_noise, class_labels, augment_labels = self._conditions(
            x, c_noise, class_labels, augment_labels
        )
        seeds = self._dropout_seeds(x.shape[0], image_ids) if train else None
        if seeds is not None and class_labels is not None and self.label_dropout > 0:
            # 24 bits fill a float32.
            uniform = (seeds[0, :, :1] >> 8).astype(jnp.float32) * 2.0**-24
            class_labels = class_labels * (uniform >= self.label_dropout)
        emb = self.embedding(c_noise, class_labels, augment_labels)

        x = jnp.asarray(x).astype(self.dtype)
        aux, output, skips = x, None, []
        block_number = 0
        for entry in self.plan:
            if entry.kind == "block":
                block_number += 1
                given = (x, skips.pop()) if entry.concat else x
                block_seeds = None if seeds is None else seeds[block_number]
                x = self._block(entry)(given, emb, block_seeds)
            elif entry.kind == "conv":
                x = self._conv(entry, 3, bias_apart=biases_apart())(x)
            elif entry.kind == "norm":
                norm = GroupNorm(self.settings["eps"], silu=True, name=entry.module_name)
                normed = norm(x)
            elif entry.kind == "output":
                y = self._conv(entry, 3, initial=self.settings["initial_zero"])(normed)
                output = y if output is None else output + y
            elif entry.kind == "aux_up":
                output = self._conv(entry, 0)(output)
            elif entry.kind == "aux_down":
                aux = self._conv(entry, 0)(aux)
            elif entry.kind == "aux_skip":
                x = skips[-1] = joined(x) + self._conv(entry, 1)(aux)
            elif entry.kind == "aux_residual":
                x = skips[-1] = aux = (joined(x) + self._conv(entry, 3)(aux)) / math.sqrt(2)
            if entry.kind in ("conv", "block") and entry.name.startswith("enc."):
                skips.append(x)
        return output.astype(jnp.float32)

    def _block(self, entry: Entry) -> nn.Module:
        recompute = self.remat == "blocks" and not self.is_initializing()
        block_type = remat(UNetBlock) if recompute else UNetBlock
        return block_type(
            out_channels=entry.out_channels,
            up=entry.up,
            down=entry.down,
            attention=entry.attention,
            dropout=self.dropout,
            biases_apart=biases_apart(),
            **self.settings,
            name=entry.module_name,
        )

    def _conv(
        self,
        entry: Entry,
        kernel_size: int,
        initial: Init | None = None,
        bias_apart: bool = False,
    ) -> nn.Module:
        return Conv2d(
            entry.out_channels,
            kernel_size,
            up=entry.up,
            down=entry.down,
            resample_filter=self.settings["resample_filter"],
            fused_resample=True,
            bias_apart=bias_apart,
            initial=self.settings["initial"] if initial is None else initial,
            name=entry.module_name,
        )

    def _dropout_seeds(self, batch: int, image_ids: Array | None) -> Array | None:
        """``(1 + blocks, B, 2)`` uint32: row 0 for the labels, then one per block."""
        if self.dropout == 0 and self.label_dropout == 0:
            return None
        ids = jnp.arange(batch) if image_ids is None else jnp.asarray(image_ids)
        if ids.shape != (batch,) or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(
                f"image_ids must be integers of shape ({batch},), got {ids.dtype} {ids.shape}"
            )
        blocks = sum(entry.kind == "block" for entry in self.plan)
        return dropout_seeds(self.make_rng("dropout"), ids, 1 + blocks)

    def _conditions(
        self,
        x: Array,
        c_noise: Array,
        class_labels: Array | None,
        augment_labels: Array | None,
    ) -> tuple[Array, Array | None, Array | None]:
        """Inputs of the embedding, float32 and of rank 1 and 2; checks all shapes."""
        r, batch = self.img_resolution, x.shape[0]
        if x.ndim != 4 or x.shape[1:] != (r, r, self.in_channels):
            raise ValueError(
                f"x must have shape (B, {r}, {r}, {self.in_channels}) for this network, "
                f"got {x.shape}"
            )
        c_noise = jnp.asarray(c_noise, jnp.float32)
        if c_noise.shape not in ((), (1,), (batch,)):
            raise ValueError(
                f"c_noise must be a scalar or have shape ({batch},), got {c_noise.shape}"
            )
        if class_labels is None and self.label_dim:
            class_labels = jnp.zeros((1, self.label_dim))
        labels = []
        for name, value, size in (
            ("class_labels", class_labels, self.label_dim),
            ("augment_labels", augment_labels, self.augment_dim),
        ):
            if value is not None:
                value = jnp.asarray(value, jnp.float32)
                if size == 0:
                    raise ValueError(
                        f"{name} must be None for a network without, got shape {value.shape}"
                    )
                if value.shape not in ((1, size), (batch, size)):
                    raise ValueError(f"{name} must have shape ({batch}, {size}), got {value.shape}")
            labels.append(value)
        return c_noise.reshape(-1), *labels

    def _check(self) -> None:
        """Raise a ValueError for the first argument no network can be built from."""
        for name in _COUNTS:
            if hasattr(self, name):
                value = getattr(self, name)
                require(_is_count(value, 1), name, "a positive integer", value)
        for name in ("label_dim", "augment_dim"):
            value = getattr(self, name)
            require(_is_count(value, 0), name, "an integer >= 0", value)
        for name in ("channel_mult", "attn_resolutions"):
            value = getattr(self, name)
            good = isinstance(value, tuple) and all(_is_count(v, 1) for v in value)
            require(good, name, "a list of positive integers", value)
        levels = len(self.channel_mult)
        require(levels > 0, "channel_mult", "a list of at least one integer", self.channel_mult)
        for name in ("dropout", "label_dropout"):
            value = getattr(self, name)
            good = isinstance(value, numbers.Real) and 0 <= value < 1
            require(good, name, "a number in [0, 1)", value)
        self._check_choice("dtype", DTYPES)
        self._check_choice("remat", REMAT)
        divisor = 2 ** (levels - 1)
        rule = f"divisible by {divisor}, as channel_mult has {levels} levels"
        divides = self.img_resolution % divisor == 0
        require(divides, "img_resolution", rule, self.img_resolution)

    def _check_choice(self, name: str, choices: Sequence[str]) -> None:
        value = getattr(self, name)
        require(value in choices, name, f"one of {', '.join(choices)}", value)

    def _check_norms(self) -> None:
        for entry in self.plan:
            if entry.kind in ("block", "norm"):
                try:
                    num_groups(entry.in_channels)
                    num_groups(entry.out_channels)
                except ValueError as error:
                    raise ValueError(f"{entry.name}: {error}") from None
