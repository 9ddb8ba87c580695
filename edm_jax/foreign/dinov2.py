"""Weights of DINOv2's ViT-L/14, the network of FD-DINOv2, from the published file."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from edm_jax.foreign.feature_files import checked_arrays, read_tensors
from edm_jax.store.errors import WeightsError, show
from edm_jax.store.tensors import Tensor, shape_of

# Name, and what is inside.
FILES = (("dinov2_vitl14_pretrain.pth", "a state dictionary, 1,217,586,395 bytes, of DINOv2"),)
_OTHERS = {384: "ViT-S/14", 768: "ViT-B/14", 1536: "ViT-g/14"}


def read_dinov2(
    path: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The weights in a file.

    Args:
      path: of one of `FILES`.
      shapes: name -> shape of every tensor, of `edm_jax.metrics.dinov2.published_shapes`.

    Returns:
      float32 arrays by published name (``blocks.0.attn.qkv.weight``).

    Raises:
      FileNotFoundError: there is no such file.
      WeightsError: it is another network's, damaged, or asks for something refused.
    """
    try:
        tensors = read_tensors(path)
        _refuse_others(tensors, shapes)
        return checked_arrays(tensors, shapes, "DINOv2's ViT-L/14")
    except WeightsError as error:
        raise WeightsError(f"{os.fspath(path)}: {error}") from None


def _refuse_others(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """The other sizes of the release, by name."""
    if "register_tokens" in tensors:
        raise WeightsError("a DINOv2 with register tokens; FD-DINOv2 is defined without them")
    found = shape_of(tensors["cls_token"]) if "cls_token" in tensors else ()
    if len(found) == 3 and found != shapes["cls_token"]:
        other = _OTHERS.get(found[-1], f"of width {show(found[-1])}")
        raise WeightsError(f"a DINOv2 {other}; FD-DINOv2 is defined with {FILES[0][0]}")
