"""DINOv2's vision transformer and its input: the feature network of FD-DINOv2.

ViT-L/14 on images of 224x224 pixels; the feature is the class token after the last norm,
1024 numbers, in float32 with full precision of the products on every device.

Sources: Oquab et al. 2023, *DINOv2*; Stein et al. 2023, *Exposing flaws of generative model
evaluation metrics*; the resize and the position embedding are those of Karras et al. 2024 (EDM2)
and of the published network, from which other ports differ.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.typing import Array

SIZE = 224  # of the images that the network sees in FD-DINOv2
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
_NORM_EPS = 1e-6
# Added to the number of patches where the position embedding is resampled: the published
# network was trained with this grid, and features depend on it.
_GRID_OFFSET = 0.1


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sizes of a vision transformer.

    Attributes:
      width: of a token.
      depth: number of blocks.
      heads: of the attention.
      patch: side of a patch in pixels.
      native: patches along a side of the image that the position embedding was made for.
      hidden: width between the two layers of the MLP.
    """

    width: int
    depth: int
    heads: int
    patch: int = 14
    native: int = 37
    ratio: int = 4

    @property
    def hidden(self) -> int:
        return self.ratio * self.width


VIT_L14 = Layout(width=1024, depth=24, heads=16)


class _Block(nn.Module):
    """h + gamma1 Attention(LN(h)), then h + gamma2 MLP(LN(h)); a step of `nn.scan`."""

    layout: Layout

    @nn.compact
    def __call__(self, h: Array, _: None) -> tuple[Array, Array]:
        """Returns: the tokens ``(B, T, width)``, twice: carried on, and to be looked at."""
        width, heads = self.layout.width, self.layout.heads
        norm = functools.partial(nn.LayerNorm, epsilon=_NORM_EPS)
        gamma1 = self.param("gamma1", nn.initializers.ones, (width,), jnp.float32)
        gamma2 = self.param("gamma2", nn.initializers.ones, (width,), jnp.float32)

        qkv = nn.Dense(3 * width, name="qkv")(norm(name="norm1")(h))
        q, k, v = jnp.moveaxis(qkv.reshape(*h.shape[:2], 3, heads, -1), 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q / np.sqrt(width // heads), k)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), v)
        h = h + gamma1[None, None] * nn.Dense(width, name="proj")(mixed.reshape(h.shape))

        hidden = nn.Dense(self.layout.hidden, name="fc1")(norm(name="norm2")(h))
        hidden = nn.gelu(hidden, approximate=False)
        h = h + gamma2[None, None] * nn.Dense(width, name="fc2")(hidden)
        return h, h


class VisionTransformer(nn.Module):
    """The whole network; the parameters of its blocks are stacked along a leading axis."""

    layout: Layout = VIT_L14

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalised tokens of prepared images.

        Args:
          x: ``(B, H, W, 3)``, normalised (see `preprocess`), H and W multiples of the patch.

        Returns:
          ``(B, 1 + patches, width)``: class token first, then the patches by rows.
        """
        width, patch = self.layout.width, self.layout.patch
        cls_token = self.param("cls_token", nn.initializers.zeros, (width,), jnp.float32)
        shape = (1 + self.layout.native**2, width)
        positions = self.param("pos_embed", nn.initializers.normal(0.02), shape, jnp.float32)

        rows, columns = x.shape[1] // patch, x.shape[2] // patch
        x = x.reshape(len(x), rows, patch, columns, patch, 3).transpose(0, 1, 3, 2, 4, 5)
        h = nn.Dense(width, name="patch_embed")(x.reshape(len(x), rows * columns, -1))
        h = jnp.concatenate([jnp.broadcast_to(cls_token, (len(h), 1, width)), h], axis=1)
        h = h + position_embedding(positions, rows, columns)[None]
        blocks = nn.scan(
            _Block, variable_axes={"params": 0}, split_rngs={"params": True},
            length=self.layout.depth,
        )  # fmt: skip
        h, each = blocks(self.layout, name="blocks")(h, None)
        self.sow("intermediates", "after_blocks", each)
        return nn.LayerNorm(epsilon=_NORM_EPS, name="norm")(h)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """The cubic convolution kernel of parameter ``a`` (Keys 1981), zero from 2 on."""
    x = np.abs(x)
    inner = ((a + 2) * x - (a + 3)) * x**2 + 1
    outer = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0.0))


def _grid_taps(patches: int, native: int) -> np.ndarray:
    """Cubic interpolation ``(patches, native)`` that reads at ``(i + .5) M / (n + .1) - .5``."""
    at = (np.arange(patches) + 0.5) * native / (patches + _GRID_OFFSET) - 0.5
    low = np.floor(at).astype(int)
    taps = np.zeros((patches, native))
    for step in range(-1, 3):
        clamped = np.clip(low + step, 0, native - 1)
        np.add.at(taps, (np.arange(patches), clamped), _cubic(at - (low + step), -0.75))
    return taps


def position_embedding(positions: Array, rows: int, columns: int) -> Array:
    """The stored embedding for another number of patches; as it is for its own.

    Args:
      positions: ``(1 + M * M, width)``, that of the class token first.
      rows, columns: patches of the image.

    Returns:
      ``(1 + rows * columns, width)``.
    """
    native = round((positions.shape[0] - 1) ** 0.5)
    if rows == columns == native:
        return positions
    grid = positions[1:].reshape(native, native, -1)
    high, wide = (jnp.asarray(_grid_taps(n, native), jnp.float32) for n in (rows, columns))
    grid = jnp.einsum("im,jn,mnc->ijc", high, wide, grid)
    return jnp.concatenate([positions[:1], grid.reshape(rows * columns, -1)])


def _antialiased_taps(size: int, out: int) -> np.ndarray:
    """Bicubic resampling ``(out, size)``, its kernel (a = -0.5) widened where the image shrinks."""
    scale = size / out
    centre = (np.arange(out) + 0.5) * scale - 0.5
    taps = _cubic((np.arange(size) - centre[:, None]) / max(scale, 1.0), -0.5)
    return taps / taps.sum(axis=1, keepdims=True)


def resize_bicubic(images: Array, size: int = SIZE) -> Array:
    """Bicubic with antialiasing and half-pixel centres, as PyTorch does it on floats.

    Args:
      images: ``(B, H, W, C)`` float32.
      size: rows and columns of the result.

    Returns:
      ``(B, size, size, C)``, neither rounded nor clipped: it overshoots the range of the input.
    """
    high, wide = (jnp.asarray(_antialiased_taps(n, size), jnp.float32) for n in images.shape[1:3])
    return jnp.einsum("jw,bhwc->bhjc", wide, jnp.einsum("ih,bhwc->biwc", high, images))


def preprocess(images: Array) -> Array:
    """uint8 ``(B, H, W, 3)`` -> ``(B, 224, 224, 3)`` float32 of about zero mean, unit deviation."""
    resized = resize_bicubic(images.astype(jnp.float32)) / 255
    mean, std = (jnp.asarray(v, jnp.float32)[None, None, None] for v in (MEAN, STD))
    return (resized - mean) / std


@functools.partial(jax.jit, static_argnames="layout")
def class_token(params: Mapping[str, Any], images: Array, layout: Layout = VIT_L14) -> Array:
    """``(B, width)`` float32 features of uint8 images ``(B, H, W, 3)``."""
    with jax.default_matmul_precision("highest"):  # never bfloat16 or TF32
        return VisionTransformer(layout).apply({"params": params}, preprocess(images))[:, 0]


# ---------------------------------------------------------------- weights

# Within a block: published name -> (path below "blocks", whether it is a matrix to turn).
_BLOCK = {
    f"{theirs}.{leaf}": ((ours, flax), leaf == "weight" and not theirs.startswith("norm"))
    for theirs, ours in {
        "norm1": "norm1",
        "norm2": "norm2",
        "attn.qkv": "qkv",
        "attn.proj": "proj",
        "mlp.fc1": "fc1",
        "mlp.fc2": "fc2",
    }.items()
    for leaf, flax in (
        ("weight", "scale" if theirs.startswith("norm") else "kernel"),
        ("bias", "bias"),
    )
} | {"ls1.gamma": (("gamma1",), False), "ls2.gamma": (("gamma2",), False)}


def published_shapes(layout: Layout = VIT_L14) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the published state dictionary (ViT-L/14: 343)."""
    width, patch = layout.width, layout.patch
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + layout.native**2, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    inner = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    inner |= {"mlp.fc1": (layout.hidden, width), "mlp.fc2": (width, layout.hidden)}
    for i in range(layout.depth):
        for name in _BLOCK:
            layer, _, leaf = name.rpartition(".")
            matrix = inner.get(layer, (width,))
            shapes[f"blocks.{i}.{name}"] = matrix if leaf == "weight" else matrix[:1]
    return shapes


def params_from(tensors: Mapping[str, np.ndarray], layout: Layout = VIT_L14) -> dict[str, Any]:
    """Parameters of `VisionTransformer` from published tensors; the mask token is not used."""
    proj = tensors["patch_embed.proj.weight"]  # (width, 3, patch, patch)
    params: dict[str, Any] = {
        "cls_token": tensors["cls_token"][0, 0],
        "pos_embed": tensors["pos_embed"][0],
        "patch_embed": {
            "kernel": proj.transpose(2, 3, 1, 0).reshape(-1, layout.width),
            "bias": tensors["patch_embed.proj.bias"],
        },
        "norm": {"scale": tensors["norm.weight"], "bias": tensors["norm.bias"]},
        "blocks": {},
    }
    turn: Callable[[np.ndarray], np.ndarray] = np.transpose
    for name, (path, matrix) in _BLOCK.items():
        each = [tensors[f"blocks.{i}.{name}"] for i in range(layout.depth)]
        node = params["blocks"]
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = np.stack([turn(a) if matrix else a for a in each])
    return params
