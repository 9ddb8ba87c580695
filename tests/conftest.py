"""Shared test settings: 8 fake CPU devices, strict ranks, golden arrays."""

import os

from tests.support import compiler

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests run tiny networks once or twice: what they wait for is the compiler.  Without its costly
# passes it takes a quarter of the time.  JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests what users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Read by the XLA client when it starts, so it must be set before jax is used.
os.environ["XLA_FLAGS"] = compiler.flags()

import atexit
import collections
import gc
import json
import pathlib
import shutil
import tempfile

import jax
import numpy as np
import pytest

from edm_jax.model import Model
from tests.support.command_line import (  # noqa: F401  (fixtures)
    call,
    command,
    environment,
    one_device,
    run_dir,
)
from tests.support.old_run import old_run  # noqa: F401  (fixture)
from tests.support.paths import GOLDEN

jax.config.update("jax_numpy_rank_promotion", "raise")

# What one process has compiled the others need not: workers inherit the directory.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.mkdtemp(prefix="edm_jax-compiled-")
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


# Tracing makes objects by the million that live on; looking through them again and again, as by
# default, takes a tenth of the time.
gc.set_threshold(50_000, 20, 20)

# What a process may hold when a file begins, in GiB.  Programs of thousands of tests would fill
# the memory, and the garbage collector looks through all that jax keeps of them.
_MEMORY = 2.0


def pytest_runtest_teardown(item, nextitem):
    """Between files: forget what was compiled, once it is much."""
    statm = pathlib.Path("/proc/self/statm")  # Linux; elsewhere nothing is forgotten
    if nextitem is not None and nextitem.path != item.path and statm.exists():
        pages = int(statm.read_text().split()[1])
        if pages * os.sysconf("SC_PAGE_SIZE") > _MEMORY * 2**30:
            jax.clear_caches()
            gc.collect()


def pytest_collection_modifyitems(items):
    """Files with the most slow tests first: at the end there are only short ones to share out."""
    long = ("slow", "soak")
    slow = collections.Counter(i.path for i in items for m in long if i.get_closest_marker(m))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def golden():
    """Loads tests/golden/<name>.npz (origin: tests/golden/README.md)."""
    return lambda name: np.load(GOLDEN / f"{name}.npz")


@pytest.fixture(scope="session")
def golden_json():
    """Reads a 0-d string entry holding JSON."""
    return lambda archive, name: json.loads(str(archive[name]))


@pytest.fixture
def traces(monkeypatch):
    """Grows whenever a program that draws images is traced."""
    seen, denoiser = [], Model.denoiser

    def counted(self, *args, **options):
        seen.append(self)
        return denoiser(self, *args, **options)

    monkeypatch.setattr(Model, "denoiser", counted)
    return seen


@pytest.fixture
def x64():
    """64-bit mode for the length of a test."""
    with jax.enable_x64(True):
        yield
