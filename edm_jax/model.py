"""A model with everything needed to use it, and where it is loaded from."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import models
from edm_jax.foreign import importer, state_dict
from edm_jax.precond import PRECONDITIONINGS, Preconditioning, precondition
from edm_jax.store import checkpoints
from edm_jax.store.checkpoints import CheckpointError
from edm_jax.store.description import FORMAT_VERSION, check_description
from edm_jax.store.errors import NewerFormatError, WeightsError, show
from edm_jax.typing import Array, ArrayLike, DenoiseFn, PyTree


def describe(
    *,
    network: Mapping[str, Any],
    precond: Mapping[str, Any],
    image_shape: tuple[int, int, int],
    num_classes: int,
    label_names: tuple[str, ...] | None = None,
    progress: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict:
    """The JSON description that makes a checkpoint self-describing.

    Args:
      network: ``{"name": ..., **constructor arguments}`` of `models.build`.
      precond: ``{"name": ..., **arguments}`` of `precond.PRECONDITIONINGS`.
      image_shape: ``(H, W, C)``.
      num_classes: label dimension, 0 for none.
      label_names: of the classes, if known.
      progress: step, images seen, and the like.
      **more: further JSON values, kept as they are.

    Returns:
      A dict of JSON values only.
    """
    description = {
        "format_version": FORMAT_VERSION,
        "network": dict(network),
        "precond": dict(precond),
        "image_shape": list(image_shape),
        "num_classes": num_classes,
        "label_names": None if label_names is None else list(label_names),
        "progress": None if progress is None else dict(progress),
        **more,
    }
    return json.loads(json.dumps(description))


@functools.lru_cache(maxsize=64)
def _build(key: str) -> tuple[nn.Module, Preconditioning]:
    """Network and preconditioning of a description; equal ones share compiled programs."""
    parts = json.loads(key)
    network, precond = parts["network"], parts["precond"]
    net = models.build(network.pop("name"), **network)
    if precond.get("levels") is not None:
        precond["levels"] = np.asarray(precond["levels"], np.float32)
    return net, PRECONDITIONINGS[precond.pop("name")](**precond)


def build(description: Mapping[str, Any]) -> tuple[nn.Module, Preconditioning]:
    """The network and the preconditioning that a description names.

    Raises:
      WeightsError: for a description of a newer version or one that makes no sense.
    """
    check_description(description)
    try:
        parts = {name: description[name] for name in ("network", "precond")}
        return _build(json.dumps(parts, sort_keys=True))
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"the model description is not usable: {error}") from error


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A trained network with its preconditioning and description.

    Attributes:
      net: the raw network, a pure Flax module.
      preconditioning: coefficients, noise range and rounding.
      variables: of the network: ``{"params": ...}`` and perhaps ``"buffers"``.
      description: the JSON description (`describe`).
      variant: which weights these are, for example ``ema_500kimg``.
    """

    net: nn.Module
    preconditioning: Preconditioning
    variables: PyTree
    description: Mapping[str, Any]
    variant: str = "ema"

    @property
    def params(self) -> PyTree:
        """The network's parameters."""
        return self.variables["params"]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(H, W, C)``."""
        return tuple(self.description["image_shape"])

    @property
    def num_classes(self) -> int:
        """Label dimension; 0 for an unconditional model."""
        return self.description["num_classes"]

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """Names of the classes, if known."""
        names = self.description.get("label_names")
        return None if names is None else tuple(names)

    def denoise(
        self,
        x: Array,
        sigma: ArrayLike,
        labels: ArrayLike | None = None,
        augment_labels: Array | None = None,
    ) -> Array:
        """D(x; sigma): the expected clean image given a noisy one.

        Args:
          x: ``(B, H, W, C)`` noisy images.
          sigma: scalar or ``(B,)`` noise levels.
          labels: None, a class index, ``(B,)`` indices, or ``(B, num_classes)`` vectors.
          augment_labels: ``(B, augment_dim)``, or None for "not augmented".

        Returns:
          ``(B, H, W, C)``.  Pure: may be jitted, vmapped and differentiated.
        """
        rows = self.label_rows(labels, x.shape[0])
        return self.denoiser(self.variables)(x, sigma, rows, augment_labels)

    def denoiser(self, variables: PyTree) -> DenoiseFn:
        """``denoise(x, sigma, label_rows=None, augment_labels=None)`` at given variables.

        Pass the variables as an argument of the outermost jit; closed over, they would
        become constants of the program.
        """
        return precondition(functools.partial(self.net.apply, variables), self.preconditioning)

    def label_rows(self, labels: ArrayLike | None, batch_size: int) -> Array | None:
        """Labels of any accepted form as ``(batch_size, num_classes)`` float32 rows.

        None stays None, which the networks take as the all-zero label.

        Raises:
          ValueError: for labels given to an unconditional model, indices out of range,
            or shapes that do not fit.
        """
        if labels is None:
            return None
        if not self.num_classes:
            raise ValueError("the model is unconditional; leave labels out")
        labels = jnp.asarray(labels)
        if labels.ndim == 2:
            if labels.shape != (batch_size, self.num_classes):
                raise ValueError(
                    f"label rows must have shape ({batch_size}, {self.num_classes}), "
                    f"got {labels.shape}"
                )
            return labels.astype(jnp.float32)
        check_labels(labels, self.num_classes, batch_size)
        return jax.nn.one_hot(jnp.broadcast_to(labels, (batch_size,)), self.num_classes)


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


def load(path: str | pathlib.Path, *, variant: str | None = None) -> Model:
    """Load a model from a run directory, a step of it, or a single file.

    Nothing but the path is needed: checkpoints describe themselves.  A damaged newest step
    is passed over with a warning.  Of foreign files those that say enough are read
    (`weights.importer.read_model_file` takes what the others leave out).

    Args:
      path: ``runs/digits``, ``runs/digits/checkpoints``, ``.../checkpoints/00001000``, an
        exported ``.safetensors``, or a ``.pkl`` or ``.pt`` file of published weights.
      variant: which weights; by default the first average.  ``raw`` are the weights
        themselves; a wrong name lists what there is.

    Returns:
      The Model, its variables as JAX arrays.

    Raises:
      FileNotFoundError: if there is no such path.
      WeightsError: if no usable model is there, or a newer version wrote one
        (`NewerFormatError`); older steps beside it are to be named then.
      ValueError: if there are no such weights.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file or directory: {path}")
    if path.is_file():
        found = importer.read_model_file(path)
        if found.doubtful:
            warnings.warn(
                f"{path}: assumed, as the file does not say: {json.dumps(found.doubtful)}; if that "
                "is wrong, import the file with the right values (--mode=import, --source_options)",
                stacklevel=2,
            )
        variant = choose_variant(variant, list(found.variables), path)
        return from_description(found.description, found.variables[variant], variant)
    if (path / "description").is_dir():
        return _load_step(path, variant)
    nested = path / "checkpoints"
    steps = checkpoints.checkpoint_steps(nested if nested.is_dir() else path)
    if not steps:
        raise CheckpointError(
            f"{path}: no checkpoint found; expected a run directory holding checkpoints/<step>/"
        )
    for step_dir in reversed(steps):
        try:
            return _load_step(step_dir, variant)
        except NewerFormatError:
            raise
        except WeightsError as error:
            if step_dir is steps[0]:
                raise
            warnings.warn(f"skipping damaged checkpoint: {error}", stacklevel=2)
    raise AssertionError("unreachable: the loop returns or raises")


