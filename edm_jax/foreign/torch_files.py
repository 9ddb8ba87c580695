"""The three containers of PyTorch files: plain pickle, zip archive, legacy stream.

* A plain pickle holds each storage as a byte string that is itself a legacy stream.
* A zip archive (torch.save since 1.6) has ``data.pkl`` and one entry per storage.
* A legacy stream is five pickles, the fourth being the object, then the storages.

All are read by the allow-list machine of `unpickle`; what comes out is made of dicts,
lists, numbers, texts and the records of this package.
"""

from __future__ import annotations

import dataclasses
import functools
import struct

from edm_jax.foreign.allowed import (
    Allowed,
    Budget,
    LongText,
    OrderedDictRecord,
    SetRecord,
    encode_latin1,
)
from edm_jax.foreign.unpickle import Unpickler
from edm_jax.foreign.zip_entries import read_entries
from edm_jax.store.errors import WeightsError, show
from edm_jax.store.tensors import (
    STORAGE_NAMES,
    Storage,
    persistent_storage,
    rebuild_parameter,
    rebuild_parameter_with_state,
    rebuild_tensor,
)

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_START = b"\x80\x02\x8a\x0a" + _LEGACY_MAGIC.to_bytes(10, "little")
_LEGACY_VERSION = 1001
_PERSISTENCE_VERSION = 6
_MAX_ZIP_VERSION = 10  # the largest PyTorch's own reader accepts

_SCALARS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "b1": "?"}


@dataclasses.dataclass(eq=False)
class ModuleDictRecord:
    """A torch.nn.ModuleDict: its attribute dictionary."""

    state: dict | None = None

    def shown(self) -> str:
        return "a ModuleDict"


@dataclasses.dataclass(frozen=True, eq=False)
class PersistentRecord:
    """An object of a self-describing class: its class name and attributes.

    The source text that travels with it is dropped unread.
    """

    class_name: str
    state: dict

    def shown(self) -> str:
        return f"an object of class {show(self.class_name)}"


@dataclasses.dataclass(eq=False)
class DtypeRecord:
    """A numpy.dtype of one number."""

    code: str

    def shown(self) -> str:
        return f"numpy.dtype {show(self.code)}"


def _ordered_dict(arguments: tuple) -> OrderedDictRecord:
    if arguments:
        raise WeightsError("collections.OrderedDict with arguments is refused")
    return OrderedDictRecord()


def _set(budget: Budget, arguments: tuple) -> SetRecord:
    if len(arguments) > 1 or (arguments and type(arguments[0]) is not list):
        raise WeightsError(f"a set of {show(arguments)}, expected a list")
    budget.copy("sets", sum(map(len, arguments)))
    return SetRecord(*arguments)


def _encode(budget: Budget, arguments: tuple) -> memoryview:
    if len(arguments) != 2 or arguments[1] not in ("latin1", "latin-1"):
        raise WeightsError(f"_codecs.encode of {show(arguments)}, expected a text and 'latin1'")
    if isinstance(arguments[0], str | LongText):
        budget.copy("_codecs.encode", len(arguments[0]))
    return memoryview(encode_latin1(arguments[0]))


def _dtype(arguments: tuple) -> DtypeRecord:
    code = arguments[0] if arguments else None
    if type(code) is not str or code not in _SCALARS:
        raise WeightsError(f"numpy.dtype {show(code)}, expected one of {sorted(_SCALARS)}")
    return DtypeRecord(code)


def _scalar(arguments: tuple) -> float | int | bool:
    if len(arguments) != 2 or not isinstance(arguments[0], DtypeRecord):
        raise WeightsError(f"a NumPy scalar of {show(arguments)}")
    layout = struct.Struct("<" + _SCALARS[arguments[0].code])
    if not isinstance(arguments[1], memoryview) or len(arguments[1]) != layout.size:
        raise WeightsError(f"a NumPy scalar of {layout.size} bytes from {show(arguments[1])}")
    return layout.unpack(arguments[1])[0]


