"""Arguments that cannot work: one ValueError each, before anything is traced."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import edm_jax
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
    "alpha of euler": (
        "alpha must be positive",
        lambda: _general(alpha=np.nan, solver="euler"),
    ),
    "noise of ddim": (
        "unknown noise 'tre'; did you mean 'tree'",
        lambda: samplers.sample_ddim(_never, X, SIGMAS, KEYS, noise="tre"),
    ),
    "noise of an ODE": (
        "unknown noise",
        lambda: samplers.sample_vp(
            _never, X, grids.vp_sigmas(32), KEYS, noise="zz", ode=True, method="reverse_diffusion"
        ),
    ),
    "noise of ve": (
        "unknown noise",
        lambda: samplers.sample_ve(_never, X, SIGMAS, KEYS, noise="zz", ode=True),
    ),
    "noise of silent seeds": (
        "unknown noise",
        lambda: samplers.get("seeds_3")(_never, X, SIGMAS, KEYS, noise="zz", eta=0.0),
    ),
    "a long value": (
        r"^beta_d must be a number, got \[.{90,99}\.\.\.$",
        lambda: samplers.sample_vp(_never, X, SIGMAS, KEYS, beta_d=[["a"]] * 99),
    ),
    "levels that are not finite": (
        r"^sigmas must be finite, got array\(.*\.\.\.; build it with karras_sigmas$",
        lambda: GENERAL(_never, X, np.append(np.full(40, np.nan), 0.0)),
    ),
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
    "corrector steps": (
        "corrector_steps must be an integer >= 0, got None",
        lambda: samplers.sample_predictor_corrector(_never, X, SIGMAS, KEYS, corrector_steps=None),
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
    "seeds": ("seeds must be a list of integers", lambda: seeds.image_keys([1.5])),
    "one seed": ("seeds must be a list of integers", lambda: seeds.image_keys(5)),
    "sigma_max": ("sigma_max must be a number", lambda: grids.karras_sigmas(5, sigma_max="a")),
    "sigma_max list": ("sigma_max must be a number", lambda: grids.karras_sigmas(5, sigma_max=[1])),
    "sigma_min bytes": (
        "sigma_min must be a number, got b'1'",
        lambda: grids.karras_sigmas(5, sigma_min=b"1"),
    ),
    "rho of another kind": (
        "rho must be a number, got <object",
        lambda: grids.karras_sigmas(5, rho=object()),
    ),
    "sampler array": (
        r"^unknown sampler array\(\[\[0",
        lambda: samplers.get(np.zeros((2, 2))),
    ),
    "respacing": ("whole numbers, got 'ddim7x'", lambda: respacing.respaced_indices(99, "ddim7x")),
    "table1 eps_s": ("eps_s must lie", lambda: samplers.table1(8, schedule="vp", eps_s=0.0)),
    "table1 sigma_min": ("sigma_min must be a number", lambda: samplers.table1(8, sigma_min="a")),
    "table1 network": (
        "must be a Preconditioning",
        lambda: samplers.table1(8, preconditioning="ve"),
    ),
    "grid's network": (
        "must be a Preconditioning",
        lambda: grids.make_sigmas("edm", 5, preconditioning="ve"),
    ),
    "lms order": ("order must be", lambda: samplers.sample_lms(_never, X, SIGMAS, order=2.0)),
    "unipc order": ("order must be", lambda: samplers.sample_unipc(_never, X, SIGMAS, order=2.0)),
    "vp levels": ("num_levels must be", lambda: precond.vp_preconditioning(num_levels=0)),
    "ddpm levels": ("num_levels must be", lambda: respacing.ddpm_levels("cosine", 0)),
    "churn NumPy": (
        "s_tmin <= s_tmax",
        lambda: Churn(1.0, np.float32(5), np.float32(0.1)),
    ),
    "resampling": ("num_steps=nan", lambda: grids.resample_sigmas(SIGMAS, np.nan)),
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
        if info.domain == "box":
            continue  # the start is refused first: it lies outside
        sigmas = grids.make_sigmas(info.grid, 24)
        with pytest.raises(ValueError, match=r"must return the shape of x, .*got \(1, 4\)"):
            info(lambda x, sigma: x[:1], X, sigmas, KEYS)


def test_known_values_are_checked_inside_jit():
    jitted = jax.jit(lambda x: GENERAL(exact.Gaussian().denoise, x, SIGMAS, alpha=1.1))
    assert np.all(np.isfinite(jitted(X)))
    schedule = schedules.VESchedule()
    with pytest.raises(ValueError, match="smaller alpha"):
        jax.jit(lambda x: GENERAL(_never, x, SIGMAS, alpha=1.6, schedule=schedule))(X)


def test_one_program_for_every_kind_of_number():
    traces = []

    @jax.jit
    def gamma(churn):
        traces.append(0)
        return churn.gamma(1.0, 10)

    for number in (1, 1.0, np.float64(1), np.float32(1), np.int32(1)):
        np.testing.assert_allclose(gamma(Churn(number)), 0.1, rtol=1e-6)
    assert len(traces) == 1


def test_traced_values_pass():
    gamma = jax.vmap(lambda s: Churn(s, 0.0, 50.0).gamma(1.0, 10))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(gamma, [0.1, 0.2], rtol=1e-6)
    jax.jit(lambda value: arguments.check_number("value", value, above=0))(-1.0)
    arguments.check_number("value", np.inf, finite=False)


def test_a_home_that_is_not_known():
    message = "^path=~nouser/x: the home of ~nouser is not known; write it out$"
    with pytest.raises(ValueError, match=message):
        edm_jax.load("~nouser/x")
    with pytest.raises(ValueError, match="must be the name of a file or folder, got 3"):
        arguments.user_path("path", 3)
    assert arguments.user_path("path", "~/x") == pathlib.Path.home() / "x"
