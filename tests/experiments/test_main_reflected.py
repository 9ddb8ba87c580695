"""A reflected model from the command line: trained, resumed, drawn from, exported, refused."""

import json

import numpy as np
import pytest

import edm_jax
from edm_jax.model import describe
from edm_jax.store import single_file
from tests.experiments.training.test_kinds import small
from tests.support.reflected import SMALL, random_model

SAMPLERS = (
    "reflected", "reflected_project", "reflected_threshold", "reflected_predictor_corrector",
    "heun", "dpmpp_2m",
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture
def file(model, tmp_path):
    """The model as an exported file."""
    path = tmp_path / "model.safetensors"
    single_file.write_single_file(path, model.description, {"ema": model.variables})
    return path


def words_of(file, outdir, *more):
    """Words of a sampling of two images."""
    return ("--mode=sample", f"--workdir={file}", f"--outdir={outdir}", "--seeds=0-1",
            "--labels=3", "--num_steps=3", *more)  # fmt: skip


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_images_of_an_exported_file(sampler, model, file, call, tmp_path):
    out = tmp_path / "images.npz"
    call(*words_of(file, out, f"--sampler={sampler}", "--guidance=cfg", "--guidance_scale=8"))
    images = np.load(out)["arr_0"]
    drawn = edm_jax.sample(
        model, range(2), labels=3, sampler=sampler, num_steps=3,
        guidance=edm_jax.guidance.classifier_free(8.0),
    )  # fmt: skip
    assert np.all(np.abs(drawn) <= 1)
    # A byte may round the other way in another program.
    np.testing.assert_allclose(images.astype(int), drawn * 127.5 + 127.5, atol=1)


def test_partial_noise_is_an_option(file, call, tmp_path):
    found = {}
    for kappa in (0, 1):
        out = tmp_path / f"{kappa}.npz"
        call(*words_of(file, out, "--sampler=reflected", f"--sampler_options=kappa={kappa}"))
        found[kappa] = np.load(out)["arr_0"]
    assert np.any(found[0] != found[1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sigma_max=1"], "noise levels of a box of length 2 must satisfy"),
        (["--guidance=cfg", "--guidance_scale=2", "--threshold=static"],
         "thresholding is not for reflected models"),
        (["--sampler=reflected", "--sampler_options=kappa=-1"], "kappa must be at least 0"),
        (["--sampler=ddpm", "--sampler_options=variance=learned"], "needs a network with twice"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_does_not_fit_is_one_line(words, message, file, call, tmp_path):
    done = call(*words_of(file, tmp_path / "out", *words), code=2)
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_other_models_are_refused_in_one_line(model, call, tmp_path):
    fields = ("network", "precond", "image_shape", "num_classes")
    plain = describe(**{name: model.description[name] for name in fields})
    single_file.write_single_file(tmp_path / "a.safetensors", plain, {"ema": model.variables})
    done = call(
        *words_of(tmp_path / "a.safetensors", tmp_path / "o", "--sampler=reflected"), code=2
    )
    assert "which only reflected models know; this model is a denoiser" in done.stderr
    always = random_model("--config.model.SongUNet.label_dropout=0.0")
    file = tmp_path / "always.safetensors"
    single_file.write_single_file(file, always.description, {"ema": always.variables})
    guided = ("--guidance=cfg", "--guidance_scale=2")
    done = call(*words_of(file, tmp_path / "o", *guided), code=2)
    assert "label dropout" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_reflected_run(one_device, call, tmp_path):
    path = tmp_path / "run"
    tiny = (*SMALL, "--config.sampler.num_steps=3", "--config.sampler.batch_size=20",
            "--config.evaluation.trajectory_seeds=2")  # fmt: skip
    said = call("--mode=preflight", *small("digits_reflected.py", path, *tiny))
    assert said.stdout.rstrip().endswith("this run would work")
    call(*small("digits_reflected.py", path, *tiny, kimg=0.008))
    again = call(*small("digits_reflected.py", path, *tiny))
    assert "resuming at kimg 0.0" in again.stdout
    found = json.loads((path / "evaluation.json").read_text())
    assert found["progress"]["step"] == 2 and found["num_images"] == 20
    assert (path / "figures" / "loss_per_noise_level.png").exists()
    model = edm_jax.load(path)
    assert model.kind == "reflected"
    done = call("--mode=evaluate", f"--workdir={path}", "--num_images=10",
                "--metrics=frechet_pixels", "--sampler=reflected")  # fmt: skip
    assert "Frechet distance" in done.stdout
    file = tmp_path / "model.safetensors"
    call("--mode=export", f"--workdir={path}", f"--dest={file}")
    np.testing.assert_array_equal(
        edm_jax.sample(edm_jax.load(file), [1], labels=0, num_steps=3),
        edm_jax.sample(model, [1], labels=0, num_steps=3),
    )
