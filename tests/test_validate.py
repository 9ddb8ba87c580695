"""The validator: it passes what is right and fails what is wrong, with the reason."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import samplers, seeds, validate


def right(denoise, x, sigmas):
    """Heun's method, promised as such."""
    return samplers.sample_heun(denoise, x, sigmas)


right.order = 2


def wrong_coefficient(denoise, x, sigmas):
    """Euler with a slope ten per cent too small."""
    for i in range(len(sigmas) - 1):
        x = x + 0.9 * (sigmas[i + 1] - sigmas[i]) * (x - denoise(x, sigmas[i])) / sigmas[i]
    return x


def overpromised(denoise, x, sigmas):
    """Euler that claims order 2."""
    return samplers.sample_ddim(denoise, x, sigmas)


overpromised.order = 2


def batch_norm(denoise, x, sigmas):
    """Lets images influence each other."""
    return right(denoise, x, sigmas) + 1e-3 * jnp.mean(x)


def shared_noise(denoise, x, sigmas, key):
    """Draws the noise of every image from the first key."""
    noise = seeds.normal(key[0], x.shape[1:], x.dtype)
    return right(denoise, x, sigmas) + 1e-3 * noise[None]


def ancestral(denoise, x, sigmas, key):
    """A correct stochastic sampler, measured by sampling."""
    return samplers.sample_ddpm(denoise, x, sigmas, key, variance="large")


def test_a_right_sampler_passes():
    report = validate.validate(validate.load_subject(f"{__name__}:right"))
    assert report.passed and not report.stochastic
    np.testing.assert_allclose(report.measured_order, 2, atol=0.1)
    text = validate.table([report])
    assert "pass" in text and f"{report.error_at_budget:.2e}" in text
    assert validate.to_json([report])[0]["passed"] is True


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("wrong_coefficient", "converges with order"),
        ("overpromised", "promised 2"),
        ("batch_norm", "images influence each other"),
        ("shared_noise", "noise of an image depends on other keys"),
    ],
)
def test_a_wrong_sampler_fails_with_its_reason(name, reason, monkeypatch):
    monkeypatch.setattr(validate, "NUM_STEPS", (16, 32))
    report = validate.validate(validate.load_subject(f"{__name__}:{name}"))
    assert not report.passed and reason in "; ".join(report.failures)
    assert "FAIL" in validate.table([report])


def test_a_stochastic_user_sampler_is_recognised():
    subject = validate.load_subject(f"{__name__}:ancestral")
    assert subject.stochastic
    with jax.enable_x64(True):
        sampled = validate.sampled_error(subject, 16)
        info = validate.subject_of(samplers.SAMPLERS["ddpm"], variance="large")
        info = dataclasses.replace(info, grid=subject.grid)
        exact = validate.impulse_error(info, 16)
    # 262144 samples: the deviation is known to 0.0007; two standard errors.
    np.testing.assert_allclose(sampled, exact, atol=0.0015)


def test_impulse_error_has_a_closed_form():
    """One step to 0 on Gaussian data: the result is D of the start."""
    subject = validate.subject_of(samplers.SAMPLERS["ddpm"])
    with jax.enable_x64(True):
        error = validate.impulse_error(subject, 1)
    # D(x_0) has deviation 0.25 / sqrt(0.25 + sigma^2), as has the exact law at sigma.
    np.testing.assert_allclose(error, 0, atol=1e-12)


@pytest.mark.parametrize("name", ["heun", "dpmpp_3m", "unipc_2", "ve_ode"])
def test_deterministic_samplers_of_the_registry_keep_their_promises(name):
    report = validate.validate(validate.subject_of(samplers.SAMPLERS[name]))
    assert report.passed, report.failures


@pytest.mark.parametrize("name", ["edm", "dpmpp_2m_sde", "vp_euler_maruyama"])
def test_stochastic_samplers_of_the_registry_keep_their_promises(name):
    options = {"churn": validate.CHURN} if name == "edm" else {}
    report = validate.validate(validate.subject_of(samplers.SAMPLERS[name], **options))
    assert report.passed, report.failures


@pytest.mark.slow
def test_every_sampler_of_the_registry_keeps_its_promises():
    reports = [validate.validate(subject) for subject in validate.builtin_subjects()]
    assert {r.name.split(" ")[0] for r in reports} == set(samplers.SAMPLERS)
    assert all(r.passed for r in reports), validate.table(reports)


def test_bad_paths_are_named():
    for path in (
        "heun",
        "edm_jax.samplers:nope",
        "no_such_module:f",
        "edm_jax.validate:NFE_BUDGET",
    ):
        with pytest.raises(ValueError, match=r"sampler|callable"):
            validate.load_subject(path)
