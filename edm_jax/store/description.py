"""What a model is, as plain JSON: the part of a model file that is not arrays.

    {"format_version": 1, "kind": "denoiser" (also where it is left out),
     "network": {"name": "SongUNet" | "DhariwalUNet", constructor arguments},
     "precond": {"name": "edm" | "vp" | "ve" | "iddpm", arguments of the factory},
     ("process": {"name": "absorbing" | "upscale", arguments} instead, where "kind" is "ardm")
     "image_shape": [H, W, C], "num_classes": label_dim, "label_names": null or [...],
     "progress": null or {"nimg", "kimg", "step"}, "data": {"num_images" of a run,
     "classes": those with images, where others have none,
     "label_vectors": some of the labels, where these are vectors that are no classes, ...},
     "source": {"file", "sha256", "format", "class_name", "licence", ...}}

An infinite or default sigma_min, sigma_max is left out of ``precond``: JSON has no infinity.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edm_jax import models
from edm_jax.ardm.registry import build as build_process
from edm_jax.precond import PRECONDITIONINGS
from edm_jax.pytree import short_repr
from edm_jax.store.errors import NewerFormatError, WeightsError, show
from edm_jax.typing import PyTree

FORMAT_VERSION = 1
# Kind of model -> which choices, each with a name, its description must hold.
KINDS = {
    "denoiser": ("network", "precond"),
    "classifier": ("network", "precond"),
    "reflected": ("network", "precond"),
    "ardm": ("network", "process"),
}
SEQUENCES = ("ardm",)  # kinds whose examples may be sequences, of image_shape [length]
MAX_VALUES = 1 << 16  # of a discrete variable
MAX_LEVELS = 1 << 16  # M of a table of noise levels
_MAX_NODES = 1 << 14
_MAX_DEPTH = 16
_TRAINING_ONLY = ("dropout", "label_dropout")
_MAX_FLOAT32 = float(np.finfo(np.float32).max)
_NODE_TEXT = 64  # characters of a text that count as another node

LICENCE_EDM = (
    "CC BY-NC-SA 4.0 (Creative Commons Attribution-NonCommercial-ShareAlike) if these are weights "
    "published by NVIDIA with EDM, or derived from them; weights you trained are yours to license"
)
LICENCE_GUIDED = (
    "guided-diffusion: the code is under the MIT licence, the published weights under the terms of "
    "their publisher (model card of github.com/openai/guided-diffusion)"
)
LICENCE_UNKNOWN = "unknown: the file does not say; ask whoever published it"


@short_repr
@dataclasses.dataclass(frozen=True)
class ImportedModel:
    """A model read from a file.

    Attributes:
      description: see this module.
      variables: ``{"params": tree, "buffers": tree}`` of float32 numpy arrays for every
        variant of the weights, ``"ema"`` or ``"raw"``.
      assumed: what the reader had to assume because neither file nor caller said it, as
        the ``config`` of `weights.read_model_file` that says the same.  Empty for a file of
        our own: the names are in its ``description["source"]["assumed"]``.
    """

    description: dict[str, Any]
    variables: dict[str, dict[str, PyTree]]
    assumed: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def doubtful(self) -> dict[str, Any]:
        """The assumptions that D(x; sigma) depends on: all but those on training."""
        doubts = {k: v for k, v in self.assumed.items() if k not in ("network", *_TRAINING_ONLY)}
        network = self.assumed.get("network", {})
        network = {k: v for k, v in network.items() if k not in _TRAINING_ONLY}
        return doubts | ({"network": network} if network else {})


def to_json(value: object) -> Any:
    """A copy of a foreign value made of JSON types; tuples become lists.

    Infinities and NaN become texts, as JSON has none; objects that are no plain data
    become None.  The size of the result is bounded, also for a value that contains itself.
    """
    nodes = 0

    def copy(value: object, depth: int) -> Any:
        nonlocal nodes
        nodes += 1 + (len(value) // _NODE_TEXT if isinstance(value, str) else 0)
        if nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise WeightsError("arguments too large or too deeply nested for a model's")
        if isinstance(value, float) and not math.isfinite(value):
            return repr(value)
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return value
        if isinstance(value, list | tuple):
            return [copy(v, depth + 1) for v in value]
        if isinstance(value, dict):
            return {copy(str(k), depth): copy(v, depth + 1) for k, v in value.items()}
        return None

    return copy(value, 0)


def is_number(value: object) -> bool:
    """An int or float, not a bool, and not NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def check_precond(precond: Mapping[str, Any]) -> None:
    """Raise WeightsError unless the preconditioning can be built from its arguments."""
    name, arguments = precond.get("name"), {k: v for k, v in precond.items() if k != "name"}
    if not isinstance(name, str) or name not in PRECONDITIONINGS:
        known = ", ".join(PRECONDITIONINGS)
        raise WeightsError(f"preconditioning {show(name)} is unknown; known: {known}")
    levels = arguments.pop("levels", None)
    for key, value in arguments.items():
        if key == "schedule" and isinstance(value, str):
            continue
        if not is_number(value):
            raise WeightsError(f"{name}: {show(key)} must be a number, got {show(value)}")
    num_levels = arguments.get("num_levels", 1)
    if not isinstance(num_levels, int) or not 0 < num_levels <= MAX_LEVELS:
        raise WeightsError(
            f"{name}: num_levels must be an integer in 1..{MAX_LEVELS}, got {show(num_levels)}"
        )
    if levels is not None:
        check_levels(levels)
        if arguments.get("num_levels", len(levels) - 1) != len(levels) - 1:
            raise WeightsError(
                f"{name}: num_levels is {num_levels}, but there are {len(levels) - 1} levels "
                "beside the 0 at their end"
            )
        arguments["levels"] = levels
    known = inspect.signature(PRECONDITIONINGS[name]).parameters
    for key in arguments:
        if key not in known:
            raise WeightsError(f"{name} has no argument {show(key)}; known: {', '.join(known)}")
    try:
        with np.errstate(all="ignore"):
            PRECONDITIONINGS[name](**arguments)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise WeightsError(f"preconditioning {name}: {error}") from None


