"""What a file says of its model, and how that becomes a complete description."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from edm_jax.foreign import edm_snapshot
from edm_jax.foreign.state_dict import Tensors, to_variables
from edm_jax.pytree import short_repr
from edm_jax.store.description import FORMAT_VERSION, ImportedModel, check_description
from edm_jax.store.tensors import Tensor, array_of


@short_repr
@dataclasses.dataclass
class Found:
    """What a file says, before gaps are filled.

    ``tensors`` holds the tensors of each variant under bare published names; ``u`` is the
    table of an iDDPM state dictionary; ``assumed`` what had to be assumed, as a config.
    """

    network: dict[str, Any]
    precond: dict[str, Any]
    tensors: dict[str, Tensors]
    source: dict[str, Any]
    u: Tensor | np.ndarray | None = None
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    step: int | None = None
    guided: bool = False
    assumed: dict[str, Any] = dataclasses.field(default_factory=dict)


def _progress(file: str, step: int | None) -> dict[str, int | None] | None:
    """Training progress as the programs put it into file names."""
    if match := re.fullmatch(r"(?:network-snapshot|training-state)-([0-9]{1,9})\.(?:pkl|pt)", file):
        kimg = int(match[1])
        return {"nimg": kimg * 1000, "kimg": kimg, "step": step}
    if match := re.fullmatch(r"(?:model|ema_[0-9.]{1,12}_)([0-9]{6})\.pt", file):
        step = int(match[1])
    return None if step is None else {"nimg": None, "kimg": None, "step": step}


def _merged_precond(found: Found, config: Mapping[str, Any]) -> dict[str, Any]:
    given = config.get("precond", {})
    precond = found.precond | given
    if found.u is not None:  # which nothing may contradict
        said, another = precond.pop("levels", None), precond["name"] != "iddpm"
        if not another:
            edm_snapshot.add_levels(precond, found.u)
            constants = "levels" in precond and not given.keys().isdisjoint({"c_1", "c_2"})
            another = constants or (said is not None and said != array_of(found.u).tolist())
        if another:
            raise ValueError(
                "config['precond'] contradicts the file, whose tensor 'u' says the noise levels "
                "of an iDDPM preconditioner; leave it out"
            )
        return precond
    if given.get("name", found.precond["name"]) != found.precond["name"]:
        return dict(given)
    if "levels" in given and "num_levels" not in given:
        precond.pop("num_levels", None)
    return precond


def finish(
    found: Found, config: Mapping[str, Any], origin: dict[str, Any], size: int
) -> ImportedModel:
    """The model: description, variables in our layout, and what was assumed.

    Args:
      found: what the file says.
      config: what the user says besides, which fills gaps and overrides guesses.
      origin: name and digest of the file.
      size: of the file in bytes, which bounds what it may hold.

    Raises:
      ValueError: config contradicts the file.
      WeightsError: description and tensors do not fit each other.
    """
    network = found.network | config.get("network", {})
    source = origin | found.source
    if "licence" in config:
        source["licence"] = config["licence"]
    assumed = {k: v for k, v in found.assumed.items() if k not in config and k != "network"}
    given = config.get("network", {})
    guessed = {k: v for k, v in found.assumed.get("network", {}).items() if k not in given}
    if found.assumed:
        source["assumed"] = [*guessed, *assumed]
    description = {
        "format_version": FORMAT_VERSION,
        "network": network,
        "precond": _merged_precond(found, config),
        "image_shape": [
            network["img_resolution"],
            network["img_resolution"],
            network["in_channels"],
        ],
        "num_classes": network["label_dim"],
        "label_names": config.get("label_names"),
        "progress": config.get("progress") or _progress(origin["file"], found.step),
        "data": found.data | config.get("data", {}),
        "source": source,
    }
    check_description(description)
    variables = {
        variant: to_variables(tensors, network, size) for variant, tensors in found.tensors.items()
    }
    return ImportedModel(
        description, variables, ({"network": guessed} if guessed else {}) | assumed
    )
