"""Where the time of a compiled program goes, by kind of operation (CPU and GPU traces)."""

from __future__ import annotations

import collections
import gzip
import json
import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import Any

import common
import jax


def report(title: str, compiled: Any, call: Callable[[], Any]) -> None:
    """Run once under the profiler and print the time of every kind of operation.

    Args:
      title: of the table.
      compiled: the program, whose text says what each operation is.
      call: runs it.
    """
    kinds = operation_kinds(compiled.as_text())
    jax.block_until_ready(call())
    totals: collections.Counter[str] = collections.Counter()
    for name, seconds in operation_seconds(call):
        if name in kinds:
            totals[kinds[name]] += seconds
    whole = sum(totals.values())
    if not whole:
        print(f"{title}: the profiler recorded no operation")
        return
    print(f"\n{title}: {whole:.3f} s in operations")
    rows = [[kind, f"{s:.3f}", f"{100 * s / whole:.1f} %"] for kind, s in totals.most_common()]
    common.print_table(["operation", "s", "share"], rows)
    print()


def operation_seconds(call: Callable[[], Any]) -> list[tuple[str, float]]:
    """Name and duration of everything the profiler records during one call."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            jax.block_until_ready(call())
        (path,) = pathlib.Path(folder).rglob("*.trace.json.gz")
        with gzip.open(path) as file:
            events = json.load(file)["traceEvents"]
    return [(e["name"], e["dur"] / 1e6) for e in events if e.get("ph") == "X" and "name" in e]


def operation_kinds(hlo: str) -> dict[str, str]:
    """Instruction name -> kind, for the instructions of the entry computation."""
    bodies = {}
    for block in hlo.split("\n\n"):
        match = re.match(r"\s*(?:ENTRY )?%?([\w.\-]+) \(", block)
        if match:
            bodies[match[1]] = block
    (entry,) = (b for b in bodies.values() if b.lstrip().startswith("ENTRY"))
    kinds = {}
    for line in entry.splitlines():
        match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line)
        if match:
            called = re.search(r"calls=%?([\w.\-]+)", line)
            kinds[match[1]] = _kind(match[1], line + (bodies[called[1]] if called else ""))
    return kinds


def _kind(name: str, text: str) -> str:
    if " convolution(" in text:
        # The gradient of a kernel slides an image over an image.
        sizes = re.search(r" convolution\(.*window=\{size=(\d+)x", text)
        if sizes and int(sizes[1]) > 3:
            return "convolution, gradient of kernels"
        backward = "transpose(jvp" in text
        return "convolution, gradient of inputs" if backward else "convolution, forward"
    if " dot(" in text:
        return "matrix product (1x1, linear, attention)"
    if " conditional(" in text or " while(" in text:
        return "loops and branches"
    if " reduce(" in text:
        return "sums"
    if re.match(r"(transpose|copy|concatenate|pad)", name):
        return "copies"
    return "elementwise"
