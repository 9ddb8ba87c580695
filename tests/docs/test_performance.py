"""docs/performance.md names flags, topologies, options and programs that exist."""

import re

from configs import base
from experiments import commands
from experiments.config.groups import flatten
from experiments.preflight import topologies
from tests.support.paths import ROOT

TEXT = (ROOT / "docs" / "performance.md").read_text()


def test_flags_and_options_exist():
    known = {f.name for mode in commands.names() for f in commands.load(mode).FLAGS}
    # XLA's own, and those of benchmarks.
    others = {"mode", "xla_gpu_deterministic_ops", "xla_force_host_platform_device_count"}
    others |= {"parts", "nets", "batch"}
    assert set(re.findall(r"--(\w+)", TEXT)) <= known | others
    options = set(flatten(base.get_config().to_dict()))
    assert set(re.findall(r"config\.([a-z_]+\.\w+)", TEXT)) <= options


def test_topologies_exist():
    names = set(re.findall(r"\bv\d[ep]?(?::[\dx]+|-\d+)", TEXT))
    assert len(names) >= 4 and all(topologies.parse(name) for name in names)


def test_programs_exist():
    for path in re.findall(r"`(?:python )?((?:benchmarks|tests)/[\w/.]+)`", TEXT):
        assert (ROOT / path).exists(), path
