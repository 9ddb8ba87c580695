"""A reflected model from training to images: kind, request, file, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import edm_jax
from edm_jax import guidance
from edm_jax.domains.box import Box
from edm_jax.evaluation.loss_levels import loss_at_levels
from edm_jax.generate import Sampling
from edm_jax.model import describe, from_description
from edm_jax.store import single_file
from experiments.config.build import ConfigError, experiment
from tests.configs.test_configs import load as load_config
from tests.support.reflected import DigitsShape, random_model


@pytest.fixture(scope="module")
def model():
    """Random weights, the last layer included, so that D is far from x."""
    return random_model()


def test_kind_is_said(model):
    assert model.kind == model.description["kind"] == "reflected"
    assert model.preconditioning.name == "reflected"
    assert (model.preconditioning.sigma_min, model.preconditioning.sigma_max) == (0.02, 4.0)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling("heun", num_steps=5),
        Sampling("reflected", "ve", num_steps=5, options={"kappa": 0.5, "corrector_steps": 1}),
        Sampling("edm", num_steps=5, options={"s_churn": 3.0}),
    ],
    ids=lambda sampling: sampling.sampler,
)
def test_no_sample_of_any_network_leaves_the_box(model, sampling):
    images = edm_jax.sample(model, range(4), labels=3, sampling=sampling)
    assert images.shape == (4, 8, 8, 1) and np.all(np.abs(images) <= 1)
    assert np.unique(images).size > 200  # not merely the faces
    alone = edm_jax.sample(model, [2], labels=3, sampling=sampling)
    np.testing.assert_allclose(alone[0], images[2], atol=1e-4)


def test_strong_guidance_needs_no_threshold(model):
    request = Sampling("heun", num_steps=5)
    guided = guidance.classifier_free(scale=16.0)  # w' = 15
    images = edm_jax.sample(model, range(3), labels=1, sampling=request, guidance=guided)
    plain = edm_jax.sample(model, range(3), labels=1, sampling=request)
    assert np.all(np.abs(images) <= 1) and np.any(images != plain)
    for threshold in (guidance.static_threshold(), guidance.dynamic_threshold()):
        with pytest.raises(ValueError, match="thresholding is not for reflected models"):
            edm_jax.sample(model, [0], labels=1, sampling=request, guidance=threshold)


def test_exported_and_loaded(model, tmp_path):
    path = tmp_path / "model.safetensors"
    single_file.write_single_file(path, model.description, {"ema": model.variables})
    loaded = edm_jax.load(path)
    assert loaded.kind == "reflected"
    np.testing.assert_array_equal(
        edm_jax.sample(loaded, [1], labels=0, num_steps=3),
        edm_jax.sample(model, [1], labels=0, num_steps=3),
    )


def test_loss_at_levels_compares_with_the_folded_target(model):
    images = np.float32(np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 1)))
    loss = loss_at_levels(model, images, [0.1, 3.0], labels=[0, 1, 2], weight=lambda s: s**-2)
    box, key = Box(), jax.random.key(0, impl="threefry2x32")
    for i, sigma in enumerate((0.1, 3.0)):
        noise = jax.random.normal(jax.random.fold_in(key, i), images.shape)
        x = box.corrupt(images, sigma, noise)
        scaled = (model.denoise(x, jnp.float32(sigma), np.array([0, 1, 2])) - x) / sigma
        expected = np.mean((scaled - box.scaled_score(x, images, sigma)) ** 2, axis=(1, 2, 3))
        np.testing.assert_allclose(loss[i], expected, rtol=1e-4)


def test_refusals(model):
    outside = jnp.full((1, 8, 8, 1), 2.5)
    with pytest.raises(ValueError, match="noisy images of a reflected model must lie in the box"):
        model.denoise(outside, 2.0, 0)
    lifted = Box().lift(lambda x, sigma: model.denoise(x, sigma, 0))(outside, 2.0)
    # 2.5 is the mirror image of -0.5 about the face at 1: the direction turns round.
    step = model.denoise(jnp.full_like(outside, -0.5), 2.0, 0) + 0.5
    np.testing.assert_allclose(lifted - outside, -step, rtol=1e-4, atol=1e-5)
    for sampling, message in [
        (Sampling("heun", sigma_max=1.0), "they are in units of the box"),
        (Sampling("heun", num_steps=1), "a reflected model needs at least 2 steps, got 1"),
        (Sampling("reflected", options={"kappa": -1.0}), "kappa must be at least 0"),
        (
            Sampling("ve_predictor_corrector", "ve"),
            "cannot take a reflected model: its Langevin steps grow without bound",
        ),
        (Sampling("vp_ode", num_steps=40), "cannot take a reflected model: its steps are those"),
    ]:
        with pytest.raises(ValueError, match=message):
            edm_jax.sample(model, [0], labels=0, sampling=sampling)
    plain = describe(
        **{k: model.description[k] for k in ("network", "precond", "image_shape", "num_classes")}
    )
    denoiser = from_description(plain, model.variables)
    with pytest.raises(ValueError, match="which only reflected models know; this model is a den"):
        edm_jax.sample(denoiser, [0], labels=0, sampling=Sampling("reflected"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--config.objective.name=denoising", "--config.sampler.name=reflected"],
         r"config\.sampler: sampler 'reflected' keeps its states in a box"),
        (["--config.sampler.sigma_max=1.0"], r"config\.sampler: noise levels of a box"),
        (["--config.sampler.name=ve_predictor_corrector"], "cannot take a reflected model"),
        (["--config.sampler.name=vp_ode"], "'vp_ode' cannot take a reflected model"),
    ],
)  # fmt: skip
def test_a_configuration_is_refused_before_any_work(overrides, message):
    with pytest.raises(ConfigError, match=message):
        experiment(load_config("digits_reflected.py", *overrides))


def test_the_likelihood_weighting_asks_for_its_levels():
    config = load_config(
        "imagenet32_reflected.py", "--config.noise.name=lognormal", "--config.model.dtype=float32"
    )
    read = experiment(config)
    with pytest.raises(ConfigError, match="needs levels uniform in ln sigma"):
        read.build_objective(read.build_network(DigitsShape()), DigitsShape())


def test_published_settings():
    """Numbers of reflected.md, section 9, in units of [-1, 1]."""
    table = {
        "cifar10_reflected.py": (128, 1_300_001, 2e-4, 0.02),
        "imagenet64_reflected.py": (2048, 400_001, 1e-4, 0.02),
        "imagenet32_reflected.py": (512, 2_000_001, 2e-4, 2e-4),
    }
    for file, (batch, updates, lr, sigma_min) in table.items():
        config = load_config(file)
        read = experiment(config)
        train = config.train
        assert (train.batch_size, train.lr, train.grad_clip_norm) == (batch, lr, 1.0)
        assert read.intervals.total == pytest.approx(updates, rel=1e-4)
        assert train.lr_rampup_kimg * 1000 / batch == pytest.approx(5000)
        decay = 0.5 ** (batch / (train.ema_halflife_kimg[0] * 1000))
        assert decay == pytest.approx(0.9999, abs=1e-7)
        assert (read.distribution.sigma_min, read.distribution.sigma_max) == (sigma_min, 10.0)
        assert read.kind == "reflected"