def _persistent_object(arguments: tuple) -> PersistentRecord:
    meta = arguments[0] if len(arguments) == 1 else None
    if type(meta) not in (dict, OrderedDictRecord):
        raise WeightsError(f"a self-describing object of {show(arguments)}")
    if meta.get("type") != "class" or meta.get("version") != _PERSISTENCE_VERSION:
        found = f"type {show(meta.get('type'))}, version {show(meta.get('version'))}"
        raise WeightsError(
            f"a self-describing object of {found}; expected 'class', {_PERSISTENCE_VERSION}"
        )
    if type(meta.get("class_name")) is not str or type(meta.get("state")) not in (
        dict,
        OrderedDictRecord,
    ):
        raise WeightsError(f"a self-describing object without class name or state ({show(meta)})")
    if not isinstance(meta.get("module_src"), str | LongText):
        raise WeightsError("a self-describing object without source text")
    return PersistentRecord(meta["class_name"], meta["state"])


def _build(target: object, state: object) -> None:
    """The only states the formats write into finished objects."""
    if isinstance(target, ModuleDictRecord) and target.state is None and isinstance(state, dict):
        target.state = state
    elif isinstance(target, DtypeRecord):
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", "|"):
            raise WeightsError(f"numpy.dtype with state {show(state)}; expected little-endian")
    elif (
        isinstance(target, OrderedDictRecord)
        and type(state) is dict
        and set(state) <= {"_metadata"}
    ):
        pass  # version numbers of the modules a state dictionary came from
    else:
        raise WeightsError(f"BUILD of {show(target)} with {show(state)} is refused")


_CALLS = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): rebuild_parameter_with_state,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent_object,
    ("numpy", "dtype"): _dtype,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy.core.multiarray", "scalar"): _scalar,  # before NumPy 2
}
# These copy their argument, within the budget of the file.
_COPYING_CALLS = {
    ("__builtin__", "set"): _set,  # protocol 2
    ("builtins", "set"): _set,  # protocol 3
    ("_codecs", "encode"): _encode,  # bytes in protocol 2
}
_CLASSES = {
    ("torch.nn.modules.container", "ModuleDict"): ModuleDictRecord,
    ("dnnlib.util", "EasyDict"): dict,
}


def _allowed(budget: Budget) -> Allowed:
    """What the object of a file may be made of."""
    copying = {name: functools.partial(f, budget) for name, f in _COPYING_CALLS.items()}
    return Allowed(calls=_CALLS | copying, classes=_CLASSES, build=_build)


def _load_from_bytes(budget: Budget, arguments: tuple) -> Storage:
    """torch.storage._load_from_bytes: a legacy stream of one storage in a byte string."""
    if len(arguments) != 1 or not isinstance(arguments[0], memoryview):
        raise WeightsError(f"_load_from_bytes of {show(arguments)}, expected bytes")
    budget.copy("_load_from_bytes", len(arguments[0]))
    # No calls are allowed in there, so streams cannot nest further.
    storage = _legacy(arguments[0], Allowed(tokens=STORAGE_NAMES), budget, "nested stream")
    if not isinstance(storage, Storage):
        raise WeightsError(f"a nested stream of {show(storage)}, expected a storage")
    return storage


class _Storages:
    """The storages of one file by key; the same key always gives the same storage."""

    def __init__(self) -> None:
        self.by_key: dict[str, Storage] = {}

    def __call__(self, identifier: object) -> Storage:
        new = persistent_storage(identifier)
        old = self.by_key.setdefault(new.key, new)
        if (old.type_name, old.numel) != (new.type_name, new.numel):
            raise WeightsError(
                f"storage {show(new.key)} is {new.numel} numbers of {new.type_name}, "
                f"and before {old.numel} of {old.type_name}"
            )
        return old


def _with_storages(base: Allowed, storages: _Storages) -> Allowed:
    return dataclasses.replace(base, tokens=base.tokens | STORAGE_NAMES, persistent_id=storages)


def read_plain(data: memoryview) -> object:
    """The object of a plain pickle whose tensors carry nested legacy streams."""
    budget = Budget(len(data))
    base = _allowed(budget)
    nested = {("torch.storage", "_load_from_bytes"): functools.partial(_load_from_bytes, budget)}
    reader = Unpickler(data, dataclasses.replace(base, calls=base.calls | nested), budget)
    root = reader.load()
    if reader.position != len(data):
        raise WeightsError(f"{len(data) - reader.position} bytes follow the end of the pickle")
    return root


def read_legacy(data: memoryview) -> object:
    """The object of a legacy stream, its storages bound to their bytes."""
    budget = Budget(len(data))
    return _legacy(data, _allowed(budget), budget, "legacy stream")


