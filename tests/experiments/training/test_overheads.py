"""The training loop never waits for the devices but to log or save, and compiles once."""

import contextlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

from configs import tiny
from experiments.config import build
from experiments.training import loop

# Where the loop may wait: a line, a checkpoint, a grid or an evaluation.
MAY_WAIT = ("_log", "_save", "_require_healthy", "show")
# Functions of NumPy that somebody may call with an array of JAX.
READERS = ("array", "asarray", "asanyarray", "ascontiguousarray", "stack", "concatenate", "copyto",
           "save", "mean", "sum", "max", "min", "isfinite", "isnan", "all", "any")  # fmt: skip
# The first two steps are waited for, to tell of compilation and pace.
FIRST = 2


class Witness:
    """What happened in a run, by the number of steps that were dispatched."""

    def __init__(self):
        self.in_loop, self.steps, self._excused = False, 0, 0
        self.waits, self.excused_waits, self.compiled = [], 0, []

    @contextlib.contextmanager
    def excused(self):
        self._excused += 1
        try:
            with jax.transfer_guard("allow"):
                yield
        finally:
            self._excused -= 1

    def saw_wait(self, what):
        if threading.current_thread() is not threading.main_thread():
            return  # checkpoints are written behind the loop's back
        if self._excused:
            self.excused_waits += 1
        elif self.in_loop and self.steps > FIRST:
            self.waits.append((self.steps, what))

    def saw_compilation(self, event, duration, **more):
        if "backend_compile" in event:
            self.compiled.append((self.steps, more.get("fun_name", "")))


class Counted:
    """A jitted step that counts its calls."""

    def __init__(self, step_fn, witness):
        self._step_fn, self._witness = step_fn, witness
        self.trace = step_fn.trace

    def __call__(self, *args):
        self._witness.steps += 1
        return self._step_fn(*args)


@pytest.fixture
def witness(monkeypatch):
    """Watches arrays of JAX, the compiler and the loop."""
    seen = Witness()
    array = type(jnp.zeros(()))
    value = array._value  # what float(), bool() and device_get() read
    monkeypatch.setattr(
        array, "_value", property(lambda self: (seen.saw_wait("value"), value.fget(self))[1])
    )
    for name in ("block_until_ready", "__array__", "item"):

        def watched(self, *args, original=getattr(array, name), name=name, **kwargs):
            seen.saw_wait(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(array, name, watched)
    # NumPy reads the memory of arrays on CPUs by itself; of several arrays none is asked.
    for module, name in (*((np, name) for name in READERS), (jax, "block_until_ready")):

        def reader(*args, original=getattr(module, name), name=name, **kwargs):
            if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((args, kwargs))):
                seen.saw_wait(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, reader)

    def excused(function):
        def call(*args, **kwargs):
            with seen.excused():
                return function(*args, **kwargs)

        return call

    for name in MAY_WAIT:
        monkeypatch.setattr(loop, name, excused(getattr(loop, name)))
    open_run, inner = loop.open_run, loop._loop

    def opened(*args):
        run, state, step = open_run(*args)
        run.step_fn = Counted(run.step_fn, seen)
        return run, state, step

    def guarded(*args):
        # Nothing is moved to the devices but by asking for it, which batches do.
        seen.in_loop = True
        with jax.transfer_guard_host_to_device("disallow"):
            state = inner(*args)
        seen.in_loop = False
        return state

    monkeypatch.setattr(loop, "open_run", opened)
    monkeypatch.setattr(loop, "_loop", guarded)
    monitoring.register_event_duration_secs_listener(seen.saw_compilation)
    yield seen
    monitoring.unregister_event_duration_listener(seen.saw_compilation)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: float(x[0]),
        lambda x: int(x[0]),
        lambda x: bool(x.sum() > 0),
        lambda x: x[0].item(),
        lambda x: x.tolist(),
        lambda x: f"{x}",
        lambda x: x.block_until_ready(),
        lambda x: jax.block_until_ready(x),
        lambda x: jax.block_until_ready({"a": x, "b": -x}),
        lambda x: jax.device_get([x]),
        lambda x: np.asarray(x),
        lambda x: np.array([x, x]),
        lambda x: np.array(object=x),
        lambda x: np.stack([x, x]),
        lambda x: np.mean(x),
        lambda x: np.isfinite(x),
        lambda x: np.asarray(x.addressable_data(0)),
    ],
)
def test_the_watch_sees_the_usual_ways_to_wait(wait, witness):
    witness.steps, witness.in_loop = FIRST + 1, True
    wait(jnp.arange(3.0) + 1)
    assert witness.waits and not witness.excused_waits
    with witness.excused():
        wait(jnp.arange(3.0) + 1)
    assert witness.excused_waits


def test_the_watch_forbids_transfers():
    x = jnp.arange(3.0)
    with pytest.raises(Exception, match="Disallowed"), jax.transfer_guard("disallow"):
        x + 1.5


@pytest.mark.slow
def test_a_run_waits_for_nothing_and_compiles_once(witness, tmp_path):
    config = tiny.get_config()
    # 30 steps of 16 images: a line every 5, everything else every 10.
    config.train.update(log_kimg=0.08, sample_kimg=0.16, checkpoint_kimg=0.16)
    config.evaluation.update(every_kimg=0.16, num_images=20, metrics=("frechet_pixels",))
    loop.train(build.experiment(config), tmp_path / "run")
    assert witness.steps == 30
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 4
    assert witness.waits == []
    assert witness.excused_waits > 0  # the watch was on
    # The first ten steps with their grid and evaluation compile; the next do not.
    assert [(step, name) for step, name in witness.compiled if 10 < step < 30] == []
    assert any(step == 10 for step, _ in witness.compiled)
