"""What a compiled program says of itself: cycles by kind of operation, and collectives.

XLA for TPU writes, into the optimised text of a program (``compiled.as_text()``), how many
cycles it expects each operation to take.  Their sum, loops counted as often as they turn, is the
compiler's estimate of the time on one device.  It is an estimate: data on the move
between memories is taken to be there in time, and collectives have no cycles at all.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

# Kinds of operation, as `Reading.cycles` has them.
CONVOLUTIONS, ATTENTION, NORMS = "convolutions", "attention", "norms"
PRODUCTS, COPIES, REST, OUTSIDE = "matrix products", "copies", "elementwise", "outside the network"
KINDS = (CONVOLUTIONS, ATTENTION, NORMS, PRODUCTS, COPIES, REST, OUTSIDE)

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Sent to the hosts of other slices of chips, by the network of the data centre.
BETWEEN_SLICES = "between slices"

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_KERNEL = re.compile(r"/(\w+)/pallas_call$")
_OPERANDS = re.compile(r"operand_layout_constraints=\{(.*?)\}, frontend")
_NAME = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(r"(calls|body|condition|to_apply|branch_computations)=(\{[^}]*\}|%[\w.\-]+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_BOUND = re.compile(r"compare\([^)]*\), direction=(LT|GT|LE)")
_CONSTANT = re.compile(r"^\s+%?[\w.\-]+ = s(?:32|64)\[\]\S* constant\((\d+)\)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
      result: type of its value, such as ``f32[3,3]{1,0}``, or a tuple of such.
      opcode: what it is.
      text: the whole line.
    """

    result: str
    opcode: str
    text: str

    @property
    def name(self) -> str:
        """The path of calls that it comes from, such as ``jit(f)/SongUNet/norm0/mul``."""
        found = _NAME.search(self.text)
        return found[1] if found else ""

    @property
    def cycles(self) -> int:
        """Those that the compiler expects, of one execution."""
        found = _CYCLES.search(self.text)
        return int(found[1]) if found else 0

    @property
    def kernel(self) -> Kernel | None:
        """The kernel that it runs, if it does."""
        name = _KERNEL.search(self.name)
        if self.opcode != "custom-call" or '"tpu_custom_call"' not in self.text or not name:
            return None
        operands = _OPERANDS.search(self.text)
        arrays = _ARRAY.findall(operands[1]) if operands else []
        return Kernel(name[1], tuple(
            (dtype, tuple(int(n) for n in shape.split(",") if n)) for dtype, shape in arrays
        ))  # fmt: skip

    def called(self, role: str) -> list[str]:
        """Names of the computations that it calls as ``calls``, ``body`` and so on."""
        return [
            name
            for key, names in _CALLED.findall(self.text)
            if key == role
            for name in re.findall(r"[\w.\-]+", names)
        ]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A program within a program, beside which the compiler writes no cycles unasked.

    Attributes:
      name: that it was given.
      operands: ``(dtype, shape)`` of each, the dtype as XLA writes it.
    """

    name: str
    operands: tuple[tuple[str, tuple[int, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of a kind in one execution of a program, on one device.

    Attributes:
      count: how many are started.
      nbytes: of their results.
    """

    count: int = 0
    nbytes: int = 0


@dataclasses.dataclass(frozen=True)
class Reading:
    """What was read.

    Attributes:
      cycles: by kind of operation, of KINDS, on one device.
      collectives: by kind, of COLLECTIVES and BETWEEN_SLICES.
      open_loops: loops whose number of turns is not known; they are counted once.
      uncounted: kernels whose cycles are not known, and missing.
    """

    cycles: dict[str, int]
    collectives: dict[str, Collective]
    open_loops: int
    uncounted: int = 0

    @property
    def total(self) -> int:
        """All cycles."""
        return sum(self.cycles.values())


def array_bytes(result: str) -> int:
    """Bytes of the arrays of a type, those of a tuple together."""
    total = 0
    for kind, shape in _ARRAY.findall(result):
        bits = 8 if kind == "pred" else int(re.search(r"\d+", kind)[0])
        total += bits * math.prod(int(n) for n in shape.split(",") if n)
    return total // 8


def kernels(text: str) -> set[Kernel]:
    """Those of a program that the compiler did not count."""
    computations, _ = _computations(text)
    return {
        one.kernel
        for lines in computations.values()
        for one in lines
        if one.kernel is not None and not one.cycles
    }


