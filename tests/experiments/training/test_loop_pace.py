"""How long a step takes is told where it is long, and nobody waits where it is not."""

import types

import pytest

from experiments.training import loop


@pytest.mark.parametrize(
    ("times", "said"),
    [
        # The clock at the start and after the first steps.
        ([0, 3, 5], []),  # the second is not waited for
        ([0, 40, 41], []),  # compiling was long, the step is not
        ([0, 400, 590, 800], ["3m10s"]),
    ],
)
def test_pace(monkeypatch, times, said):
    clock = iter(times)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: next(clock))
    lines, waited = [], []
    monkeypatch.setattr(loop.jax, "block_until_ready", waited.append)
    run = types.SimpleNamespace(status=types.SimpleNamespace(say=lines.append))
    pace = loop._Pace(run)
    for count in (1, 2, 3):
        pace.after(count, types.SimpleNamespace(step=count))
    assert [line.split(";")[0] for line in lines] == [f"a step takes {text}" for text in said]
    assert waited == ([1] if times[1] < loop._Pace.SECONDS else [1, 2])
