"""Writing a model under the names and in the layouts of the EDM program."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from edm_jax.foreign import state_dict
from edm_jax.precond import PRECONDITIONINGS
from edm_jax.store.description import check_description, dump_json
from edm_jax.store.single_file import write_arrays
from edm_jax.typing import PyTree

STATE_DICT_FORMAT = "edm_jax state dictionary"


def check_network(net: Any, kind: str = "denoiser") -> None:
    """Raise ValueError unless the EDM program has names for a network of ours."""
    from edm_jax.models import UNet

    if kind != "denoiser" or not isinstance(net, UNet):
        raise ValueError(
            "published names are those of denoisers with SongUNet or DhariwalUNet, "
            f"got {type(net).__name__} of kind {kind!r}; export it with its own names"
        )


def write_state_dict(
    path: str | os.PathLike[str],
    description: Mapping[str, Any],
    variables: Mapping[str, PyTree],
) -> str:
    """Write one variant under the names and in the layouts of the EDM program.

    The result is a flat safetensors state dictionary that PyTorch programs can read: names
    with the prefix ``model.``, kernels OIHW, filters included, and the table ``u`` for iDDPM.
    The description travels in the metadata, so `read_model_file` needs nothing else.

    Args:
      path: the file.
      description: see `edm_jax.store.description`; ``variants`` ``["raw"]`` says that these
        are no averages.
      variables: ``{"params": tree, "buffers": tree}`` of one variant.

    Returns:
      The SHA-256 the file carries.
    """
    check_description(description)
    precond = {k: v for k, v in description["precond"].items() if k != "name"}
    arrays: dict[str, np.ndarray] = {}
    if description["precond"]["name"] == "iddpm":
        built = PRECONDITIONINGS["iddpm"](**precond)
        arrays["u"] = np.asarray(built.levels, np.float32)
    for name, array in state_dict.from_variables(variables, description["network"]).items():
        arrays[f"model.{name}"] = np.ascontiguousarray(array)
    metadata = {"format": STATE_DICT_FORMAT, "description": dump_json(description)}
    if description.get("variants") == ["raw"]:
        metadata["variant"] = "raw"
    return write_arrays(path, arrays, metadata)
