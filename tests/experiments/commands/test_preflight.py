"""What --mode=preflight answers to a topology, before anything is compiled."""

import importlib.util

import pytest

from experiments.preflight import tpu
from tests.support.paths import ROOT

WORDS = ("--mode=preflight", f"--config={ROOT / 'configs' / 'tiny.py'}")
FIND = importlib.util.find_spec


@pytest.fixture(autouse=True)
def compiler(monkeypatch):
    """Whether TPU's compiler is installed, whatever this machine has."""
    there = [True]

    def find(name, *more):
        if name == "libtpu":
            return there[0] or None
        return FIND(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    return there


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--topology=v5e:3x3",), "v5e has 2 sides, the first two even"),
        (("--topology=tpu",), "must be a topology such as v5e:4x4"),
        (("--topology=v5e:4x4", "--devices=8"), "says what --devices would"),
        (("--topology=v5e:4x4", "--device_gib=8"), "says what --device_gib would"),
        (("--slices=2",), "--slices is of a --topology"),
        (("--topology=v5e:4x4", "--slices=0"), "must be a whole number of at least 1"),
    ],
)
def test_mistakes_are_one_line(more, said, call):
    done = call(*WORDS, *more, code=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and said in line


def test_without_the_compiler_its_command(call, compiler):
    compiler[0] = False
    (line,) = call(*WORDS, "--topology=v5e:2x2", code=2).stderr.splitlines()
    assert line.endswith("python -m pip install -e '.[tpu]'")


def test_a_topology_is_what_is_compiled_for(call, monkeypatch):
    asked = []

    def compiled(experiment, shape, topology, which=tpu.STEP):
        asked.append((shape.image_shape, topology.name, topology.slices, which))
        return tpu.Program(1.0, 2**20, 2**20, cycles={"convolutions": 10**6})

    monkeypatch.setattr(tpu, "compiled", compiled)
    done = call(*WORDS, "--topology=v5e-4", "--slices=2")
    assert asked == [((8, 8, 1), "v5e:2x2", 2, which) for which in (tpu.STEP, tpu.SAMPLER)]
    assert "2 slices of v5e:2x2: 8 chip(s)" in done.stdout
    assert "8 device(s), data layout: 2 images each" in done.stdout
    assert done.stdout.splitlines()[-1] == "this run would work"
