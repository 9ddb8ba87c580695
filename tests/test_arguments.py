"""Arguments that cannot work: one ValueError each, before anything is traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import (
    adapters,
    arguments,
    exact,
    grids,
    precond,
    respacing,
    samplers,
    schedules,
    seeds,
)
from edm_jax.samplers import Churn

X, KEYS, SIGMAS = jnp.zeros((3, 4)), seeds.image_keys(range(3)), grids.karras_sigmas(8)
GENERAL, HEUN = samplers.sample_general, samplers.get("heun")
VE = precond.ve_preconditioning()


def _never(x, sigma):
    raise AssertionError("traced before the arguments were checked")


def _general(**options):
    return samplers.sample_general(_never, X, SIGMAS, KEYS, **options)


# Argument, what must be said, and a call that gets it wrong.
BAD = {
    "churn negative": ("s_churn must be at least 0, got -1", lambda: Churn(-1.0)),
    "churn nan": ("s_churn must be at least 0, got nan", lambda: Churn(np.nan)),
    "churn array": ("s_churn must be .*got -2", lambda: Churn(np.array([1.0, -2.0]))),
    "churn range": ("s_tmin <= s_tmax, got 5.0 and 0.1", lambda: Churn(1.0, 5.0, 0.1)),
    "churn noise": ("s_noise must be", lambda: Churn(1.0, s_noise=np.inf)),
    "churn kind": ("churn must be .*Churn", lambda: _general(churn=10.0)),
    "alpha nan": ("alpha must be positive", lambda: _general(alpha=np.nan)),
    "alpha infinite": ("alpha must be positive and finite", lambda: _general(alpha=np.inf)),
    "schedule": ("schedule must be .*VPSchedule", lambda: _general(schedule="vp")),
    "schedule class": ("schedule must be", lambda: _general(schedule=schedules.VPSchedule)),
    "scaling": ("scaling must be .*VPScaling", lambda: _general(scaling="vp")),
    "key number": ("typed keys, got 0", lambda: GENERAL(_never, X, SIGMAS, 0, churn=Churn(1.0))),
    "key raw": (
        "typed keys, got an array of uint32",
        lambda: GENERAL(_never, X, SIGMAS, jax.random.PRNGKey(0), churn=Churn(1.0)),
    ),
    "key count": (
        "one key per image",
        lambda: GENERAL(_never, X, SIGMAS, KEYS[:2], churn=Churn(1.0)),
    ),
    "sigmas kind": ("array of noise levels", lambda: GENERAL(_never, X, ["a", "b"])),
    "r": ("r must be positive", lambda: samplers.sample_dpmpp_2s(_never, X, SIGMAS, r=0.0)),
    "kappa": ("kappa must be", lambda: samplers.sample_dpmpp_3m(_never, X, SIGMAS, kappa=np.nan)),
    "sde eta": ("eta", lambda: samplers.sample_dpmpp_2m_sde(_never, X, SIGMAS, KEYS, eta=-1.0)),
    "ddim eta": ("eta must be", lambda: samplers.sample_ddim(_never, X, SIGMAS, KEYS, eta=-1.0)),
    "snr": (
        "snr must be",
        lambda: samplers.sample_predictor_corrector(_never, X, SIGMAS, KEYS, snr=-0.1),
    ),
    "variance": (
        "variance must be .*got -5",
        lambda: samplers.sample_ddpm(_never, X, SIGMAS, KEYS, variance=-5.0),
    ),
    "vp rate": ("beta_d must be", lambda: samplers.sample_vp(_never, X, SIGMAS, KEYS, beta_d=0.0)),
    "preconditioning": (
        "preconditioning must be a Preconditioning, got 've'",
        lambda: HEUN(_never, X, SIGMAS, preconditioning="ve"),
    ),
    "range": ("outside the range", lambda: HEUN(_never, X, SIGMAS, preconditioning=VE)),
    "rho huge": ("rho=1e.18 is too extreme", lambda: grids.karras_sigmas(5, rho=1e18)),
    "rho tiny": ("rho=0.001 is too extreme", lambda: grids.karras_sigmas(18, rho=1e-3)),
    "range narrow": (
        "too extreme for 18 levels",
        lambda: grids.karras_sigmas(18, sigma_min=1.0, sigma_max=np.nextafter(1.0, 2.0)),
    ),
    "table ascending": (
        "levels must end in 0",
        lambda: grids.make_sigmas("iddpm", 5, levels=np.arange(10.0)),
    ),
    "network table": (
        "levels must",
        lambda: precond.iddpm_preconditioning(levels=np.arange(5.0)),
    ),
    "network levels": ("num_levels must be", lambda: precond.iddpm_preconditioning(0)),
    "network range": ("sigma_min < sigma_max", lambda: precond.ve_preconditioning(5.0, 1.0)),
    "edm range": ("sigma_min < sigma_max", lambda: precond.edm_preconditioning(0.5, 3.0, 1.0)),
    "eps_t": ("eps_t must be positive", lambda: precond.vp_preconditioning(eps_t=-1.0)),
    "path": ("path must be .*VPPath", lambda: adapters.adapt(_never, "eps", "vp")),
    "velocity of a table": (
        "no velocity",
        lambda: adapters.adapt(
            _never, "velocity", adapters.TablePath(respacing.ddpm_levels("linear"))
        ),
    ),
    "respacing": ("whole numbers, got 'ddim7x'", lambda: respacing.respaced_indices(99, "ddim7x")),
    "weights": (
        "weights must be positive",
        lambda: exact.GaussianMixture([0.0, 1.0], 0.1, [-1, 2]),
    ),
    "std": ("std must be at least 0", lambda: exact.Gaussian(0.0, -1.0)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    message, call = BAD[case]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_denoiser_of_the_wrong_shape_is_named():
    for name in sorted(samplers.SAMPLERS):
        info = samplers.get(name)
        sigmas = grids.make_sigmas(info.grid, 24)
        with pytest.raises(ValueError, match=r"must return the shape of x, .*got \(1, 4\)"):
            info(lambda x, sigma: x[:1], X, sigmas, KEYS)


def test_traced_values_pass():
    gamma = jax.vmap(lambda s: Churn(s, 0.0, 50.0).gamma(1.0, 10))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(gamma, [0.1, 0.2], rtol=1e-6)
    jax.jit(lambda value: arguments.check_number("value", value, above=0))(-1.0)
    arguments.check_number("value", np.inf, finite=False)
