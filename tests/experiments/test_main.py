"""The command line end to end on the tiny configuration, and each bad input.

Every test starts the real program as a user would; a shared compilation cache keeps
that affordable.
"""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import edm_jax
from edm_jax.store import checkpoints
from tests.support import weights_golden
from tests.support.command_line import MAIN, ROOT


@pytest.mark.slow
def test_train_leaves_what_it_says(run_dir):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    config = json.loads((run_dir / "config.json").read_text(), parse_constant=refuse)
    assert config["train"]["batch_size"] == 16
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30]
    assert rows[-1]["kimg"] == 0.48
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert all(sum(row["images_per_sigma_bin"]) == 80 for row in rows)
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    assert evaluation["num_images"] == 40 and evaluation["nfe"] == 5
    assert 0 <= evaluation["class_accuracy"] <= 1
    assert evaluation["frechet_distance_floor"] == pytest.approx(0.5624, abs=1e-4)
    grids = sorted(p.name for p in (run_dir / "samples").iterdir())
    assert grids == ["kimg-000000.0.png", "kimg-000000.2.png", "kimg-000000.5.png"]
    for name in ("loss.png", "loss_per_noise_level.png", "trajectories.png"):
        with Image.open(run_dir / "figures" / name) as picture:
            assert min(picture.size) > 200
    said = (run_dir / "stdout.txt").read_text()
    assert "class accuracy" in said and str(run_dir / "samples") in said
    status = [line for line in said.splitlines() if line.startswith("kimg")]
    assert len(status) == 6
    for part in ("%", "img/s", "loss", "lr", "GiB", "left"):
        assert part in status[0]


@pytest.mark.slow
def test_the_run_loads_without_flags(run_dir):
    model = edm_jax.load(run_dir)
    assert model.image_shape == (8, 8, 1) and model.num_classes == 10
    assert model.variant == "ema_0.1kimg"
    assert model.label_names == tuple("0123456789")
    images = edm_jax.sample(model, seeds=range(3), labels=3, num_steps=2)
    assert images.shape == (3, 8, 8, 1) and np.isfinite(images).all()
    for variant in ("ema_0.05kimg", "raw"):
        other = edm_jax.load(run_dir, variant=variant)
        assert not np.array_equal(
            other.params["map_layer0"]["kernel"], model.params["map_layer0"]["kernel"]
        )
    with pytest.raises(ValueError, match=r"no weights 'ema'.*ema_0.1kimg, ema_0.05kimg, raw"):
        edm_jax.load(run_dir, variant="ema")
    step = checkpoints.checkpoint_steps(run_dir / "checkpoints")[-2]
    assert edm_jax.load(step).description["progress"]["step"] == int(step.name)


@pytest.mark.slow
def test_again_says_finished(run_dir, command):
    said = command("--config=configs/tiny.py", f"--workdir={run_dir}").stdout
    assert "(finished)" in said and "compiling" not in said


@pytest.mark.slow
def test_another_configuration_is_refused(run_dir, command):
    done = command(
        "--config=configs/tiny.py", f"--workdir={run_dir}", "--config.train.lr=0.5", code=2
    )
    assert "train.lr: 0.003 there, 0.5 now" in done.stderr
    assert done.stderr.startswith("error: ")