def read(text: str, network: str = "", counted: Mapping[Kernel, int] | None = None) -> Reading:
    """Read the optimised text of a program.

    Args:
      text: of ``compiled.as_text()``.
      network: the part of an operation's path that all of the network have, such as the name
        of its class; where it is missing, an operation is "outside the network".
      counted: cycles of its kernels (`kernels`).

    Raises:
      ValueError: if there is no program in the text.
    """
    computations, entry = _computations(text)
    if not entry:
        raise ValueError("text must be that of a compiled program: it has no ENTRY")
    cycles = collections.Counter[str]()
    sums = {name: [0, 0] for name in (*COLLECTIVES, BETWEEN_SLICES)}
    open_loops, uncounted = 0, 0

    def cycles_of(one: Instruction) -> int:
        return one.cycles or (counted or {}).get(one.kernel, 0)

    @functools.cache
    def weight(name: str) -> int:
        return sum(cycles_of(one) * n for one, n, _ in _walk(computations, name, 1, weight))

    for one, times, turns_known in _walk(computations, entry, 1, weight):
        open_loops += not turns_known
        inner = [part for name in one.called("calls") for part in computations.get(name, [])]
        if expected := cycles_of(one):
            cycles[kind_of(one, inner, network)] += expected * times
        elif one.kernel is not None:
            uncounted += 1
        for part in (one, *(inner if one.opcode == "fusion" else ())):
            if kind := _collective_of(part):
                sums[kind][0] += times
                sums[kind][1] += times * array_bytes(_moved(part))
    return Reading(
        cycles={kind: cycles[kind] for kind in KINDS if cycles[kind]},
        collectives={kind: Collective(*pair) for kind, pair in sums.items() if pair[0]},
        open_loops=open_loops,
        uncounted=uncounted,
    )


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Instructions by computation, and the name of the one that is run."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            if head := _HEAD.match(line):
                current = computations.setdefault(head[2], [])
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif found := _INSTRUCTION.match(line):
            current.append(Instruction(found[2], found[3], line))
    return computations, entry


def _walk(computations: dict, name: str, times: int, weight) -> Iterator[tuple]:
    """``(instruction, how often it runs, whether that is known)`` of a computation and what it
    calls; of the branches of a condition the one with most cycles."""
    for one in computations.get(name, []):
        turns = _turns(computations, one) if one.opcode == "while" else 1
        yield one, times, turns is not None
        if one.opcode == "while":
            for body in one.called("body"):
                yield from _walk(computations, body, times * (turns or 1), weight)
        elif one.opcode == "conditional":
            branches = one.called("branch_computations")
            if branches:
                yield from _walk(computations, max(branches, key=weight), times, weight)
        elif one.opcode in ("call", "async-start"):
            for called in one.called("to_apply") + one.called("calls"):
                yield from _walk(computations, called, times, weight)


def _turns(computations: dict, loop: Instruction) -> int | None:
    """How often a loop turns that counts up from 0 to a constant; None if it is another."""
    for name in loop.called("condition"):
        lines = [one.text for one in computations.get(name, [])]
        bounds = [int(found[1]) for line in lines if (found := _CONSTANT.match(line))]
        compared = [found[1] for line in lines if (found := _BOUND.search(line))]
        if len(bounds) == 1 and compared in (["LT"], ["GT"]):
            return bounds[0]
    return None


def _collective_of(one: Instruction) -> str | None:
    if one.opcode == "send" and "is_host_transfer=true" in one.text:
        return BETWEEN_SLICES
    kind = one.opcode.removesuffix("-start")
    return kind if kind in COLLECTIVES else None


def _moved(one: Instruction) -> str:
    """The part of a collective's type that is its result."""
    # A -start has (operands, results, ...); the results alone where both are single arrays.
    arrays = _ARRAY.findall(one.result)
    if one.opcode.endswith("-start") and one.opcode != "all-reduce-start" and len(arrays) >= 2:
        kind, shape = arrays[1]
        return f"{kind}[{shape}]"
    if one.opcode == "send":
        kind, shape = arrays[0]
        return f"{kind}[{shape}]"
    return one.result


def kind_of(one: Instruction, inner: list[Instruction], network: str) -> str:
    """The kind of an operation, of KINDS.

    Args:
      one: the operation.
      inner: what it is made of, if it is a fusion.
      network: see `read`.
    """
    names = [part.name for part in inner if part.opcode in ("convolution", "dot")]
    path = "/".join([one.name, *names])
    if network and network not in path:
        return OUTSIDE
    if any(name.endswith("conv_general_dilated") for name in names) or (
        one.opcode == "convolution" and one.name.endswith("conv_general_dilated")
    ):
        return CONVOLUTIONS
    if re.search(r"/(qkv|proj|norm2)\b|\._attend/|dot_product_attention", path):
        return ATTENTION
    if re.search(r"/(norm\d|\w+_norm)\b", path):
        return NORMS
    if names or one.opcode in ("convolution", "dot"):
        return PRODUCTS
    moves = {"copy", "transpose", "bitcast", "parameter", "concatenate", "reshape"}
    if {part.opcode for part in (inner or [one])} <= moves:
        return COPIES
    return REST
