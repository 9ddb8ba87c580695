"""Runs of autoregressive models: from a configuration to everything that is made of them."""

import json

import numpy as np
import pytest

import edm_jax
from edm_jax.figures.sheets import read_told
from edm_jax.store import checkpoints
from tests.support.paths import ROOT

SMALL = (
    "--config.train.batch_size=8",
    "--config.train.log_kimg=0.008",
    "--config.train.checkpoint_kimg=0.008",
    "--config.train.lr_rampup_kimg=0.001",
    "--config.train.ema_halflife_kimg=(0.1,)",
    "--config.sampler.num_steps=2",
    "--config.sampler.batch_size=20",
)
UNET = (
    "--config.model.ArdmUNet.model_channels=8",
    "--config.evaluation.num_images=20",
    "--config.evaluation.trajectory_seeds=2",
    "--config.evaluation.metrics=('frechet_pixels',)",
)
ENCODER = (
    "--config.model.ArdmTransformer.model_channels=8",
    "--config.model.ArdmTransformer.num_blocks=1",
    "--config.model.ArdmTransformer.num_heads=2",
    "--config.model.ArdmTransformer.mlp_channels=8",
    "--config.data.text.length=12",
    "--config.evaluation.num_images=2",
)


def words(name, path, *more, kimg=0.024):
    config = f"--config={ROOT / 'configs' / name}"
    return (config, f"--workdir={path}", f"--config.train.total_kimg={kimg}", *SMALL, *more)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text8"
    path.write_text("the quick brown fox jumps over the lazy dog " * 40)
    return path


def _stored(path):
    """Everything of the newest checkpoint that training goes on from."""
    step = checkpoints.checkpoint_steps(path / "checkpoints")[-1]
    return {
        name: checkpoints.read_arrays(step, name)
        for name in ("params", "ema", "opt_state", "objective")
        if (step / name).exists()
    } | {"description": checkpoints.read_description(step)}


@pytest.mark.soak
def test_a_run_of_images(call, tmp_path):
    """Three steps at once, and in two sessions: the same to the last bit, the profile too."""
    whole, path = tmp_path / "whole", tmp_path / "run"
    said = call(*words("digits_ardm.py", whole, *UNET)).stdout
    assert "bits per dimension (bound)" in said and "network calls per image" in said
    call(*words("digits_ardm.py", path, *UNET, kimg=0.008))
    again = call(*words("digits_ardm.py", path, *UNET))
    assert "resuming at kimg 0.0" in again.stdout
    one, other = _stored(whole), _stored(path)
    assert one.keys() == other.keys()
    assert one["description"]["loss_per_step"] == other["description"]["loss_per_step"]
    import jax

    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)

    assert {p.stem for p in (path / "figures").iterdir()} == {
        *("loss", "loss_per_step", "trajectories"),
    }
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    # The network starts at the uniform distribution: log2 17, and 0.1 % for the cross entropy.
    assert rows[0]["loss"] == pytest.approx(np.log2(17), rel=2e-3)
    assert sum(rows[0]["images_per_step_bin"]) == 8 and rows[0]["step_bin_edges"][0] < 3
    found = json.loads((path / "evaluation.json").read_text())
    assert found["nfe"] == 2 and found["sampling"]["policy"] == "optimal"
    assert found["bits_per_dim"] == pytest.approx(np.log2(17), abs=0.5)
    assert found["bits_per_dim_split"] == "test" and found["bits_per_dim_images"] == 297

    model = edm_jax.load(path)
    assert model.kind == "ardm" and model.num_classes == 10
    _use(call, path, tmp_path, model)