@pytest.mark.slow
def test_sample_mode(run_dir, command, tmp_path):
    out = tmp_path / "out"
    flags = ["--mode=sample", f"--workdir={run_dir}", f"--outdir={out}", "--num_steps=2"]
    said = command(*flags, "--seeds=0-2,7", "--labels=3").stdout
    assert str(out) in said
    names = sorted(p.name for p in out.glob("*.png"))
    assert names == ["000000.png", "000001.png", "000002.png", "000007.png"]
    expected = edm_jax.sample(edm_jax.load(run_dir), [7], 3, num_steps=2)
    with Image.open(out / "000007.png") as picture:
        assert picture.mode == "L" and picture.size == (8, 8)
        # another batch size moves a pixel by a rounding of float32 at most
        difference = np.asarray(picture, int) - edm_jax.to_uint8(expected)[0, ..., 0].astype(int)
        assert np.abs(difference).max() <= 1
    written = {p.name: p.stat().st_mtime_ns for p in out.glob("*.png")}
    again = command(*flags, "--seeds=0-3", "--labels=3").stdout
    assert "3 of 4 images are there already" in again
    for name, when in written.items():
        assert (out / name).stat().st_mtime_ns == when
    refused = command(*flags, "--seeds=0-3", "--labels=4", code=2).stderr
    assert "holds samples of other settings (labels differ)" in refused
    # Labels are remembered by seed.
    command(*flags, "--seeds=8,9", "--labels=4,5")
    command(*flags, "--seeds=9,7,10", "--labels=5,3,1")
    refused = command(*flags, "--seeds=8-9", "--labels=4,6", code=2).stderr
    assert "(labels differ)" in refused
    # Another model of the same progress is another model.
    other = tmp_path / "other"
    shutil.copytree(run_dir, other)
    variant = edm_jax.load(run_dir).description["variants"][1]
    command(*flags[:1], *flags[2:], f"--workdir={other}", "--seeds=8", "--labels=4")
    refused = command(*flags, f"--variant={variant}", "--seeds=8", "--labels=4", code=2).stderr
    assert "(weights, weights_sha256 differ)" in refused
    grid = [f for f in flags if "outdir" not in f] + [f"--outdir={tmp_path / 'g'}", "--grid"]
    command(*grid, "--seeds=0-8", "--labels=0-8")
    with Image.open(tmp_path / "g" / "grid.png") as picture:
        assert min(picture.size) > 100


@pytest.mark.slow
def test_evaluate_mode_repeats_the_evaluation(run_dir, command):
    before = json.loads((run_dir / "evaluation.json").read_text())
    said = command("--mode=evaluate", f"--workdir={run_dir}").stdout
    after = json.loads((run_dir / "evaluation.json").read_text())
    assert "class accuracy" in said
    for key in ("class_accuracy", "frechet_distance", "num_images", "nfe"):
        assert after[key] == pytest.approx(before[key], rel=1e-6)


def test_help_explains(command):
    text = command("--help").stdout
    for word in ("--mode", "<train|preflight|sample|evaluate|", "--workdir", "--seeds", "--config"):
        assert word in text
    assert "experiments/main.py --config=configs/digits.py --workdir=runs/digits" in text


