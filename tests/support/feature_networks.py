"""Weights of the feature networks made from their names, as the golden files describe them."""

import zlib
from collections.abc import Mapping

import numpy as np


def normal(name: str, shape: tuple[int, ...], salt: str = "") -> np.ndarray:
    """Standard normal numbers that depend on the name."""
    seed = zlib.crc32((salt + name).encode())
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)


def named_inception_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Of golden 07."""

    def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
        z = normal(name, shape)
        if name.endswith(".conv.weight"):
            return z * np.sqrt(2 / np.prod(shape[1:]))
        if name.endswith(".bn.weight"):
            return 1 + 0.1 * z
        if name.endswith(".bn.running_var"):
            return np.exp(0.2 * z)
        return z / np.sqrt(2048) if name == "fc.weight" else 0.1 * z

    return {name: np.float32(weight(name, shape)) for name, shape in shapes.items()}


def named_dinov2_weights(shapes: Mapping[str, tuple[int, ...]], salt: str) -> dict[str, np.ndarray]:
    """Of golden 16."""

    def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
        z = normal(name, shape, salt)
        if name.endswith(".gamma"):
            return 0.3 + 0.1 * z
        if name in ("cls_token", "pos_embed", "mask_token"):
            return 0.5 * z
        if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
            return 1 + 0.1 * z
        return 0.1 * z if name.endswith(".bias") else z / np.sqrt(np.prod(shape[1:]))

    return {name: np.float32(weight(name, shape)) for name, shape in shapes.items()}


def small(shapes: Mapping[str, tuple[int, ...]], most: int = 2) -> dict[str, tuple[int, ...]]:
    """The same names and ranks, few numbers: for readers, which take any shapes."""
    return {name: tuple(min(n, most) for n in shape) for name, shape in shapes.items()}
