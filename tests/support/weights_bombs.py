"""Small files whose memo hands one large object to a copying call again and again.

Name -> (bytes, what the refusal must name).  Believed, each of them takes a hundred times
its size in memory, or minutes; a few bytes more per call double that.
"""

from __future__ import annotations

import struct

from tests.support import weights_writer as ww
from tests.support.weights_writer import Global, Raw, dumps

SIZE = 1 << 17
COPIES = 400

_NAME, _ARGUMENT = b"r\0\0\0\x7f", b"r\x01\0\0\x7f"  # LONG_BINPUT of entries no writer uses
_GET_NAME, _GET_ARGUMENT = b"j\0\0\0\x7f", b"j\x01\0\0\x7f"


def _copied(function: Global, argument: bytes, more: bytes = b"") -> bytes:
    """A tuple of the name, the argument, and the name's calls on it and ``more``."""
    name = f"c{function.module}\n{function.name}\n".encode()
    arguments = _GET_ARGUMENT + (more + b"\x86" if more else b"\x85")
    calls = (_GET_NAME + arguments + b"R") * COPIES
    return dumps({"ema": Raw(b"(" + name + _NAME + argument + _ARGUMENT + calls + b"t")})


def _nested() -> bytes:
    """A good stream of an empty storage, but for many entries nobody needs."""
    system = ww.SYSTEM | {"more": Raw(b"(" + b"N" * SIZE + b"t")}
    stream = ww.legacy(ww.pid("0", 0, legacy=True), {"0": (0, b"")}, system=system)
    return b"B" + struct.pack("<I", len(stream)) + stream


def _opcodes() -> bytes:
    """Every stream is small enough; together they run far more opcodes than a file may."""
    system = ww.SYSTEM | {"more": Raw(b"(" + b"N" * SIZE + b"t")}
    stream = ww.legacy(ww.pid("0", 0, legacy=True), {"0": (0, b"")}, system=system)
    calls = [ww.Call(Global("torch.storage", "_load_from_bytes"), (stream,)) for _ in range(6)]
    return dumps({"ema": calls})


def bombs_corpus() -> dict[str, tuple[bytes, str]]:
    text = b"X" + struct.pack("<I", SIZE) + b"a" * SIZE
    latin = b"X\6\0\0\0latin1"
    items = b"](" + b"N" * SIZE + b"e"
    return {
        "bomb of texts": (
            _copied(Global("_codecs", "encode"), text, latin),
            "_codecs.encode of",
        ),
        "bomb of sets": (_copied(Global("builtins", "set"), items), "sets of"),
        "bomb of streams": (
            _copied(Global("torch.storage", "_load_from_bytes"), _nested()),
            "_load_from_bytes of",
        ),
        "bomb of opcodes": (_opcodes(), "more than 524288 opcodes"),
    }