def _legacy(data: memoryview, allowed: Allowed, budget: Budget, what: str) -> object:
    position, storages = 0, _Storages()

    def section(name: str, names: Allowed) -> object:
        nonlocal position
        reader = Unpickler(data, names, budget, start=position, what=f"{what}, {name}")
        value = reader.load()
        position = reader.position
        return value

    magic, version = section("magic", Allowed()), section("version", Allowed())
    system = section("system", Allowed())
    if type(magic) is not int or magic != _LEGACY_MAGIC:
        raise WeightsError(f"{what}: magic number {show(magic)} is not PyTorch's")
    if type(version) is not int or version != _LEGACY_VERSION:
        raise WeightsError(f"{what}: version {show(version)}, expected {_LEGACY_VERSION}")
    if type(system) is not dict or system.get("little_endian") is not True:
        raise WeightsError(f"{what}: not written on a little-endian machine")
    root = section("object", _with_storages(allowed, storages))
    keys = section("keys", Allowed())
    if type(keys) is not list or not all(type(k) is str for k in keys):
        raise WeightsError(f"{what}: the storage keys are {show(keys)}, expected a list of texts")
    if len(set(keys)) != len(keys) or set(keys) != set(storages.by_key):
        raise WeightsError(
            f"{what}: {len(keys)} storage keys listed, {len(storages.by_key)} others used"
        )
    for key in keys:
        storage = storages.by_key[key]
        left = len(data) - position - 8
        if left < storage.nbytes:
            raise WeightsError(
                f"{what}: storage {show(key)} needs {storage.nbytes} bytes, {max(left, 0)} left"
            )
        numel = int.from_bytes(data[position : position + 8], "little")
        if numel != storage.numel:
            raise WeightsError(
                f"{what}: storage {show(key)} has {numel} numbers, announced {storage.numel}"
            )
        position += 8 + storage.nbytes
        storage.bind(data[position - storage.nbytes : position])
    if position != len(data):
        raise WeightsError(f"{what}: {len(data) - position} bytes follow the last storage")
    return root


def read_zip(data: memoryview) -> object:
    """The object of a zip archive, its storages bound to their entries."""
    entries = read_entries(data)
    code = [n for n in entries if n.startswith("code/") or n == "constants.pkl"]
    if code:
        raise WeightsError(f"a TorchScript archive: entry {show(code[0])} holds a program; refused")
    if "data.pkl" not in entries:
        raise WeightsError(f"a zip archive without data.pkl ({show(next(iter(entries), ''))}, ...)")
    order = bytes(entries.get("byteorder", b"little")[:8])
    if order != b"little":
        raise WeightsError(f"byte order {order!r}, expected little")
    version = bytes(entries.get("version", b"3\n")[:8]).strip()
    if not version.isdigit() or int(version) > _MAX_ZIP_VERSION:
        raise WeightsError(f"archive version {version!r}, known up to {_MAX_ZIP_VERSION}")
    storages, budget = _Storages(), Budget(len(data))
    allowed = _with_storages(_allowed(budget), storages)
    reader = Unpickler(entries["data.pkl"], allowed, budget, what="data.pkl")
    root = reader.load()
    if reader.position != len(entries["data.pkl"]):
        raise WeightsError("data.pkl: bytes follow the end of the pickle")
    for key, storage in storages.by_key.items():
        if f"data/{key}" not in entries:
            raise WeightsError(f"storage {show(key)} has no entry data/{show(key)[1:-1]}")
        storage.bind(entries[f"data/{key}"])
    return root


def container_of(data: memoryview) -> str | None:
    """``zip``, ``legacy``, ``pickle``, or None for a file of another kind."""
    start = bytes(data[:14])
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip"
    if start == _LEGACY_START:
        return "legacy"
    if start[:1] == b"\x80" and start[1:2] and 2 <= start[1] <= 5:
        return "pickle"
    return None


def read_torch(data: memoryview) -> tuple[str, object]:
    """Read any of the three containers.

    Returns:
      The kind of container and the object, made of plain data and records.

    Raises:
      WeightsError: the file is none of them, damaged, or asks for anything refused.
    """
    kind = container_of(data)
    if kind is None:
        raise WeightsError(f"not a PyTorch file; it starts with {bytes(data[:16])!r}")
    root = {"zip": read_zip, "legacy": read_legacy, "pickle": read_plain}[kind](data)
    return kind, root
