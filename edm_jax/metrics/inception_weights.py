"""Between the state dictionary of Inception-v3 in circulation and our parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.metrics.inception import SIZE, InceptionV3

_BN_EPS = 1e-3


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of the 472 tensors of the state dictionary that is in circulation."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, (kernel, bias) in _layers(_abstract_params()).items():
        if path == "fc":
            shapes |= {"fc.weight": kernel.shape[:1:-1], "fc.bias": bias.shape}
            continue
        h, w, i, o = kernel.shape
        shapes[f"{path}.conv.weight"] = (o, i, h, w)
        norms = ("weight", "bias", "running_mean", "running_var")
        shapes |= {f"{path}.bn.{name}": (o,) for name in norms}
    return shapes


def params_from(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Parameters of `InceptionV3` from published tensors, the normalisations folded in.

        kernel = weight * s,  bias = beta - mean * s,  s = gamma / sqrt(var + 0.001)

    Args:
      tensors: of the names and shapes of `published_shapes`.
    """
    params: dict[str, Any] = {}
    for path in _layers(_abstract_params()):
        if path == "fc":
            kernel, bias = tensors["fc.weight"].T[None, None], tensors["fc.bias"]
        else:
            names = ("weight", "bias", "running_mean", "running_var")
            norm = [tensors[f"{path}.bn.{name}"].astype(np.float64) for name in names]
            scale = norm[0] / np.sqrt(norm[3] + _BN_EPS)
            kernel = tensors[f"{path}.conv.weight"].transpose(2, 3, 1, 0) * scale
            bias = norm[1] - norm[2] * scale
        node = params
        for part in path.split("."):
            node = node.setdefault(part, {})
        node |= {"kernel": np.float32(kernel), "bias": np.float32(bias)}
    return params


def _abstract_params() -> dict[str, Any]:
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    return jax.eval_shape(InceptionV3().init, jax.random.key(0), image)["params"]


def _layers(params: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Published name of a layer -> its kernel and bias."""
    layers = {}
    for name, node in params.items():
        if "kernel" in node:
            layers[name] = (node["kernel"], node["bias"])
        else:
            layers |= {f"{name}.{k}": pair for k, pair in _layers(node).items()}
    return layers
