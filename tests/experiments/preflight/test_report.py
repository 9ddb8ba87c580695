"""The report on a run before it starts, on stand-in data and small configurations."""

import time

import jax
import numpy as np
import pytest
from jax import monitoring

from configs import digits, imagenet64
from edm_jax.data.sources.base import ArraySource
from experiments.config import build
from experiments.config.groups import ConfigError
from experiments.preflight import costs, facts, report
from tests.support.preflight_data import Pictures, config_with, run


@pytest.fixture
def compilations():
    """Names of what XLA compiles while the test runs."""
    events = []

    def listen(event, duration, **_):
        if "backend_compile" in event:
            events.append(event)

    monitoring.register_event_duration_secs_listener(listen)
    yield events
    monitoring.unregister_event_duration_listener(listen)


# ------------------------------------------------------------------------ the whole of it


def test_a_run_that_works_is_quick_and_quiet(compilations):
    # The largest network, which would take seconds to trace.
    config = imagenet64.get_config()
    source = ArraySource(
        np.random.default_rng(0).integers(0, 256, (5000, 64, 64, 3), np.uint8),
        np.arange(5000) % 1000,
    )
    config.precond.edm.sigma_data = config.weight.edm.sigma_data = 0.58  # of uniform pixels
    jax.device_count()  # starts the backend
    report.preflight(build.experiment(config), None, mesh_devices=8, quick=True, source=source)
    compilations.clear()
    start = time.process_time()
    assert run(config, source, mesh_devices=8) == (0, [])
    assert time.process_time() - start < 1
    assert not compilations


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The whole report on the digits."""
    preset = digits.get_config()
    preset.train.update(
        total_kimg=200.0, batch_size=128, lr=2e-3, log_kimg=5.0, sample_kimg=50.0,
        checkpoint_kimg=50.0, keep_every_kimg=0.0,
    )  # fmt: skip
    config = preset.copy_and_resolve_references()
    config.train.update(lr=1e-3, keep_every_kimg=100.0)
    config.data.mirror = True
    path = tmp_path_factory.mktemp("runs") / "digits"
    report = run(
        config, path=path, quick=False, mesh_devices=None, preset=preset.to_dict(),
        images_per_second=500.0,
    )  # fmt: skip
    assert not path.exists()
    return report


def test_the_whole_report(full):
    code, lines = full
    text = "\n".join(lines)
    assert code == 0 and lines[-1] == "this run would work"
    # 1500 digits; 200 kimg in batches of 128, rounded up.
    assert "1,500 images of 8x8x1" in text and "10 classes of " in text
    assert "1,563 steps of 128 images: 200.064 kimg, 133.4 times the data set" in text
    assert "8 device(s), data layout: 16 images each, 1 round(s)" in text
    assert "a line every 39 steps, a grid every 391, a checkpoint every 391" in text
    assert "6m40s at 500 images per second" in text  # 200,064 images
    assert "3 option(s) differ" in text and "train.lr: 0.002 -> 0.001" in text
    assert "data.mirror: false -> true" in text
    assert "GFLOP per image forward" in text and "FLOP in all" in text
    assert "per device for weights, optimizer and averages" in text
    assert "free" in next(line for line in lines if line.startswith("disk"))


def test_the_report_counts_every_parameter(full):
    net = build.experiment(digits.get_config()).build_network(costs.DataShape((8, 8, 1), 10))
    params = costs.abstract_variables(net)["params"]
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    parts = facts.parameters_by_part(params)
    assert list(parts) == ["embedding", "enc 8x8", "enc 4x4", "dec 4x4", "dec 8x8"]
    assert sum(parts.values()) == total
    # Two linear layers of the embedding and that of the labels: 32 -> 128 -> 128, 10 -> 32.
    assert parts["embedding"] == 32 * 128 + 128 + 128 * 128 + 128 + 10 * 32 + 32
    assert f"{total:,} parameters in {len(jax.tree.leaves(params))} arrays" in "\n".join(full[1])


def test_memory_of_a_stated_mesh(monkeypatch):
    asked = []

    def compiled(config, shape, devices):
        asked.append((shape, devices))
        return costs.CompiledMemory(2**30, 3 * 2**30, "cpu")

    monkeypatch.setattr(costs, "compiled_memory", compiled)
    code, lines = run(config_with(), Pictures(), quick=False)
    assert code == 0 and asked == [(costs.DataShape((8, 8, 1)), 4)]
    assert "4 GiB per device when compiled for cpu: 1 GiB state and batch, 3 GiB" in "\n".join(
        lines
    )
    code, lines = run(config_with(), Pictures(), quick=False, device_gib=3.5)
    # An estimate of the CPU's compiler does not condemn a run, that for the device does.
    assert code == 0 and any(line.startswith("warning: the training step needs") for line in lines)
    monkeypatch.setattr(
        costs, "compiled_memory", lambda *_: costs.CompiledMemory(2**30, 3 * 2**30, "tpu")
    )
    many = config_with(train__batch_size=4096)
    code, lines = run(many, Pictures(), quick=False, mesh_devices=4096)
    assert code == 0 and "is found for at most 2048 devices, not for 4096" in "\n".join(lines)
    code, lines = run(config_with(), Pictures(), quick=False, device_gib=3.5)
    assert code == 1 and "error: the training step needs 4 GiB" in "\n".join(lines)


def test_without_the_data_set_the_rest_is_still_said(tmp_path):
    config = config_with(
        data__source="images", data__path=str(tmp_path / "none.zip"), data__resolution=8
    )
    code, lines = run(config, quick=False, mesh_devices=None)
    text = "\n".join(lines)
    assert code == 1
    assert "what follows is for 8x8x3 images without labels" in text
    assert "GFLOP" in text and "none.zip: no such file or folder" in text
    assert lines[-1] == "this run would not work: 1 error(s)"


# ------------------------------------------------------------------- ahead of a training


def test_before_training():
    lines = []
    report.before_training(build.experiment(config_with()), Pictures(), report=lines.append)
    assert lines == []
    report.before_training(
        build.experiment(config_with()), Pictures(spread=0.3), report=lines.append
    )
    assert len(lines) == 1 and lines[0].startswith("warning: the standard deviation")
    # Eight devices in these tests.
    config = config_with(train__batch_size=12, evaluation__metrics=("frechet_pixel",))
    with pytest.raises(ConfigError) as caught:
        report.before_training(build.experiment(config), Pictures())
    first, second = str(caught.value).splitlines()
    assert "batch size 12" in first and "frechet_pixels" in second


def test_mesh_of_no_devices():
    with pytest.raises(ValueError, match="mesh_devices must be at least 1, got 0"):
        run(config_with(), Pictures(), mesh_devices=0)
