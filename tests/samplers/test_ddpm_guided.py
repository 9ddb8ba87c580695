"""ADM's own samplers with its classifier guidance (golden 12: adm)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import guidance as g
from edm_jax import respacing
from edm_jax.samplers import sample_ddim, sample_ddpm
from edm_jax.samplers.ddpm import ddpm_step, last_variance
from tests.support import guided_mixture as gm

VARIANCES = {"fixed_small": "small", "fixed_large": "large", "learned_range": "learned"}


@pytest.fixture(scope="module")
def golden():
    return gm.arrays()


def process(c):
    """Levels in order of use, the original time steps of them, both without the last 0."""
    indices = respacing.respaced_indices(c["diffusion_steps"], c["timestep_respacing"])
    levels = respacing.ddpm_levels(c["noise_schedule"], c["diffusion_steps"])
    return respacing.respaced_sigmas(levels, indices), indices[::-1]


def names(golden, kind):
    return sorted({key.split("/")[2] for key in golden if key.startswith(f"adm/{kind}/")})


STEPS = names(gm.arrays(), "step")
TRAJECTORIES = names(gm.arrays(), "traj")


@pytest.mark.parametrize("name", STEPS)
def test_steps(golden, x64, name):
    """Mean and variance of single steps, first and last ones among them, in z."""
    prefix = f"adm/step/{name}"
    c = gm.settings(golden, f"{prefix}/config")
    sigmas, indices = process(c)
    count = len(indices)
    for row, index in enumerate(golden[f"{prefix}/index"]):
        k = count - 1 - index
        assert indices[k] == golden[f"{prefix}/timestep"][row]
        levels = sigmas[k], sigmas[k + 1], sigmas[k - 1]
        check_step(golden, prefix, row, levels, VARIANCES[c["variance"]], c["clip_denoised"])


def check_step(golden, prefix, row, levels, variance, clip):
    sigma, sigma_next, before = levels
    s, s_next = (1 / np.sqrt(1 + level**2) for level in (sigma, sigma_next))

    def read(key):
        return np.asarray(golden[f"{prefix}/{key}"][row], np.float64)[None]

    x = read("z") / s
    denoised = x - sigma * read("eps")
    if clip:
        denoised = np.clip(denoised, -1, 1)
    gradient = s * read("grad")  # with respect to x, the scale included
    learned = variance == "learned"
    v = (read("v") + 1) / 2 if learned else {"small": 0.0, "large": 1.0}[variance]
    if sigma_next == 0:
        mean = denoised + last_variance(sigma, before, v, learned=learned) / s * gradient
    else:
        mean, _ = ddpm_step(
            lambda x, sigma: (denoised, v) if learned else denoised,
            x,
            sigma,
            sigma_next,
            np.zeros_like(x),
            None if learned else v,
            lambda x, sigma: gradient,
        )
    # Suggested; at sigma 20291 the program's own x - sigma eps loses digits in float32.
    atol = 1e-5 if sigma < 1e3 else 1e-3
    want = read("condition_mean")
    np.testing.assert_allclose(mean * s_next, want, rtol=0, atol=atol * np.abs(want).max())
    # Its DDIM: clip, then the D form.
    want = read("condition_score_pred_xstart")
    got = denoised + sigma**2 * gradient
    np.testing.assert_allclose(got, want, rtol=0, atol=atol * np.abs(want).max())


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_runs(golden, x64, name):
    """Whole runs of the program's two samplers, in float64 against its float64 replay."""
    prefix = f"adm/traj/{name}"
    c = gm.settings(golden, f"{prefix}/config")
    sigmas, indices = process(c)
    np.testing.assert_array_equal(golden[f"{prefix}/timestep"], indices)
    model, rows = gm.Exact(golden), gm.one_hot(golden["traj/y"])
    labels = rows if c["denoiser"] == "D_cond" else None
    learned = VARIANCES[c["variance"]] == "learned" and c["sampler"] == "ancestral"

    def plain(x, sigma, rows=None):
        denoised = model.denoise(x, sigma, labels)
        return jnp.clip(denoised, -1, 1) if c["clip_denoised"] else denoised

    def denoise(x, sigma):
        denoised = plain(x, sigma)
        if not learned:
            return denoised
        z = x / jnp.hypot(1.0, sigma)
        return denoised, (jnp.sin(3 * z) + 1) / 2

    x = jnp.asarray(golden[f"{prefix}/z_T"], jnp.float64) * np.hypot(1, sigmas[0])
    noise = jnp.asarray(golden[f"{prefix}/noise"], jnp.float64)
    classifier = g.classifier_guidance(model, c["scale"])
    if c["sampler"] == "ancestral":
        run = sample_ddpm(
            denoise, x, sigmas, variance=VARIANCES[c["variance"]],
            shift=classifier.shift(rows) if c["scale"] else None,
            noise_fn=lambda i: noise[i], trajectory=True,
        )  # fmt: skip
    else:
        guided = classifier.guide(plain)
        run = sample_ddim(
            lambda x, sigma: guided(x, sigma, rows), x, sigmas,
            **({"eta": c["eta"], "noise_fn": lambda i: noise[i]} if c["eta"] else {}),
            trajectory=True,
        )  # fmt: skip
    z = np.asarray(run.x) / np.hypot(1, sigmas).reshape(-1, 1, 1, 1, 1)
    want = golden[f"{prefix}/z_traj_f64"]
    np.testing.assert_allclose(z, want, rtol=0, atol=1e-8 * np.abs(want).max())  # suggested
    want = golden[f"{prefix}/pred_xstart_f64"]
    np.testing.assert_allclose(run.denoised, want, rtol=0, atol=1e-7 * np.abs(want).max())


def test_last_step_of_the_variances(golden, x64):
    """Small: no shift.  Large and learned: that of the step before, or interpolated to beta."""
    sigma, before = 0.5, 0.8
    beta = sigma**2 / (1 + sigma**2)
    small = sigma**2 * (before**2 - sigma**2) / (before**2 * (1 + sigma**2))
    for v, learned, want in (
        (0.0, False, 0.0), (0.5, False, 0.0), (1.0, False, small), (0.0, True, small),
        (1.0, True, beta), (0.5, True, np.sqrt(small * beta)),
    ):  # fmt: skip
        np.testing.assert_allclose(
            last_variance(sigma, before, v, learned=learned), want, rtol=1e-12
        )


def test_shift_off_and_refusals():
    x, sigmas = jnp.ones((2, 3)), np.float32([2.0, 1.0, 0.0])
    keys = jax.random.split(jax.random.key(0), 2)
    denoise = lambda x, sigma: 0.5 * x  # noqa: E731
    plain = sample_ddpm(denoise, x, sigmas, keys, variance="large")

    class Failing:
        def logits(self, x, sigma):
            raise AssertionError("the classifier was called")

    off = g.classifier_guidance(Failing(), 0.0).shift(jnp.eye(2))
    shifted = sample_ddpm(denoise, x, sigmas, keys, variance="large", shift=off)
    np.testing.assert_array_equal(shifted, plain)
    with pytest.raises(ValueError, match="at least 2 steps"):
        sample_ddpm(denoise, x, sigmas[1:], keys, shift=off)
