"""Reading model files of any known kind, without PyTorch and without executing anything.

Known: snapshots and training states of the EDM program, state dictionaries in its naming
or in that of guided-diffusion (PyTorch files or safetensors), and our own single files.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from edm_jax.foreign import edm_snapshot, guided, guided_flags, infer, published
from edm_jax.foreign.state_dict import Tensors, to_variables
from edm_jax.foreign.torch_files import PersistentRecord, container_of, read_torch
from edm_jax.foreign.training_state import inner_names, is_training_state, optimizer_step
from edm_jax.store import single_file
from edm_jax.store.binary import map_file, sha256
from edm_jax.store.description import (
    FORMAT_VERSION,
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
from edm_jax.store.tensors import Parameter, Tensor, array_of

__all__ = ["ImportedModel", "WeightsError", "read_model_file"]

# What config may hold beside the flags of guided-diffusion.
_CONFIG = ("network", "precond", "label_names", "progress", "data", "licence", "variant")
_VARIANTS = ("ema", "raw")
_RAW_FILE = re.compile(r"model[0-9]{6}\.pt")  # of guided-diffusion's training program
# State dictionaries within a dictionary: key -> variant.
_WRAPPED = {"ema": "ema", "net": "raw", "model": "raw", "state_dict": "raw"}
# What DistributedDataParallel and torch.compile put before every name.
_MODULE_PREFIXES = ("module.", "_orig_mod.")


@dataclasses.dataclass
class _Found:
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
        return _finish(found, config, {"file": file, "sha256": sha256(data)}, len(data))
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


def _check_used(found: _Found, config: Mapping[str, Any], attention_order: str | None) -> None:
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


def _unknown_file(data: memoryview) -> WeightsError:
    start = bytes(data[:64])
    kinds = {
        b"version https://git-lfs": "a Git LFS pointer, not the file itself; run git lfs pull",
        b"<": "a web page, not a model; the download went wrong",
        b"\x1f\x8b": "compressed by gzip; decompress it first",
        b"\xfd7zXZ": "compressed by xz; decompress it first",
        b"\x89HDF": "an HDF5 file, which is not supported",
    }
    for sign, kind in kinds.items():
        if start.lstrip().startswith(sign):
            return WeightsError(f"this is {kind}")
    return WeightsError(
        f"neither a PyTorch file nor safetensors: it starts with {start[:16]!r}; known are .pkl, "
        ".pt, .pth and .safetensors"
    )


def _from_torch(
    data: memoryview, file: str, config: Mapping[str, Any], attention_order: str | None
) -> _Found:
    if container_of(data) is None:
        raise _unknown_file(data)
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
    variants = _state_dicts(root, config.get("variant", default))
    return _from_state_dicts(variants, kind, len(data), config, attention_order)


def _from_safetensors(
    data: memoryview,
    metadata: Mapping[str, str],
    arrays: dict[str, np.ndarray],
    config: dict[str, Any],
    attention_order: str | None,
) -> _Found:
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


def _from_records(records: Mapping[str, object], root: dict, kind: str) -> _Found:
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
    return _Found(
        **described,
        tensors={variant: inner_names(record.tensors)},
        source=source,
        data=to_json(dataset) if isinstance(dataset, dict) else {},
    )


def _flat(value: object) -> dict[str, Tensor] | None:
    """The tensors of a state dictionary; None if this is none."""
    if not isinstance(value, dict) or not value:
        return None
    tensors = {k: v.tensor if isinstance(v, Parameter) else v for k, v in value.items()}
    good = all(isinstance(k, str) and isinstance(v, Tensor) for k, v in tensors.items())
    return tensors if good else None


def _require_no_model_below(key: str, value: object) -> None:
    """Refuse what would otherwise be passed over in silence, such as an average."""
    inner = value.items() if isinstance(value, dict) else ()
    found = next((name for name, entry in inner if _flat(entry) is not None), None)
    if found is not None:
        raise WeightsError(f"{key!r} holds a model below {show(found)}; save it alone")


def _state_dicts(root: object, variant: str) -> dict[str, dict[str, Tensor]]:
    tensors = _flat(root)
    if tensors is not None:
        return {variant: tensors}
    variants = {}
    if isinstance(root, dict):
        for key, name in _WRAPPED.items():
            value = root.get(key)
            tensors = _flat(value)
            if tensors is None:
                _require_no_model_below(key, value)
            elif name in variants:
                raise WeightsError(f"two models with {name} weights, {key!r} the second; save one")
            else:
                variants[name] = tensors
    if not variants:
        keys = ", ".join(show(k) for k in list(root)[:8]) if isinstance(root, dict) else show(root)
        raise WeightsError(
            "no model in the file: expected a snapshot with 'ema', a training state with 'net', or "
            f"a dictionary of tensors, got {keys or 'an empty dictionary'}"
        )
    return variants


def _without_prefixes(tensors: Tensors) -> Tensors:
    """Names as in the network itself, not in a module wrapped around it."""
    for prefix in _MODULE_PREFIXES * 2:  # in either order
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def plain_tensors(data: memoryview) -> tuple[Tensors, str]:
    """The tensors of a file that holds one plain state dictionary, and the kind of the file.

    Raises:
      WeightsError: it is damaged, of an unknown kind, or holds something else.
    """
    if is_safetensors(data):
        return _without_prefixes(read_safetensors(data)[1]), "safetensors"
    if container_of(data) is None:
        raise _unknown_file(data)
    kind, root = read_torch(data)
    return _without_prefixes(next(iter(_state_dicts(root, "raw").values()))), kind


def _from_state_dicts(
    variants: Mapping[str, Tensors],
    kind: str,
    size: int,
    config: Mapping[str, Any],
    attention_order: str | None,
) -> _Found:
    variants = {name: _without_prefixes(tensors) for name, tensors in variants.items()}
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
    return _Found(network, precond, tensors, source, u, assumed=assumed)


def _from_guided(
    variants: Mapping[str, Tensors],
    kind: str,
    size: int,
    config: Mapping[str, Any],
    attention_order: str | None,
) -> _Found:
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
    return _Found(network, flags.precond(), converted, source, guided=True, assumed=assumed)


# ---------------------------------------------------------------- the result


def _progress(file: str, step: int | None) -> dict[str, int | None] | None:
    """Training progress as the programs put it into file names."""
    if match := re.fullmatch(r"(?:network-snapshot|training-state)-([0-9]{1,9})\.(?:pkl|pt)", file):
        kimg = int(match[1])
        return {"nimg": kimg * 1000, "kimg": kimg, "step": step}
    if match := re.fullmatch(r"(?:model|ema_[0-9.]{1,12}_)([0-9]{6})\.pt", file):
        step = int(match[1])
    return None if step is None else {"nimg": None, "kimg": None, "step": step}


def _merged_precond(found: _Found, config: Mapping[str, Any]) -> dict[str, Any]:
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


def _finish(
    found: _Found, config: Mapping[str, Any], origin: dict[str, Any], size: int
) -> ImportedModel:
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