def choose_variant(variant: str | None, names: list[str], where: pathlib.Path) -> str:
    """``variant``, or the first of ``names``; ValueError if it is not among them."""
    if variant is not None and variant not in names:
        raise ValueError(f"no weights {variant!r} in {where}; there are: {', '.join(names)}")
    return variant or names[0]


def read_variables(step_dir: pathlib.Path, description: Mapping[str, Any], variant: str) -> PyTree:
    """Variables of one variant of a step, as NumPy arrays.

    Raises:
      CheckpointError: they cannot be read, or are not those of the network.
    """
    stored = checkpoints.read_arrays(step_dir, "params")
    if not isinstance(stored, Mapping):
        raise CheckpointError(f"{step_dir / 'params'}: no tree of variables")
    variables = {"params": stored.get("params", {})}
    if variant != "raw":
        averages = checkpoints.read_arrays(step_dir, "ema")
        if not isinstance(averages, Mapping) or variant not in averages:
            raise CheckpointError(f"{step_dir / 'ema'}: weights {show(variant)} are not there")
        variables = {"params": averages[variant]}
    variables["buffers"] = stored.get("buffers", {})
    try:
        state_dict.check_variables(variables, description["network"])
    except WeightsError as error:
        raise CheckpointError(f"{step_dir}, weights {show(variant)}: {error}") from None
    return variables


def _load_step(step_dir: pathlib.Path, variant: str | None) -> Model:
    description = checkpoints.read_description(step_dir)  # first: newer checksums may differ
    checkpoints.verify_checksums(step_dir, ("description", "ema", "params"))
    names = description.get("variants")
    try:
        check_description(description)
        if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
            raise WeightsError(f"variants must be a list of names, got {show(names)}")
        build(description)
    except WeightsError as error:
        raise CheckpointError(f"{step_dir}: {error}") from None
    variant = choose_variant(variant, names, step_dir)
    return from_description(description, read_variables(step_dir, description, variant), variant)
