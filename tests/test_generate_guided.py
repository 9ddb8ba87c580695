"""Guidance where images are drawn: in sample(), and what an evaluation counts."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import edm_jax
from edm_jax import generate
from edm_jax import seeds as seeds_lib
from edm_jax.evaluation.protocol import network_rows_of
from edm_jax.generate import Sampling
from edm_jax.guidance import (
    autoguidance,
    chain,
    classifier_free,
    classifier_guidance,
    guided_denoiser,
    static_threshold,
)
from edm_jax.model import Model
from edm_jax.precond import iddpm_preconditioning
from edm_jax.samplers import sample_ddpm, sample_heun
from tests.support import compiler
from tests.support.exact_model import exact_model
from tests.test_generate import PIXELS, draw, tiny_model

GUIDED = {"label_dropout": 0.1}


def by_hand(model, label, scale, low=0.0, high=np.inf, steps=4):
    """Heun on D_0 + w (D_c - D_0) within the interval, from the same latents."""
    sigmas = edm_jax.karras_sigmas(steps).astype(np.float32)
    keys = seeds_lib.image_keys(range(2))
    x = seeds_lib.latents(keys, (2, *model.image_shape)) * sigmas[0]

    def denoise(x, sigma):
        conditional, null = model.denoise(x, sigma, label), model.denoise(x, sigma)
        acts = (low < sigma) & (sigma <= high)
        return jnp.where(acts, null + scale * (conditional - null), conditional)

    return jax.jit(lambda x: sample_heun(denoise, x, sigmas))(x)


@pytest.mark.parametrize("interval", [None, (0.1, 20.0)])
def test_classifier_free_guidance_is_its_formula(interval):
    model = tiny_model(**GUIDED)
    images = draw(range(2), 1, model, num_steps=4, guidance=classifier_free(2.0, interval))
    np.testing.assert_allclose(images, by_hand(model, 1, 2.0, *(interval or ())), **PIXELS)
    assert not np.allclose(images, draw(range(2), 1, model, num_steps=4), atol=1e-2)


def test_a_network_without_classes_never_sees_the_labels_of_its_guide():
    @jax.tree_util.register_static
    class Onlooker:
        def guide(self, denoise):
            return denoise

    model, sampling = exact_model(), Sampling(num_steps=2)
    images = generate.sample_batch(
        model, jnp.arange(2, dtype=jnp.uint32), jnp.eye(2),
        sigmas=sampling.grid(model.preconditioning),
        asked=sampling.request(model.preconditioning), guidance=Onlooker(), trajectory=False,
    )  # fmt: skip
    expected = edm_jax.sample(model, range(2), sampling=sampling)  # its means would be 1/4 away
    np.testing.assert_allclose(images, expected, rtol=1e-5)


def test_a_new_scale_never_recompiles(traces):
    model = tiny_model(**GUIDED)
    draw(range(2), 1, model, guidance=classifier_free(2.0))
    before = len(traces)
    draw(range(2), 0, model, guidance=classifier_free(3.5))
    assert len(traces) == before


def test_scale_one_and_a_weaker_model_that_is_the_same_change_nothing(monkeypatch):
    compiled = jax.jit(
        generate.sample_batch.__wrapped__,
        static_argnames="trajectory",
        compiler_options=compiler.as_users_compile(),
    )
    monkeypatch.setattr(generate, "sample_batch", compiled)
    model = tiny_model(**GUIDED)
    plain = draw(range(2), 1, model)
    np.testing.assert_array_equal(draw(range(2), 1, model, guidance=classifier_free(1.0)), plain)
    same = draw(range(2), 1, model, guidance=autoguidance(model, scale=3.0))
    np.testing.assert_allclose(same, plain, **PIXELS)


def test_a_threshold_after_guidance_holds_the_last_image_in_its_range():
    guided = chain(classifier_free(4.0), static_threshold())
    images = draw(range(4), 1, tiny_model(**GUIDED), guidance=guided)
    assert np.abs(images).max() <= 1  # the last step returns D


def test_what_cannot_be_guided_is_refused_before_any_work():
    for model, guidance, message in (
        (tiny_model(), classifier_free(2.0), "trained with label dropout"),
        (tiny_model(0), classifier_free(2.0), "needs a conditional model"),
        (tiny_model(**GUIDED), autoguidance(tiny_model(2), 2.0), "class"),
    ):
        with pytest.raises(ValueError, match=message):
            generate.batches(model, [0], guidance=guidance)


def test_rows_of_networks_are_counted_where_they_are_evaluated():
    model, sampling = tiny_model(**GUIDED), Sampling(num_steps=4)
    sigmas = sampling.grid()
    visited = np.concatenate([np.repeat(sigmas[:-1], 2)[:1], np.repeat(sigmas[1:-1], 2)])
    rows = network_rows_of(classifier_free(2.0, (0.1, 20.0)), sampling, model)
    inside = np.sum((0.1 < visited) & (visited <= 20.0))
    assert len(visited) == sampling.nfe() and rows == {"denoiser": len(visited) + inside}
    assert network_rows_of(classifier_free(1.0), sampling, model) == {"denoiser": 7}


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ByMean:
    """log p(c | x) of three classes by the mean of an image; its gradient is known."""

    image_shape: tuple[int, ...] = (4, 4, 2)
    num_classes: int = 3

    def logits(self, x, sigma):
        del sigma
        mean = jnp.mean(x, axis=(1, 2, 3))
        return jnp.stack([mean, -mean, jnp.zeros_like(mean)], axis=1)


@pytest.mark.parametrize("clipped", [False, True])
def test_the_shifted_mean_of_adm_from_a_request(clipped):
    model = tiny_model()
    shift = classifier_guidance(ByMean(), 30.0, form="mean")
    guided = chain(static_threshold(), shift) if clipped else shift
    asked = {"sampler": "ddpm", "discretization": "edm", "num_steps": 4}
    images = draw(range(2), 1, model, guidance=guided, **asked)
    sigmas = edm_jax.karras_sigmas(4).astype(np.float32)
    keys = seeds_lib.image_keys(range(2))
    x = seeds_lib.latents(keys, (2, *model.image_shape)) * sigmas[0]

    def denoise(x, sigma):
        denoised = model.denoise(x, sigma, 1)
        return jnp.clip(denoised, -1, 1) if clipped else denoised

    def push(x, sigma):
        # log p = -m - ln(e^m + e^-m + 1), of the mean m of 32 numbers.
        m = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
        up, down, _ = jax.nn.softmax(jnp.stack([m, -m, jnp.zeros_like(m)]), axis=0)
        slope = -1 - (up - down)
        return jnp.broadcast_to(30.0 * slope / 32, x.shape)

    expected = jax.jit(lambda x, keys: sample_ddpm(denoise, x, sigmas, keys, shift=push))(x, keys)
    np.testing.assert_allclose(images, expected, **PIXELS)
    plain = draw(range(2), 1, model, **asked)
    assert not np.allclose(images, plain, atol=1e-2)
    with pytest.raises(ValueError, match="of the sampler 'ddpm', got 'heun'"):
        generate.batches(model, [0], guidance=guided)
    with pytest.raises(ValueError, match="is no change of D"):
        guided_denoiser(model, guided)


COUNTED = []


class CountingNet(nn.Module):
    """F = x / 4 plus the index of the label, variance channels of 0; counts its images."""

    @nn.compact
    def __call__(self, x, c_noise, class_labels=None, augment_labels=None, **options):
        jax.debug.callback(lambda count: COUNTED.append(int(count)), x.shape[0])
        f_x = x / 4
        if class_labels is not None:
            f_x += (class_labels @ jnp.arange(1.0, 4.0)).reshape(-1, 1, 1, 1)
        return jnp.concatenate([f_x, jnp.zeros_like(x)], axis=-1)


@pytest.mark.parametrize(
    "guidance",
    [static_threshold(), classifier_free(2.0), classifier_free(2.0, (0.1, 20.0)),
     classifier_free(2.0, together=True)],
)  # fmt: skip
def test_a_learned_variance_costs_no_further_network_rows(guidance):
    """The network runs once a step for D and v, and for D_0 where it is needed."""
    network = dict(tiny_model(**GUIDED).description["network"], out_channels=4)
    described = dict(
        tiny_model().description, network=network, precond={"name": "iddpm", "num_levels": 50}
    )
    model = Model(CountingNet(), iddpm_preconditioning(50), {}, described, "raw")
    sampling = Sampling("ddpm", "iddpm", num_steps=6, options={"variance": "learned"})
    COUNTED.clear()
    images = draw(range(2), 1, model, num_steps=6, sampling=sampling, guidance=guidance)
    jax.effects_barrier()
    assert np.all(np.isfinite(images))
    assert sum(COUNTED) == 2 * network_rows_of(guidance, sampling, model)["denoiser"]
