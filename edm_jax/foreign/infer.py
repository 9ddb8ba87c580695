"""The configuration of a network from the names and shapes of its published tensors.

A state dictionary carries no configuration.  Names give the structure (spec of the names:
``enc.``/``dec.`` + resolution + step), shapes the widths, filters their taps.  What
leaves no trace is taken from the defaults of the program and listed as assumed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edm_jax.foreign.edm_snapshot import NETWORK_DEFAULTS
from edm_jax.foreign.state_dict import FILTER
from edm_jax.store.errors import WeightsError, show
from edm_jax.store.tensors import array_of, shape_with

_LAYERS = "norm0|conv0|affine|norm1|conv1|skip|norm2|qkv|proj"
_WB = r"\.(weight|bias)"
_NAME = re.compile(
    r"map_noise\.freqs"
    rf"|map_(label|augment|layer0|layer1){_WB}"
    rf"|(enc|dec)\.[0-9]+x[0-9]+_(in0|in1|up|down|block[0-9]+)\.(({_LAYERS}){_WB}|(conv0|skip)\.resample_filter)"
    rf"|(enc|dec)\.[0-9]+x[0-9]+_(conv|aux_skip|aux_residual|aux_norm|aux_conv){_WB}"
    r"|(enc|dec)\.[0-9]+x[0-9]+_(aux_down|aux_up|aux_residual)\.resample_filter"
    rf"|out_(norm|conv){_WB}"
)


def is_published_name(name: str) -> bool:
    """Whether a bare name follows the grammar of the published networks."""
    return _NAME.fullmatch(name) is not None


def _ratio(value: int, base: int, what: str, of: str) -> int:
    if value % base:
        raise WeightsError(
            f"cannot infer {what}: {value} channels are no multiple of the {base} of {show(of)}"
        )
    return value // base


def filter_2d(taps: Sequence[float]) -> np.ndarray:
    """The buffer ``resample_filter`` of published layers: ``(1, 1, K, K)`` float32."""
    row = np.asarray(taps, np.float64)
    return (np.outer(row, row) / row.sum() ** 2).astype(np.float32)[None, None]


def filter_taps(tensors: Mapping) -> list[float] | None:
    """Taps of the first filter buffer, as small integers where they fit; None without one."""
    name = next((n for n in tensors if n.endswith(FILTER)), None)
    if name is None:
        return None
    if max(shape_with(tensors, name, 4)) > 64:
        raise WeightsError(f"filter {show(name)} is larger than any filter")
    stored = array_of(tensors[name]).astype(np.float64)[0, 0]
    row = stored.sum(axis=0)
    smallest = np.min(np.abs(row))
    if not np.all(np.isfinite(row)) or smallest == 0 or stored.sum() == 0:
        raise WeightsError(f"cannot infer resample_filter from {show(name)}: taps of 0")
    taps = row / smallest
    if np.max(np.abs(taps - np.round(taps))) < 1e-3:
        taps = np.round(taps)
    if not np.allclose(filter_2d(taps)[0, 0], stored, rtol=2e-2, atol=1e-6):
        raise WeightsError(f"cannot infer resample_filter: {show(name)} is no outer product")
    return [int(t) if t == int(t) else float(t) for t in taps]


def infer_network(tensors: Mapping) -> tuple[dict[str, Any], list[str]]:
    """Network arguments from bare published names.

    Args:
      tensors: by name, without the prefix ``model.``.

    Returns:
      ``description["network"]`` and the names of the arguments that were assumed.

    Raises:
      WeightsError: a name or shape that no published network has; names it.
    """
    for name in tensors:
        if not is_published_name(name):
            raise WeightsError(f"tensor {show(name)} is in the naming of no known network")
    found = {int(n) for n in re.findall(r"(?:^|\n)dec\.([0-9]{1,5})x[0-9]", "\n".join(tensors))}
    resolutions = sorted(found, reverse=True)
    if not resolutions:
        raise WeightsError("cannot infer img_resolution: no tensor of a decoder (dec.RxR_...)")
    top = resolutions[0]
    name = "DhariwalUNet" if "out_norm.weight" in tensors else "SongUNet"
    first = f"enc.{top}x{top}_conv.weight"
    output = "out_conv.weight" if name == "DhariwalUNet" else f"dec.{top}x{top}_aux_conv.weight"
    emb, mapped = shape_with(tensors, "map_layer0.weight", 2)
    of = first if name == "SongUNet" else "map_layer0.weight"
    width = shape_with(tensors, first, 4)[0] if name == "SongUNet" else mapped
    network: dict[str, Any] = {
        "name": name,
        "img_resolution": top,
        "in_channels": shape_with(tensors, first, 4)[1],
        "out_channels": shape_with(tensors, output, 4)[0],
        "label_dim": 0,
        "augment_dim": 0,
        "model_channels": width,
        "channel_mult": [
            _ratio(
                shape_with(tensors, f"dec.{r}x{r}_block0.conv1.weight", 4)[0],
                width,
                "channel_mult",
                of,
            )
            for r in resolutions
        ],
        "channel_mult_emb": _ratio(emb, width, "channel_mult_emb", of),
        "num_blocks": sum(f"enc.{top}x{top}_block{i}.conv0.weight" in tensors for i in range(64)),
        "attn_resolutions": [r for r in resolutions if f"enc.{r}x{r}_block0.qkv.weight" in tensors],
    }
    for key in ("label", "augment"):
        if f"map_{key}.weight" in tensors:
            network[f"{key}_dim"] = shape_with(tensors, f"map_{key}.weight", 2)[1]
    assumed = ["dropout", "label_dropout"]
    if name == "SongUNet":
        network["embedding_type"] = "fourier" if "map_noise.freqs" in tensors else "positional"
        network["channel_mult_noise"] = _ratio(mapped, width, "channel_mult_noise", of)
        network["encoder_type"] = _encoder_type(tensors)
        network["decoder_type"] = (
            "skip" if any(n.endswith("_aux_up" + FILTER) for n in tensors) else "standard"
        )
        taps = filter_taps(tensors)
        network["resample_filter"] = taps or [1, 1]
        assumed += [] if taps else ["resample_filter"]
    return {"name": name} | NETWORK_DEFAULTS[name] | network, assumed


def _encoder_type(tensors: Mapping) -> str:
    for kind, mark in (("residual", "_aux_residual.weight"), ("skip", "_aux_skip.weight")):
        if any(n.endswith(mark) for n in tensors):
            return kind
    return "standard"
