"""The cores of a computer without accelerators as devices."""

import os
import subprocess
import sys

import pytest

from experiments import cores
from tests.support.paths import ROOT

COUNT = "--xla_force_host_platform_device_count"


@pytest.fixture
def fresh(monkeypatch):
    """An environment that says nothing of devices, on a computer of six cores."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.setattr(cores, "_before", None)
    monkeypatch.setattr(cores, "_cores", lambda: 6)
    monkeypatch.setattr(cores, "_several_processes", lambda: False)
    return lambda: os.environ["XLA_FLAGS"].removeprefix("--xla_cpu_enable_fast_math=false").strip()


@pytest.mark.parametrize(("number", "count"), [(1, 1), (2, 2), (3, 2), (6, 4), (64, 8)])
def test_a_power_of_two(fresh, monkeypatch, number, count):
    monkeypatch.setattr(cores, "_cores", lambda: number)
    cores.as_devices()
    assert fresh() == ("" if count == 1 else f"{COUNT}={count}")


@pytest.mark.parametrize(("batch", "count"), [(128, 4), (6, 2), (7, 1)])
def test_they_divide_the_batch(fresh, batch, count):
    cores.as_devices()
    cores.for_batch(batch)
    assert fresh() == ("" if count == 1 else f"{COUNT}={count}")


def test_several_processes_have_one_each(fresh, monkeypatch):
    cores.as_devices()
    monkeypatch.setattr(cores, "_several_processes", lambda: True)
    cores.for_batch(128)
    assert fresh() == f"{COUNT}=4"
    cores.among_processes()
    assert fresh() == ""


@pytest.mark.parametrize(
    ("name", "value"), [("XLA_FLAGS", f"{COUNT}=3"), ("JAX_NUM_CPU_DEVICES", "3")]
)
def test_whoever_chose_has_decided(fresh, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    before = os.environ["XLA_FLAGS"]
    cores.as_devices()
    cores.for_batch(7)
    cores.among_processes()
    assert os.environ["XLA_FLAGS"] == before


def test_jax_sees_them_though_it_was_imported_before():
    """As in training: JAX is there when the batch is known."""
    program = (
        "import jax; from experiments import cores; cores._cores = lambda: 4;"
        "cores.as_devices(); cores.for_batch(6); print(jax.device_count())"
    )
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_NUM_CPU_DEVICES", None)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.stdout.split() == ["2"], done.stderr


# Page faults of 20 allocations of 64 MiB that are written to and freed.
FAULTS = """
import ctypes, resource
from experiments import cores
cores._ACCELERATORS = ({accelerator!r},)
kept = cores.keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
libc.free.argtypes = (ctypes.c_void_p,)
libc.memset.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
def use():
    memory = libc.malloc(1 << 26)
    libc.memset(memory, 1, 1 << 26)
    libc.free(memory)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    use()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not cores._is_glibc(), reason="for glibc")
@pytest.mark.parametrize(
    ("accelerator", "environment", "kept"),
    [
        ("/nowhere", {}, True),
        ("/dev/null", {}, False),
        ("/nowhere", {"MALLOC_ARENA_MAX": "4"}, False),
        ("/nowhere", {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, False),
    ],
)
def test_memory_is_kept_unless_there_are_accelerators_or_settings(accelerator, environment, kept):
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))
    }
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(accelerator=accelerator)],
        capture_output=True, text=True, env={**inherited, **environment}, cwd=ROOT,
    )  # fmt: skip
    said, faults = done.stdout.split()
    assert said == str(kept), done.stderr
    if kept:
        assert int(faults) < 100  # one page or two at 4 KiB; without, 16384 at each of 20


def test_another_c_library(monkeypatch):
    def refuse(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "confstr", refuse)
    assert not cores.keep_memory()
