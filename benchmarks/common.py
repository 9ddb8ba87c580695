"""What the benchmarks share: timing that is meant to be compared within one run."""

from __future__ import annotations

import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

ROOT = pathlib.Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


def compile_timed(function: Callable, *args: Any, **kwargs: Any) -> tuple[Any, float]:
    """Ahead-of-time compilation of a jitted function, and how long it took in seconds."""
    start = time.perf_counter()
    compiled = function.lower(*args, **kwargs).compile()
    return compiled, time.perf_counter() - start


def seconds_per_call(function: Callable[[], Any], *, repeats: int, calls: int = 1) -> float:
    """Median over ``repeats`` of the time of one call, device work included."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            result = function()
        jax.block_until_ready(result)
        times.append((time.perf_counter() - start) / calls)
    return statistics.median(times)


def interleaved(
    functions: Sequence[Callable[[], Any]],
    *,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Median time of each function, measured in turns so that drift hits all alike.

    ``time.process_time`` as the clock counts the work of the cores, whoever else has them.
    """
    for function in functions:
        jax.block_until_ready(function())
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, record in zip(functions, times, strict=True):
            start = clock()
            jax.block_until_ready(function())
            record.append(clock() - start)
    return [statistics.median(record) for record in times]


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Rows of text in aligned columns."""
    text = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in text) for i in range(len(header))]
    for row in text:
        cells = zip(row, widths, strict=True)
        print("  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(cells)))