TINY = "--config=configs/tiny.py"
BAD = {
    "no config": ([], "--config is missing"),
    "missing config": (["--config=configs/digit.py"], "did you mean configs/digits.py?"),
    "no workdir": ([TINY], "--workdir is missing"),
    "unknown key": (
        [TINY, "--workdir=w", "--config.train.lrr=1"],
        "config.train.lrr; did you mean config.train.lr?",
    ),
    "key without its section": (
        [TINY, "--config.lr=1"],
        "config.lr; did you mean config.train.lr?",
    ),
    "wrong type": ([TINY, "--workdir=w", "--config.train.lr=abc"], "--config.train.lr=abc"),
    "unknown flag": ([TINY, "--wrkdir=w"], "Did you mean: workdir"),
    "unknown mode": ([TINY, "--mode=trian"], "--mode=trian"),
    "stray word": ([TINY, "--workdir=w", "now"], "unexpected argument 'now'"),
    "zero steps": (
        [TINY, "--workdir=w", "--config.sampler.num_steps=0"],
        "num_steps must be an integer >= 1",
    ),
    "range": (
        [TINY, "--workdir=w", "--config.sampler.sigma_min=90."],
        "config.sampler: need 0 < sigma_min < sigma_max",
    ),
    "nan": ([TINY, "--workdir=w", "--config.train.lr=nan"], "config.train.lr: lr must be positive"),
    "choice": (
        [TINY, "--workdir=w", "--config.precond.name=edn"],
        "config.precond.name: unknown precond 'edn'; did you mean 'edm'?",
    ),
    "network": (
        [TINY, "--workdir=w", "--config.model.SongUNet.encoder_type=residul"],
        "config.model.SongUNet.encoder_type: encoder_type must be one of",
    ),
    "evaluation seed": (
        [TINY, "--workdir=w", "--config.evaluation.first_seed=-5"],
        "config.evaluation.first_seed: first_seed must be at least 0 and finite, got -5",
    ),
    "noise spread": (
        [TINY, "--workdir=w", "--config.noise.lognormal.p_std=-1.0"],
        "config.noise.lognormal.p_std: p_std must be positive and finite, got -1.0",
    ),
    "threads": (
        [TINY, "--workdir=w", "--config.data.num_threads=-1"],
        "config.data.num_threads: num_threads must be at least 1 and finite, got -1",
    ),
    "workdir is a file": ([TINY, f"--workdir={__file__}"], "cannot be written"),
    "sample flag": ([TINY, "--workdir=w", "--seeds=3"], "--seeds belongs to --mode=sample"),
    "one of several processes": (
        ["--mode=export", "--workdir=w", "--num_processes=2"],
        "--num_processes belongs to --mode=train",
    ),
    "huge batch": (
        [TINY, "--workdir=w", "--config.train.batch_size=100000000000"],
        "config.train.batch_size: batch_size must be at least 1 and at most 1.04858e+06",
    ),
    "no run": (["--mode=sample", "--workdir=nowhere"], "no such file or directory: nowhere"),
    "seeds": (["--mode=sample", "--workdir=w", "--seeds=3-x"], "'3-x' is not a number or a range"),
    "backwards": (["--mode=sample", "--workdir=w", "--seeds=9-3"], "runs backwards"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, command, tmp_path):
    arguments, message = BAD[case]
    done = command(*arguments, code=2, cwd=tmp_path)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert message in line
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_bad_samples_are_refused_before_work(run_dir, command, tmp_path):
    flags = ["--mode=sample", f"--workdir={run_dir}", f"--outdir={tmp_path / 'o'}", "--seeds=0-1"]
    for extra, message in (
        ("--labels=10", "label 10 is out of range; the classes are 0..9"),
        ("--labels=1,2,3", "3 labels for 2 seeds"),
        ("--sigma_min=90", "got sigma_min=90.0, sigma_max=80.0"),
        ("--variant=best", "no weights 'best'"),
    ):
        done = command(*flags, extra, code=2)
        assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_batch_must_divide_over_devices(command, environment, tmp_path):
    environment = environment | {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    done = subprocess.run(
        [sys.executable, str(MAIN), TINY, f"--workdir={tmp_path / 'w'}"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert "batch size 16 must be a positive multiple of the number of devices (3)" in done.stderr


@pytest.mark.slow
def test_import_sample_export_load(command, tmp_path):
    """Published weights to a run directory to one file, the same network all the way."""
    source = tmp_path / "edm_ddpmpp_cond.pkl"
    source.write_bytes(weights_golden.content(source.name))
    run = tmp_path / "imported"
    said = command("--mode=import", f"--source={source}", f"--workdir={run}").stdout
    assert "CC BY-NC-SA 4.0" in said and "SHA-256" in said
    again = command("--mode=import", f"--source={source}", f"--workdir={run}", code=2)
    assert "holds a run already" in again.stderr
    single = tmp_path / "model.safetensors"
    command("--mode=export", f"--workdir={run}", f"--dest={single}")
    again = command("--mode=export", f"--workdir={run}", f"--dest={single}", code=2)
    assert "exists" in again.stderr
    models = [edm_jax.load(path) for path in (source, run, single)]
    for model in models[1:]:
        assert model.description["source"] == models[0].description["source"]
        for a, b in zip(
            jax.tree.leaves(model.params), jax.tree.leaves(models[0].params), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    digits = ["--config=configs/digits.py", f"--workdir={run}"]
    said = command("--mode=evaluate", *digits, code=2)
    assert "the model makes images of shape" in said.stderr and "drawing" not in said.stdout
    assert "give the --config" in command("--mode=evaluate", f"--workdir={run}", code=2).stderr
    assert "holds a model but no run" in command(*digits, code=2).stderr
    assert not (run / "config.json").exists()
    flags = ["--mode=sample", f"--workdir={single}", f"--outdir={tmp_path / 'o'}"]
    command(*flags, "--seeds=0-1", "--num_steps=2")
    with Image.open(tmp_path / "o" / "000001.png") as picture:
        assert picture.mode == "RGB"


@pytest.mark.slow
def test_bad_model_files_are_one_line(command, tmp_path):
    run = tmp_path / "run"
    hostile = tmp_path / "hostile.pkl"
    hostile.write_bytes(b"cos\nsystem\n(S'touch " + os.fsencode(tmp_path / "owned") + b"'\ntR.")
    for source, message, extra in (
        (hostile, "os", ()),
        (tmp_path / "none.pkl", "none.pkl", ()),
        (hostile, "--source_options must be a JSON object", ("--source_options=[1]",)),
        (hostile, "it has an entry twice", ('--source_options={"licence": "a", "licence": "b"}',)),
    ):
        done = command("--mode=import", f"--source={source}", f"--workdir={run}", *extra, code=2)
        assert message in done.stderr and "Traceback" not in done.stderr
    assert not run.exists() and not (tmp_path / "owned").exists()


def test_newer_description_is_refused():
    from edm_jax.model import build
    from edm_jax.store.errors import WeightsError

    with pytest.raises(WeightsError, match="format_version 99 is newer than 1"):
        build({"format_version": 99})


@pytest.mark.slow
def test_dataset_then_training_on_it(command, tmp_path):
    """A folder of images to the EDM zip to a (short) training run."""
    rng = np.random.default_rng(0)
    for i in range(24):
        folder = tmp_path / "images" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    data = tmp_path / "data.zip"
    command(
        "--mode=dataset",
        f"--source={tmp_path / 'images'}",
        f"--dest={data}",
        "--resolution=8x8",
        "--transform=center-crop",
    )
    run = tmp_path / "run"
    options = [
        "--config=configs/tiny.py",
        "--config.data.source=images",
        f"--config.data.path={data}",
        "--config.augment.probability=0.5",
        "--config.train.micro_batch=8",
        "--config.train.total_kimg=0.08",
        "--config.evaluation.num_images=12",
    ]
    command("--mode=preflight", *options)
    command(*options, f"--workdir={run}")
    model = edm_jax.load(run)
    assert model.image_shape == (8, 8, 3) and model.num_classes == 2
    result = json.loads((run / "evaluation.json").read_text())
    assert np.isfinite(result["frechet_distance"]) and "frechet_distance_floor" not in result
    assert "map_augment" in model.params


@pytest.mark.slow
def test_watched_run(command, tmp_path):
    """Evaluations and a profile during training, Weights & Biases that is not there."""
    run = tmp_path / "watched"
    watch = ["--profile_steps=12-13", "--wandb=edm"]
    arguments = ["--config=configs/tiny.py", f"--workdir={run}"]
    arguments += ["--config.evaluation.every_kimg=0.16", "--config.evaluation.num_images=10"]
    said = command(*arguments, *watch).stdout
    rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20]  # the end is in evaluation.json
    assert all(np.isfinite(row["frechet_distance"]) and row["num_images"] == 10 for row in rows)
    with Image.open(run / "figures" / "evaluations.png") as picture:
        assert min(picture.size) > 200
    assert any((run / "profile").rglob("*.xplane.pb"))
    assert said.count("Weights & Biases is off: wandb is not installed") == 1
    assert "(finished)" in command(*arguments, "--config.train.max_bad_steps=5").stdout
    refused = command(*arguments, "--profile_steps=29-31", code=2).stderr
    assert "--profile_steps ends at 31, the run at 30" in refused
