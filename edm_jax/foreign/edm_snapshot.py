"""Networks of the EDM program's snapshots and training states: records -> configuration, tensors.

The published pickles describe themselves by their constructor arguments.  From these and
from the numeric attributes of the outermost object follow preconditioning and network;
walking parameters, buffers and children gives the state dictionary.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from edm_jax import schedules
from edm_jax.foreign.allowed import SetRecord
from edm_jax.foreign.torch_files import ModuleDictRecord, PersistentRecord
from edm_jax.store.description import MAX_LEVELS, check_levels, is_number, to_json
from edm_jax.store.errors import WeightsError, show
from edm_jax.store.tensors import Parameter, Tensor, array_of, shape_of

_MAX_DEPTH = 8  # a published network nests four deep
_MAX_ENTRIES = 1 << 17  # of all modules together; a module may be met several times
_MAX_NAME = 512  # characters of a full name; one long part may be met many times
# In half precision the digits are gone in which tables differ that are meant to be equal: twice
# the spacing of the type.
_TABLE_TOLERANCES = {"float16": 2**-9, "bfloat16": 2**-6, "float32": 0.0, "float64": 0.0}

# Arguments of the published networks that a file may leave out, with their defaults.
_COMMON_DEFAULTS = {
    "label_dim": 0,
    "augment_dim": 0,
    "channel_mult_emb": 4,
    "dropout": 0.10,
    "label_dropout": 0,
}
NETWORK_DEFAULTS: dict[str, dict[str, Any]] = {
    "SongUNet": _COMMON_DEFAULTS
    | {
        "model_channels": 128,
        "channel_mult": [1, 2, 2, 2],
        "num_blocks": 4,
        "attn_resolutions": [16],
        "embedding_type": "positional",
        "channel_mult_noise": 1,
        "encoder_type": "standard",
        "decoder_type": "standard",
        "resample_filter": [1, 1],
    },
    "DhariwalUNet": _COMMON_DEFAULTS
    | {
        "model_channels": 192,
        "channel_mult": [1, 2, 3, 4],
        "num_blocks": 3,
        "attn_resolutions": [32, 16, 8],
    },
}


@dataclasses.dataclass(frozen=True)
class _Wrapper:
    """A preconditioner class: our name, default network, and its own arguments.

    ``arguments`` maps a published name to ours and to the default.
    """

    name: str
    network: str
    arguments: dict[str, tuple[str, float]]


WRAPPERS = {
    "EDMPrecond": _Wrapper(
        "edm",
        "DhariwalUNet",
        {
            "sigma_min": ("sigma_min", 0.0),
            "sigma_max": ("sigma_max", math.inf),
            "sigma_data": ("sigma_data", 0.5),
        },
    ),
    "VPPrecond": _Wrapper(
        "vp",
        "SongUNet",
        {
            "beta_d": ("beta_d", 19.9),
            "beta_min": ("beta_min", 0.1),
            "M": ("num_levels", 1000),
            "epsilon_t": ("eps_t", 1e-5),
        },
    ),
    "VEPrecond": _Wrapper(
        "ve", "SongUNet", {"sigma_min": ("sigma_min", 0.02), "sigma_max": ("sigma_max", 100.0)}
    ),
    "iDDPMPrecond": _Wrapper(
        "iddpm",
        "DhariwalUNet",
        {"C_1": ("c_1", 0.001), "C_2": ("c_2", 0.008), "M": ("num_levels", 1000)},
    ),
}
# Positional arguments every wrapper starts with.
_POSITIONAL = ("img_resolution", "img_channels", "label_dim", "use_fp16")


@dataclasses.dataclass(frozen=True)
class NetworkRecord:
    """A preconditioned network as a file describes it.

    Attributes:
      class_name: of the preconditioner.
      arguments: its recorded constructor arguments, as JSON.
      attributes: its numeric attributes.
      network_class: class of the network inside.
      tensors: state dictionary with published names, in the order of the file.
      parameters: names of the trainable ones, in the order the optimizer counts them.
    """

    class_name: str
    arguments: dict[str, Any]
    attributes: dict[str, float]
    network_class: str
    tensors: dict[str, Tensor]
    parameters: tuple[str, ...]


def _children(state: dict, key: str, where: str) -> dict:
    value = state.get(key, {})
    if not isinstance(value, dict):
        raise WeightsError(f"{where}{key} is {show(value)}, expected a dictionary")
    if not all(isinstance(k, str) for k in value):
        raise WeightsError(f"{where}{key} has a key that is no text")
    return value


def walk(root: PersistentRecord) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """State dictionary of a module and the names of its parameters.

    Order: own parameters, own buffers, then the children, each in the order of the file.
    """
    tensors: dict[str, Tensor] = {}
    parameters: list[str] = []
    entries = 0

    def add(name: str, value: object, *, trainable: bool) -> None:
        tensor = value.tensor if isinstance(value, Parameter) else value
        if not isinstance(tensor, Tensor):
            raise WeightsError(f"{show(name)} is {show(value)}, expected a tensor")
        if name in tensors:
            raise WeightsError(f"tensor {show(name)} appears twice")
        tensors[name] = tensor
        if trainable:
            parameters.append(name)

    def visit(module: object, prefix: str, depth: int) -> None:
        nonlocal entries
        if not isinstance(module, PersistentRecord | ModuleDictRecord):
            raise WeightsError(f"module {show(prefix)} is {show(module)}, expected a module")
        state = module.state or {}
        hidden = state.get("_non_persistent_buffers_set", SetRecord())
        if not isinstance(hidden, SetRecord):
            raise WeightsError(f"{show(prefix)}: a set of names is {show(hidden)}")
        own, buffers, children = (
            _children(state, key, prefix) for key in ("_parameters", "_buffers", "_modules")
        )
        entries += 1 + len(own) + len(buffers) * (1 + len(hidden)) + len(children)
        # A module may contain itself, or another one many times.
        if depth > _MAX_DEPTH or entries > _MAX_ENTRIES:
            raise WeightsError(f"modules nest too deeply or too widely at {show(prefix)}")
        for name in (*own, *buffers, *children):
            if len(prefix) + len(name) > _MAX_NAME:
                raise WeightsError(f"the name {show(prefix + name)} is longer than {_MAX_NAME}")
        for name, value in own.items():
            if value is not None:
                add(prefix + name, value, trainable=True)
        for name, value in buffers.items():
            if value is not None and name not in hidden:
                add(prefix + name, value, trainable=False)
        for name, value in children.items():
            if value is not None:
                visit(value, f"{prefix}{name}.", depth + 1)

    visit(root, "", 0)
    return tensors, tuple(parameters)


def recorded_arguments(record: PersistentRecord) -> dict[str, Any]:
    """Constructor arguments of an object as JSON."""
    positional = record.state.get("_init_args", ())
    keywords = record.state.get("_init_kwargs", {})
    if not isinstance(positional, tuple) or not isinstance(keywords, dict):
        raise WeightsError(f"{show(record.class_name)} without its constructor arguments")
    if len(positional) > len(_POSITIONAL):
        raise WeightsError(
            f"{show(record.class_name)} with {len(positional)} positional arguments, expected "
            f"at most {len(_POSITIONAL)}"
        )
    arguments = dict(zip(_POSITIONAL, positional, strict=False))
    for key in keywords:
        if key in arguments:
            raise WeightsError(f"{show(record.class_name)}: argument {show(key)} given twice")
    return to_json(arguments | keywords)


def numeric_attributes(record: PersistentRecord) -> dict[str, Any]:
    """Public numeric attributes of an object (the flags of the framework left out)."""
    return {
        k: v
        for k, v in record.state.items()
        if isinstance(k, str) and k != "training" and k[:1] != "_" and isinstance(v, int | float)
    }


def network_record(value: object, where: str) -> NetworkRecord:
    """Check and open a pickled preconditioner."""
    if not isinstance(value, PersistentRecord):
        raise WeightsError(f"{where} is {show(value)}, expected a network")
    if value.class_name not in WRAPPERS:
        known = ", ".join(WRAPPERS)
        raise WeightsError(f"{where} is of class {show(value.class_name)}; known: {known}")
    inner = _children(value.state, "_modules", f"{where}: ").get("model")
    if not isinstance(inner, PersistentRecord):
        raise WeightsError(f"{where} has {show(inner)} for a model, expected a network")
    tensors, parameters = walk(value)
    return NetworkRecord(
        value.class_name,
        recorded_arguments(value),
        numeric_attributes(value),
        inner.class_name,
        tensors,
        parameters,
    )


def _integer(arguments: dict, key: str, default: int | None = None) -> int:
    value = arguments.get(key, default)
    if type(value) is not int or value < 0:
        raise WeightsError(f"constructor argument {key} is {show(value)}, expected an integer")
    return value


def describe(record: NetworkRecord) -> dict[str, Any]:
    """``network`` and ``precond`` of the description that a record stands for."""
    wrapper = WRAPPERS[record.class_name]
    arguments = dict(record.arguments)
    channels = _integer(arguments, "img_channels")
    name = arguments.pop("model_type", wrapper.network)
    if not isinstance(name, str) or name not in NETWORK_DEFAULTS:
        known = ", ".join(NETWORK_DEFAULTS)
        raise WeightsError(f"model_type {show(name)} is unknown; known: {known}")
    if record.network_class != name:
        raise WeightsError(f"model_type {name}, but the network is {show(record.network_class)}")
    precond = {"name": wrapper.name}
    for theirs, (ours, default) in wrapper.arguments.items():
        # The attribute is what the program computes with.
        argument = arguments.pop(theirs, default)
        value = record.attributes.get(theirs, float(argument) if argument == "inf" else argument)
        if not is_number(value):
            raise WeightsError(f"{record.class_name}: {theirs} is {show(value)}")
        if ours == "num_levels":
            precond[ours] = value
        elif value != default or default not in (0, math.inf):  # these say "no bound"
            precond[ours] = _finite(float(value), f"{record.class_name}: {theirs}")
    network = {
        "name": name,
        "img_resolution": _integer(arguments, "img_resolution"),
        "in_channels": channels,
        "out_channels": channels * (2 if wrapper.name == "iddpm" else 1),
    }
    for key in ("img_resolution", "img_channels", "use_fp16"):
        arguments.pop(key, None)
    unknown = sorted(set(arguments) - set(NETWORK_DEFAULTS[name]))
    if unknown:
        raise WeightsError(f"{name} has no argument {show(unknown[0])}")
    network |= NETWORK_DEFAULTS[name] | arguments
    if wrapper.name == "iddpm":
        add_levels(precond, record.tensors.get("u"))
    return {"network": network, "precond": precond}


def _finite(value: float, what: str) -> float:
    if not math.isfinite(value):
        raise WeightsError(f"{what} is {value}, expected a finite number")
    return value


def add_levels(precond: dict[str, Any], u: Tensor | np.ndarray | None) -> None:
    """Put the table ``u`` of a file into the preconditioning if it is not the one we compute.

    Both are float32 recursions, and the published one differs in the last digits with the
    library that evaluated the sine; the network was sampled with its own.
    """
    if u is None:
        raise WeightsError("tensor 'u' of the iDDPM preconditioner is missing")
    expected = precond.get("num_levels", schedules.IDDPM_NUM_LEVELS)
    shape = shape_of(u)
    if type(expected) is not int or expected > MAX_LEVELS or shape != (expected + 1,):
        raise WeightsError(
            f"tensor 'u' has shape {show(shape)}, expected ({show(expected)} + 1,); a state "
            "dictionary of another number M of levels needs config={'precond': {'num_levels': M}}"
        )
    array = array_of(u)
    if array.dtype.name not in _TABLE_TOLERANCES:
        raise WeightsError(f"tensor 'u' is of {array.dtype}, expected float32")
    constants = {k: precond[k] for k in ("c_1", "c_2") if k in precond}
    with np.errstate(all="ignore"):  # nonsense constants
        ours = schedules.iddpm_levels(expected, **constants, dtype=np.float32)
    tolerance = _TABLE_TOLERANCES[array.dtype.name]
    if not np.allclose(array.astype(np.float64), ours, rtol=tolerance, atol=0):
        levels = array.tolist()
        check_levels(levels)
        precond["levels"] = levels


def object_summary(value: object) -> dict[str, Any] | None:
    """Class, arguments and attributes of a loss or augmentation object; None without one."""
    if not isinstance(value, PersistentRecord):
        return None
    return {
        "class_name": value.class_name,
        "kwargs": recorded_arguments(value),
        "attributes": to_json(numeric_attributes(value)),
    }
