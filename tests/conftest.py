"""Shared test settings: 8 fake CPU devices, strict ranks, golden arrays."""

import os

# Read by the XLA client when it starts, so it must be set before jax is used.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests run tiny networks once or twice: what they wait for is the compiler.  Without its costly
# passes it takes half as long.  JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests what users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import atexit
import collections
import json
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


def pytest_collection_modifyitems(items):
    """Files with the most slow tests first: at the end there are only short ones to share out."""
    slow = collections.Counter(i.path for i in items if i.get_closest_marker("slow"))
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
