"""The program as a user starts it, and what two runs must share."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from edm_jax.store import checkpoints
from experiments import compilation_cache, main
from tests.support import compiler
from tests.support.paths import ROOT

MAIN = ROOT / "experiments" / "main.py"


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """One CPU device, no tensorflow, and compiled programs shared by the processes of the tests."""
    return os.environ | {
        "XLA_FLAGS": compiler.with_devices(1),
        "PYTHONPATH": str(ROOT / "tests" / "support" / "without_tensorflow"),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture(scope="session")
def command(environment):
    """Runs the program in a process of its own, as a user does; returns it finished."""

    def run(*arguments, code=0, cwd=None):
        done = subprocess.run(
            [sys.executable, str(MAIN), *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=cwd,
            timeout=600,
        )
        assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def call(monkeypatch):
    """Runs the program in this process, which costs no start; returns what `command` does.

    What it sets for its whole process (programs kept on disk) is left out.
    """
    monkeypatch.setattr(compilation_cache, "enable", lambda value: None)

    def run(*arguments, code=0, cwd=None):
        out, err = io.StringIO(), io.StringIO()
        words = ["main.py", *map(str, arguments)]
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.chdir(cwd or os.getcwd()))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            handler = signal.getsignal(signal.SIGTERM)
            try:
                returned = main.main(words)
            finally:
                signal.signal(signal.SIGTERM, handler)
        done = subprocess.CompletedProcess(words, returned, out.getvalue(), err.getvalue())
        assert returned == code, f"{returned}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def one_device(monkeypatch):
    """A run in this process sees one device, as on a laptop: on eight it takes thrice as long."""
    first = jax.devices()[:1]
    for name in ("devices", "local_devices"):
        monkeypatch.setattr(jax, name, lambda *arguments, **options: first)
    for name in ("device_count", "local_device_count"):
        monkeypatch.setattr(jax, name, lambda *arguments, **options: 1)


@pytest.fixture(scope="session")
def run_dir(command, tmp_path_factory):
    """A finished tiny run, trained from another directory by a relative config path."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    done = command(
        "--config=configs/tiny.py", f"--workdir={path}", cwd=tmp_path_factory.mktemp("elsewhere")
    )
    (path / "stdout.txt").write_text(done.stdout)
    return path


# What depends on the machine, not on the run.
OF_THE_MACHINE = {"images_per_second", "memory_gib", "tflops_per_device", "mfu"}


def start(environment, *arguments, prefix=(), **options):
    """The program in the background, after the words of ``prefix``; silent unless told."""
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(
        [*prefix, sys.executable, str(MAIN), *map(str, arguments)],
        **{"env": environment, "cwd": ROOT, "text": True, **silent, **options},
    )


def metric_rows(path):
    """Lines of metrics.jsonl so far, without what depends on the machine."""
    file = path / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{k: v for k, v in row.items() if k not in OF_THE_MACHINE} for row in whole]


def wait_until(condition, process, seconds=300):
    """Poll until ``condition()``; false if the process ended first."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return True


def final_arrays(path):
    """Name of the newest checkpoint, and its arrays."""
    newest = checkpoints.checkpoint_steps(path / "checkpoints")[-1]
    return newest.name, [checkpoints.read_arrays(newest, i) for i in ("params", "ema", "train")]


def assert_same_run(a, b):
    """Same weights, optimizer, averages, metrics and pictures, bit for bit."""
    (name_a, arrays_a), (name_b, arrays_b) = final_arrays(a), final_arrays(b)
    assert name_a == name_b
    jax.tree.map(np.testing.assert_array_equal, arrays_a, arrays_b)
    assert metric_rows(a) == metric_rows(b)
    pictures = [sorted(p.name for p in (d / "samples").iterdir()) for d in (a, b)]
    assert pictures[0] == pictures[1]
    for name in pictures[0]:
        assert (a / "samples" / name).read_bytes() == (b / "samples" / name).read_bytes()
