"""What a pickle may hold, do and cost: the values, names and budget of `unpickle`'s machine."""

from __future__ import annotations

import codecs
import dataclasses
from collections.abc import Callable, Mapping

from edm_jax.store.errors import WeightsError, show

MAX_OPCODES = 1 << 19  # a 541-tensor training state takes about 1e5


@dataclasses.dataclass
class Budget:
    """What the streams of one file may cost together.

    Attributes:
      size: of the file, in bytes.
      opcodes: how many may still be run.
      copied: by kind of call, how many bytes or entries have been copied.
    """

    size: int
    opcodes: int = MAX_OPCODES
    copied: dict[str, int] = dataclasses.field(default_factory=dict)

    def step(self) -> None:
        """Account for one opcode."""
        self.opcodes -= 1
        if self.opcodes < 0:
            raise WeightsError(f"more than {MAX_OPCODES} opcodes; no model file needs so many")

    def copy(self, kind: str, count: int) -> None:
        """Account for ``count`` bytes or entries that a call of ``kind`` copies.

        Calls of a real file have arguments of their own, which together fit into it.
        """
        total = self.copied[kind] = self.copied.get(kind, 0) + count
        if total > self.size:
            raise WeightsError(
                f"{kind} of {total} bytes or entries altogether in a file of {self.size} bytes"
            )


class OrderedDictRecord(dict):
    """A collections.OrderedDict; apart so that BUILD is accepted on it only."""

    def shown(self) -> str:
        return f"an OrderedDict of {len(self)}"


class SetRecord(list):
    """A set, kept as a list: nothing in it is hashed."""

    def shown(self) -> str:
        return f"a set of {len(self)}"


@dataclasses.dataclass(frozen=True, eq=False)
class LongText:
    """A text too long to be a name; UTF-8, not decoded."""

    data: memoryview

    def __len__(self) -> int:
        return len(self.data)

    def shown(self) -> str:
        return f"a text of {len(self)} bytes"


@dataclasses.dataclass(frozen=True, eq=False)
class NameToken:
    """A global the reader allows; it refers to nothing."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"

    def shown(self) -> str:
        return f"the name {show(str(self))}"


@dataclasses.dataclass(frozen=True)
class Allowed:
    """What a format may do.

    Attributes:
      calls: (module, name) -> function of the argument tuple, for REDUCE.
      classes: (module, name) -> function without arguments, for NEWOBJ.
      tokens: names that may only be carried along.
      build: accepts an object and a state, for BUILD; raises WeightsError if it may not.
      persistent_id: maps a persistent id to an object; None refuses them.
    """

    calls: Mapping[tuple[str, str], Callable[[tuple], object]] = dataclasses.field(
        default_factory=dict
    )
    classes: Mapping[tuple[str, str], Callable[[], object]] = dataclasses.field(
        default_factory=dict
    )
    tokens: frozenset[tuple[str, str]] = frozenset()
    build: Callable[[object, object], None] | None = None
    persistent_id: Callable[[object], object] | None = None

    def knows(self, name: tuple[str, str]) -> bool:
        return name in self.calls or name in self.classes or name in self.tokens


def encode_latin1(text: object) -> bytes:
    """The bytes that a protocol-2 pickle wrote as a text of code points 0..255."""
    try:
        if isinstance(text, str):
            return text.encode("latin-1")
        if not isinstance(text, LongText):
            raise WeightsError(f"_codecs.encode of {show(text)}, expected a text")
        # In pieces: a decoded text may take four times its length in the file.
        decoder, out, piece = codecs.getincrementaldecoder("utf-8")(), bytearray(), 1 << 20
        for start in range(0, len(text.data), piece):
            part = text.data[start : start + piece]
            out += decoder.decode(part, start + piece >= len(text.data)).encode("latin-1")
        return bytes(out)
    except UnicodeError:
        raise WeightsError("_codecs.encode of a text that is not latin-1") from None
