"""State dictionaries in files, wherever they lie and whatever is wrapped around them."""

from __future__ import annotations

from edm_jax.foreign.state_dict import Tensors
from edm_jax.foreign.torch_files import container_of, read_torch
from edm_jax.store.errors import WeightsError, show
from edm_jax.store.safetensors import is_safetensors, read_safetensors
from edm_jax.store.tensors import Parameter, Tensor

# State dictionaries within a dictionary: key -> variant.
_WRAPPED = {"ema": "ema", "net": "raw", "model": "raw", "state_dict": "raw"}
# What DistributedDataParallel and torch.compile put before every name.
_MODULE_PREFIXES = ("module.", "_orig_mod.")


def unknown_file(data: memoryview) -> WeightsError:
    """What to say of a file of no known kind."""
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


def state_dicts(root: object, variant: str) -> dict[str, dict[str, Tensor]]:
    """Tensors by variant; ``variant`` is the name of a dictionary that stands alone.

    Raises:
      WeightsError: there is none, or which one is meant cannot be told.
    """
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


def without_prefixes(tensors: Tensors) -> Tensors:
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
        return without_prefixes(read_safetensors(data)[1]), "safetensors"
    if container_of(data) is None:
        raise unknown_file(data)
    kind, root = read_torch(data)
    return without_prefixes(next(iter(state_dicts(root, "raw").values()))), kind
