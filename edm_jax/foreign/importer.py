"""Reading model files of any known kind, without PyTorch and without executing anything.

Known: snapshots and training states of the EDM program, state dictionaries in its naming
or in that of guided-diffusion (PyTorch files or safetensors), and our own single files.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from edm_jax.foreign import edm_snapshot, guided, guided_flags, infer, published
from edm_jax.foreign.dictionaries import state_dicts, unknown_file, without_prefixes
from edm_jax.foreign.found import Found, finish
from edm_jax.foreign.state_dict import Tensors, inner_names
from edm_jax.foreign.torch_files import PersistentRecord, container_of, read_torch
from edm_jax.foreign.training_state import is_training_state, optimizer_step
from edm_jax.store import single_file
from edm_jax.store.binary import map_file, sha256
from edm_jax.store.description import (
    LICENCE_EDM,
    LICENCE_GUIDED,
    LICENCE_UNKNOWN,
    ImportedModel,
    check_description,
    dump_json,
    to_json,
)
from edm_jax.store.errors import WeightsError, show
from edm_jax.store.safetensors import is_safetensors, parse_json, read_safetensors

__all__ = ["ImportedModel", "WeightsError", "read_model_file"]

# What config may hold beside the flags of guided-diffusion.
_CONFIG = ("network", "precond", "label_names", "progress", "data", "licence", "variant")
_VARIANTS = ("ema", "raw")
_RAW_FILE = re.compile(r"model[0-9]{6}\.pt")  # of guided-diffusion's training program


def read_model_file(
    path: str | os.PathLike[str],
    *,
    attention_order: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> ImportedModel:
    """Read a model from a file of any known kind.

    Args:
      path: ``.pkl``, ``.pt``, ``.pth`` or ``.safetensors``; the content decides.
      attention_order: ``"new"`` or ``"legacy"``, for guided-diffusion weights with more
        than one attention head (its flag use_new_attention_order).  Known only for the
        released 64x64 model, which is "new".
      config: what the file does not say.  Parts of a description (``network``,
        ``precond``, ``label_names``, ``progress``, ``data``), a ``licence``, the
        ``variant`` of a plain state dictionary (a file does not say; "ema" unless given),
        and for guided-diffusion weights its flags, such as ``image_size``.  What is None
        counts as not given.

    Returns:
      Description and float32 variables, and what was assumed because nobody said it.
      float16 and bfloat16 are widened, float64 is narrowed where that is exact.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: ``attention_order`` or ``config`` is unusable.
      WeightsError: the file is damaged, of an unknown kind, does not fit its configuration,
        asks for something refused, or does not say enough (what is missing is named).
    """
    config = _without_null(json.loads(dump_json(config or {}, "config")))  # a copy, and plain
    _check_config(config, attention_order)
    data = map_file(path)
    file = os.path.basename(os.fspath(path))
    try:
        if is_safetensors(data):
            metadata, arrays = read_safetensors(data)
            if single_file.is_single_file(metadata):
                return _own_file(data, metadata, arrays, config, attention_order)
            found = _from_safetensors(data, metadata, arrays, config, attention_order)
        else:
            found = _from_torch(data, file, config, attention_order)
        _check_used(found, config, attention_order)
        return finish(found, config, {"file": file, "sha256": sha256(data)}, len(data))
    except WeightsError as error:
        if _holds_images(path):
            raise WeightsError(
                f"{os.fspath(path)}: an archive of images, which is data and not weights; train on "
                "it with --config.data.path"
            ) from None
        raise type(error)(f"{os.fspath(path)}: {error}") from None


def _holds_images(path: str | os.PathLike[str]) -> bool:
    """Whether this is a zip archive of a data set."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.lower() for name in archive.namelist()]
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False
    endings = ("dataset.json", ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
    return any(name.endswith(endings) for name in names)


def _without_null(config: Mapping[str, Any]) -> dict[str, Any]:
    """Entries, and entries of parts, that say something."""
    parts = {k: _without_null(v) if isinstance(v, dict) else v for k, v in config.items()}
    return {key: value for key, value in parts.items() if value is not None and value != {}}


def _check_config(config: Mapping[str, Any], attention_order: str | None) -> None:
    for key in config:
        if key not in _CONFIG and key not in guided_flags.FLAGS:
            known = ", ".join((*_CONFIG, *sorted(guided_flags.FLAGS)))
            raise ValueError(f"config has no entry {show(key)}; known: {known}")
    for key in ("network", "precond", "data"):
        if not isinstance(config.get(key, {}), dict):
            raise ValueError(f"config[{key!r}] must be a dictionary, got {show(config[key])}")
    licence = config.get("licence", LICENCE_UNKNOWN)
    if not isinstance(licence, str) or not licence.strip():
        raise ValueError(f"config['licence'] must be a text, got {show(licence)}")
    if config.get("variant", "ema") not in _VARIANTS:
        raise ValueError(f"config['variant'] must be 'ema' or 'raw', got {show(config['variant'])}")
    if attention_order not in (None, *guided.ATTENTION_ORDERS):
        raise ValueError(f"attention_order must be 'new' or 'legacy', got {show(attention_order)}")


def _check_used(found: Found, config: Mapping[str, Any], attention_order: str | None) -> None:
    if not found.guided:
        for key in config:
            if key not in _CONFIG:
                raise ValueError(f"config[{key!r}] is for guided-diffusion weights, these are not")
        if attention_order is not None:
            raise ValueError("attention_order is for guided-diffusion weights, these are not")


def _own_file(
    data: memoryview,
    metadata: Mapping[str, str],
    arrays: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    attention_order: str | None,
) -> ImportedModel:
    if config or attention_order:
        raise ValueError("config and attention_order are for foreign files; this one is complete")
    return single_file.parse_single_file(data, metadata, arrays)


# ---------------------------------------------------------------- kinds of files


def _from_torch(
    data: memoryview, file: str, config: Mapping[str, Any], attention_order: str | None
) -> Found:
    if container_of(data) is None:
        raise unknown_file(data)
    kind, root = read_torch(data)
    if isinstance(root, PersistentRecord):
        root = {"ema": root}  # a network saved alone
    if is_training_state(root) and isinstance(root["net"], PersistentRecord):
        found = _from_records({"raw": root["net"]}, root, f"EDM training state ({kind})")
        found.step = optimizer_step(root["optimizer_state"])
        return found
    if isinstance(root, dict) and isinstance(root.get("ema"), PersistentRecord):
        return _from_records({"ema": root["ema"]}, root, f"EDM snapshot ({kind})")
    default = "raw" if _RAW_FILE.fullmatch(file) else "ema"
    variants = state_dicts(root, config.get("variant", default))
    return _from_state_dicts(variants, kind, len(data), config, attention_order)


def _from_safetensors(
    data: memoryview,
    metadata: Mapping[str, str],
    arrays: dict[str, np.ndarray],
    config: dict[str, Any],
    attention_order: str | None,
) -> Found:
    complete = False
    if metadata.get("format") == published.STATE_DICT_FORMAT:
        description = parse_json(metadata.get("description", ""))
        check_description(description)
        single_file.check_digest(data, metadata)
        complete = "precond" not in config  # says the noise levels too, exactly
        for key in ("network", "precond", "label_names", "progress", "data"):
            if description.get(key) is not None:
                config.setdefault(key, description[key])
        source = description.get("source")
        if isinstance(source, dict) and isinstance(source.get("licence"), str):
            config.setdefault("licence", source["licence"])
    default = "raw" if metadata.get("variant") == "raw" else "ema"
    variants = {config.get("variant", default): arrays}
    found = _from_state_dicts(variants, "safetensors", len(data), config, attention_order)
    if complete:
        found.u = None
    if found.source["licence"] == LICENCE_EDM:
        found.source["licence"] = LICENCE_UNKNOWN
    return found


# ---------------------------------------------------------------- records and state dictionaries


def _from_records(records: Mapping[str, object], root: dict, kind: str) -> Found:
    variant, value = next(iter(records.items()))
    record = edm_snapshot.network_record(value, "'ema'" if variant == "ema" else "'net'")
    described = edm_snapshot.describe(record)
    source = {
        "format": kind,
        "class_name": record.class_name,
        "licence": LICENCE_EDM,
        "arguments": record.arguments,
        "attributes": to_json(record.attributes),
        "loss": edm_snapshot.object_summary(root.get("loss_fn")),
        "augment": edm_snapshot.object_summary(root.get("augment_pipe")),
    }
    dataset = root.get("dataset_kwargs")
    return Found(
        **described,
        tensors={variant: inner_names(record.tensors)},
        source=source,
        data=to_json(dataset) if isinstance(dataset, dict) else {},
    )


def _from_state_dicts(
    variants: Mapping[str, Tensors],
    kind: str,
    size: int,
    config: Mapping[str, Any],
    attention_order: str | None,
) -> Found:
    variants = {name: without_prefixes(tensors) for name, tensors in variants.items()}
    first = next(iter(variants.values()))
    if guided.is_guided(first):
        return _from_guided(variants, kind, size, config, attention_order)
    tensors, u = {}, None
    for variant, given in variants.items():
        bare = {k: v for k, v in given.items() if k != "u"}
        if all(k.startswith("model.") for k in bare):
            bare = inner_names(bare)
        tensors[variant], u = bare, given.get("u", u)
    network, names = infer.infer_network(next(iter(tensors.values())))
    doubled = network["out_channels"] == 2 * network["in_channels"]
    name = "iddpm" if u is not None or doubled else "edm"
    source = {
        "format": f"state dictionary ({kind})",
        "class_name": network["name"],
        "licence": LICENCE_EDM,
    }
    precond: dict[str, Any] = {"name": name}
    if name == "edm":
        precond["sigma_data"] = 0.5
    assumed: dict[str, Any] = {"network": {key: network[key] for key in names}}
    if u is None:
        assumed["precond"] = precond
    return Found(network, precond, tensors, source, u, assumed=assumed)


def _from_guided(
    variants: Mapping[str, Tensors],
    kind: str,
    size: int,
    config: Mapping[str, Any],
    attention_order: str | None,
) -> Found:
    flags = guided_flags.read_flags(config, attention_order)
    converted, network, order, assumed = {}, {}, "", {}
    for variant, tensors in variants.items():
        guided.check_supported(tensors, flags.narrow_norms)
        structure = guided.read_structure(tensors)
        guided_flags.check_flags(config, structure)
        wanted = flags.image_size or config.get("network", {}).get("img_resolution")
        resolution = guided.image_size(structure, wanted, flags.attention_resolutions)
        order = guided.attention_order(structure, flags.attention_order)
        assumed = guided_flags.assumptions(config, attention_order, structure, resolution)
        converted[variant] = guided.convert(tensors, structure, resolution, order, size)
        channels = converted[variant][f"enc.{resolution}x{resolution}_conv.weight"].shape[1]
        network = guided.network_arguments(structure, resolution, channels)
    if flags.dropout is not None:
        network["dropout"] = flags.dropout
    source = {
        "format": f"guided-diffusion state dictionary ({kind})",
        "class_name": "UNetModel",
        "licence": LICENCE_GUIDED,
        "attention_order": order,
    }
    return Found(network, flags.precond(), converted, source, guided=True, assumed=assumed)
