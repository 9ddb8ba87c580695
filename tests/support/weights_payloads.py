"""What hostile model files are made of.

Payloads would create the file MARKER in the working directory, or worse, if any of them ran.
"""

from __future__ import annotations

import struct

from tests.support import weights_golden as wg
from tests.support import weights_writer as ww
from tests.support.weights_writer import Build, Call, Entry, Global, New, Raw, dumps

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
