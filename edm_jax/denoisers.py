"""A denoiser of one's own as a `Model`: a function, or a module of Flax NNX or Equinox.

    model = edm_jax.from_denoiser(denoise, image_shape=(32, 32, 3))
    images = edm_jax.sample(model, seeds=range(64), num_steps=18)

A callable that is a pytree (an NNX or Equinox module, a `jax.tree_util.Partial` of a function
and its weights) brings its arrays as arguments of compiled programs: other weights of the same
network compile nothing anew.  Of any other callable the weights are constants.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.arguments import check_count
from edm_jax.model import Model, describe
from edm_jax.names import brief
from edm_jax.precond import Coefs, Preconditioning
from edm_jax.typing import Array, PyTree

NAME = "own"  # of the preconditioning, and of the weights


def _unchanged(sigma: Array) -> Coefs:
    """Coefficients of what is a denoiser already: D = F(x; sigma)."""
    ones = jnp.ones_like(sigma)
    return Coefs(c_skip=jnp.zeros_like(sigma), c_out=ones, c_in=ones, c_noise=sigma)


@dataclasses.dataclass(frozen=True)
class _Fixed:
    """A leaf that is part of the program; of two that have no hash, each is another."""

    leaf: Any = dataclasses.field(compare=False)
    key: Hashable

    @classmethod
    def of(cls, leaf: Any) -> _Fixed:
        return cls(leaf, leaf if isinstance(leaf, Hashable) else id(leaf))


@dataclasses.dataclass(frozen=True)
class OwnDenoiser:
    """A callable without its arrays, which `apply` takes as a Flax module does.

    Attributes:
      structure: of the callable as a pytree.
      leaves: of every leaf the collection and name of its array, or the leaf itself.
      num_classes: of the rows that it is called with; 0 if it takes none.
    """

    structure: Any
    leaves: tuple[tuple[str, str] | _Fixed, ...]
    num_classes: int

    def apply(
        self,
        variables: Mapping[str, Mapping[str, Array]],
        x: Array,
        sigma: Array,
        rows: Array | None = None,
        augment_labels: Array | None = None,
    ) -> Array:
        """D(x; sigma), with one noise level for each image and zeros for no label."""
        if augment_labels is not None:
            raise ValueError("a denoiser of one's own takes no augment_labels")
        leaves = [
            leaf.leaf if isinstance(leaf, _Fixed) else variables[leaf[0]][leaf[1]]
            for leaf in self.leaves
        ]
        denoise = jax.tree.unflatten(self.structure, leaves)
        sigma = jnp.broadcast_to(sigma, x.shape[:1])
        if not self.num_classes:
            return denoise(x, sigma)
        if rows is None:
            rows = jnp.zeros((len(x), self.num_classes), jnp.float32)
        return denoise(x, sigma, rows)


def _apart(denoise: Callable[..., Array], num_classes: int) -> tuple[OwnDenoiser, PyTree]:
    """The program of a callable and its arrays: ``params`` of floats, ``buffers`` of others."""
    named, structure = jax.tree_util.tree_flatten_with_path(denoise)
    variables: dict[str, dict[str, Array]] = {"params": {}, "buffers": {}}
    leaves: list[tuple[str, str] | _Fixed] = []
    for path, leaf in named:
        # Keys of random numbers, which modules carry for their training, are no weights.
        if not isinstance(leaf, jax.Array | np.ndarray) or jnp.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        ):
            leaves.append(_Fixed.of(leaf))
            continue
        collection = "params" if jnp.issubdtype(leaf.dtype, jnp.inexact) else "buffers"
        name = jax.tree_util.keystr(path)
        variables[collection][name] = jnp.asarray(leaf)
        leaves.append((collection, name))
    kept = {name: arrays for name, arrays in variables.items() if arrays or name == "params"}
    return OwnDenoiser(structure, tuple(leaves), num_classes), kept


def from_denoiser(
    denoise: Callable[..., Array],
    image_shape: Sequence[int],
    *,
    num_classes: int = 0,
    label_names: Sequence[str] | None = None,
    sigma_min: float = 0.0,
    sigma_max: float = math.inf,
) -> Model:
    """A Model of any denoiser, for `sample`, guidance, likelihoods and codes.

    Args:
      denoise: ``denoise(x, sigma)``, with classes ``denoise(x, sigma, rows)``: D(x; sigma) of
        ``(B, *image_shape)`` noisy images with ``(B,)`` noise levels in data units, and
        ``(B, num_classes)`` one-hot rows, all zero where there is no label.  Pure.  Modules
        (NNX, Equinox) are taken as they are, in the mode in which they evaluate; a function of
        weights as ``jax.tree_util.Partial(function, weights)``; a network that predicts
        anything else behind `precondition` or `adapters.adapt`.
      image_shape: ``(H, W, C)``, or any other shape of what is drawn.
      num_classes: of the labels; what stands for none is told to guidance
        (``classifier_free(w, null_row=zeros)``).
      label_names: of the classes.
      sigma_min, sigma_max: range of noise levels that it knows; grids are kept within.

    Returns:
      A Model; ``model.params`` are the arrays of ``denoise`` by their names.  It cannot be
      written to a model file, which holds networks of `models.NETWORKS`.

    Raises:
      ValueError: for what cannot be called like this, or returns another shape than x.
    """
    if not callable(denoise) or isinstance(denoise, type):
        raise ValueError(f"denoise must be a function D(x, sigma), got {brief(denoise)}")
    if isinstance(image_shape, str) or not isinstance(image_shape, Sequence) or not image_shape:
        raise ValueError(f"image_shape must be (H, W, C), got {brief(image_shape)}")
    shape = tuple(check_count("image_shape", size) for size in image_shape)
    num_classes = check_count("num_classes", num_classes, least=0)
    if label_names is not None and len(label_names) != num_classes:
        raise ValueError(f"{len(label_names)} label_names for {num_classes} classes")
    net, variables = _apart(denoise, num_classes)
    _check_shapes(functools.partial(net.apply, variables), shape, num_classes)
    name = getattr(denoise, "__name__", type(denoise).__name__)
    description = describe(
        network={"name": name},
        precond={"name": NAME},
        image_shape=shape,
        num_classes=num_classes,
        label_names=None if label_names is None else tuple(map(str, label_names)),
    )
    preconditioning = Preconditioning(NAME, _unchanged, float(sigma_min), float(sigma_max))
    return Model(net, preconditioning, variables, description, NAME)


def _check_shapes(denoise: Callable[..., Array], shape: tuple[int, ...], num_classes: int) -> None:
    """Raise ValueError unless D of a batch of two has the shape of x; nothing is computed."""
    float32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    x = float32((2, *shape))
    given = (x, float32((2,)), *([float32((2, num_classes))] if num_classes else []))
    told = "denoise(x, sigma, rows)" if num_classes else "denoise(x, sigma)"
    shapes = ", ".join(str(a.shape) for a in given)
    try:
        result = jax.eval_shape(denoise, *given)
    except (TypeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"{told} cannot be called with shapes {shapes}: {first}") from error
    if getattr(result, "shape", None) != x.shape:
        raise ValueError(
            f"{told} must return the shape of x, {x.shape}, got "
            f"{brief(getattr(result, 'shape', result))}"
        )
