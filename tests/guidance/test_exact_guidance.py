"""Guidance on data whose denoisers and classifier are exact (golden 12: point, traj)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import guidance as g
from edm_jax.samplers import Churn, loop, sample_heun, sample_stochastic
from edm_jax.schedules import karras_sigmas
from tests.support import guided_mixture as gm


@pytest.fixture(scope="module")
def golden():
    return gm.arrays()


def close(got, want, atol=1e-8):
    """Suggested with the golden arrays: 1e-8 of the largest value."""
    np.testing.assert_allclose(got, want, rtol=0, atol=atol * np.abs(want).max())


def test_bayes(golden, x64):
    """D_0 + sigma^2 g = D_c; the classes exclude each other; g is a derivative."""
    model = gm.Exact(golden)
    x, sigma, rows = golden["point/x"], golden["point/sigma"], gm.one_hot(golden["point/y"])
    close(model.denoise(x, sigma), golden["point/D_uncond"])
    close(model.denoise(x, sigma, rows), golden["point/D_cond"])
    log_all = jax.nn.log_softmax(model.logits(x, sigma))
    close(log_all, golden["point/log_prob_all"])
    np.testing.assert_allclose(np.exp(log_all).sum(-1), 1, rtol=1e-12)
    close(g.log_likelihood(model, x, sigma, rows), golden["point/log_prob"])
    grad = g.classifier_gradient(model, x, sigma, rows)
    close(grad, golden["point/grad"])
    conditional = g.classifier_guidance(model, 1.0).guide(lambda x, s, rows: model.denoise(x, s))
    # Bayes in float64: both sides of size 1.
    np.testing.assert_allclose(conditional(x, sigma, rows), golden["point/D_cond"], atol=1e-10)
    step = 1e-5 * np.random.default_rng(0).standard_normal(x.shape)
    moved = [g.log_likelihood(model, x + s * step, sigma, rows) for s in (1, -1)]
    along = np.sum(np.asarray(grad) * step, axis=(1, 2, 3))
    np.testing.assert_allclose((moved[0] - moved[1]) / 2, along, rtol=1e-5, atol=1e-12)


def test_classifier_scales(golden, x64):
    model = gm.Exact(golden)
    x, sigma, rows = golden["point/x"], golden["point/sigma"], gm.one_hot(golden["point/y"])
    for i, scale in enumerate(golden["point/scale"]):
        guidance = g.classifier_guidance(model, scale)
        on_uncond = guidance.guide(lambda x, s, rows: model.denoise(x, s))
        close(on_uncond(x, sigma, rows), golden["point/D_guided"][i])
        close(guidance.guide(model.denoise)(x, sigma, rows), golden["point/D_guided_cond"][i])


def test_large_sigma_moves_to_the_class_mean(golden, x64):
    """sigma^2 g of the exact classifier tends to mean of the class - mean of the data."""
    model = gm.Exact(golden)
    sigma, y = 1e4, np.arange(3)
    x = sigma * np.random.default_rng(0).standard_normal((3, 2, 2, 3))
    push = sigma**2 * g.classifier_gradient(model, x, sigma, gm.one_hot(y))

    def mean(mixture):
        weights = mixture.weights / np.sum(mixture.weights)
        return np.tensordot(weights, mixture.means, axes=1)

    want = np.stack([mean(model.each[c]) for c in y]) - mean(model.all)
    # The next order is (x / sigma) times variances / sigma: 1e-4 times numbers of size 1.
    np.testing.assert_allclose(push, want, atol=2e-3)


def guidance_of(golden, name, model):
    """(guidance, denoiser) of a golden trajectory."""
    c = gm.settings(golden, f"traj/{name}/config")
    plain = model.denoise
    unlabelled = lambda x, sigma, rows: model.denoise(x, sigma)  # noqa: E731
    bad = gm.Exact(golden, "bad_").denoise
    w = c.get("w")
    return {
        "cond": lambda: (g.classifier_free(1.0), plain),
        "cfg": lambda: (g.classifier_free(w), plain),
        "interval-sigma": lambda: (g.classifier_free(w, (c["sigma_lo"], c["sigma_hi"])), plain),
        "auto": lambda: (g.autoguidance(bad, w), plain),
        "auto-cfg": lambda: (
            g.added(g.autoguidance(bad, c["w_auto"]), g.classifier_free(c["w_cfg"])),
            plain,
        ),
        "classifier": lambda: (g.classifier_guidance(model, c["scale"]), unlabelled),
        "classifier-cond": lambda: (g.classifier_guidance(model, c["scale"]), plain),
        "cfg-static": lambda: (
            g.chain(g.classifier_free(w), g.static_threshold(c["low"], c["high"])),
            plain,
        ),
        "cfg-dynamic": lambda: (g.chain(g.classifier_free(w), g.dynamic_threshold(c["p"])), plain),
    }[name.removesuffix("-churn")]()


NAMES = (
    "cond", "cfg", "cfg-churn", "interval-sigma", "auto", "auto-cfg", "classifier",
    "classifier-cond", "classifier-churn", "cfg-static", "cfg-dynamic",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_trajectories(golden, x64, name):
    """Every evaluation of a whole run, guided and thresholded, in order."""
    model = gm.Exact(golden)
    c = gm.settings(golden, f"traj/{name}/config")
    guidance, plain = guidance_of(golden, name, model)
    rows = gm.one_hot(golden["traj/y"])
    guided = guidance.guide(plain)
    # Every recorded evaluation by itself ...
    calls = [golden[f"traj/{name}/call_{key}"] for key in ("sigma", "x", "D")]
    evaluate = jax.jit(lambda x, sigma: guided(x, sigma, rows))
    for sigma, x, want in zip(*calls, strict=True):
        close(evaluate(x, sigma), want)
    # ... and the run of our sampler as a whole.
    sigmas = karras_sigmas(
        c["num_steps"], sigma_min=c["sigma_min"], sigma_max=c["sigma_max"], rho=c["rho"]
    )
    x = golden["traj/latents"] * sigmas[0]
    if "S_churn" in c:
        churn = Churn(c["S_churn"], c["S_min"], c["S_max"], c["S_noise"])
        noise = jnp.asarray(golden[f"traj/{name}/noise"])
        run = lambda x: sample_stochastic(  # noqa: E731
            evaluate, x, sigmas, None, churn, noise_fn=lambda i: noise[i]
        )
    else:
        run = lambda x: sample_heun(evaluate, x, sigmas)  # noqa: E731
    result = jax.jit(run)(x)
    close(result, golden[f"traj/{name}/result"])


def test_interval_by_step(golden, x64):
    """The rule of the released program: both evaluations of a step share the decision."""
    name, model = "interval-index", gm.Exact(golden)
    c = gm.settings(golden, f"traj/{name}/config")
    rows = gm.one_hot(golden["traj/y"])
    sigmas = karras_sigmas(
        c["num_steps"], sigma_min=c["sigma_min"], sigma_max=c["sigma_max"], rho=c["rho"]
    )
    x = golden["traj/latents"] * sigmas[0]
    sample = functools.partial(
        g.sample_heun_by_step, g.classifier_free(c["w"]), model.denoise, x, sigmas, rows
    )
    run = jax.jit(lambda: sample(first=c["first"], last=c["last"], trajectory=True))()
    close(run.x[-1], golden[f"traj/{name}/result"])
    close(run.x[:-1], golden[f"traj/{name}/call_x"][::2])
    # By sigma the same levels give another image: the corrector of step 2 is guided.
    ends = sigmas[c["last"] + 1], sigmas[c["first"]]
    by_sigma = g.classifier_free(c["w"], ends).guide(model.denoise)
    other = jax.jit(lambda x: sample_heun(lambda x, s: by_sigma(x, s, rows), x, sigmas))(x)
    assert np.abs(other - run.x[-1]).max() > 1e-3


def test_classifier_guidance_is_classifier_free_guidance(golden, x64):
    """With the exact classifier, gamma on D_0 = w, whole runs."""
    model = gm.Exact(golden)
    rows = gm.one_hot(golden["traj/y"])
    sigmas = karras_sigmas(6, sigma_min=0.02, sigma_max=20.0)
    x = golden["traj/latents"] * sigmas[0]
    cfg = g.classifier_free(1.7).guide(model.denoise)
    classifier = g.classifier_guidance(model, 1.7).guide(lambda x, s, r: model.denoise(x, s))
    one, other = (
        jax.jit(lambda x, d=d: sample_heun(lambda x, s: d(x, s, rows), x, sigmas))(x)
        for d in (cfg, classifier)
    )
    np.testing.assert_allclose(one, other, atol=1e-9)  # rounding of sigma^2 g at sigma 20


def test_stateful_samplers_store_the_guided_denoiser(golden, x64):
    """A guided denoiser is a denoiser: trajectories hold D after guidance."""
    model = gm.Exact(golden)
    rows = gm.one_hot(golden["traj/y"])
    guided = g.classifier_free(2.5).guide(model.denoise)
    sigmas = karras_sigmas(4, sigma_min=0.02, sigma_max=20.0)
    x = golden["traj/latents"] * sigmas[0]
    run = jax.jit(
        lambda x: sample_heun(lambda x, s: guided(x, s, rows), x, sigmas, trajectory=True)
    )(x)
    assert isinstance(run, loop.Trajectory)
    close(run.denoised[0], guided(x, sigmas[0], rows))
