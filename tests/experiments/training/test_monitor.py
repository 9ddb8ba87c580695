"""What is told of a run: files, records that fail soft, utilisation, profiles."""

import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from edm_jax.figures import curves
from edm_jax.train import metrics as metrics_lib
from edm_jax.train.metrics import NUM_SIGMA_BINS
from experiments import workdir
from experiments.config import build
from experiments.training import monitor, writers
from experiments.training.status import StatusLine


def make_metrics(**sums):
    """Zeros but for the given ``name=(sum, count)``."""
    zeros = jax.device_get(metrics_lib.zeros())
    return zeros | {name: dict(zip(("sum", "count"), s, strict=True)) for name, s in sums.items()}


def test_tensorboard_has_the_numbers(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.util import tensor_util

    board = writers.TensorBoard(tmp_path)
    board.write(3, {"loss": 0.5, "remark": "words are left out"})
    board.close()
    found = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert found.Tags()["tensors"] == ["loss"]
    (event,) = found.Tensors("loss")
    assert event.step == 3 and tensor_util.make_ndarray(event.tensor_proto) == 0.5


def test_without_tensorflow_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "clu.metric_writers", None)
    said = []
    board = writers.TensorBoard(tmp_path, report=said.append)
    board.write(3, {"loss": 0.5})
    board.close()
    assert len(said) == 1 and "tensorflow is not installed" in said[0]


@pytest.fixture
def fake_wandb(monkeypatch):
    """A stand-in for the wandb library that keeps what it is told."""
    told = []
    record = types.SimpleNamespace(
        log=lambda values, step: told.append((step, values)),
        finish=lambda: told.append("finished"),
    )

    def init(**options):
        told.append(options)
        return record

    module = types.ModuleType("wandb")
    module.init, module.Image = init, lambda path: f"image {path}"
    monkeypatch.setitem(__import__("sys").modules, "wandb", module)
    return types.SimpleNamespace(told=told, record=record, module=module)


def test_a_window_is_told_everywhere(tmp_path, fake_wandb, capsys):
    experiment = build.experiment(tiny.get_config())
    status = StatusLine(30, 16)
    watch = monitor.Monitor(experiment, tmp_path, 0, status, wandb_project="edm")
    watch.flops_per_image = 1e6
    bins = np.zeros(NUM_SIGMA_BINS, np.float32)
    bins[3] = 2.0
    metrics = make_metrics(
        loss=np.float32([2.5, 5]),
        bad_steps=np.float32([1, 5]),
        bad_grads=np.float32([7, 5]),
        loss_per_level=(bins, bins * 2),
        of_a_new_entry=np.float32([10, 5]),
    )
    watch.log(5, metrics)
    watch.picture(5, "samples", tmp_path / "grid.png")
    watch.close()
    (row,) = writers.read_metrics(tmp_path)
    assert row["step"] == 5 and row["kimg"] == 0.08
    assert row["loss"] == 0.5 and row["num_bad_steps"] == 1
    assert row["of_a_new_entry"] == 2 and "bad_steps" not in row
    assert row["loss_per_sigma_bin"][3] == 0.5 and row["images_per_sigma_bin"][3] == 4
    per_device = row["images_per_second"] * 1e6 / 1e12 / jax.device_count()
    assert row["tflops_per_device"] == pytest.approx(per_device)
    assert row["mfu"] is None  # nobody knows the peak of a CPU
    options, numbers, picture, end = fake_wandb.told
    assert options["project"] == "edm" and options["resume"] == "allow"
    assert options["config"]["train.batch_size"] == 16
    assert numbers[0] == 5 and numbers[1]["loss"] == 0.5
    assert picture == (5, {"samples": f"image {tmp_path / 'grid.png'}"})
    assert end == "finished"
    said = capsys.readouterr().out
    assert "1 of the last 5 steps had a loss or gradient that was not finite" in said


def test_no_rate_where_no_step_was_taken(tmp_path, capsys):
    """The line of the step that rates count from: right after compiling, or after a profile."""
    status = StatusLine(30, 16)
    watch = monitor.Monitor(build.experiment(tiny.get_config()), tmp_path, 0, status)
    watch.flops_per_image = 1e6
    status.start(5)
    watch.log(5, make_metrics())
    watch.log(6, make_metrics())
    watch.close()
    first, second = writers.read_metrics(tmp_path)
    assert first["images_per_second"] is None and first["tflops_per_device"] is None
    assert second["images_per_second"] > 0 and second["tflops_per_device"] > 0
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert ["img/s" in line and "left" in line for line in lines] == [False, True]


