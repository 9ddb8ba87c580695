"""Writers of model files for the tests, byte by byte and independent of the readers.

`dumps` assembles pickles of protocol 2 to 5 from plain values and the nodes below, so a
test can write what PyTorch writes, and what an attacker would.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Global:
    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class Call:
    """REDUCE."""

    function: Any
    arguments: Any


@dataclasses.dataclass(frozen=True)
class New:
    """NEWOBJ."""

    cls: Any
    arguments: Any = ()


@dataclasses.dataclass(frozen=True)
class Build:
    """BUILD."""

    target: Any
    state: Any


@dataclasses.dataclass(frozen=True)
class Items:
    """SETITEMS on the object a node makes."""

    target: Any
    items: dict


@dataclasses.dataclass(frozen=True)
class Pid:
    """BINPERSID."""

    identifier: Any


@dataclasses.dataclass(frozen=True)
class Raw:
    """Opcodes as they are."""

    code: bytes


def _text(text: str, protocol: int) -> bytes:
    data = text.encode()
    if protocol >= 4 and len(data) < 256:
        return b"\x8c" + bytes([len(data)]) + data
    return b"X" + struct.pack("<I", len(data)) + data


def _encode(value: Any, p: int) -> bytes:
    def enc(v: Any) -> bytes:
        return _encode(v, p)

    if isinstance(value, Raw):
        return value.code
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        if 0 <= value < 256:
            return b"K" + bytes([value])
        if 0 <= value < 65536:
            return b"M" + struct.pack("<H", value)
        if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return _text(value, p)
    if isinstance(value, bytes):
        if p < 3:
            return enc(Call(Global("_codecs", "encode"), (value.decode("latin-1"), "latin1")))
        short = len(value) < 256
        return (
            b"C" + bytes([len(value)]) if short else b"B" + struct.pack("<I", len(value))
        ) + value
    if isinstance(value, set):
        if p >= 4:
            return b"\x8f" + (b"(" + b"".join(map(enc, sorted(value))) + b"\x90" if value else b"")
        module = "builtins" if p == 3 else "__builtin__"
        return enc(Call(Global(module, "set"), (sorted(value),)))
    if isinstance(value, tuple):
        body = b"".join(map(enc, value))
        if len(value) > 3:
            return b"(" + body + b"t"
        return body + (b")", b"\x85", b"\x86", b"\x87")[len(value)]
    if isinstance(value, list):
        return b"]" + (b"(" + b"".join(map(enc, value)) + b"e" if value else b"")
    if isinstance(value, dict):
        return enc(Items(Raw(b"}"), value))
    if isinstance(value, Items):
        body = b"".join(enc(k) + enc(v) for k, v in value.items.items())
        return enc(value.target) + (b"(" + body + b"u" if value.items else b"")
    if isinstance(value, Global):
        if p >= 4:
            return _text(value.module, p) + _text(value.name, p) + b"\x93"
        return b"c" + value.module.encode() + b"\n" + value.name.encode() + b"\n"
    if isinstance(value, Call):
        return enc(value.function) + enc(value.arguments) + b"R"
    if isinstance(value, New):
        return enc(value.cls) + enc(value.arguments) + b"\x81"
    if isinstance(value, Build):
        return enc(value.target) + enc(value.state) + b"b"
    if isinstance(value, Pid):
        return enc(value.identifier) + b"Q"
    raise TypeError(type(value))


def dumps(value: Any, protocol: int = 4, *, frame: bool = True) -> bytes:
    """A pickle; from protocol 4 on in one frame, as CPython writes it."""
    body = _encode(value, protocol) + b"."
    if protocol >= 4 and frame:
        body = b"\x95" + struct.pack("<Q", len(body)) + body
    return b"\x80" + bytes([protocol]) + body


# ---------------------------------------------------------------- tensors

_TYPES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "bool": "BoolStorage",
    "complex64": "ComplexFloatStorage",
}
MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {
    "protocol_version": 1001,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}
ORDERED = Call(Global("collections", "OrderedDict"), ())


def ordered(items: dict) -> Items:
    return Items(ORDERED, items)


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a contiguous tensor, in elements."""
    out, step = [], 1
    for n in reversed(shape):
        out.append(step)
        step *= n
    return tuple(reversed(out))


