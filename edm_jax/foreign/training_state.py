"""The optimizer in a training state of the EDM program: Adam moments on our tree."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np

from edm_jax.foreign import state_dict
from edm_jax.foreign.edm_snapshot import NetworkRecord, describe, network_record
from edm_jax.foreign.torch_files import read_torch
from edm_jax.store.binary import map_file
from edm_jax.store.description import to_json
from edm_jax.store.errors import WeightsError, show
from edm_jax.store.tensors import Tensor
from edm_jax.typing import PyTree

_MAX_STEP = 2**53


@dataclasses.dataclass(frozen=True)
class OptimizerState:
    """Adam as the EDM program trains with it.

    Attributes:
      step: number of updates made.
      mu, nu: first and second moments, in the tree and layout of ``params``.
      param_groups: settings of the groups as JSON (lr of the last update, betas, eps, ...),
        without the parameter indices.
    """

    step: int
    mu: PyTree
    nu: PyTree
    param_groups: list[dict[str, Any]]


def is_training_state(root: object) -> bool:
    """Whether an unpickled object is a training state."""
    return isinstance(root, dict) and "net" in root and "optimizer_state" in root


def read_optimizer_state(path: str | os.PathLike[str]) -> OptimizerState:
    """Read the optimizer of ``training-state-<kimg>.pt``.

    The file counts parameters in the order in which the network registered them; that
    order is found in the network saved beside.

    Args:
      path: the file.

    Raises:
      FileNotFoundError: there is no such file.
      WeightsError: it is damaged, refused, or no training state.
    """
    data = map_file(path)
    try:
        _, root = read_torch(data)
        if not is_training_state(root):
            raise WeightsError("no training state: it has no entries 'net' and 'optimizer_state'")
        record = network_record(root["net"], "'net'")
        return _optimizer_state(record, root["optimizer_state"], len(data))
    except WeightsError as error:
        raise WeightsError(f"{os.fspath(path)}: {error}") from None


def optimizer_step(optimizer: object) -> int | None:
    """The number of updates in an ``optimizer_state``; None if it holds none."""
    states = optimizer.get("state") if isinstance(optimizer, dict) else None
    first = next(iter(states.values()), None) if isinstance(states, dict) else None
    return _step(first.get("step"), "optimizer state 0") if isinstance(first, dict) else None


def _step(value: object, where: str) -> int:
    if isinstance(value, Tensor) and value.numel == 1:
        value = value.array().reshape(())[()].item()
    if not isinstance(value, int | float) or not 0 <= value <= _MAX_STEP or value != int(value):
        raise WeightsError(f"{where}: step is {show(value)}, expected a count")
    return int(value)


def _optimizer_state(record: NetworkRecord, optimizer: object, size: int) -> OptimizerState:
    if not isinstance(optimizer, dict):
        raise WeightsError(f"'optimizer_state' is {show(optimizer)}, expected a dictionary")
    states, groups = optimizer.get("state"), optimizer.get("param_groups")
    if not isinstance(states, dict) or not isinstance(groups, list):
        raise WeightsError("'optimizer_state' without 'state' and 'param_groups'")
    plain = to_json(groups)  # bounded, though a file may hold one group any number of times
    count = len(record.parameters)
    _check_indices(plain, count)
    if set(states) != set(range(count)):
        raise WeightsError(f"optimizer states of {len(states)} parameters, expected {count}")
    # Moments are tensors like the parameters, so they pass the same checks.
    parameters = set(record.parameters)
    buffers = {k: t for k, t in record.tensors.items() if k not in parameters}
    network = describe(record)["network"]
    trees, steps = [], set()
    for key in ("exp_avg", "exp_avg_sq"):
        moments: dict[str, Tensor | np.ndarray] = dict(buffers)
        for i, name in enumerate(record.parameters):
            where = f"optimizer state {i} ({name})"
            if not isinstance(states[i], dict) or not isinstance(states[i].get(key), Tensor):
                raise WeightsError(f"{where} has no tensor {key}")
            steps.add(_step(states[i].get("step"), where))
            moments[name] = states[i][key]
        trees.append(state_dict.to_variables(inner_names(moments), network, size)["params"])
    if len(steps) != 1:
        raise WeightsError(f"parameters have been updated {min(steps)} to {max(steps)} times")
    settings = [{k: v for k, v in group.items() if k != "params"} for group in plain]
    return OptimizerState(steps.pop(), *trees, settings)


def _check_indices(groups: list, count: int) -> None:
    """Raise WeightsError unless the groups list every parameter once."""
    indices: list[int] = []
    for group in groups:
        listed = group.get("params") if isinstance(group, dict) else None
        if not isinstance(listed, list) or not all(type(i) is int for i in listed):
            raise WeightsError("a parameter group without its list of parameters")
        indices += listed
    if sorted(indices) != list(range(count)):
        raise WeightsError(
            f"the optimizer's groups list {len(indices)} parameters, the network has {count}"
        )


def inner_names(tensors: dict[str, Any]) -> dict[str, Any]:
    """Names without the preconditioner's prefix ``model.``; its table ``u`` is dropped."""
    inner = {}
    for name, tensor in tensors.items():
        if name == "u":
            continue
        if not name.startswith("model."):
            raise WeightsError(f"tensor {show(name)} lies outside the network")
        inner[name.removeprefix("model.")] = tensor
    return inner
