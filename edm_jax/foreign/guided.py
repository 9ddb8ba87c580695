"""ADM weights of guided-diffusion (Dhariwal & Nichol 2021) as a DhariwalUNet.

The two programs run the same operations and name them differently: there the blocks are
counted (``input_blocks.4.0``), here they are named by resolution (``enc.32x32_down``).
Values stay as they are but for the rows of the attention's qkv layer, which are ordered
in one of two ways there and in a third here, and the transposed class table.

The dictionary does not say everything.  Image size and the order of the attention rows
cannot be seen; other settings can, and those without a counterpart here are refused.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from edm_jax.store.errors import WeightsError, show
from edm_jax.store.tensors import Tensor, array_of, numel_of, shape_of, shape_with

ATTENTION_ORDERS = ("new", "legacy")
_HEAD_CHANNELS = 64
_MAX_BLOCKS = 1024
# From 128 channels on, 32 groups (there) and min(32, channels / 4) groups (here) agree.
_MIN_NORM_WIDTH = 128
# The one released model with the new order: 64x64, class-conditional.
_RELEASED = {
    "model_channels": 192,
    "num_blocks": 3,
    "channel_mult": [1, 2, 3, 4],
    "attention_levels": [1, 2, 3],
}

_RESIDUAL = (
    ("in_layers.0", "norm0"),
    ("in_layers.2", "conv0"),
    ("emb_layers.1", "affine"),
    ("out_layers.0", "norm1"),
    ("out_layers.3", "conv1"),
)
_ATTENTION = (("norm", "norm2", "copy"), ("qkv", "qkv", "qkv"), ("proj_out", "proj", "kernel"))


@dataclasses.dataclass(frozen=True)
class Structure:
    """What the names and shapes of a dictionary say."""

    model_channels: int
    num_blocks: int
    channel_mult: list[int]
    attention_levels: list[int]
    num_classes: int
    channel_mult_emb: int
    heads: int  # the largest number in any attention block


def is_guided(names: Mapping) -> bool:
    """Whether a dictionary is in the naming of guided-diffusion."""
    return any(n.startswith(("input_blocks.", "time_embed.", "output_blocks.")) for n in names)


def check_supported(tensors: Mapping, narrow_norms: bool) -> None:
    """Refuse the models of guided-diffusion that no DhariwalUNet equals; say by which sign."""
    names = list(tensors)
    if "out.2.positional_embedding" in tensors or not any(
        n.startswith("output_blocks.") for n in names
    ):
        sign = "out.2.positional_embedding" if "out.2.positional_embedding" in tensors else None
        raise WeightsError(
            "a noisy classifier of guided-diffusion, no denoiser "
            f"({'it has ' + sign if sign else 'it has no output_blocks'}); load it with "
            "edm_jax.classifier.load_classifier"
        )
    for name in names:
        if re.fullmatch(r"input_blocks\.[0-9]+\.0\.op\.(weight|bias)", name) or re.fullmatch(
            r"output_blocks\.[0-9]+\.[0-9]+\.conv\.(weight|bias)", name
        ):
            raise WeightsError(
                f"tensor {show(name)}: the model resamples by plain convolutions "
                "(resblock_updown False), which DhariwalUNet has not"
            )
    first = shape_with(tensors, "input_blocks.0.0.weight", 4)
    if first[1] == 6:
        raise WeightsError(
            "tensor 'input_blocks.0.0.weight' has 6 input channels: an up-sampling model, "
            "conditioned on a small image"
        )
    out = shape_with(tensors, "out.2.weight", 4)
    if out[0] != 2 * first[1]:
        raise WeightsError(
            f"tensor 'out.2.weight' has {out[0]} output channels, expected {2 * first[1]}: a model "
            "without learned variance (learn_sigma False) does not fit the iDDPM preconditioning"
        )
    for name in names:
        if name.endswith(".emb_layers.1.weight"):
            channels = shape_with(tensors, name.replace("emb_layers.1", "out_layers.3"), 4)[0]
            rows = shape_with(tensors, name, 2)[0]
            if rows != 2 * channels:
                raise WeightsError(
                    f"tensor {show(name)} has {rows} rows, expected {2 * channels}: the model does "
                    "not scale its norms (use_scale_shift_norm False), DhariwalUNet always does"
                )
        if name.endswith((".qkv.weight", ".qkv.bias")):
            shape = shape_of(tensors[name])
            if not shape or shape[0] % (3 * _HEAD_CHANNELS) or not shape[0]:
                raise WeightsError(
                    f"tensor {show(name)} has shape {show(shape)}: the width is not divisible by "
                    f"the {_HEAD_CHANNELS} channels of a head"
                )
        if not narrow_norms and re.fullmatch(
            r".*\.(in_layers\.0|out_layers\.0|norm)\.weight", name
        ):
            (width,) = shape_with(tensors, name, 1)
            if width < _MIN_NORM_WIDTH:
                raise WeightsError(
                    f"tensor {show(name)} is a norm of {width} channels; below {_MIN_NORM_WIDTH} "
                    "guided-diffusion uses 32 groups and DhariwalUNet channels / 4. If this model "
                    "was trained with min(32, channels / 4) groups, give "
                    "config={'narrow_norms': True}"
                )


def _count(names: Mapping, prefix: str) -> int:
    found = {int(m[1]) for n in names if (m := re.match(rf"{prefix}\.([0-9]{{1,6}})\.", n))}
    if not found or found != set(range(len(found))) or len(found) > _MAX_BLOCKS:
        raise WeightsError(f"{prefix} are not numbered from 0 without gaps ({len(found)} found)")
    return len(found)


def read_structure(tensors: Mapping) -> Structure:
    """Widths, depths and attention levels from names and shapes."""
    emb, width = shape_with(tensors, "time_embed.0.weight", 2)
    inputs, outputs = _count(tensors, "input_blocks"), _count(tensors, "output_blocks")
    # The last block of every level but the finest ends with an up-sampling residual block.
    ups = [
        k
        for k in range(outputs)
        if any(f"output_blocks.{k}.{i}.in_layers.0.weight" in tensors for i in (1, 2))
    ]
    levels = len(ups) + 1
    blocks = (ups[0] if ups else outputs - 1) + 1  # num_blocks + 1
    expected_ups = [blocks * (i + 1) - 1 for i in range(levels - 1)]
    expected = (levels * blocks, 1 + levels * (blocks - 1) + levels - 1)
    if ups != expected_ups or (outputs, inputs) != expected or blocks < 2:
        raise WeightsError(
            f"{inputs} input_blocks and {outputs} output_blocks, up-sampling in {ups[:16]}: "
            "no regular U-Net"
        )
    mult, attention, heads = [], [], 0
    for level in range(levels):
        k = (levels - 1 - level) * blocks
        channels = shape_with(tensors, f"output_blocks.{k}.0.out_layers.3.weight", 4)[0]
        if channels % width:
            raise WeightsError(
                f"level {level} has {channels} channels, no multiple of the base width {width}"
            )
        mult.append(channels // width)
        if f"output_blocks.{k}.1.qkv.weight" in tensors:
            attention.append(level)
            heads = max(heads, channels // _HEAD_CHANNELS)
    heads = max(heads, mult[-1] * width // _HEAD_CHANNELS)  # the middle block
    if emb % width:
        raise WeightsError(f"an embedding of {emb} channels, no multiple of the width {width}")
    classes = 0
    if "label_emb.weight" in tensors:
        classes = shape_with(tensors, "label_emb.weight", 2)[0]
    return Structure(width, blocks - 1, mult, attention, classes, emb // width, heads)


def _is_released(s: Structure) -> bool:
    return all(getattr(s, key) == value for key, value in _RELEASED.items())


def image_size(s: Structure, given: int | None, attention_resolutions: list[int] | None) -> int:
    """The image size: given, or 64 for the released model, or from the attention resolutions."""
    if given is not None:
        size = given
    elif attention_resolutions and s.attention_levels:
        size = max(attention_resolutions) << s.attention_levels[0]
    elif _is_released(s):
        size = 64
    else:
        raise WeightsError(
            "the image size is not in the file; give config={'image_size': ...} "
            f"({len(s.channel_mult)} levels, base width {s.model_channels})"
        )
    if type(size) is not int or size < 1 or size % (1 << (len(s.channel_mult) - 1)):
        raise WeightsError(
            f"image_size must be a multiple of {1 << (len(s.channel_mult) - 1)}, got {show(size)}"
        )
    found = [size >> level for level in s.attention_levels]
    if attention_resolutions is not None and set(found) != {
        r for r in attention_resolutions if r in [size >> i for i in range(len(s.channel_mult))]
    }:
        raise WeightsError(
            f"attention_resolutions {attention_resolutions} at image_size {size} contradict the "
            f"file, which has attention at {found}"
        )
    return size


def attention_order(s: Structure, given: str | None) -> str:
    """The order of the qkv rows; with one head both are the same."""
    if given is not None:
        if given not in ATTENTION_ORDERS:
            raise ValueError(f"attention_order must be 'new' or 'legacy', got {show(given)}")
        return given
    if s.heads <= 1 or _is_released(s):
        return "new"
    raise WeightsError(
        "the file does not say how its attention rows are ordered, and a wrong choice gives noise; "
        "give attention_order='legacy' (use_new_attention_order False: all released models but "
        "64x64) or 'new'"
    )


def network_arguments(s: Structure, size: int, channels: int) -> dict[str, Any]:
    """``description["network"]`` of the equivalent DhariwalUNet."""
    return {
        "name": "DhariwalUNet",
        "img_resolution": size,
        "in_channels": channels,
        "out_channels": 2 * channels,
        "label_dim": s.num_classes,
        "augment_dim": 0,
        "channel_mult_emb": s.channel_mult_emb,
        "dropout": 0.1,
        "label_dropout": 0,
        "model_channels": s.model_channels,
        "channel_mult": s.channel_mult,
        "num_blocks": s.num_blocks,
        "attn_resolutions": [size >> level for level in s.attention_levels],
    }


def _block(theirs: str, ours: str, tensors: Mapping) -> Iterator[tuple[str, str, str]]:
    pairs = _RESIDUAL
    if f"{theirs}.skip_connection.weight" in tensors:
        pairs = (*_RESIDUAL, ("skip_connection", "skip"))
    for a, b in pairs:
        for leaf in ("weight", "bias"):
            yield f"{theirs}.{a}.{leaf}", f"{ours}.{b}.{leaf}", "copy"


def _attention(theirs: str, ours: str, tensors: Mapping) -> Iterator[tuple[str, str, str]]:
    if f"{theirs}.qkv.weight" in tensors:
        for a, b, operation in _ATTENTION:
            for leaf in ("weight", "bias"):
                kept = "copy" if operation == "kernel" and leaf == "bias" else operation
                yield f"{theirs}.{a}.{leaf}", f"{ours}.{b}.{leaf}", kept


def name_map(tensors: Mapping, s: Structure, size: int) -> Iterator[tuple[str, str, str]]:
    """Triples (name there, bare name here, operation).

    Operations: ``copy``; ``kernel``, a 1x1 convolution without its last axis; ``qkv``, rows
    to be reordered, weights lacking the axis too; ``transpose``.
    """

    def both(theirs: str, ours: str) -> Iterator[tuple[str, str, str]]:
        for leaf in ("weight", "bias"):
            yield f"{theirs}.{leaf}", f"{ours}.{leaf}", "copy"

    levels, blocks = len(s.channel_mult), s.num_blocks + 1
    res = [f"{size >> level}x{size >> level}" for level in range(levels)]
    yield from both("time_embed.0", "map_layer0")
    yield from both("time_embed.2", "map_layer1")
    if s.num_classes:
        yield "label_emb.weight", "map_label.weight", "transpose"
    yield from both("input_blocks.0.0", f"enc.{res[0]}_conv")
    for level in range(levels):
        if level:
            yield from _block(f"input_blocks.{level * blocks}.0", f"enc.{res[level]}_down", tensors)
        for i in range(s.num_blocks):
            theirs, ours = f"input_blocks.{level * blocks + 1 + i}", f"enc.{res[level]}_block{i}"
            yield from _block(f"{theirs}.0", ours, tensors)
            yield from _attention(f"{theirs}.1", ours, tensors)
    ours = f"dec.{res[-1]}_in"
    yield from _block("middle_block.0", f"{ours}0", tensors)
    yield from _attention("middle_block.1", f"{ours}0", tensors)
    yield from _block("middle_block.2", f"{ours}1", tensors)
    for level in reversed(range(levels)):
        for i in range(blocks):
            theirs = f"output_blocks.{(levels - 1 - level) * blocks + i}"
            ours = f"dec.{res[level]}_block{i}"
            yield from _block(f"{theirs}.0", ours, tensors)
            yield from _attention(f"{theirs}.1", ours, tensors)
        if level:
            last = 2 if f"{theirs}.1.qkv.weight" in tensors else 1
            yield from _block(f"{theirs}.{last}", f"dec.{res[level - 1]}_up", tensors)
    yield from both("out.0", "out_norm")
    yield from both("out.2", "out_conv")


def qkv_permutation(channels: int, order: str, head_channels: int = _HEAD_CHANNELS) -> np.ndarray:
    """Index p with ``qkv_here = qkv_there[p]`` along the rows.

    Row (head h, channel i, part j of q, k, v) is at ``h 3c + 3 i + j`` here, at
    ``h 3c + j c + i`` in the legacy order and at ``j C + h c + i`` in the new one.
    """
    heads = channels // head_channels
    rows = np.arange(3 * channels)
    if order == "legacy":
        return rows.reshape(heads, 3, head_channels).transpose(0, 2, 1).reshape(-1)
    return rows.reshape(3, heads, head_channels).transpose(1, 2, 0).reshape(-1)


def _converted(tensor: Tensor | np.ndarray, operation: str, order: str, name: str) -> np.ndarray:
    array = array_of(tensor)
    ndim = 1 if name.endswith(".bias") else 3
    if operation in ("qkv", "kernel") and array.ndim != ndim:
        raise WeightsError(f"tensor {show(name)} has {array.ndim} axes, expected {ndim}")
    if operation == "qkv":
        array = array[qkv_permutation(len(array) // 3, order)]
    if operation == "transpose":
        array = array.T
    return array[..., None] if operation in ("qkv", "kernel") and ndim == 3 else array


def convert(
    tensors: Mapping, s: Structure, size: int, order: str, file_size: int
) -> dict[str, np.ndarray]:
    """All tensors under their bare published names; every one is used exactly once.

    The constant filters of the resampling blocks, which the file has not, are added.
    """
    total = numel_of(tensors.values())
    if total > file_size:
        raise WeightsError(f"tensors of {total} numbers in a file of {file_size} bytes")
    converted, left = {}, dict.fromkeys(tensors)
    for theirs, ours, operation in name_map(tensors, s, size):
        if theirs not in left:
            raise WeightsError(f"tensor {show(theirs)} is missing")
        del left[theirs]
        converted[ours] = _converted(tensors[theirs], operation, order, theirs)
    for level in range(1, len(s.channel_mult)):
        low, high = (f"{size >> i}x{size >> i}" for i in (level, level - 1))
        for layer in ("conv0", "skip"):
            for block in (f"enc.{low}_down", f"dec.{high}_up"):
                converted[f"{block}.{layer}.resample_filter"] = np.full((1, 1, 2, 2), 0.25)
    if left:
        raise WeightsError(f"tensor {show(next(iter(left)))} has no place in a DhariwalUNet")
    return converted