def pid(key: str, numel: int, dtype: str = "float32", *, legacy: bool = False) -> Pid:
    storage = Global("torch", _TYPES.get(dtype, dtype))
    return Pid(("storage", storage, key, "cpu", numel) + ((None,) if legacy else ()))


def tensor(storage: Any, shape: tuple, stride: tuple | None = None, offset: int = 0) -> Call:
    stride = strides(shape) if stride is None else stride
    arguments = (storage, offset, shape, stride, False, ORDERED)
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), arguments)


def parameter(value: Any) -> Call:
    return Call(Global("torch._utils", "_rebuild_parameter"), (value, True, ORDERED))


def legacy(
    root: Any,
    storages: dict[str, tuple[int, bytes]],
    *,
    magic: int = MAGIC,
    version: int = 1001,
    system: Any = SYSTEM,
    keys: Any = None,
    tail: bytes = b"",
) -> bytes:
    """A legacy stream; storages by key are (number of elements, raw bytes)."""
    keys = list(storages) if keys is None else keys
    head = b"".join(dumps(v, 2) for v in (magic, version, system, root, keys))
    data = b"".join(struct.pack("<q", numel) + raw for numel, raw in storages.values())
    return head + data + tail


def nested_storage(array: np.ndarray) -> Call:
    """torch.storage._load_from_bytes around a legacy stream of one storage."""
    raw = np.ascontiguousarray(array).tobytes()
    stream = legacy(pid("94", array.size, array.dtype.name, legacy=True), {"94": (array.size, raw)})
    return Call(Global("torch.storage", "_load_from_bytes"), (stream,))


def nested_tensor(array: np.ndarray) -> Call:
    if array.size > 1 and not any(array.strides):  # one number, many times
        return tensor(nested_storage(array.flat[:1]), array.shape, (0,) * array.ndim)
    return tensor(nested_storage(array), array.shape)


# ---------------------------------------------------------------- zip archives


@dataclasses.dataclass
class Entry:
    """A zip entry with everything in it that can be wrong."""

    name: str
    data: bytes
    method: int = 0
    flags: int = 0x0808
    crc: int | None = None
    size: int | None = None  # as announced
    packed: int | None = None
    local_name: str | None = None
    offset: int | None = None
    zip64: bool = False


def write_zip(entries: list[Entry], *, count: int | None = None, zip64: bool = False) -> bytes:
    """A zip archive laid out as PyTorch does: sizes in the directory only."""
    body, directory = bytearray(), b""  # bytes would be copied for every entry
    for e in entries:
        local = (e.local_name or e.name).encode()
        offset = len(body) if e.offset is None else e.offset
        pad = -(len(body) + 30 + len(local) + 4) % 64
        extra = b"FB" + struct.pack("<H", pad) + b"Z" * pad
        body += struct.pack("<4s5H3L2H", b"PK\3\4", 0, e.flags, e.method, 0, 0, 0, 0, 0, len(local),
                            len(extra)) + local + extra + e.data  # fmt: skip
        crc = zlib.crc32(e.data) if e.crc is None else e.crc
        size = len(e.data) if e.size is None else e.size
        packed = size if e.packed is None else e.packed
        body += struct.pack("<4s3L", b"PK\7\x08", crc, packed & 0xFFFFFFFF, size & 0xFFFFFFFF)
        name, wide = e.name.encode(), b""
        if e.zip64:
            wide = struct.pack("<2H3Q", 1, 24, size, packed, offset)
            size = packed = offset = 0xFFFFFFFF
        directory += struct.pack("<4s6H3L5H2L", b"PK\1\2", 0, 0, e.flags, e.method, 0, 0, crc,
                                 packed, size, len(name), len(wide), 0, 0, 0, 0,
                                 offset) + name + wide  # fmt: skip
    count = len(entries) if count is None else count
    end = b""
    if zip64:
        end += struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 30, 45, 0, 0, count, count, len(directory),
                           len(body))  # fmt: skip
        end += struct.pack("<4sLQL", b"PK\6\7", 0, len(body) + len(directory), 1)
    fields = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF) if zip64 else (
        count, count, len(directory), len(body))  # fmt: skip
    return bytes(body) + directory + end + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *fields, 0)