def check_levels(levels: object) -> None:
    """Raise WeightsError unless this is a table u: strictly decreasing numbers down to 0."""
    if not isinstance(levels, list) or not 2 < len(levels) <= MAX_LEVELS + 1:
        raise WeightsError(f"levels must be a list of 3..{MAX_LEVELS + 1}, got {show(levels)}")
    if not all(is_number(v) and abs(v) <= _MAX_FLOAT32 for v in levels):
        raise WeightsError("levels must be finite numbers")
    used = np.asarray(levels, np.float64).astype(np.float32).tolist()
    if used[-1] != 0 or any(a <= b for a, b in itertools.pairwise(used)):
        raise WeightsError("levels must decrease strictly (in float32) and end with 0")


def check_process(process: Mapping[str, Any]) -> None:
    """Raise WeightsError unless the process of an autoregressive model can be built."""
    values = process.values()
    if not all(
        v is None or isinstance(v, str) or (isinstance(v, int) and abs(v) <= MAX_VALUES)
        for v in values
    ):
        raise WeightsError(f"process: {show(process)} holds what is no name or small integer")
    try:
        build_process(**process)
    except ValueError as error:
        raise WeightsError(f"process: {error}") from None


def check_version(description: object) -> None:
    """Raise WeightsError unless this is a dictionary of a version known here.

    Raises:
      NewerFormatError: the version is newer.
    """
    if not isinstance(description, dict):
        raise WeightsError(f"the description is {show(description)}, expected a dictionary")
    version = description.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise WeightsError(f"format_version {show(version)}, expected 1..{FORMAT_VERSION}")
    if version > FORMAT_VERSION:
        raise NewerFormatError(
            f"format_version {show(version)} is newer than {FORMAT_VERSION}, the newest this "
            "edm_jax reads; update edm_jax"
        )


def kind_of(description: Mapping[str, Any]) -> str:
    """What a model is; checkpoints from before there were kinds hold denoisers."""
    return description.get("kind", "denoiser")


