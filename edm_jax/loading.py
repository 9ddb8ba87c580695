"""Where a model is loaded from: a run directory, a step of it, a single file, ours or foreign."""

from __future__ import annotations

import json
import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from edm_jax.arguments import user_path
from edm_jax.foreign import importer
from edm_jax.model import Model, build, from_description
from edm_jax.names import brief
from edm_jax.store import checkpoints
from edm_jax.store.checkpoints import CheckpointError
from edm_jax.store.description import check_description
from edm_jax.store.errors import NewerFormatError, WeightsError, show
from edm_jax.store.variables import check_variables
from edm_jax.typing import PyTree


def load(path: str | os.PathLike[str], *, variant: str | None = None) -> Model:
    """Load a model from a run directory, a step of it, or a single file.

    Nothing but the path is needed: checkpoints describe themselves.  A damaged newest step
    is passed over with a warning.  Of foreign files those that say enough are read
    (`foreign.read_model_file` takes what the others leave out).

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
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"path must be the name of a run directory or a file, got {brief(path)}")
    path = user_path("path", path)
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
        return _model(found.description, found.variables[variant], variant, path)
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
    if variant is None:
        return names[0]
    if not isinstance(variant, str) or variant not in names:
        raise ValueError(f"no weights {brief(variant)} in {where}; there are: {', '.join(names)}")
    return variant


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
        check_variables({name: tree for name, tree in variables.items() if tree}, description)
    except WeightsError as error:
        raise CheckpointError(f"{step_dir}, weights {show(variant)}: {error}") from None
    return variables


def _model(
    description: Mapping[str, Any], variables: PyTree, variant: str, where: pathlib.Path
) -> Model:
    """The model, with a warning where a number of it is not finite."""
    warn_unless_finite(variables, variant, where)
    return from_description(description, variables, variant)


def warn_unless_finite(variables: PyTree, variant: str, where: pathlib.Path) -> None:
    """Warn of the first of some weights that holds a number that is not finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if not np.all(np.isfinite(np.asarray(leaf, np.float32))):
            name = "/".join(str(key.key) for key in path[1:])
            warnings.warn(
                f"{where}, weights {variant}: {name} holds numbers that are not finite; images of "
                "this model will be NaN",
                stacklevel=4,
            )
            break


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
    return _model(description, read_variables(step_dir, description, variant), variant, step_dir)
