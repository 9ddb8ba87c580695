"""A model with everything needed to use it: network, preconditioning, weights, description."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import models
from edm_jax.arguments import is_known
from edm_jax.domains.box import Box
from edm_jax.names import unknown
from edm_jax.precond import (
    PRECONDITIONINGS,
    Preconditioning,
    precondition,
    precondition_with_variance,
)
from edm_jax.store.description import FORMAT_VERSION, KINDS, check_description, kind_of
from edm_jax.store.errors import WeightsError
from edm_jax.typing import Array, ArrayLike, DenoiseFn, PyTree

Labels = ArrayLike | str | Sequence[str]


def describe(
    *,
    network: Mapping[str, Any],
    image_shape: tuple[int, ...],
    num_classes: int,
    precond: Mapping[str, Any] | None = None,
    label_names: tuple[str, ...] | None = None,
    progress: Mapping[str, Any] | None = None,
    kind: str = "denoiser",
    **more: Any,
) -> dict:
    """The JSON description that makes a checkpoint self-describing.

    Args:
      network: ``{"name": ..., **constructor arguments}`` of `models.build`.
      image_shape: ``(H, W, C)``, or ``(L,)`` for sequences.
      num_classes: label dimension, 0 for none.
      precond: ``{"name": ..., **arguments}`` of `precond.PRECONDITIONINGS`; None for kinds
        without.
      label_names: of the classes, if known.
      progress: step, images seen, and the like.
      kind: what the model is, one of `store.description.KINDS`.
      **more: further JSON values, kept as they are.

    Returns:
      A dict of JSON values only.
    """
    description = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "network": dict(network),
        **({} if precond is None else {"precond": dict(precond)}),
        "image_shape": list(image_shape),
        "num_classes": num_classes,
        "label_names": None if label_names is None else list(label_names),
        "progress": None if progress is None else dict(progress),
        **more,
    }
    return json.loads(json.dumps(description))


@functools.lru_cache(maxsize=64)
def _build(key: str) -> tuple[nn.Module, Preconditioning | None]:
    """Network and preconditioning of a description; equal ones share compiled programs."""
    parts = json.loads(key)
    network, precond = parts["network"], parts.get("precond")
    net = models.build(network.pop("name"), **network)
    if precond is None:
        return net, None
    if precond.get("levels") is not None:
        precond["levels"] = np.asarray(precond["levels"], np.float32)
    return net, PRECONDITIONINGS[precond.pop("name")](**precond)


def build(description: Mapping[str, Any]) -> tuple[nn.Module, Preconditioning | None]:
    """The network and the preconditioning (of a denoiser) that a description names.

    Raises:
      WeightsError: for a description of a newer version or one that makes no sense.
    """
    check_description(description)
    try:
        wanted = [name for name in ("network", "precond") if name in KINDS[kind_of(description)]]
        parts = {name: description[name] for name in wanted}
        return _build(json.dumps(parts, sort_keys=True))
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"the model description is not usable: {error}") from error


# Of a description, what the program of a model depends on; names of classes are looked up while
# tracing.
_TRACED = ("image_shape", "num_classes", "process", "label_names")


class _Static:
    """What a Model is apart from its variables; equal where compiled programs are the same.

    Progress, variant and origin tell checkpoints of a run apart and change no program, so
    they do not count: a second checkpoint retraces nothing.
    """

    def __init__(
        self,
        net: nn.Module,
        preconditioning: Preconditioning | None,
        description: Mapping[str, Any],
        variant: str,
    ):
        self.fields = (net, preconditioning, description, variant)
        data = {key: description.get(key) for key in _TRACED}
        # Which classes have images, or which vectors, decides on the labels that are drawn.
        trained = description.get("data") or {}
        data |= {key: trained.get(key) for key in ("classes", "label_vectors")}
        self._key = (net, preconditioning, kind_of(description), json.dumps(data))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@jax.tree_util.register_pytree_with_keys_class
class Model:
    """A trained network with its preconditioning and description; a pytree of its variables.

    Jitted functions take it as an argument:

        jax.jit(lambda model, x: model.denoise(x, 1.0))(model, x)

    Two models whose descriptions differ only in progress, variant or origin have the same
    structure.  (A model that a jitted function returns has those of the first that was
    traced.)

    Attributes:
      net: the raw network, a pure Flax module.
      preconditioning: coefficients, noise range and rounding; None if it is no denoiser.
      variables: of the network: ``{"params": ...}`` and perhaps ``"buffers"``.
      description: the JSON description (`describe`).
      variant: which weights these are, for example ``ema_500kimg``.
    """

    def __init__(
        self,
        net: nn.Module,
        preconditioning: Preconditioning | None,
        variables: PyTree,
        description: Mapping[str, Any],
        variant: str = "ema",
    ):
        self.variables = variables
        self._static = _Static(net, preconditioning, description, variant)

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, PyTree]], _Static]:
        """The variables, and everything else."""
        return ((jax.tree_util.GetAttrKey("variables"), self.variables),), self._static

    @classmethod
    def tree_unflatten(cls, static: _Static, children: tuple[PyTree]) -> Model:
        """Inverse of `tree_flatten_with_keys`."""
        model = object.__new__(cls)
        model._static, (model.variables,) = static, children
        return model

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self.variables.get("params", {}) if self.variables else {})
        shape = "x".join(map(str, self.image_shape))
        parts = [
            f"{type(self.net).__name__}, {sum(np.size(leaf) for leaf in leaves):,} parameters",
            f"images {shape}",
            f"{self.num_classes} classes" if self.num_classes else "no classes",
            self.variant,
        ]
        kimg = (self.description.get("progress") or {}).get("kimg")
        parts += [] if kimg is None else [f"{kimg:g} kimg"]
        return f"{type(self).__name__}({', '.join(parts)})"

    @property
    def net(self) -> nn.Module:
        """The raw network."""
        return self._static.fields[0]

    @property
    def preconditioning(self) -> Preconditioning | None:
        """Coefficients, noise range and rounding of a denoiser."""
        return self._static.fields[1]

    @property
    def description(self) -> Mapping[str, Any]:
        """The JSON description."""
        return self._static.fields[2]

    @property
    def variant(self) -> str:
        """Which weights these are."""
        return self._static.fields[3]

    @property
    def kind(self) -> str:
        """What the model is: ``denoiser``, ..."""
        return kind_of(self.description)

    @property
    def params(self) -> PyTree:
        """The network's parameters."""
        return self.variables["params"]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """``(H, W, C)``, or ``(L,)`` for sequences."""
        return tuple(self.description["image_shape"])

    @property
    def num_classes(self) -> int:
        """Label dimension; 0 for an unconditional model."""
        return self.description["num_classes"]

    @property
    def classes(self) -> tuple[int, ...]:
        """The classes that had images in training: all, where nothing else is known."""
        present = (self.description.get("data") or {}).get("classes")
        return tuple(range(self.num_classes) if present is None else present)

    @property
    def label_vectors(self) -> np.ndarray | None:
        """Some labels of training, ``(n, num_classes)`` float32, where these are no classes."""
        vectors = (self.description.get("data") or {}).get("label_vectors")
        return None if vectors is None else np.asarray(vectors, np.float32)

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """Names of the classes, if known."""
        names = self.description.get("label_names")
        return None if names is None else tuple(names)

    def replace(self, variables: PyTree) -> Model:
        """The same model with other variables."""
        return self.tree_unflatten(self._static, (variables,))

    def denoise(
        self,
        x: Array,
        sigma: ArrayLike,
        labels: Labels | None = None,
        augment_labels: Array | None = None,
    ) -> Array:
        """D(x; sigma): the expected clean image given a noisy one.

        Args:
          x: ``(B, H, W, C)`` noisy images.
          sigma: scalar or ``(B,)`` noise levels.
          labels: None, a class index or name, ``(B,)`` of them, or ``(B, num_classes)``
            vectors.
          augment_labels: ``(B, augment_dim)``, or None for "not augmented".

        Returns:
          ``(B, H, W, C)``.  Pure: may be jitted, vmapped and differentiated; in half precision,
          where attention is a kernel (TPUs, NVIDIA GPUs), once and backwards
          (`edm_jax.models.ops.target.plain_forms` of TPUs: as often as one likes).

        Raises:
          ValueError: for labels that do not fit (`label_rows`), or known noisy images of a
            reflected model outside [-1, 1]: samplers run on the lift of its denoiser
            (`edm_jax.domains.Box.lift`).
        """
        if self.kind == "reflected":
            Box().check(x, "noisy images of a reflected model")
        rows = self.label_rows(labels, x.shape[0])
        return self.denoiser(self.variables)(x, sigma, rows, augment_labels)

    def denoiser(self, variables: PyTree, *, variance: bool = False) -> DenoiseFn:
        """``denoise(x, sigma, label_rows=None, augment_labels=None)`` at given variables.

        Pass the variables as an argument of the outermost jit; closed over, they would
        become constants of the program.

        Args:
          variables: of the network.
          variance: return ``(D, v)`` of a network that has learnt a variance as well, see
            `precond.precondition_with_variance`.

        Raises:
          ValueError: for a model of another kind.
        """
        if self.preconditioning is None:
            raise ValueError(f"a model of kind {self.kind!r} has no denoiser")
        wrap = precondition_with_variance if variance else precondition
        return wrap(functools.partial(self.net.apply, variables), self.preconditioning)

    def label_rows(self, labels: Labels | None, batch_size: int) -> Array | None:
        """Labels of any accepted form as ``(batch_size, num_classes)`` float32 rows.

        None stays None, which the networks take as the all-zero label.

        Raises:
          ValueError: for labels given to an unconditional model, indices or names that are
            none of its classes, or shapes that do not fit.
        """
        if labels is None:
            return None
        if not self.num_classes:
            raise ValueError("the model is unconditional; leave labels out")
        labels = self.class_indices(labels)
        if labels.ndim == 2:
            if labels.shape != (batch_size, self.num_classes):
                raise ValueError(
                    f"label rows must have shape ({batch_size}, {self.num_classes}), "
                    f"got {labels.shape}"
                )
            if is_known(labels) and not np.all(np.isfinite(np.asarray(labels))):
                raise ValueError("label rows must be finite numbers, got some that are not")
            return labels.astype(jnp.float32)
        check_labels(labels, self.num_classes, batch_size)
        return jax.nn.one_hot(jnp.broadcast_to(labels, (batch_size,)), self.num_classes)

    def class_indices(self, labels: Labels) -> ArrayLike:
        """Names of classes as their indices; arrays of numbers as they are."""
        if isinstance(labels, jax.Array):
            return labels
        labels = np.asarray(labels)
        if labels.dtype.kind == "U" and self.label_names is not None:
            known = {name: index for index, name in enumerate(self.label_names)}
            for name in labels.ravel():
                if name not in known:
                    raise unknown("class", str(name), self.label_names)
            return np.vectorize(known.get, otypes=[int])(labels)
        if labels.dtype.kind not in "iufb":
            raise ValueError(
                "labels must be class indices or rows of numbers"
                + (", or names of classes" if self.label_names is not None else "")
                + f", got {labels.dtype}"
            )
        return labels


def check_labels(labels: ArrayLike, num_classes: int, batch_size: int) -> None:
    """Raise ValueError unless labels are one index or one per image, each in range."""
    shape = np.shape(labels)
    if shape not in ((), (batch_size,)):
        raise ValueError(
            f"labels must be one class index or {batch_size} of them, got shape {shape}"
        )
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise ValueError(f"class labels must be integers, got {jnp.result_type(labels)}")
    if not isinstance(labels, jax.core.Tracer):
        values = np.asarray(labels)
        if values.size and not (values.min() >= 0 and values.max() < num_classes):
            bad = values[(values < 0) | (values >= num_classes)].flat[0]
            raise ValueError(f"label {bad} is out of range; the classes are 0..{num_classes - 1}")


def from_description(
    description: Mapping[str, Any], variables: PyTree, variant: str = "ema"
) -> Model:
    """A Model from its description and the variables of its network.

    Empty collections, which files have, are left out, as networks have none.
    """
    net, preconditioning = build(description)
    variables = {name: jax.tree.map(jnp.asarray, tree) for name, tree in variables.items() if tree}
    return Model(net, preconditioning, variables, description, variant)