def check_description(description: object) -> None:
    """Raise WeightsError unless a description is complete and of a version and kind known here."""
    check_version(description)
    kind = kind_of(description)
    if not isinstance(kind, str) or kind not in KINDS:
        raise WeightsError(
            f"kind {show(kind)} is unknown (known: {', '.join(KINDS)}); update edm_jax"
        )
    for key in KINDS[kind]:
        if not isinstance(description.get(key), dict) or "name" not in description[key]:
            raise WeightsError(f"the description has no {key} with a name")
    if "precond" in KINDS[kind]:
        check_precond(description["precond"])
    if "process" in KINDS[kind]:
        check_process(description["process"])
    _check_data(description)
    for key in ("data", "source", "progress"):
        if not isinstance(description.get(key), dict | None):
            raise WeightsError(f"{key} must be a dictionary, got {show(description[key])}")
    for key, value in (description.get("progress") or {}).items():
        if value is not None and not (is_number(value) and value >= 0):
            raise WeightsError(f"progress: {show(key)} must be a number >= 0, got {show(value)}")
    variants = description.get("variants", [])
    if not isinstance(variants, list) or not all(isinstance(v, str) for v in variants):
        raise WeightsError(f"variants must be a list of names, got {show(variants)}")


def _check_data(description: Mapping[str, Any]) -> None:
    """Shape, classes and their names, among themselves and with the network."""
    shape, classes = description.get("image_shape"), description.get("num_classes")
    if (
        not isinstance(shape, list)
        or len(shape) not in ((1, 3) if kind_of(description) in SEQUENCES else (3,))
        or not all(type(n) is int and n > 0 for n in shape)
    ):
        raise WeightsError(f"image_shape must be [height, width, channels], got {show(shape)}")
    if type(classes) is not int or classes < 0:
        raise WeightsError(f"num_classes must be an integer >= 0, got {show(classes)}")
    network = description["network"]
    # Of these sizes a network may have any; those it has must agree.
    expected = [("label_dim", (classes,))]
    if len(shape) == 3:
        expected += [("img_resolution", shape[:2]), ("in_channels", shape[2:])]
    else:
        expected += [("length", shape)]
    for field, sizes in expected:
        if any(_network_size(network, field, size) != size for size in sizes):
            raise WeightsError(
                f"image_shape {shape} and num_classes {classes} are not those of the network: "
                f"img_resolution {show(network.get('img_resolution'))}, in_channels "
                f"{show(network.get('in_channels'))}, label_dim {show(network.get('label_dim', 0))}"
            )
    check_label_names(description.get("label_names"), classes)
    data = description.get("data")
    if isinstance(data, dict) and (present := data.get("classes")) is not None:
        _check_classes(present, classes)
    if isinstance(data, dict) and (vectors := data.get("label_vectors")) is not None:
        _check_vectors(vectors, classes)


def _check_classes(present: object, num_classes: int) -> None:
    """Raise WeightsError unless this lists classes that have images, ascending."""
    if (
        not isinstance(present, list)
        or not present
        or not all(type(c) is int and 0 <= c < num_classes for c in present)
        or any(a >= b for a, b in itertools.pairwise(present))
    ):
        raise WeightsError(
            f"data: classes must ascend within 0..{num_classes - 1}, got {show(present)}"
        )


def _check_vectors(vectors: object, num_classes: int) -> None:
    """Raise WeightsError unless these are label vectors of finite numbers."""
    good = isinstance(vectors, list) and all(
        isinstance(row, list)
        and len(row) == num_classes
        and all(type(x) in (int, float) and math.isfinite(x) for x in row)
        for row in vectors
    )
    if not good or not vectors:
        raise WeightsError(
            f"data: label_vectors must be lists of {num_classes} numbers, got {show(vectors)}"
        )


def _network_size(network: Mapping[str, Any], field: str, otherwise: int) -> Any:
    """A size among the arguments of a network, or its default; ``otherwise`` if it has none."""
    known = models.NETWORKS.get(network["name"]) if isinstance(network["name"], str) else None
    fields = {} if known is None else {f.name: f.default for f in dataclasses.fields(known)}
    default = fields.get(field, dataclasses.MISSING)
    return network.get(field, otherwise if default is dataclasses.MISSING else default)


def check_label_names(names: object, num_classes: int) -> None:
    """Raise WeightsError unless this is None or one text per class."""
    if names is None:
        return
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise WeightsError(f"label_names must be null or a list of texts, got {show(names)}")
    if len(names) != num_classes:
        raise WeightsError(f"{len(names)} label_names for {num_classes} classes")


def dump_json(description: Mapping[str, Any], what: str = "the description") -> str:
    """Compact JSON text of a description, or of something else to be called ``what``.

    Raises:
      ValueError: it holds something JSON cannot, such as an infinity.
    """
    try:
        return json.dumps(description, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{what} must be plain JSON ({error}); leave infinite bounds out"
        ) from None