def _use(call, path, tmp_path, model):
    """What the commands make of it."""
    out = tmp_path / "images"
    flags = ("--seeds=0-3", "--labels=3", "--num_steps=4", f"--outdir={out}")
    call("--mode=sample", f"--workdir={path}", *flags, "--policy=uniform")
    expected = edm_jax.sample(model, range(4), 3, num_steps=4, policy="uniform")
    from PIL import Image

    image = np.asarray(Image.open(out / "000002.png"))
    np.testing.assert_array_equal(image, edm_jax.generate.to_uint8(expected[2])[..., 0])
    said = call(
        "--mode=sample", f"--workdir={path}", *flags[:3], "--decoding", f"--outdir={tmp_path / 'd'}"
    )
    assert "4 images in progress" in said.stdout
    told = read_told(tmp_path / "d" / "decoding-0-3.png")
    assert told["sampling"] == {"sampler": "ardm", "policy": "optimal", "num_steps": 4}
    call("--mode=evaluate", f"--workdir={path}", "--num_images=10", "--policy=0,8,64",
         "--metrics=frechet_pixels", "--name=two")  # fmt: skip
    found = json.loads((path / "evaluations" / "two" / "evaluation.json").read_text())
    assert found["nfe"] == 2 and "bits_per_dim_error" in found

    file = tmp_path / "model.safetensors"
    call("--mode=export", f"--workdir={path}", f"--dest={file}")
    exported = edm_jax.load(file)
    np.testing.assert_array_equal(
        edm_jax.sample(exported, range(4), 3, num_steps=4, policy="optimal"),
        edm_jax.sample(model, range(4), 3, num_steps=4, policy="optimal"),
    )
    call("--mode=sample", f"--workdir={file}", "--seeds=0", f"--outdir={tmp_path / 'e'}",
         "--num_steps=2")  # fmt: skip
    for more, message in (
        (["--num_steps=65"], "num_steps must be at most 64"),
        (["--policy=0,4,60"], "a policy must end in D = 64, got last entry 60"),
        (["--sigma_max=40"], "--sigma_max is about noise levels"),
        (["--labels=11"], "label 11 is out of range"),
        (["--guidance=cfg", "--guidance_scale=2"], "kind 'ardm'"),
    ):
        refused = call("--mode=sample", f"--workdir={path}", "--seeds=9", *more,
                       f"--outdir={tmp_path / 'no'}", code=2)  # fmt: skip
        assert message in refused.stderr and len(refused.stderr.splitlines()) == 1
        assert not list((tmp_path / "no").glob("*.png"))
    for mode, name, more in (
        ("encode", "codes.npz", (f"--source={out}",)),
        ("interpolate", "strip.png", ("--seeds=0,1",)),
    ):
        refused = call(
            f"--mode={mode}", f"--workdir={path}", f"--dest={tmp_path / name}", *more, code=2
        )
        assert "a model of kind 'ardm'" in refused.stderr


@pytest.mark.slow
def test_a_run_of_text(one_device, call, tmp_path, text_file):
    path = tmp_path / "run"
    data = f"--config.data.path={text_file}"
    said = call(*words("text8_ardm.py", path, *ENCODER, data)).stdout
    assert "bits per dimension" in said
    found = json.loads((path / "evaluation.json").read_text())
    assert found["bits_per_dim"] == pytest.approx(np.log2(27), abs=0.5)
    (shown,) = sorted((path / "samples").glob("kimg-*0.0.txt"))[-1:]
    assert all(len(line) == 12 for line in shown.read_text().splitlines())

    model = edm_jax.load(path)
    assert model.image_shape == (12,) and model.description["data"]["alphabet"].startswith(" abc")
    out = tmp_path / "texts"
    call("--mode=sample", f"--workdir={path}", "--seeds=0-2", "--decoding", "--num_steps=3",
         f"--outdir={out}")  # fmt: skip
    lines = [json.loads(line) for line in (out / "texts-0-2.jsonl").read_text().splitlines()]
    assert lines[0]["sampling"]["num_steps"] == 3 and len(lines) == 4
    for line in lines[1:]:
        assert line["steps"][0] == "_" * 12 and line["steps"][-1] == line["text"]
        # All kinds of characters; how many of them a step fills is for the policy to say.
        left = [step.count("_") for step in line["steps"]]
        assert len(left) == 4 and left == sorted(set(left), reverse=True)
        assert left[0] == 12 and left[-1] == 0
    refused = call("--mode=evaluate", f"--workdir={path}", "--num_images=4", code=2)
    assert "is a model of sequences, which no metric is for" in refused.stderr


def test_preflight(call, tmp_path, text_file):
    said = call("--mode=preflight", *words("digits_ardm.py", tmp_path / "run", *UNET)).stdout
    assert said.rstrip().endswith("this run would work")
    assert "ArdmUNet in float32" in said and "GFLOP per image forward" in said
    data = f"--config.data.path={text_file}"
    said = call("--mode=preflight", *words("text8_ardm.py", tmp_path / "text", *ENCODER, data))
    assert said.stdout.rstrip().endswith("this run would work")
    assert "ArdmTransformer" in said.stdout and "sequences" not in said.stderr


@pytest.mark.parametrize(
    "name, more, message",
    [
        ("digits_ardm.py", ["--config.sampler.num_steps=65"], "num_steps must be at most 64"),
        (
            "digits_ardm.py",
            ["--config.objective.order_agnostic.levels=False"],
            "config.objective.order_agnostic has values 0..16",
        ),
        ("digits_ardm.py", ["--config.model.name=ArdmTransformer"], "takes sequences, and the"),
        ("text8_ardm.py", ["--config.data.source=digits"], "takes sequences, and the data are"),
        ("text8_ardm.py", ["--config.data.path=none"], "no such text file: none"),
        ("text8_ardm.py", ["--config.data.text.length=0"], "length must be an integer of at"),
    ],
)
def test_what_cannot_work_is_said_before(call, tmp_path, text_file, name, more, message):
    path = tmp_path / "run"
    data = [f"--config.data.path={text_file}"] if name.startswith("text8") else []
    refused = call(*words(name, path, *data, *more), code=2)
    assert message in refused.stderr and not (path / "checkpoints").exists()
