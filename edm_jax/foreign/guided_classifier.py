"""Noisy classifiers of guided-diffusion (Dhariwal & Nichol 2021) as a NoisyClassifier.

The names are those of its U-Net (`foreign.guided`), without decoder, and the head is
attention pooling.  Attention rows are in the legacy order in the body and in the new one
in the head, whatever the flags of the program were.

Read from names and shapes: widths, depth, attention, classes, and the image size.  Not in
the file: noise schedule and channels per head, which are known for the published ones.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from edm_jax.foreign import dictionaries, guided, guided_flags
from edm_jax.foreign.state_dict import Tensors, check_arguments, to_float32
from edm_jax.models.classifier import GROUPS, PUBLISHED
from edm_jax.store.binary import map_file, sha256
from edm_jax.store.description import (
    FORMAT_VERSION,
    LICENCE_GUIDED,
    ImportedModel,
    check_description,
)
from edm_jax.store.errors import WeightsError, show
from edm_jax.store.tensors import numel_of, shape_of, shape_with
from edm_jax.typing import PyTree

_CONFIG = ("image_size", "noise_schedule", "diffusion_steps", "num_head_channels", "label_names")
_PUBLISHED_WIDTH = 128
_MAX_LEVELS = 16
_POOL = "out.2.positional_embedding"


@dataclasses.dataclass(frozen=True)
class Structure:
    """What the names and shapes of a dictionary say."""

    image_size: int
    in_channels: int
    num_classes: int
    model_channels: int
    channel_mult: list[float]
    num_blocks: int
    attn_resolutions: list[int]


def read_classifier_file(
    path: str | os.PathLike[str], config: Mapping[str, Any] | None = None
) -> ImportedModel:
    """Read a classifier without PyTorch and without executing anything.

    Args:
      path: ``.pt`` or ``.safetensors``; the content decides.
      config: what the file does not say: ``noise_schedule`` ("cosine" or "linear"),
        ``diffusion_steps`` (1000), ``num_head_channels`` (64), ``image_size`` for one without
        attention in its levels, ``label_names``.

    Returns:
      Description (kind "classifier") and float32 variables under the variant "raw": the
      program keeps no averages of its classifiers.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the config is unusable.
      WeightsError: the file is damaged, no such classifier, or does not say enough.
    """
    config = dict(config or {})
    for key in config:
        if key not in _CONFIG:
            raise ValueError(f"config has no entry {show(key)}; known: {', '.join(_CONFIG)}")
    for key in ("image_size", "num_head_channels"):
        if type(config.get(key, 1)) is not int or config.get(key, 1) < 1:
            raise ValueError(f"config: {key} must be a positive integer, got {show(config[key])}")
    data = map_file(path)
    try:
        tensors, kind = dictionaries.plain_tensors(data)
        description, assumed = _describe(tensors, config)
        check_description(description)
        variables = to_variables(tensors, description["network"], len(data))
    except WeightsError as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from None
    description["source"] = {
        "file": os.path.basename(os.fspath(path)),
        "sha256": sha256(data),
        "format": f"state dictionary of guided-diffusion ({kind})",
        "class_name": "EncoderUNetModel",
        "licence": LICENCE_GUIDED,
        "assumed": list(assumed),
    }
    return ImportedModel(description, {"raw": variables}, assumed)


def is_classifier_file(path: str | os.PathLike[str]) -> bool:
    """Whether this is a file that holds such a classifier, whatever its state."""
    if not os.path.isfile(path):
        return False
    try:
        return _POOL in dictionaries.plain_tensors(map_file(path))[0]
    except WeightsError:
        return False


def read_structure(tensors: Tensors, image_size: int | None = None) -> Structure:
    """Widths, depth, attention, classes and image size from names and shapes.

    Raises:
      WeightsError: this is no classifier with attention pooling.
    """
    if _POOL not in tensors:
        other = "a denoiser" if "out.2.weight" in tensors else "nothing known"
        raise WeightsError(f"no classifier with attention pooling (no {_POOL!r}): {other}")
    emb, width = shape_with(tensors, "time_embed.0.weight", 2)
    first = shape_with(tensors, "input_blocks.0.0.weight", 4)
    channels, tokens = shape_with(tensors, _POOL, 2)
    classes = shape_with(tensors, "out.2.c_proj.weight", 3)[0]
    inputs = _count_blocks(tensors)
    grid = math.isqrt(max(tokens - 1, 0))
    if grid < 1 or grid**2 != tokens - 1 or emb != 4 * width:
        raise WeightsError(f"{tokens} pooling tokens, embedding {emb} of width {width}: not square")
    attended = [f"input_blocks.{k}.1.qkv.weight" in tensors for k in range(inputs)]
    levels = _levels(inputs, attended, grid, image_size)
    period = inputs // levels
    starts = [level * period + 1 for level in range(levels)]
    widths = [shape_with(tensors, f"input_blocks.{k}.0.out_layers.3.weight", 4)[0] for k in starts]
    if channels != widths[-1] or first[0] != widths[0] or period < 2:
        raise WeightsError(f"{inputs} input_blocks of widths {widths[:8]}: no regular encoder")
    mult = [w // width if w % width == 0 else w / width for w in widths]
    size = grid << (levels - 1)
    resolutions = [size >> level for level in range(levels) if attended[starts[level]]]
    return Structure(size, first[1], classes, width, mult, period - 1, resolutions)


def _count_blocks(tensors: Tensors) -> int:
    found = {int(m[1]) for n in tensors if (m := re.match(r"input_blocks\.([0-9]{1,4})\.", n))}
    if not found or found != set(range(len(found))):
        raise WeightsError(f"input_blocks are not numbered from 0 without gaps ({len(found)})")
    return len(found)


def _levels(inputs: int, attended: list[bool], grid: int, image_size: int | None) -> int:
    """The number of levels L; there are L (blocks per level + 1) input blocks."""
    if image_size is not None:
        levels = max((image_size // grid).bit_length(), 1)
        if image_size != grid << (levels - 1) or inputs % levels or inputs < 2 * levels:
            raise WeightsError(
                f"image_size {image_size} does not fit {inputs} input_blocks that end at a grid "
                f"of {grid}x{grid}"
            )
        return levels
    # Attention lasts for the blocks of a level; the block that halves the image has none.
    runs = [len(run) for run in "".join("ab"[a] for a in attended).split("a") if run]
    if not runs or len(set(runs)) != 1 or inputs % (runs[0] + 1):
        raise WeightsError("the depth is not in the file; give config={'image_size': ...}")
    levels = inputs // (runs[0] + 1)
    if levels > _MAX_LEVELS:
        raise WeightsError(f"{levels} levels, more than any model has")
    return levels


def _describe(tensors: Tensors, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Description without source, and what was assumed."""
    s = read_structure(tensors, config.get("image_size"))
    published = PUBLISHED.get(s.image_size, {}) | {"model_channels": _PUBLISHED_WIDTH}
    is_published = all(
        tuple(got) == want if isinstance(want, tuple) else got == want
        for got, want in ((getattr(s, key), want) for key, want in published.items())
    )
    assumed: dict[str, Any] = {}
    if is_published and s.image_size in PUBLISHED:
        assumed["num_head_channels"] = 64
        assumed["noise_schedule"] = "cosine" if s.image_size == 64 else "linear"
    assumed["diffusion_steps"] = 1000
    assumed = {key: value for key, value in assumed.items() if key not in config}
    known = assumed | config
    for key in ("noise_schedule", "num_head_channels"):
        if key not in known:
            raise WeightsError(
                "not one of the published classifiers; give config={'noise_schedule': 'cosine' or "
                "'linear', 'num_head_channels': 64}, as it was trained"
            )
    steps = {k: known[k] for k in ("noise_schedule", "diffusion_steps")}
    flags = guided_flags.read_flags(steps, None)
    network = {
        "name": "NoisyClassifier",
        "img_resolution": s.image_size,
        "in_channels": s.in_channels,
        "num_classes": s.num_classes,
        "model_channels": s.model_channels,
        "channel_mult": s.channel_mult,
        "num_blocks": s.num_blocks,
        "attn_resolutions": s.attn_resolutions,
        "channels_per_head": known["num_head_channels"],
    }
    return {
        "format_version": FORMAT_VERSION,
        "kind": "classifier",
        "network": network,
        "precond": flags.precond(),
        "image_shape": [s.image_size, s.image_size, s.in_channels],
        "num_classes": s.num_classes,
        "label_names": config.get("label_names"),
        "progress": None,
        "data": {},
    }, assumed