def torch_zip(
    root: Any,
    storages: dict[str, bytes],
    *,
    more: list[Entry] | None = None,
    folder: str = "model",
    crc: int | None = None,
) -> bytes:
    """What torch.save writes: data.pkl in protocol 2, one entry per storage."""
    contents = {"data.pkl": dumps(root, 2), "byteorder": b"little"}
    contents |= {f"data/{k}": v for k, v in storages.items()} | {"version": b"3\n"}
    entries = [Entry(f"{folder}/{name}", data, crc=crc) for name, data in contents.items()]
    return write_zip(entries + (more or []))


def state_dict_zip(arrays: dict[str, np.ndarray], **options: Any) -> bytes:
    """A state dictionary of contiguous tensors as a zip archive."""
    storages = {str(i): np.ascontiguousarray(a).tobytes() for i, a in enumerate(arrays.values())}
    items = {
        name: tensor(pid(str(i), a.size, a.dtype.name), a.shape)
        for i, (name, a) in enumerate(arrays.items())
    }
    metadata = {"_metadata": ordered({"": {"version": 1}})}
    return torch_zip(Build(ordered(items), metadata), storages, **options)


# ---------------------------------------------------------------- snapshots


def persistent(class_name: str, state: Any, **changes: Any) -> Call:
    """A self-describing object."""
    meta = {
        "type": "class",
        "version": 6,
        "module_src": "# source text removed",
        "class_name": class_name,
        "state": state,
    } | changes
    return Call(Global("torch_utils.persistence", "_reconstruct_persistent_obj"), (meta,))


def numpy_scalar(value: float, package: str = "numpy._core.multiarray", code: str = "f8") -> Call:
    dtype = Build(
        Call(Global("numpy", "dtype"), (code, False, True)),
        (3, "<", None, None, None, -1, -1, 0),
    )
    return Call(Global(package, "scalar"), (dtype, struct.pack("<d", value)))


def module_state(
    parameters: Any = None, buffers: Any = None, modules: Any = None, **attributes: Any
) -> dict:
    return {
        "training": False,
        "_parameters": parameters or {},
        "_buffers": buffers or {},
        "_non_persistent_buffers_set": set(),
        "_backward_hooks": ORDERED,
        "_is_full_backward_hook": None,
        "_modules": modules or {},
        "_init_args": (),
        "_init_kwargs": {},
    } | attributes


BUFFERS = ("resample_filter", "freqs", "u")


def _modules(arrays: dict[str, np.ndarray], class_name: str, attributes: dict) -> Any:
    own: dict[str, Any] = {}
    children: dict[str, dict] = {}
    for name, array in arrays.items():
        head, _, rest = name.partition(".")
        if rest:
            children.setdefault(head, {})[rest] = array
        else:
            own[head] = array
    # enc and dec have children whose names hold no dot: "enc.8x8_conv.weight".
    parameters = {k: parameter(nested_tensor(v)) for k, v in own.items() if k not in BUFFERS}
    buffers = {k: nested_tensor(v) for k, v in own.items() if k in BUFFERS}
    modules = {k: _modules(v, k, {}) for k, v in children.items()}
    state = module_state(parameters, buffers, modules, **attributes)
    if class_name in ("enc", "dec"):
        return Build(New(Global("torch.nn.modules.container", "ModuleDict")), state)
    classes = {"model": attributes.get("_class", "SongUNet")}
    return persistent(classes.get(class_name, class_name), state)


def network(
    arrays: dict[str, np.ndarray],
    class_name: str,
    arguments: dict,
    *,
    package: str = "numpy._core.multiarray",
    **attributes: Any,
) -> Call:
    """A pickled preconditioner with its network, from a state dictionary."""
    inner = {k.removeprefix("model."): v for k, v in arrays.items() if k != "u"}
    scalar = numpy_scalar(0.5**0.5, package)
    model = _modules(inner, "model", {"skip_scale": scalar})
    model = dataclasses.replace(
        model, arguments=(model.arguments[0] | {"class_name": arguments["model_type"]},)
    )
    buffers = {"u": nested_tensor(arrays["u"])} if "u" in arrays else {}
    state = module_state({}, buffers, {"model": model}, _init_kwargs=arguments, **attributes)
    return persistent(class_name, state)


def snapshot(net: Any, **changes: Any) -> dict:
    """The dictionary of a network snapshot."""
    loss = {"P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5, "_init_args": (), "_init_kwargs": {}}
    return {
        "ema": net,
        "loss_fn": persistent("EDMLoss", loss),
        "augment_pipe": None,
        "dataset_kwargs": {"path": "toy.zip", "use_labels": True},
    } | changes
