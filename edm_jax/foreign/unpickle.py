"""An allow-list reader of pickles that executes nothing.

A pickle is a program for a small stack machine: some opcodes import names, call them and
write into the results.  This module runs the opcodes that data needs on a machine of its
own, in which every name is an inert token.  A token is "called" only through the table
of plain functions the format's reader passes in; there is no import, no attribute access
and no call of anything that comes from the file.

What is not needed is refused, with its name: every other global, persistent ids where
none belong, and the opcodes outside `_ACTIONS` (INST, OBJ, EXT*, NEWOBJ_EX, BYTEARRAY8,
out-of-band buffers, and the text opcodes of protocols 0 and 1).

Memory stays bounded by the file.  Byte strings and long texts are views of the input,
sizes are checked against what is left of it before anything is made, memo indices are
dictionary keys (never array positions), and a `Budget` for all streams of a file caps the
number of small Python objects at some tens of megabytes, and what calls copy at its size.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from edm_jax.foreign.allowed import (
    Allowed,
    Budget,
    LongText,
    NameToken,
    OrderedDictRecord,
    SetRecord,
)
from edm_jax.store.errors import WeightsError, show

_LONG_TEXT = 1 << 16  # longer texts stay undecoded
_LONG_NAME = 512
_MAX_INT_BYTES = 16  # the largest integer of the formats is a magic number of 10 bytes


class Unpickler:
    """Runs one pickle of protocol 2 to 5.

    Args:
      data: the bytes of the file.
      allowed: names, persistent ids and states that are accepted.
      budget: of the file, shared by its streams; by default of ``data`` alone.
      start: position of the PROTO opcode.
      what: name of the stream for messages.
    """

    def __init__(
        self,
        data: memoryview,
        allowed: Allowed,
        budget: Budget | None = None,
        *,
        start: int = 0,
        what: str = "pickle",
    ) -> None:
        self._data = data
        self._budget = budget or Budget(len(data))
        self._allowed = allowed
        self._what = what
        self._position = self._opcode_at = start
        self._frame_end = start
        self._stack: list = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}

    @property
    def position(self) -> int:
        """Where the next unread byte is; after `load` the end of the pickle."""
        return self._position

    def load(self) -> object:
        """Run to STOP and return the object.

        Raises:
          WeightsError: anything refused, inconsistent or cut off; names the offender.
        """
        try:
            return self._run()
        except WeightsError as error:
            where = f"{self._what}, byte {self._opcode_at}"
            raise WeightsError(f"{where}: {error}") from None

    def _run(self) -> object:
        if len(self._data) - self._position < 2 or self._data[self._position] != 0x80:
            raise WeightsError("no pickle of protocol 2 to 5 starts here")
        protocol = self._data[self._position + 1]
        if not 2 <= protocol <= 5:
            raise WeightsError(f"pickle protocol {protocol}, expected 2 to 5")
        self._position += 2
        while True:
            self._budget.step()
            self._opcode_at = self._position
            code = self._take(1)[0]
            if code == 0x2E:  # STOP
                if len(self._stack) != 1 or self._marks:
                    raise WeightsError(f"STOP with {len(self._stack)} objects, expected 1")
                return self._stack.pop()
            action = _ACTIONS.get(code)
            if action is None:
                self._refuse(code)
            action(self)

    def _refuse(self, code: int) -> None:
        import pickletools

        info = pickletools.code2op.get(chr(code))
        if info is None:
            raise WeightsError(f"byte 0x{code:02x} is no pickle opcode")
        detail = ""
        if info.name == "INST":
            detail = f" of {self._line()}.{self._line()}"
        elif info.name == "PERSID":
            detail = f" {self._line()!r}"
        elif info.name.startswith("EXT"):
            detail = f" {self._uint({'EXT1': 1, 'EXT2': 2}.get(info.name, 4))}"
        raise WeightsError(f"opcode {info.name}{detail} is refused: no model file needs it")

    # ------------------------------------------------------------ input

    def _take(self, count: int) -> memoryview:
        left = len(self._data) - self._position
        if count > left:
            raise WeightsError(f"cut off: {count} bytes needed, {left} left")
        self._position += count
        return self._data[self._position - count : self._position]

    def _uint(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _line(self) -> str:
        piece = bytes(self._data[self._position : self._position + _LONG_NAME])
        line, newline, _ = piece.partition(b"\n")
        if not newline:
            raise WeightsError(f"a name without end, or longer than {_LONG_NAME} bytes")
        self._position += len(line) + 1
        return _decode(line)

    # ------------------------------------------------------------ stack

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop(self) -> object:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise WeightsError("an opcode takes more from the stack than is there")
        return self._stack.pop()

    def _top(self) -> object:
        value = self._pop()
        self._stack.append(value)
        return value

    def _pop_to_mark(self) -> list:
        if not self._marks:
            raise WeightsError("an opcode needs a MARK, there is none")
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    # ------------------------------------------------------------ opcodes

    def _mark(self) -> None:
        self._marks.append(len(self._stack))

    def _frame(self) -> None:
        size = self._uint(8)
        if self._opcode_at < self._frame_end:
            raise WeightsError("a frame inside a frame")
        if size > len(self._data) - self._position:
            left = len(self._data) - self._position
            raise WeightsError(f"cut off: a frame of {size} bytes, {left} left")
        self._frame_end = self._position + size

    def _text(self, size_of_length: int) -> None:
        data = self._take(self._uint(size_of_length))
        self._push(LongText(data) if len(data) > _LONG_TEXT else _decode(data))

    def _bytes(self, size_of_length: int) -> None:
        self._push(self._take(self._uint(size_of_length)))

    def _long(self, size_of_length: int) -> None:
        size = self._uint(size_of_length)
        if size > _MAX_INT_BYTES:
            raise WeightsError(f"an integer of {size} bytes, at most {_MAX_INT_BYTES} allowed")
        self._push(int.from_bytes(self._take(size), "little", signed=True))

    def _tuple(self, size: int) -> None:
        items = [self._pop() for _ in range(size)]
        self._push(tuple(reversed(items)))

    def _append_to(self, kind: type, items: list) -> None:
        target = self._top()
        if type(target) is not kind:
            raise WeightsError(f"items are added to {show(target)}")
        target.extend(items)

    def _set_items(self, items: list) -> None:
        target = self._top()
        if type(target) is not dict and type(target) is not OrderedDictRecord:
            raise WeightsError(f"entries are set in {show(target)}")
        if len(items) % 2:
            raise WeightsError("entries are set with an odd number of objects")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Nothing but texts and short integers is hashed or compared.
            if type(key) is not str and not (type(key) is int and abs(key) < 2**63):
                raise WeightsError(f"a dictionary key is {show(key)}, expected a text or integer")
            if key in target:
                raise WeightsError(f"dictionary key {show(key)} appears twice")
            target[key] = value

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _append(self) -> None:
        item = self._pop()
        self._append_to(list, [item])

    def _memo_get(self, size: int) -> None:
        index = self._uint(size)
        if index not in self._memo:
            raise WeightsError(f"memo entry {index} does not exist")
        self._push(self._memo[index])

    def _memo_put(self, size: int) -> None:
        self._memo[self._uint(size)] = self._top()

    def _memoize(self) -> None:
        self._memo[len(self._memo)] = self._top()

    def _global(self) -> None:
        module = self._line()
        self._push_name(module, self._line())

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if type(module) is not str or type(name) is not str:
            raise WeightsError(f"STACK_GLOBAL of {show(module)} and {show(name)}")
        self._push_name(module, name)

    def _push_name(self, module: str, name: str) -> None:
        if not self._allowed.knows((module, name)):
            full = show(f"{module}.{name}")
            raise WeightsError(f"global {full} is refused; it is no part of this format")
        self._push(NameToken(module, name))

    def _pop_call(self, table: Mapping, opcode: str) -> tuple[Callable, tuple]:
        arguments, callee = self._pop(), self._pop()
        if type(callee) is not NameToken:
            raise WeightsError(f"{opcode} calls {show(callee)}, which is no name")
        function = table.get((callee.module, callee.name))
        if function is None:
            raise WeightsError(f"{opcode} of {callee} is refused")
        if type(arguments) is not tuple:
            raise WeightsError(f"{opcode} of {callee} with {show(arguments)} for arguments")
        return function, arguments

    def _reduce(self) -> None:
        function, arguments = self._pop_call(self._allowed.calls, "REDUCE")
        self._push(function(arguments))

    def _newobj(self) -> None:
        function, arguments = self._pop_call(self._allowed.classes, "NEWOBJ")
        if arguments:
            raise WeightsError("NEWOBJ with arguments is refused")
        self._push(function())

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if self._allowed.build is None:
            raise WeightsError(f"BUILD of {show(target)} is refused")
        self._allowed.build(target, state)

    def _persistent(self) -> None:
        identifier = self._pop()
        if self._allowed.persistent_id is None:
            raise WeightsError(f"a persistent id ({show(identifier)}) where none belongs")
        self._push(self._allowed.persistent_id(identifier))


def _decode(data: bytes | memoryview) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise WeightsError("a text that is not UTF-8") from None


def _signed(machine: Unpickler) -> None:
    machine._push(int.from_bytes(machine._take(4), "little", signed=True))


# Opcodes by value; the comments are their names in the pickletools module.
_ACTIONS: dict[int, Callable[[Unpickler], None]] = {
    0x95: Unpickler._frame,  # FRAME
    ord("("): Unpickler._mark,  # MARK
    ord("N"): lambda m: m._push(None),  # NONE
    0x88: lambda m: m._push(True),  # NEWTRUE
    0x89: lambda m: m._push(False),  # NEWFALSE
    ord("J"): _signed,  # BININT
    ord("K"): lambda m: m._push(m._uint(1)),  # BININT1
    ord("M"): lambda m: m._push(m._uint(2)),  # BININT2
    0x8A: lambda m: m._long(1),  # LONG1
    0x8B: lambda m: m._long(4),  # LONG4
    ord("G"): lambda m: m._push(struct.unpack(">d", m._take(8))[0]),  # BINFLOAT
    0x8C: lambda m: m._text(1),  # SHORT_BINUNICODE
    ord("X"): lambda m: m._text(4),  # BINUNICODE
    0x8D: lambda m: m._text(8),  # BINUNICODE8
    ord("C"): lambda m: m._bytes(1),  # SHORT_BINBYTES
    ord("B"): lambda m: m._bytes(4),  # BINBYTES
    0x8E: lambda m: m._bytes(8),  # BINBYTES8
    ord("]"): lambda m: m._push([]),  # EMPTY_LIST
    ord("a"): Unpickler._append,  # APPEND
    ord("e"): lambda m: m._append_to(list, m._pop_to_mark()),  # APPENDS
    ord("}"): lambda m: m._push({}),  # EMPTY_DICT
    ord("s"): Unpickler._set_item,  # SETITEM
    ord("u"): lambda m: m._set_items(m._pop_to_mark()),  # SETITEMS
    0x8F: lambda m: m._push(SetRecord()),  # EMPTY_SET
    0x90: lambda m: m._append_to(SetRecord, m._pop_to_mark()),  # ADDITEMS
    ord(")"): lambda m: m._push(()),  # EMPTY_TUPLE
    0x85: lambda m: m._tuple(1),  # TUPLE1
    0x86: lambda m: m._tuple(2),  # TUPLE2
    0x87: lambda m: m._tuple(3),  # TUPLE3
    ord("t"): lambda m: m._push(tuple(m._pop_to_mark())),  # TUPLE
    ord("h"): lambda m: m._memo_get(1),  # BINGET
    ord("j"): lambda m: m._memo_get(4),  # LONG_BINGET
    ord("q"): lambda m: m._memo_put(1),  # BINPUT
    ord("r"): lambda m: m._memo_put(4),  # LONG_BINPUT
    0x94: Unpickler._memoize,  # MEMOIZE
    ord("c"): Unpickler._global,  # GLOBAL
    0x93: Unpickler._stack_global,  # STACK_GLOBAL
    ord("R"): Unpickler._reduce,  # REDUCE
    0x81: Unpickler._newobj,  # NEWOBJ
    ord("b"): Unpickler._build,  # BUILD
    ord("Q"): Unpickler._persistent,  # BINPERSID
}
