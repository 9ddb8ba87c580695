"""Names of TPU topologies, and figures of their chips that must agree with each other."""

import importlib.util

import jax
import pytest

from experiments.preflight import topologies
from experiments.training.monitor import peak_tflops


@pytest.mark.parametrize(
    ("text", "slices", "name", "chips", "devices"),
    [
        ("v5e:4x4", 1, "v5e:4x4", 16, 16),
        ("v5e-16", 1, "v5e:4x4", 16, 16),
        ("v5litepod-16", 1, "v5e:4x4", 16, 16),
        ("V6E-16", 2, "v6e:4x4", 32, 32),
        ("v5p-8", 1, "v5p:2x2x1", 4, 4),  # counts cores, two a chip
        ("v4-16", 1, "v4:2x2x2", 8, 8),  # both cores of a chip are one device
        ("tpu7x-16", 1, "tpu7x:2x2x2", 8, 16),  # each core is one
        ("v5e:1x1", 1, "v5e:1x1", 1, 1),
    ],
)
def test_names(text, slices, name, chips, devices):
    found = topologies.parse(text, slices)
    assert (found.name, found.chips, found.devices) == (name, chips, devices)
    assert found.options().get("num_slices", 1) == slices
    assert ("chips_per_host_bounds" in found.options()) == (chips == 1)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("v9:4x4", "the chips are v4, v5e"),
        ("pod", "the chips are v4, v5e"),
        ("", "the chips are v4, v5e"),
        ("v6e", "after the chip comes"),
        ("v5e:4x4x", "after the chip comes"),
        ("v5e:3x3", "the first two even"),
        ("v5p:4x4", "has 3 sides"),
        ("v5e:0x4", "has 2 sides"),
        ("v5e-17", "there are v5e-1, v5e-4"),
        ("v5p-9", "there are v5p-8"),
    ],
)
def test_unknown_ones_are_told_what_there_is(text, why):
    with pytest.raises(ValueError, match="v5e:4x4") as caught:
        topologies.parse(text)
    message = str(caught.value)
    assert why in message and repr(text) in message and "\n" not in message


def test_without_the_compiler_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install"):
        topologies.require_compiler()


def test_jax_does_not_look_for_tpus_of_this_machine(monkeypatch):
    before = jax.config.jax_platforms
    try:
        monkeypatch.setenv("JAX_PLATFORMS", "cpu,tpu")
        topologies.leave_chips_alone()
        assert jax.config.jax_platforms == before  # whoever set it wants it
        monkeypatch.delenv("JAX_PLATFORMS")
        jax.config.update("jax_platforms", None)
        topologies.leave_chips_alone()
        assert jax.config.jax_platforms == "cpu"
    finally:
        jax.config.update("jax_platforms", before)


def test_clocks_that_peak_and_matrix_units_imply():
    # As published, or as the compiler's own count implies: a product of 4096x4096 matrices in
    # bfloat16 is expected to take 1.083, 0.545, 0.302 and 0.597 million cycles, which is 88 to
    # 98 % of the peak at these clocks.
    cycles = {"v5e": 1083068, "v5p": 544925, "v6e": 301616, "v4": 596564}
    clocks = {"v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9, "v4": 1.05e9}
    for family, count in cycles.items():
        chip = topologies.CHIPS[family]
        assert chip.hertz == pytest.approx(clocks[family], rel=0.003)
        share = 2 * 4096**3 / (count / chip.hertz) / (chip.tflops * 1e12 / chip.devices)
        assert 0.85 < share < 1


@pytest.mark.parametrize(
    ("name", "gbps"),
    [
        # A link one way: half of what Google's pages state for all links of a chip both ways
        # (v5e 400, v5p 1200, v6e 800, tpu7x 1200 GB/s), divided by 4 or 6 links.
        ("v5e:4x4", 2 * 50),  # the ends of four chips are not joined: a corner has two links
        ("v5e:8x16", (1 + 2) * 50),
        ("v5e:16x16", 4 * 50),
        ("v6e:2x4", 2 * 100),
        ("v5p:2x2x1", 2 * 100),
        ("v5p:2x2x4", 3 * 100),
        ("v5p:4x4x4", 6 * 100),
        ("v5p:4x4x8", 6 * 100),
        ("v4:4x4x4", 6 * 50),
        ("tpu7x:2x2x1", 2 * 100),
    ],
)
def test_links_of_the_chips_that_have_the_fewest(name, gbps):
    assert topologies.parse(name).links_gbps == gbps


def test_peaks_are_those_of_the_monitor():
    for family, kind in (("v5e", "TPU v5 lite"), ("v5p", "TPU v5"), ("v6e", "TPU v6 lite")):
        assert topologies.CHIPS[family].tflops == peak_tflops(kind)
