"""Runs of other objectives, from a configuration to what is made of their models."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import edm_jax
from edm_jax import classifier, models
from edm_jax.generate import Sampling, sample
from edm_jax.guidance import StaticThreshold
from edm_jax.model import describe, from_description
from tests.support.paths import ROOT

SMALL = (
    "--config.train.batch_size=8",
    "--config.train.log_kimg=0.008",
    "--config.train.checkpoint_kimg=0.008",
    "--config.train.lr_rampup_kimg=0.001",
    "--config.train.ema_halflife_kimg=(0.1,)",
    "--config.evaluation.num_images=20",
)


def small(name, path, *more, kimg=0.016):
    """Words of a run of two steps, or more or fewer."""
    config = f"--config={ROOT / 'configs' / name}"
    return (config, f"--workdir={path}", f"--config.train.total_kimg={kimg}", *SMALL, *more)


CLASSIFIER = ("--config.model.NoisyClassifier.channel_mult=(1,)",)


@pytest.fixture
def trained_classifier(one_device, call, tmp_path):
    """A tiny classifier that was trained in two sessions, and what the second one said."""
    path = tmp_path / "classifier"
    call(*small("digits_classifier.py", path, *CLASSIFIER, kimg=0.008))
    again = call(*small("digits_classifier.py", path, *CLASSIFIER))
    return path, again.stdout


@pytest.mark.slow
def test_a_classifier_from_its_configuration(trained_classifier, call, tmp_path):
    path, said = trained_classifier
    assert "resuming at kimg 0.0" in said and "20 test images" in said
    # No grids and no trajectories, as it draws no images.
    assert {p.name for p in path.iterdir()} >= {"checkpoints", "figures", "evaluation.json"}
    assert not (path / "samples").exists()
    assert {p.stem for p in (path / "figures").iterdir()} == {"loss", "accuracy_per_noise_level"}
    found = json.loads((path / "evaluation.json").read_text())
    assert found["kind"] == "classifier" and found["split"] == "test"
    assert found["progress"]["step"] == 2 and found["num_images"] == 20
    assert found["sigmas"][0] == pytest.approx(0.002) and found["sigmas"][-1] == 80
    assert len(found["top_1"]) == len(found["cross_entropy"]) == len(found["sigmas"])
    # Two steps from equal odds: ln 10 but for what the last layer was drawn with.
    assert found["cross_entropy"][-1] == pytest.approx(np.log(10), abs=0.5)

    made = classifier.load_classifier(path)
    x, sigma = jnp.ones((2, 8, 8, 1)), jnp.array([0.1, 3.0])
    logits = made.logits(x, sigma)
    assert made.num_classes == 10 and logits.shape == (2, 10)
    file = tmp_path / "classifier.safetensors"
    call("--mode=export", f"--workdir={path}", f"--dest={file}")
    np.testing.assert_array_equal(classifier.load_classifier(file).logits(x, sigma), logits)

    # Asked once more it has nothing to do; asked for images it says why there are none.
    done = call(*small("digits_classifier.py", path, *CLASSIFIER))
    assert "finished" in done.stdout and "20 test images" in done.stdout
    for mode in ("sample", "evaluate"):
        words = [f"--mode={mode}", f"--workdir={path}"]
        words += [f"--outdir={tmp_path / 'images'}"] if mode == "sample" else []
        refused = call(*words, code=2)
        assert "a classifier" in refused.stderr and "draws no images" in refused.stderr


def test_preflight_of_a_classifier(call, tmp_path):
    said = call("--mode=preflight", *small("digits_classifier.py", tmp_path / "run", *CLASSIFIER))
    assert said.stdout.rstrip().endswith("this run would work")
    assert "NoisyClassifier in float32" in said.stdout and "GFLOP per image forward" in said.stdout
    assert "a grid every" not in said.stdout
    unlabelled = call(
        "--mode=preflight",
        *small("digits_classifier.py", tmp_path / "run", "--config.data.conditional=False"),
        code=1,
    )
    assert "a classifier needs labelled data of at least 2 classes, got 0" in unlabelled.stdout


@pytest.mark.slow
def test_ddpm_with_learned_variance_from_its_configuration(one_device, call, tmp_path):
    path = tmp_path / "ddpm"
    tiny = (
        "--config.model.SongUNet.model_channels=8",
        "--config.model.SongUNet.channel_mult=(1,)",
        "--config.model.SongUNet.attn_resolutions=()",
        "--config.sampler.num_steps=3",
        "--config.sampler.batch_size=20",
        "--config.evaluation.trajectory_seeds=2",
        "--config.evaluation.metrics=('frechet_pixels',)",
    )
    said = call(*small("digits_ddpm.py", path, *tiny)).stdout
    assert "frechet" in said.lower()
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    # The mean of squares of standard normal noise, of a network that predicts none of it, and
    # a bound of less than a bit.
    assert rows[0]["loss"] == pytest.approx(1, abs=0.6)
    found = json.loads((path / "evaluation.json").read_text())
    assert found["sampling"]["options"] == {"variance": "learned"}

    model = edm_jax.load(path)
    assert model.kind == "denoiser" and model.net.out_channels == 2
    # A network whose output is 0 puts the variance halfway: with v = 1/2 the images are the same.
    silent = model.replace(jax.tree.map(jnp.zeros_like, model.variables))
    request = Sampling("ddpm", "iddpm", num_steps=3, options={"variance": "learned"})
    images = sample(silent, range(2), labels=1, sampling=request)
    halfway = dataclasses.replace(request, options={"variance": 0.5})
    np.testing.assert_allclose(
        images, sample(silent, range(2), labels=1, sampling=halfway), rtol=1e-5, atol=1e-5
    )
    # Guidance and thresholds act on the mean: all of it is within [-1, 1] at the last step.
    clipped = sample(silent, range(2), labels=1, sampling=request, guidance=StaticThreshold())
    assert np.abs(clipped).max() <= 1 < np.abs(images).max()


def test_learned_variance_needs_a_network_that_has_one():
    network = dict(
        name="SongUNet", img_resolution=4, in_channels=1, out_channels=1, label_dim=0,
        model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[],
    )  # fmt: skip
    precond = {"name": "edm", "sigma_data": 0.5}
    described = describe(network=network, precond=precond, image_shape=(4, 4, 1), num_classes=0)
    net = models.build(network.pop("name"), **network)
    model = from_description(described, models.init_variables(net, jax.random.key(0)))
    request = Sampling("ddpm", num_steps=3, options={"variance": "learned"})
    with pytest.raises(ValueError, match="variance='learned' needs a network with twice the chan"):
        sample(model, [0], sampling=request)
