"""The progress bar: what it prints, when it is silent, broken orders of reports."""

import io
import sys

import jax
import jax.numpy as jnp
import pytest

from edm_jax import progress


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def _drive(bar, reports):
    for done, total in reports:
        bar(done, total)


def test_bar_shows_rate_and_time_left_on_a_terminal(monkeypatch):
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    _drive(progress.ProgressBar("sampling"), [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)])
    shown = terminal.getvalue()
    assert "sampling" in shown and "4/4" in shown and "it/s" in shown and "<" in shown


def test_silent_without_terminal_and_on_other_hosts(monkeypatch):
    plain = io.StringIO()
    monkeypatch.setattr(sys, "stderr", plain)
    _drive(progress.ProgressBar(), [(0, 2), (1, 2), (2, 2)])
    assert plain.getvalue() == ""
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    _drive(progress.ProgressBar(), [(0, 2), (1, 2), (2, 2)])
    assert terminal.getvalue() == ""


def test_a_notebook_shows_it(monkeypatch):
    """Streams of a kernel are no terminals (ipykernel's OutStream.isatty is False)."""
    outstream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})
    monkeypatch.setattr(sys, "stderr", outstream())
    assert not sys.stderr.isatty() and progress.is_watched()
    _drive(progress.ProgressBar(), [(0, 2), (1, 2), (2, 2)])
    assert "2/2" in sys.stderr.getvalue()


def test_late_repeated_and_second_runs(monkeypatch):
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = progress.ProgressBar()
    _drive(bar, [(0, 3), (0, 3), (2, 3), (1, 3), (1, 3), (3, 3), (3, 3)])
    assert bar._bar is None
    _drive(bar, [(0, 3), (1, 3)])
    assert bar._bar.n == 1
    _drive(bar, [(0, 5), (5, 5)])  # an aborted run does not disturb the next
    assert bar._bar is None and "5/5" in terminal.getvalue()


def test_choices():
    report = lambda done, total: None  # noqa: E731
    assert progress.reporter(False) is None and progress.reporter(report) is report
    assert isinstance(progress.reporter(True), progress.ProgressBar)
    with pytest.raises(ValueError, match="progress must be"):
        progress.reporter("yes")


def test_missing_tqdm_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match="pip install tqdm"):
        progress.reporter(True)


def test_scan_counts_and_stacks():
    seen = []
    step = lambda total, x: (total + x, 2 * x)  # noqa: E731
    run = jax.jit(lambda x: progress.scan(step, 0, (x,), lambda *a: seen.append(a)))
    total, doubled = run(jnp.arange(4))
    jax.effects_barrier()
    assert int(total) == 6 and doubled.tolist() == [0, 2, 4, 6]
    assert sorted(seen) == [(i, 4) for i in range(5)]
    quiet = jax.jit(lambda x: progress.scan(step, 0, (x,))).lower(jnp.arange(4)).as_text()
    assert "callback" not in quiet
