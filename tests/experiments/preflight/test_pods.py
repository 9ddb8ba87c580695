"""The report on a run on TPUs, of programs that are not compiled but stated."""

import collections
import dataclasses

import pytest

from configs import tiny
from experiments.config import build
from experiments.preflight import pods, program, tpu
from experiments.preflight.checks import Findings
from experiments.preflight.costs import DataShape
from experiments.preflight.topologies import Topology, parse
from tests.support.preflight_data import Pictures, config_with, run

GIB = 2**30
MESSAGES = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
    "(44.75G) exceeds available HBM (15.75G).",
    "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 44.75G of "
    "15.75G hbm. Exceeded hbm capacity by 29.00G.",
)


def made(**changes):
    """A program of 1.5 milliseconds of v5e, half of them convolutions."""
    cycles = round(1.5e-3 * parse("v5e:4x4").chip.hertz)
    one = tpu.Program(
        seconds=80.0,
        arguments=GIB,
        temporary=GIB // 2,
        cycles={program.CONVOLUTIONS: cycles // 2, program.NORMS: cycles - cycles // 2},
        collectives={"all-reduce": [2, 10**8]},
    )
    return dataclasses.replace(one, **changes)


def test_times_in_closed_form():
    v5e = parse("v5e:4x4")
    one = made()
    assert one.compute_seconds(v5e) == pytest.approx(1.5e-3, rel=1e-6)  # whole cycles
    # Each of 16 takes in 15/16 of the bytes twice, a corner over two links of 50 GB/s.
    assert one.link_seconds(v5e) == pytest.approx(2 * 15 / 16 * 1e8 / 100e9)
    gathered = made(collectives={"all-gather": [1, 10**8], program.BETWEEN_SLICES: [1, 10**9]})
    assert gathered.link_seconds(v5e) == pytest.approx(15 / 16 * 1e8 / 100e9)
    # One chip sends nothing; two slices are two rings.
    assert one.link_seconds(parse("v5e:1x1")) == 0
    assert one.link_seconds(parse("v5e:4x4", 2)) == one.link_seconds(v5e)


@pytest.mark.parametrize("message", MESSAGES)
def test_want_of_memory_is_read_from_the_compilers_words(message):
    assert tpu.too_much(message) == (round(44.75 * GIB), round(15.75 * GIB))
    assert tpu.too_much("INTERNAL: something else") is None


@pytest.fixture
def compiled(monkeypatch):
    """What was compiled, in order, and the programs that come of it."""
    asked, programs = [], []

    def fake(experiment, shape, topology, which=tpu.STEP):
        asked.append((experiment, shape, topology, which))
        return programs.pop(0) if programs else made()

    monkeypatch.setattr(tpu, "compiled", fake)
    return asked, programs


def test_the_whole_report(compiled):
    asked, _ = compiled
    topology = parse("v5e:2x2")
    code, lines = run(
        config_with(train__batch_size=128), Pictures(), quick=False, mesh_devices=None,
        topology=topology,
    )  # fmt: skip
    text = "\n".join(lines)
    assert code == 0
    assert [which for *_, which in asked] == [tpu.STEP, tpu.SAMPLER]
    assert all(call[1:3] == (DataShape((8, 8, 1)), topology) for call in asked)
    assert "v5e:2x2: 4 chip(s), 1 host(s); a chip has 16 GiB" in text
    assert "4 device(s), data layout: 32 images each" in text
    assert "1.5 GiB of 15.7 GiB per device: 1 GiB arguments, 512 MiB temporary" in text
    assert "compiled in 1m20s" in text
    assert "estimate, not a measurement" in text
    assert "convolutions 50 %, norms 50 %" in text
    # Four chips: 3/4 of 1e8 bytes twice, at 100 GB/s: 1.5 ms more.
    assert "2 all-reduce of 95.4 MiB; 1.5 ms of links" in text
    assert "3 ms a step: 4.267e+04 images per second, 1.067e+04 per chip, MFU" in text
    assert "images at a time in 0.003 s" in text
    assert "days)" in text


def misfit(gib):
    """A program that needs so much of the 16 GiB that there are."""
    temporary = gib * GIB
    return made(arguments=0, temporary=temporary, available=16 * GIB, cycles={}, collectives={})


def refusal(**changes):
    """All lines of a preflight of 128 images on 2x2 chips of v5e, and the one that refuses it."""
    config = config_with(train__batch_size=128, **changes)
    code, lines = run(config, Pictures(), quick=False, mesh_devices=None, topology=parse("v5e:2x2"))
    (line,) = [line for line in lines if line.startswith("error")]
    assert code == 1
    return lines, line


def test_what_does_not_fit_is_told_what_helps(compiled):
    asked, programs = compiled
    programs += [misfit(40), made()]
    lines, line = refusal()
    # 32 images a chip need 40 GiB but for a state of less than one MiB: 8 need 10, 16 need 20.
    assert line.endswith("does not fit on v5e:2x2; with --config.train.micro_batch=32 it does")
    assert asked[1][0].training.micro_batch == 32
    assert "does not fit: 40 GiB of 16 GiB per device" in "\n".join(lines)


def test_what_nothing_helps_says_so(compiled):
    _, programs = compiled
    programs += [misfit(400)] * 6
    _, line = refusal()
    assert line.endswith("take more or larger chips")
    # 400 GiB for 32 images: one image needs 12.5, a third when it is recomputed.
    assert "nor with --config.train.micro_batch=4, nor with --config.model.remat=blocks" in line
    # The least that a step can need is compiled before that is said.
    least = "--config.train.sharding=fsdp --config.model.remat=blocks --config.train.micro_batch=4"
    assert f"nor with {least}; take more" in line


def test_estimates_that_were_too_high_are_not_the_last_word(compiled):
    asked, programs = compiled
    programs += [misfit(400)] * 5
    _, line = refusal()
    assert line.endswith("--config.train.micro_batch=4 it does")
    step = asked[5][0]
    assert step.training.sharding == "fsdp" and step.training.together == 4
    assert step.network.shared["remat"] == "blocks"


def test_a_remedy_is_no_smaller_than_it_has_to_be_and_has_its_price(compiled):
    asked, programs = compiled
    # 32 images a chip take 100 GiB, 4 of them 12.5; recomputed 8 take 8.3 and 16 would be too many.
    programs += [misfit(100)] * 5 + [made()]
    lines, line = refusal()
    rest = "--config.train.sharding=fsdp --config.model.remat=blocks"
    assert line.endswith(f"with {rest} --config.train.micro_batch=16 it does")
    # Where that is not true either, half of it, before a single image.
    assert [call[0].training.together for call in asked[1:6]] == [16, 32, 16, 32, 16]
    assert "3 ms a step: 4.267e+04 images per second" in "\n".join(lines)


@pytest.mark.parametrize(("misfits", "fewer"), [(1, 12), (2, 6), (3, 1), (4, 0)])
def test_a_sampler_that_does_not_fit_is_compiled_for_fewer_images(misfits, fewer, compiled):
    asked, programs = compiled
    # 32 images a chip take 40 GiB: 12 take 15 of 16.
    programs += [made()] + [misfit(40)] * misfits
    _, line = refusal(sampler__batch_size=128)
    assert "the sampler does not fit on v5e:2x2" in line
    assert line.endswith(
        f"with --config.sampler.batch_size={4 * fewer} it does"
        if fewer
        else "not with an image per device; take larger chips"
    )
    tried = [call[0].sample_batch for call in asked if call[3] == tpu.SAMPLER]
    assert tried == [128, 48, 24, 4][: misfits + 1]


def test_each_host_draws_images_of_its_own(compiled):
    _, programs = compiled
    config = config_with(train__batch_size=128, sampler__batch_size=130)
    # 33 images of a chip, of four on each of four hosts, take 40 GiB: 13 take 15.8 of 16.
    programs += [made(), misfit(40), made()]
    pods_of = {"quick": False, "mesh_devices": None, "topology": parse("v5e:4x4")}
    code, lines = run(config, Pictures(), **pods_of)
    assert code == 1
    (line,) = [line for line in lines if line.startswith("error")]
    assert line.endswith("with --config.sampler.batch_size=52 it does")
    programs += [made(), made()]
    _, lines = run(config, Pictures(), **pods_of)
    once = 1.5e-3 + 2 * 15 / 16 * 1e8 / 100e9  # as stated by `made`
    assert f"132 images at a time of each host in {once:.3g} s: {4 * 132 / once:,.4g}" in "\n".join(
        lines
    )


def test_a_host_is_a_process_of_a_slice():
    Device = collections.namedtuple("Device", "id process_index slice_index", defaults=(0,))
    two = [Device(0, 1), Device(1, 0), Device(2, 1), Device(3, 0)]
    assert [d.id for d in tpu.of_first_host(two)] == [0, 2]
    slices = [Device(i, i // 2 % 2, i // 4) for i in range(8)]
    assert [d.id for d in tpu.of_first_host(slices)] == [0, 1]


def options(needed, state, topology, **changes):
    config = tiny.get_config()
    config.train.batch_size = 128
    for key, value in changes.items():
        config.train[key] = value
    found = pods.remedies(build.experiment(config), topology, needed, 16 * GIB, state)
    return list(found)


def test_remedies_by_arithmetic():
    four = Topology("v5e", (2, 2))
    # A state of 12 GiB leaves 4 for the 8 that 32 images take: 16 images, or recomputation.
    first, second, *rest = options(20 * GIB, 12 * GIB, four)
    assert first == {"config.train.micro_batch": 64}
    assert second == {"config.model.remat": "blocks"}
    assert all(change["config.train.sharding"] == "fsdp" for change in rest)
    # Nothing but a split state helps one that is larger than the memory.
    only = options(40 * GIB, 20 * GIB, four)
    assert only and all(change["config.train.sharding"] == "fsdp" for change in only)
    # 20 GiB of activations, 11 left.
    assert only[0]["config.train.micro_batch"] == 64
    assert options(40 * GIB, 30 * GIB, Topology("v5e", (1, 1))) == []


def test_changed_options_are_those_of_the_configuration():
    experiment = build.experiment(tiny.get_config())
    other = pods.changed(
        experiment, {"config.train.micro_batch": 8, "config.model.remat": "blocks"}
    )
    assert other.training.micro_batch == 8 and other.network.shared["remat"] == "blocks"
    assert experiment.training.micro_batch == 0


def test_a_classifier_has_no_sampler(compiled):
    asked, _ = compiled
    experiment = build.experiment(tiny.get_config())
    object.__setattr__(experiment, "objective", {"name": "classifier"})
    pods.report(Findings(), experiment, DataShape((8, 8, 3), 4), parse("v5e:2x2"), GIB, 10**6)
    assert [which for *_, which in asked] == [tpu.STEP]