def test_a_resumed_record_keeps_its_name(tmp_path, fake_wandb):
    for _ in range(2):
        writers.WeightsAndBiases(tmp_path, "edm", {}).close()
    first, _, second, _ = fake_wandb.told
    assert first["id"] == second["id"] == (tmp_path / ".wandb_id").read_text().strip()


@pytest.mark.parametrize("moment", ["import", "init", "log", "picture", "finish"])
def test_records_fail_soft(moment, tmp_path, fake_wandb, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("network is unreachable\nmore")

    if moment == "import":
        monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    elif moment == "init":
        fake_wandb.module.init = fail
    elif moment == "finish":
        fake_wandb.record.finish = fail
    elif moment == "picture":
        fake_wandb.module.Image = fail
    else:
        fake_wandb.record.log = fail
    said = []
    record = writers.WeightsAndBiases(tmp_path, "edm", {}, report=said.append)
    for step in (1, 2):
        record.write(step, {"loss": 1.0})
        record.write_image(step, "samples", tmp_path / "a.png")
    record.close()
    (line,) = said  # once
    assert line.startswith("Weights & Biases is off: ") and "\n" not in line
    assert ("wandb is not installed" if moment == "import" else "unreachable") in line


def test_no_project_asks_for_nothing(tmp_path, fake_wandb):
    writers.WeightsAndBiases(tmp_path, "", {}).close()
    assert not fake_wandb.told and not any(tmp_path.iterdir())


def test_lines_after_the_resumed_step_are_written_again(tmp_path):
    file = writers.MetricsFile(tmp_path, 0)
    for step in (5, 10, 15):
        file.write(step, {"loss": float("nan") if step == 10 else 1.0})
    file.close()
    with (tmp_path / workdir.METRICS).open("a") as cut_short:
        cut_short.write('{"step": 20, "lo')
    file = writers.MetricsFile(tmp_path, 10)
    file.write(15, {"loss": 2.0})
    file.close()
    lines = (tmp_path / workdir.METRICS).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 5, "loss": 1.0},
        {"step": 10, "loss": None},
        {"step": 15, "loss": 2.0},
    ]


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("cpu", None),
    ],
)
def test_peak_of_known_devices(kind, peak):
    assert monitor.peak_tflops(kind) == peak


def test_utilisation_is_the_share_of_the_peak(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(monitor, "peak_tflops", lambda kind: 2.0)
    status = StatusLine(30, 16)
    watch = monitor.Monitor(build.experiment(tiny.get_config()), tmp_path, 0, status)
    watch.flops_per_image = 1e9
    watch.log(5, make_metrics(loss=np.float32([0, 5])))
    watch.close()
    (row,) = writers.read_metrics(tmp_path)
    expected = row["images_per_second"] * 1e9 / jax.device_count() / 2e12
    assert row["mfu"] == pytest.approx(expected)
    assert f"mfu {100 * expected:.1f} %" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "steps"), [("7", (7, 7)), ("3-12", (3, 12)), (None, None)])
def test_steps_of_a_profile(text, steps):
    assert monitor.parse_steps(text) == steps


@pytest.mark.parametrize("text", ["", "0", "5-3", "a-b", "-3", "1-2-3", "2-"])
def test_malformed_steps_are_refused(text):
    with pytest.raises(ValueError, match=r"--profile_steps=.* must be a step or a range"):
        monitor.parse_steps(text)


def test_a_trace_of_the_steps_asked_for(tmp_path):
    said = []
    profiler = monitor.Profiler(tmp_path / "profile", (2, 3), report=said.append)
    square = jax.jit(jnp.square)
    began, ended = [], []
    for step in range(1, 5):
        x = jnp.ones(3)
        profiler.before(step, x)
        began.append(any((tmp_path / "profile").rglob("*.pb")))
        x = square(x)
        profiler.after(step, x)
        ended.append(any((tmp_path / "profile").rglob("*.pb")))
    assert ended == [False, False, True, True] and not any(began[:3])
    profiler.close()
    assert len(said) == 1 and str(tmp_path / "profile") in said[0]
    assert any((tmp_path / "profile").rglob("perfetto_trace.json.gz"))


@pytest.mark.parametrize("loss", [[None, 0.5, 0.25], [None, None, None]])
def test_curve_of_a_run_with_forgiven_steps(loss, tmp_path):
    curves.training_curve(tmp_path / "loss.png", [0.1, 0.2, 0.3], loss)
    assert (tmp_path / "loss.png").stat().st_size > 5000
