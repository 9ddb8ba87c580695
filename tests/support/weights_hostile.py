"""A corpus of hostile and broken model files: name -> (bytes, what the refusal must name)."""

from __future__ import annotations

import zlib

import numpy as np

from tests.support import weights_golden as wg
from tests.support import weights_writer as ww
from tests.support.weights_bombs import bombs_corpus
from tests.support.weights_hostile_pickles import globals_corpus, opcodes_corpus, sizes_corpus
from tests.support.weights_payloads import (
    ARGUMENTS,
    ARRAYS,
    CLASS_NAME,
    COMMAND,
    bytes_of,
    in_snapshot,
    in_zip,
    meta_change,
    safetensors,
    with_arguments,
    with_arrays,
    with_network,
    zip_with,
)
from tests.support.weights_writer import Call, Entry, Global, Pid, dumps


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