def name_map(tensors: Tensors, network: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Triples (name there, path here, operation).

    Operations: ``copy``; ``kernel``, a convolution OIHW (or OI1) to HWIO; ``matrix``, a
    ``(out, in)`` or ``(out, in, 1)`` to ``(in, out)``; ``legacy`` and ``new``, rows of q, k, v
    in that order; ``transpose``.
    """

    def layer(theirs: str, ours: str, operation: str = "kernel") -> Iterator[tuple[str, str, str]]:
        leaf = "scale" if operation == "copy" else "kernel"
        yield f"{theirs}.weight", f"{ours}.{leaf}", operation
        bias = operation if operation in guided.ATTENTION_ORDERS else "copy"
        yield f"{theirs}.bias", f"{ours}.bias", bias

    def block(theirs: str, ours: str) -> Iterator[tuple[str, str, str]]:
        yield from layer(f"{theirs}.in_layers.0", f"{ours}.norm0", "copy")
        yield from layer(f"{theirs}.in_layers.2", f"{ours}.conv0")
        yield from layer(f"{theirs}.emb_layers.1", f"{ours}.affine", "matrix")
        yield from layer(f"{theirs}.out_layers.0", f"{ours}.norm1", "copy")
        yield from layer(f"{theirs}.out_layers.3", f"{ours}.conv1")
        if f"{theirs}.skip_connection.weight" in tensors:
            yield from layer(f"{theirs}.skip_connection", f"{ours}.skip")

    def attention(theirs: str, ours: str) -> Iterator[tuple[str, str, str]]:
        if f"{theirs}.qkv.weight" in tensors:
            yield from layer(f"{theirs}.norm", f"{ours}.norm2", "copy")
            yield from layer(f"{theirs}.qkv", f"{ours}.qkv", "legacy")
            yield from layer(f"{theirs}.proj_out", f"{ours}.proj")

    size, period = network["img_resolution"], network["num_blocks"] + 1
    yield from layer("time_embed.0", "map_layer0", "matrix")
    yield from layer("time_embed.2", "map_layer1", "matrix")
    yield from layer("input_blocks.0.0", f"enc_{size}x{size}_conv")
    for level in range(len(network["channel_mult"])):
        prefix = f"enc_{size >> level}x{size >> level}_"
        if level:
            yield from block(f"input_blocks.{level * period}.0", f"{prefix}down")
        for i in range(network["num_blocks"]):
            theirs = f"input_blocks.{level * period + 1 + i}"
            yield from block(f"{theirs}.0", f"{prefix}block{i}")
            yield from attention(f"{theirs}.1", f"{prefix}block{i}")
    yield from block("middle_block.0", "mid_block0")
    yield from attention("middle_block.1", "mid_block0")
    yield from block("middle_block.2", "mid_block1")
    yield from layer("out.0", "out_norm", "copy")
    yield _POOL, "pool.positional_embedding", "transpose"
    yield from layer("out.2.qkv_proj", "pool.qkv", "new")
    yield from layer("out.2.c_proj", "pool.proj", "matrix")


def converted(array: np.ndarray, operation: str, head_channels: int) -> np.ndarray:
    """A tensor of the file in our layout, see `name_map`."""
    if operation in guided.ATTENTION_ORDERS:
        rows = guided.qkv_permutation(len(array) // 3, operation, head_channels)
        array = array[rows]
        return array if array.ndim == 1 else array.reshape(*array.shape[:2]).T[None, None]
    if operation == "kernel":
        array = array.reshape(*array.shape, *(1,) * (4 - array.ndim))
        return array.transpose(2, 3, 1, 0)
    if operation == "matrix":
        return array.reshape(array.shape[:2]).T
    return array.T if operation == "transpose" else array


def to_variables(tensors: Tensors, network: Mapping[str, Any], file_size: int) -> dict[str, PyTree]:
    """Variables of a NoisyClassifier; every tensor of the file is used exactly once.

    Raises:
      WeightsError: missing, superfluous or misshapen tensors, or more numbers than bytes.
    """
    import jax

    from edm_jax import models

    total = numel_of(tensors.values())
    if total > file_size:
        raise WeightsError(f"tensors of {total} numbers in a file of {file_size} bytes")
    check_arguments(network, len(tensors))
    try:
        net = models.build(**network)
    except (ValueError, TypeError, ArithmeticError) as error:
        hint = f" (its norms have {GROUPS} groups)" if "groups" in str(error) else ""
        raise WeightsError(f"no classifier can be built: {error}{hint}") from None
    paths = jax.tree_util.tree_flatten_with_path(models.abstract_variables(net)["params"])[0]
    expected = {".".join(key.key for key in path): leaf.shape for path, leaf in paths}
    params: dict[str, Any] = {}
    left = dict.fromkeys(tensors)
    for theirs, ours, operation in name_map(tensors, network):
        if theirs not in left:
            raise WeightsError(f"tensor {show(theirs)} is missing")
        del left[theirs]
        shape = shape_of(tensors[theirs])
        if math.prod(shape) != math.prod(expected.get(ours, ())) or len(shape) > 4:
            wanted = show(expected.get(ours, ()))
            raise WeightsError(
                f"tensor {show(theirs)} has shape {show(shape)}, expected that of {ours}, {wanted}"
            )
        array = to_float32(tensors[theirs], theirs)
        try:
            array = converted(array, operation, network["channels_per_head"])
        except (ValueError, IndexError):
            raise WeightsError(f"tensor {show(theirs)} has shape {show(shape)}") from None
        if array.shape != expected[ours]:
            raise WeightsError(
                f"tensor {show(theirs)} has shape {show(shape)}, which is no {ours} of shape "
                f"{show(expected[ours])}"
            )
        *parents, leaf = ours.split(".")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = np.ascontiguousarray(array)
    if left:
        raise WeightsError(f"tensor {show(next(iter(left)))} has no place in a NoisyClassifier")
    return {"params": params}
