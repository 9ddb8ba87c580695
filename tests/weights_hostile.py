"""A corpus of hostile and broken model files: name -> (bytes, what the refusal must name).

Payloads would create the file MARKER in the working directory, or worse, if any of them ran.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import weights_golden as wg
import weights_writer as ww
from weights_bombs import bombs_corpus
from weights_writer import Build, Call, Entry, Global, Items, New, Pid, Raw, dumps

MARKER = "a_payload_ran"
COMMAND = f"touch {MARKER}"


def small():
    golden = wg.expected("small")
    config = wg.json_of(golden["config"])
    arrays = {n: golden[f"params/{n}"] for n in golden["names"]}
    return arrays, config["class_name"], config["kwargs"]


ARRAYS, CLASS_NAME, ARGUMENTS = small()


def in_snapshot(payload, protocol=4):
    """A snapshot that is right up to one value of its last entry."""
    return dumps({"ema": None, "dataset_kwargs": {"path": payload}}, protocol)


def in_zip(payload):
    return ww.torch_zip({"a": payload}, {})


def in_legacy(payload):
    return ww.legacy({"a": payload}, {})


def with_network(change, protocol=4):
    """A good snapshot with one change in the record of the network."""
    net = ww.network(ARRAYS, CLASS_NAME, dict(ARGUMENTS))
    return dumps(ww.snapshot(change(net) or net), protocol)


def with_arguments(**changes):
    net = ww.network(ARRAYS, CLASS_NAME, ARGUMENTS | changes)
    return dumps(ww.snapshot(net))


def with_arrays(changes, drop=()):
    arrays = {k: v for k, v in (ARRAYS | changes).items() if k not in drop}
    return ww.state_dict_zip(arrays)


def one_tensor(storage, shape, stride=None, offset=0, storages=None):
    root = {"t": ww.tensor(storage, shape, stride, offset)}
    return ww.torch_zip(root, {"0": b"\0" * 16} if storages is None else storages)


def zip_with(*entries, **kwargs):
    pickle = Entry("m/data.pkl", dumps({"t": ww.tensor(ww.pid("0", 4), (4,))}, 2))
    return ww.write_zip([pickle, Entry("m/data/0", b"\0" * 16), *entries], **kwargs)


def meta_change(**changes):
    def change(net):
        net.arguments[0].update(changes)

    return change


def bytes_of(stream):
    return Call(Global("torch.storage", "_load_from_bytes"), (stream,))


def safetensors(header, payload=b"", length=None):
    header = header.encode() if isinstance(header, str) else header
    length = len(header) if length is None else length
    return struct.pack("<Q", length) + header + payload


def doubling(depth):
    """A list that holds the one below twice: 2^depth leaves in some bytes."""
    code = b"]"
    for i in range(depth):
        index = struct.pack("<I", 1 << 30 | i)
        code = b"](" + code + b"r" + index + b"j" + index + b"e"
    return Raw(code)


def module_cycle(net):
    """``enc`` contains itself, through the memo."""
    model = net.arguments[0]["state"]["_modules"]["model"].arguments[0]["state"]
    cls = ww.Global("torch.nn.modules.container", "ModuleDict")
    state = ww.module_state(modules={"enc": Raw(b"j\xff\xff\xff\x7f")})
    made = Raw(ww._encode(New(cls), 4) + b"r\xff\xff\xff\x7f")
    model["_modules"]["enc"] = Build(made, state)


def globals_corpus():
    """Names that could run code, called or merely named."""
    call = {
        "os.system": Call(Global("os", "system"), (COMMAND,)),
        "posix.system": Call(Global("posix", "system"), (COMMAND,)),
        "nt.system": Call(Global("nt", "system"), (COMMAND,)),
        "builtins.eval": Call(Global("builtins", "eval"), (f"open({MARKER!r}, 'w')",)),
        "builtins.exec": Call(Global("builtins", "exec"), (f"open({MARKER!r}, 'w')",)),
        "builtins.compile": Call(Global("builtins", "compile"), ("1", "a", "eval")),
        "builtins.open": Call(Global("builtins", "open"), (MARKER, "w")),
        "builtins.__import__": Call(Global("builtins", "__import__"), ("os",)),
        "builtins.getattr": Call(
            Call(Global("builtins", "getattr"), (Global("os", "path"), "join")), ("a",)
        ),
        "builtins.bytearray": Call(Global("builtins", "bytearray"), (1 << 40,)),
        "builtins.range": Call(Global("builtins", "range"), (1 << 40,)),
        "subprocess.Popen": Call(Global("subprocess", "Popen"), (["touch", MARKER],)),
        "subprocess.check_output": Call(Global("subprocess", "check_output"), (["touch", MARKER],)),
        "pty.spawn": Call(Global("pty", "spawn"), ("sh",)),
        "runpy._run_code": Call(Global("runpy", "_run_code"), ("1", {})),
        "importlib.import_module": Call(Global("importlib", "import_module"), ("os",)),
        "operator.attrgetter": Call(Global("operator", "attrgetter"), ("system",)),
        "functools.partial": Call(Global("functools", "partial"), ()),
        "copyreg._reconstructor": Call(Global("copyreg", "_reconstructor"), ()),
        "pickle.loads": Call(Global("pickle", "loads"), (b"",)),
        "_pickle.loads": Call(Global("_pickle", "loads"), (b"",)),
        "shutil.rmtree": Call(Global("shutil", "rmtree"), ("/nowhere",)),
        "socket.socket": Call(Global("socket", "socket"), ()),
        "webbrowser.open": Call(Global("webbrowser", "open"), ("x",)),
        "torch.load": Call(Global("torch", "load"), (MARKER,)),
        "torch.hub.load": Call(Global("torch.hub", "load"), ("a/b", "c")),
        "torch.jit._unwrap": Call(Global("torch.jit", "_unwrap"), ()),
        "numpy.load": Call(Global("numpy", "load"), (MARKER,)),
        "numpy.core.multiarray._reconstruct": Call(
            Global("numpy.core.multiarray", "_reconstruct"), ()
        ),
        "_codecs.decode": Call(Global("_codecs", "decode"), (b"", "zlib")),
        # Ways around an allow-list that compares loosely.
        "collections.OrderedDict.fromkeys": Call(
            Global("collections", "OrderedDict.fromkeys"), ("ab",)
        ),
        "torch._utils._rebuild_tensor_v2.__globals__": Global(
            "torch._utils", "_rebuild_tensor_v2.__globals__"
        ),
        "torch._utils.os.system": Call(Global("torch._utils", "os.system"), (COMMAND,)),
        "torch.storage.io.open": Call(Global("torch.storage", "io.open"), (MARKER, "w")),
        "Torch.FloatStorage": Global("Torch", "FloatStorage"),
        "torch.FloatStorage ": Global("torch", "FloatStorage "),
        "torch.UntypedStorage": Global("torch", "UntypedStorage"),
        "torch.ComplexFloatStorage": Global("torch", "ComplexFloatStorage"),
        "torch._utils._rebuild_sparse_tensor": Call(
            Global("torch._utils", "_rebuild_sparse_tensor"), ()
        ),
        "training.networks.EDMPrecond": Call(Global("training.networks", "EDMPrecond"), ()),
    }
    corpus = {}
    writers = (in_snapshot, in_zip, in_legacy, lambda p: in_snapshot(p, 2))
    for i, (name, payload) in enumerate(call.items()):
        corpus[f"global {name}"] = (writers[i % 4](payload), f"'{name}' is refused")
    return corpus


def opcodes_corpus():
    system = b"cos\nsystem\n"
    text = b"X" + struct.pack("<I", len(COMMAND)) + COMMAND.encode()
    proto = b"\x80\x02"
    ordered = b"ccollections\nOrderedDict\n"
    return {
        "INST": (proto + b"(" + text + b"ios\nsystem\n.", "INST of os.system"),
        "OBJ": (proto + b"(" + system + text + b"o.", "os.system"),
        "OBJ of an allowed name": (proto + b"(" + ordered + b"o.", "OBJ"),
        "EXT1": (proto + b"\x82\x07.", "EXT1 7"),
        "EXT2": (proto + b"\x83\x07\x01.", "EXT2 263"),
        "EXT4": (proto + b"\x84\x07\0\0\0.", "EXT4 7"),
        "NEWOBJ_EX": (proto + ordered + b")}\x92.", "NEWOBJ_EX"),
        "PERSID": (proto + b"Pstorage\n.", "PERSID 'storage'"),
        "BINPERSID in a plain pickle": (in_snapshot(Pid("a")), "persistent id"),
        "BYTEARRAY8": (b"\x80\x05\x96" + b"\0" * 8 + b".", "BYTEARRAY8"),
        "NEXT_BUFFER": (b"\x80\x05\x97.", "NEXT_BUFFER"),
        "READONLY_BUFFER": (b"\x80\x05\x97\x98.", "NEXT_BUFFER"),
        "DUP": (proto + b"]2\x86.", "DUP"),
        "POP": (proto + b"]0.", "POP"),
        "text integer": (proto + b"I" + b"9" * 5000 + b"\n.", "INT"),
        "text long": (proto + b"L" + b"9" * 5000 + b"L\n.", "LONG"),
        "text float": (proto + b"F1e9\n.", "FLOAT"),
        "no opcode": (proto + b"\xff.", "byte 0xff"),
        "NEWOBJ of a function": (in_snapshot(New(ww.ORDERED.function)), "NEWOBJ of collections"),
        "NEWOBJ with arguments": (
            in_snapshot(New(Global("dnnlib.util", "EasyDict"), ({"a": 1},))),
            "NEWOBJ with arguments",
        ),
        "REDUCE of a class": (
            in_snapshot(Call(Global("dnnlib.util", "EasyDict"), ())),
            "REDUCE of dnnlib.util.EasyDict",
        ),
        "REDUCE of a storage type": (
            in_zip(Call(Global("torch", "FloatStorage"), (1 << 40,))),
            "REDUCE of torch.FloatStorage",
        ),
        "REDUCE of a text": (in_snapshot(Call("os.system", (COMMAND,))), "calls 'os.system'"),
        "REDUCE with a list": (in_snapshot(Call(ww.ORDERED.function, [])), "a list of 0"),
        "BUILD of a dictionary": (
            in_snapshot(Build({}, {"__class__": 1})),
            "BUILD of a dict of 0",
        ),
        "BUILD of a name": (
            in_snapshot(Build(ww.ORDERED.function, {"__setstate__": 1})),
            "BUILD of the name 'collections.OrderedDict'",
        ),
        "BUILD of an OrderedDict's attributes": (
            in_snapshot(Build(ww.ORDERED, {"__class__": 1})),
            "BUILD of an OrderedDict of 0",
        ),
        "BUILD of a network": (
            with_network(lambda net: Build(net, {"forward": 1})),
            f"BUILD of an object of class '{CLASS_NAME}'",
        ),
        "BUILD of a tensor": (
            in_zip(Build(ww.tensor(ww.pid("0", 0), (0,)), {"data": 1})),
            "BUILD of a tensor",
        ),
        "module state twice": (
            in_snapshot(
                Build(Build(New(Global("torch.nn.modules.container", "ModuleDict")), {}), {})
            ),
            "BUILD of a ModuleDict",
        ),
        "OrderedDict with arguments": (
            in_snapshot(Call(ww.ORDERED.function, ([["a", 1]],))),
            "OrderedDict with arguments",
        ),
        "set of a text": (in_snapshot(Call(Global("builtins", "set"), ("ab",))), "set of"),
        "encode with another codec": (
            in_snapshot(Call(Global("_codecs", "encode"), ("ab", "rot13"))),
            "_codecs.encode",
        ),
        "encode of no latin-1": (
            in_snapshot(Call(Global("_codecs", "encode"), ("\u20ac", "latin1"))),
            "not latin-1",
        ),
        "encode of a long text of no latin-1": (
            in_snapshot(Call(Global("_codecs", "encode"), ("\u20ac" * 40000, "latin1"))),
            "not latin-1",
        ),
        "dtype of objects": (
            in_snapshot(Call(Global("numpy", "dtype"), ("O8", False, True))),
            "numpy.dtype 'O8'",
        ),
        "big-endian dtype": (
            in_snapshot(
                Build(Call(Global("numpy", "dtype"), ("f8", False, True)), (3, ">", None))
            ),
            "numpy.dtype with state",
        ),
        "scalar of too few bytes": (
            in_snapshot(
                Call(
                    Global("numpy.core.multiarray", "scalar"),
                    (Call(Global("numpy", "dtype"), ("f8",)), b"abc"),
                )
            ),
            "scalar of 8 bytes",
        ),
        "list as a dictionary key": (proto + b"}]K\1s.", "key is a list of 0"),
        "tuple as a dictionary key": (proto + b"})K\1s.", "key is ()"),
        "huge integer as a key": (
            proto + b"}\x8a\x0c" + b"\x7f" * 12 + b"K\1s.", "key is an integer"
        ),
        "key twice": (proto + b"}(K\1K\2K\1K\3u.", "key 1 appears twice"),
        "SETITEMS on a list": (proto + b"](K\1K\2u.", "set in a list"),
        "APPEND to a dictionary": (proto + b"}K\1a.", "added to a dict"),
        "odd SETITEMS": (proto + b"}(K\1u.", "odd number"),
        "APPENDS without MARK": (proto + b"]e.", "MARK"),
        "pop across a MARK": (proto + b"]K\1(a.", "stack"),
        "empty stack": (proto + b"R.", "stack"),
        "nothing at STOP": (proto + b".", "STOP with 0 objects"),
        "two objects at STOP": (proto + b"NN.", "STOP with 2 objects"),
        "open MARK at STOP": (proto + b"N(.", "STOP"),
        "memo entry that is none": (proto + b"h\x07.", "memo entry 7"),
        "STACK_GLOBAL of numbers": (b"\x80\x04K\1K\2\x93.", "STACK_GLOBAL of 1 and 2"),
        "name without end": (proto + b"c" + b"a" * 5000, "name without end"),
        "text that is not UTF-8": (proto + b"X\2\0\0\0\xff\xfe.", "not UTF-8"),
        "name that is not UTF-8": (proto + b"c\xff\xfe\nsystem\n.", "not UTF-8"),
        "frame in a frame": (
            b"\x80\x04\x95" + struct.pack("<Q", 20) + b"\x95" + struct.pack("<Q", 2) + b"N" * 11,
            "frame inside a frame",
        ),
        "protocol 0": (b"(dp0\nS'ema'\np1\nNs.", "neither a PyTorch file nor safetensors"),
        "protocol 1": (b"}q\0.", "neither a PyTorch file nor safetensors"),
        "protocol 6": (b"\x80\x06}.", "neither a PyTorch file nor safetensors"),
        "bytes after the pickle": (in_snapshot(1) + b"more", "4 bytes follow"),
        "second pickle": (in_snapshot(1) + in_snapshot(Call(Global("os", "system"), (COMMAND,))),
                          "follow the end"),
    }  # fmt: skip


def sizes_corpus():
    """Sizes that would exhaust memory, time or the stack if they were believed."""
    proto = b"\x80\x04"
    huge = struct.pack("<Q", 1 << 60)
    stream = ww.legacy(ww.pid("9", 1 << 40, legacy=True), {"9": (1 << 40, b"\0" * 16)})
    return {
        "bytes of 2^60": (proto + b"\x8e" + huge, f"{1 << 60} bytes needed"),
        "text of 2^60": (proto + b"\x8d" + huge, f"{1 << 60} bytes needed"),
        "frame of 2^60": (proto + b"\x95" + huge, f"frame of {1 << 60} bytes"),
        "integer of 2^31 bytes": (proto + b"\x8b" + b"\xff\xff\xff\x7f", "integer of 2147483647"),
        "integer of 255 bytes": (proto + b"\x8a\xff" + b"\x7f" * 255 + b".", "integer of 255"),
        "memo index of 2^32": (proto + b"]r\xff\xff\xff\xff.", "no model in the file"),
        "too many opcodes": (proto + b"]" * 600_000 + b".", "opcodes"),
        "deeply nested list": (
            proto + b"]" * 200_000 + b"a" * 199_999 + b".",
            "no model in the file: expected",
        ),
        "lists that double": (
            dumps(ww.snapshot(ww.network(ARRAYS, CLASS_NAME, dict(ARGUMENTS)),
                              dataset_kwargs={"path": doubling(60)})),
            "too large or too deeply nested",
        ),
        "list that contains itself": (
            dumps(ww.snapshot(ww.network(ARRAYS, CLASS_NAME, dict(ARGUMENTS)),
                              dataset_kwargs={"path": Raw(b"]r\0\0\0\x7fj\0\0\0\x7fa")})),
            "too large or too deeply nested",
        ),
        "long text many times over": (
            dumps(ww.snapshot(ww.network(ARRAYS, CLASS_NAME, dict(ARGUMENTS)),
                              dataset_kwargs={"path": Raw(
                                  b"](" + b"X" + struct.pack("<I", 60_000) + b"a" * 60_000
                                  + b"r\0\0\0\x7f" + b"j\0\0\0\x7f" * 5000 + b"e")})),
            "too large or too deeply nested",
        ),
        "doubling constructor argument": (
            with_arguments(resample_filter=doubling(60)), "too large or too deeply nested"
        ),
        "module that contains itself": (with_network(module_cycle), "modules nest too deeply"),
        "nested storage of 2^40": (
            in_snapshot(bytes_of(stream)), f"storage '9' needs {4 << 40} bytes, 16 left"
        ),
        "zip storage of 2^40": (
            one_tensor(ww.pid("0", 1 << 40), (4,)), f"storage '0' announces {1 << 40} numbers"
        ),
        "storage smaller than its entry": (
            one_tensor(ww.pid("0", 3), (3,)), "storage '0' announces 3 numbers"
        ),
        "storage of -1": (one_tensor(ww.pid("0", -1), (1,)), "storage '0' of -1 numbers"),
        "tensor past its storage": (
            one_tensor(ww.pid("0", 4), (5,)), "reaches past the 4 numbers"
        ),
        "offset past its storage": (
            one_tensor(ww.pid("0", 4), (1,), offset=4), "reaches past the 4 numbers"
        ),
        "stride past its storage": (
            one_tensor(ww.pid("0", 4), (2, 2), (3, 1)), "reaches past the 4 numbers"
        ),
        "negative stride": (one_tensor(ww.pid("0", 4), (4,), (-1,)), "stride (-1)"),
        "negative offset": (one_tensor(ww.pid("0", 4), (4,), offset=-4), "offset -4"),
        "negative size": (one_tensor(ww.pid("0", 4), (-4,)), "size (-4)"),
        "size of 2^62": (one_tensor(ww.pid("0", 4), (1 << 62, 1 << 62), (0, 0)), "larger than any"),
        "empty tensor of 2^62": (one_tensor(ww.pid("0", 4), (0, 1 << 62)), "larger than any"),
        "fractional size": (one_tensor(ww.pid("0", 4), (1.5,), (1,)), "of size"),
        "forty axes": (one_tensor(ww.pid("0", 4), (1,) * 40), "of size a tuple of 40"),
        "lazily negated tensor": (
            in_zip(Call(Global("torch._utils", "_rebuild_tensor_v2"),
                        (ww.pid("0", 0), 0, (0,), (1,), False, ww.ORDERED, {"neg": True}))),
            "a tensor with metadata",
        ),
        "tensor over a text": (one_tensor("storage", (1,)), "a tensor over 'storage'"),
        "stride 0 to a terabyte": (
            dumps(ww.snapshot(ww.network(
                {k: np.broadcast_to(np.float32(0), (1 << 20, 1 << 18)) for k in ARRAYS},
                CLASS_NAME, dict(ARGUMENTS)))),
            f"tensors of {153 << 38} numbers",
        ),
        "stride 0 to a terabyte in a state dictionary": (
            ww.torch_zip(
                {k: ww.tensor(ww.pid("0", 4), tuple(n << 12 for n in a.shape), (0,) * a.ndim)
                 for k, a in ARRAYS.items() if a.ndim < 3},
                {"0": b"\0" * 16},
            ),
            "enc.8x8_conv.weight",
        ),
        "num_blocks of 10^9": (with_arguments(num_blocks=10**9), "num_blocks"),
        "a thousand levels": (with_arguments(channel_mult=[1] * 1000), "channel_mult"),
        "img_resolution of 2^40": (with_arguments(img_resolution=1 << 40), "img_resolution"),
        "model_channels of 2^40": (with_arguments(model_channels=1 << 40), "model_channels"),
    }  # fmt: skip


def zip_corpus():
    good = zip_with()
    bomb = zlib.compress(b"\0" * (1 << 22))[2:-4]
    middle = len(good) - 400
    return {
        "compressed entry": (
            zip_with(Entry("m/data/1", bomb, method=8, size=1 << 22, packed=len(bomb))),
            "entry 'm/data/1' is compressed",
        ),
        "bomb that says stored": (
            zip_with(Entry("m/data/1", bomb, size=1 << 22, packed=len(bomb))),
            "entry 'm/data/1' stores",
        ),
        "entry larger than the file": (
            zip_with(Entry("m/data/1", b"\0" * 16, size=1 << 30)),
            "entry 'm/data/1' of 1073741824 bytes does not fit",
        ),
        "zip64 entry of 2^62": (
            zip_with(Entry("m/data/1", b"\0" * 16, size=1 << 62, zip64=True)),
            "entry 'm/data/1' of",
        ),
        "encrypted entry": (zip_with(Entry("m/a", b"a", flags=0x0809)), "'m/a' is encrypted"),
        "path traversal": (zip_with(Entry("m/../../evil", b"a")), "'m/../../evil' is refused"),
        "absolute path": (zip_with(Entry("/etc/passwd", b"a")), "'/etc/passwd' is refused"),
        "backslash path": (zip_with(Entry("m\\..\\evil/x", b"a")), "is refused"),
        "drive path": (zip_with(Entry("C:/evil", b"a")), "'C:/evil' is outside folder 'm'"),
        "name with a zero byte": (zip_with(Entry("m/a\0b", b"a")), "is refused"),
        "entry twice": (zip_with(Entry("m/data.pkl", b"a")), "'m/data.pkl' appears twice"),
        "second folder": (zip_with(Entry("n/data.pkl", b"a")), "'n/data.pkl' is outside"),
        "overlapping entries": (
            zip_with(Entry("m/data/1", b"\0" * 16, local_name="m/data.pkl", offset=0)),
            "'m/data/1'",
        ),
        "entry in another": (
            ww.write_zip([
                Entry("m/data.pkl", zip_with()), Entry("m/data/0", b"\0" * 16, offset=0,
                                                       local_name="m/data/0"),
            ]),
            "m/data/0",
        ),
        "local name differs": (
            zip_with(Entry("m/data/1", b"a", local_name="m/data/2")), "header of entry 'm/data/1'"
        ),
        "wrong CRC": (zip_with(Entry("m/data/1", b"abc", crc=1)), "'m/data/1' is damaged (CRC-32"),
        "flipped data byte": (
            good.replace(b"reduce", b"rEduce").replace(b"_rebuild", b"_rebuilD", 1), "damaged"
        ),
        "more entries than there are": (zip_with(count=9), "zip"),
        "fewer entries than there are": (zip_with(count=1), "has no entry data/0"),
        "cut in the directory": (good[:middle], "zip"),
        "cut before the end record": (good[:-23], "end of central directory"),
        "bytes after the archive": (good + b"\0" * 100, "end of central directory"),
        "only a start": (good[:100], "end of central directory"),
        "no data.pkl": (
            ww.write_zip([Entry("m/arr_0.npy", b"abc")]), "without data.pkl ('arr_0.npy', ...)"
        ),
        "empty archive": (ww.write_zip([]), "without data.pkl"),
        "missing storage": (
            ww.torch_zip({"t": ww.tensor(ww.pid("7", 4), (4,))}, {}), "storage '7' has no entry"
        ),
        "key that walks": (
            ww.torch_zip({"t": ww.tensor(ww.pid("../version", 4), (4,))}, {}),
            "storage '../version' has no entry",
        ),
        "TorchScript": (
            zip_with(Entry("m/code/__torch__.py", b"import os")), "'code/__torch__.py' holds"
        ),
        "big-endian": (zip_with(Entry("m/byteorder", b"big")), "byte order b'big'"),
        "future version": (zip_with(Entry("m/version", b"99\n")), "version b'99'"),
        "one key, two types": (
            ww.torch_zip(
                {"a": ww.tensor(ww.pid("0", 4), (4,)),
                 "b": ww.tensor(ww.pid("0", 2, "float64"), (2,))},
                {"0": b"\0" * 16},
            ),
            "storage '0' is 2 numbers of DoubleStorage, and before 4 of FloatStorage",
        ),
        "load_from_bytes in a zip": (in_zip(bytes_of(b"")), "torch.storage._load_from_bytes"),
        "persistent id of another kind": (
            in_zip(Pid(("module", "os", "system", "cpu", 1))), "persistent id of 'module'"
        ),
        "persistent id that is a text": (in_zip(Pid("storage")), "persistent id is 'storage'"),
        "persistent id of six with a view": (
            in_zip(Pid(("storage", Global("torch", "FloatStorage"), "0", "cpu", 1, ("1", 0, 1)))),
            "view of another",
        ),
    }  # fmt: skip


def legacy_corpus():
    root = {"t": ww.tensor(ww.pid("9", 4, legacy=True), (4,))}
    data = {"9": (4, b"\0" * 16)}
    nested = ww.legacy({"a": bytes_of(b"x")}, {})
    evil = ww.legacy(Call(Global("os", "system"), (COMMAND,)), {})
    return {
        "wrong magic": (
            in_snapshot(bytes_of(ww.legacy(ww.pid("9", 4, legacy=True), data, magic=5))),
            "magic number 5",
        ),
        "wrong version": (ww.legacy(root, data, version=1002), "version 1002"),
        "big-endian legacy": (
            ww.legacy(root, data, system=ww.SYSTEM | {"little_endian": False}), "little-endian"
        ),
        "keys that are no list": (ww.legacy(root, data, keys="9"), "storage keys are '9'"),
        "key missing in the list": (ww.legacy(root, data, keys=[]), "0 storage keys listed, 1"),
        "key twice in the list": (ww.legacy(root, data, keys=["9", "9"]), "2 storage keys listed"),
        "key nobody uses": (ww.legacy(root, data, keys=["9", "8"]), "2 storage keys listed, 1"),
        "other number of elements": (
            ww.legacy(root, {"9": (5, b"\0" * 16)}), "storage '9' has 5 numbers, announced 4"
        ),
        "negative number of elements": (
            ww.legacy(root, {"9": (-1, b"\0" * 16)}), "announced 4"
        ),
        "cut storage": (ww.legacy(root, {"9": (4, b"\0" * 15)}), "needs 16 bytes, 15 left"),
        "bytes after the storages": (ww.legacy(root, data, tail=b"abc"), "3 bytes follow"),
        "cut in the pickles": (ww.legacy(root, data)[:150], "name without end"),
        "nested stream in a nested stream": (
            in_snapshot(bytes_of(nested)), "torch.storage._load_from_bytes"
        ),
        "system in a nested stream": (in_snapshot(bytes_of(evil)), "'os.system' is refused"),
        "nested stream of no storage": (
            in_snapshot(bytes_of(ww.legacy("text", {}))), "nested stream of 'text'"
        ),
        "nested stream of a text": (in_snapshot(bytes_of("text")), "_load_from_bytes"),
    }  # fmt: skip


def model_corpus():
    """Readable files that hold no model, or not the one they say."""
    name = "model.enc.8x8_conv.weight"
    weight = ARRAYS[name]
    return {
        "empty file": (b"", "is empty"),
        "web page": (b"<!DOCTYPE html><html>404", "web page"),
        "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "Git LFS"),
        "gzip": (b"\x1f\x8b\x08" + b"\0" * 40, "gzip"),
        "text file": (b"hello world, these are weights", "neither a PyTorch file nor safetensors"),
        "empty dictionary": (dumps({}), "no model in the file"),
        "a number": (dumps(3), "no model in the file"),
        "a dictionary of numbers": (dumps({"a": 1}), "no model in the file"),
        "ema is no network": (dumps({"ema": [1]}), "no model in the file"),
        "newer self-describing class": (with_network(meta_change(version=7)), "version 7"),
        "self-describing function": (with_network(meta_change(type="func")), "type 'func'"),
        "class without a name": (with_network(meta_change(class_name=3)), "class name"),
        "class without state": (with_network(meta_change(state=None)), "state"),
        "class without source": (with_network(meta_change(module_src=None)), "source text"),
        "unknown preconditioner": (
            with_network(meta_change(class_name="EvilPrecond")), "class 'EvilPrecond'"
        ),
        "unknown network": (with_arguments(model_type="EvilUNet"), "model_type 'EvilUNet'"),
        "network of another class": (
            with_network(
                lambda net: net.arguments[0]["state"]["_modules"]["model"].arguments[0].update(
                    class_name="DhariwalUNet"
                )
            ),
            "the network is 'DhariwalUNet'",
        ),
        "unknown argument": (with_arguments(evil=1), "no argument 'evil'"),
        "argument of a wrong type": (with_arguments(img_channels="3"), "img_channels is '3'"),
        "unusable argument": (with_arguments(encoder_type="evil"), "encoder_type"),
        "resolution that does not divide": (with_arguments(img_resolution=7), "img_resolution"),
        "parameter that is no tensor": (
            with_network(
                lambda net: net.arguments[0]["state"].update(_parameters={"p": 1})
            ),
            "'p' is 1, expected a tensor",
        ),
        "module that is no module": (
            with_network(
                lambda net: net.arguments[0]["state"]["_modules"].update(other="os.system")
            ),
            "'os.system', expected a module",
        ),
        "missing tensor": (with_arrays({}, drop=["model.map_layer1.bias"]), "'map_layer1.bias'"),
        "superfluous tensor": (
            with_arrays({"model.map_layer9.bias": np.zeros(3, np.float32)}), "'map_layer9.bias'"
        ),
        "superfluous tensor of a good name": (
            with_arrays({"model.enc.8x8_block9.norm0.bias": np.zeros(4, np.float32)}),
            "'enc.8x8_block9.norm0.bias' is no part",
        ),
        "tensor outside the network": (
            with_arrays({"other.weight": np.zeros(4, np.float32)}), "'model.map_noise.freqs'"
        ),
        "wrong shape": (
            with_arrays({"model.map_layer1.bias": np.zeros(9, np.float32)}),
            "'map_layer1.bias' has shape (9), expected (8)",
        ),
        "transposed kernel": (
            with_arrays({name: weight.transpose(1, 0, 2, 3)}), "'enc.8x8_conv.weight'"
        ),
        "integer weights": (
            with_arrays({"model.map_layer1.bias": np.zeros(8, np.int64)}),
            "'map_layer1.bias' is of int64",
        ),
        "inexact float64": (
            with_arrays({"model.map_layer1.bias": np.full(8, 0.1)}), "'map_layer1.bias' is float64"
        ),
        "another filter": (
            dumps(ww.snapshot(ww.network(
                ARRAYS | {"model.enc.4x4_down.conv0.resample_filter": np.full((1, 1, 4, 4), 1 / 16,
                                                                              np.float32)},
                CLASS_NAME, dict(ARGUMENTS)))),
            "'enc.4x4_down.conv0.resample_filter' is not that of the resample_filter",
        ),
        "iDDPM without its table": (
            dumps(ww.snapshot(ww.network(ARRAYS, "iDDPMPrecond", dict(ARGUMENTS)))), "tensor 'u'"
        ),
        "iDDPM table that rises": (
            dumps(ww.snapshot(ww.network(
                ARRAYS | {"u": np.arange(1001, dtype=np.float32)}, "iDDPMPrecond",
                dict(ARGUMENTS)))),
            "levels must decrease",
        ),
        "iDDPM of 10^9 levels": (
            dumps(ww.snapshot(ww.network(
                ARRAYS | {"u": np.zeros(5, np.float32)}, "iDDPMPrecond",
                ARGUMENTS | {"M": 10**9}))),
            "tensor 'u' has shape (5)",
        ),
        "sigma_data that is NaN": (
            dumps(ww.snapshot(ww.network(ARRAYS, CLASS_NAME, dict(ARGUMENTS),
                                         sigma_data=float("nan")))),
            "sigma_data is nan",
        ),
    }  # fmt: skip


def safetensors_corpus():
    entry = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
    return {
        "safetensors header of 2^60": (safetensors('{"a":1}', length=1 << 38), "header of"),
        "safetensors of no JSON": (safetensors("{oops}"), "not valid JSON"),
        "safetensors of deep JSON": (safetensors('{"a":' + "[" * 100_000 + "}"), "not valid JSON"),
        "safetensors of a long number": (
            safetensors('{"a":' + "9" * 5000 + "}"), "safetensors header"
        ),
        "safetensors of NaN": (safetensors('{"a":NaN}'), "NaN"),
        "safetensors entry twice": (
            safetensors(f'{{"a":{entry},"a":{entry}}}', b"\0" * 8), "twice"
        ),
        "safetensors entry that is a number": (safetensors('{"a":1}'), "entry 'a'"),
        "safetensors with an unknown dtype": (
            safetensors('{"a":{"dtype":"F128","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8),
            "dtype 'F128'",
        ),
        "safetensors with too few bytes": (safetensors(f'{{"a":{entry}}}', b"\0" * 7), "'a'"),
        "safetensors with too many bytes": (
            safetensors(f'{{"a":{entry}}}', b"\0" * 9), "1 bytes follow"
        ),
        "safetensors with a hole": (
            safetensors('{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}', b"\0" * 12),
            "'a' lies at 4..12",
        ),
        "safetensors that overlap": (
            safetensors(f'{{"a":{entry},"b":{entry}}}', b"\0" * 8), "'b' lies at 0..8"
        ),
        "safetensors shape of 2^80": (
            safetensors(
                '{"a":{"dtype":"F32","shape":[1099511627776,1099511627776],"data_offsets":[0,8]}}',
                b"\0" * 8,
            ),
            "'a' has shape",
        ),
        "safetensors offsets that do not fit": (
            safetensors('{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', b"\0" * 8),
            "needs 12 bytes",
        ),
        "safetensors with negative sizes": (
            safetensors('{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', b"\0" * 8),
            "'a' has shape",
        ),
        "safetensors metadata of numbers": (
            safetensors('{"__metadata__":{"a":1}}'), "__metadata__"
        ),
        "safetensors of nothing": (safetensors("{}"), "dec.RxR"),
        "safetensors of other names": (
            safetensors(f'{{"a":{entry}}}', b"\0" * 8), "'a' is in the naming of no known"
        ),
    }  # fmt: skip


def truncations():
    """A good file of every container, cut at several places."""
    corpus = {}
    for name in ("small_torch1.pkl", "small_state_dict.pt", "small_state_dict.pth"):
        data = wg.content(name)
        for share in (0.001, 0.1, 0.5, 0.9, 0.999):
            cut = max(16, int(len(data) * share))
            corpus[f"{name} cut to {share:.1%}"] = (data[:cut], "")
    return corpus


def corpus() -> dict[str, tuple[bytes, str]]:
    """All files; an empty second entry asks for nothing but a refusal."""
    parts = (
        globals_corpus,
        opcodes_corpus,
        sizes_corpus,
        zip_corpus,
        legacy_corpus,
        model_corpus,
        safetensors_corpus,
        truncations,
        bombs_corpus,
    )
    files: dict[str, tuple[bytes, str]] = {}
    for part in parts:
        new = part()
        assert not files.keys() & new.keys()
        files |= new
    return files


__all__ = ["MARKER", "Items", "corpus"]
