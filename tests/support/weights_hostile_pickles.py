"""Hostile pickles: name -> (bytes, what the refusal must name)."""

from __future__ import annotations

import struct

import numpy as np

from tests.support import weights_writer as ww
from tests.support.weights_payloads import (
    ARGUMENTS,
    ARRAYS,
    CLASS_NAME,
    COMMAND,
    MARKER,
    bytes_of,
    doubling,
    in_legacy,
    in_snapshot,
    in_zip,
    module_cycle,
    one_tensor,
    with_arguments,
    with_network,
)
from tests.support.weights_writer import Build, Call, Global, New, Pid, Raw, dumps


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
        "torch.ComplexHalfStorage": Global("torch", "ComplexHalfStorage"),
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
