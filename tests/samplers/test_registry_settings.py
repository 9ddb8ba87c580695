"""Orders and defaults of samplers: what may be asked for, and what it then means."""

import functools
import inspect
import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import exact, grids, samplers, schedules, seeds
from edm_jax.domains import Box
from edm_jax.samplers import (
    SAMPLERS,
    Churn,
    Segment,
    baselines,
    deis,
    dpmpp,
    er_sde,
    ipndm,
    lms,
    reflected,
    restart,
    sa_solver,
    seeds_2_3,
    unipc,
)

WITH_ORDER = ["deis", "er_sde", "ipndm", "lms_4", "unipc_3"]


@pytest.mark.parametrize("order", [0, -1, 9, 2.0, "2", None])
@pytest.mark.parametrize("name", WITH_ORDER)
def test_an_order_is_one_of_those_there_are(name, order):
    x, sigmas, keys = jnp.ones((1, 2)), grids.karras_sigmas(12), seeds.image_keys([0])
    with pytest.raises(ValueError, match=rf"order must be 1, 2.* or \d, got {order}"):
        SAMPLERS[name](lambda x, sigma: x, x, sigmas, keys, order=order)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deis", {}),
        ("deis", {"space": "vp"}),
        ("er_sde", {"function": "power", "eta": 0.0}),
        ("ipndm", {}),
        ("lms_4", {}),
        ("unipc_3", {"corrector": False}),
    ],
)
def test_order_one_is_eulers_method(name, options, x64):
    """x' = x + (sigma' - sigma) (x - D)/sigma, on Gaussian data."""
    sigmas, keys = grids.karras_sigmas(4, sigma_min=0.1, sigma_max=5.0), seeds.image_keys([0, 1])
    start = np.array([[1.0, -2.0], [0.5, 3.0]]) * sigmas[0]
    x = start
    for now, after in itertools.pairwise(sigmas):
        denoised = 0.3 + 0.25 / (0.25 + now**2) * (x - 0.3)
        x = x + (after - now) * (x - denoised) / now
    bed = exact.Gaussian(0.3, 0.5)
    found = SAMPLERS[name](bed.denoise, start, sigmas, keys, order=1, **options)
    np.testing.assert_allclose(found, x, rtol=1e-10)  # quadrature, sums in another order


# Options of every sampler as released or published, and where neither is, as documented.
_SDE, _ORDER = {"eta": 1.0, "s_noise": 1.0}, {"lower_order_final": False}
DEFAULTS = {
    samplers.sample_heun: {},
    samplers.sample_stochastic: {"churn": Churn(0.0, 0.0, math.inf, 1.0), "round_sigma": None},
    samplers.sample_general: {
        "solver": "heun", "alpha": 1.0, "churn": None, "round_sigma": None,
        "schedule": schedules.LinearSchedule(), "scaling": schedules.NoScaling(),
    },
    samplers.sample_ddim: {"eta": 0.0, "s_noise": 1.0},
    samplers.sample_ddpm: {"variance": "small", "shift": None},
    samplers.sample_vp: {
        "method": "euler_maruyama", "ode": False, "beta_d": 19.9, "beta_min": 0.1,
    },
    samplers.sample_ve: {"ode": False},
    samplers.sample_predictor_corrector: {"snr": 0.16, "corrector_steps": 1},
    samplers.sample_dpm_2: {"churn": None},
    samplers.sample_dpm_2_ancestral: _SDE,
    samplers.sample_dpmpp_2s: {"r": 0.5},
    samplers.sample_dpmpp_2s_ancestral: _SDE,
    samplers.sample_dpmpp_sde: {"r": 0.5, "noise": "tree", **_SDE},
    samplers.sample_dpmpp_2m: {"variant": "midpoint", **_ORDER},
    samplers.sample_dpmpp_3m: {"variant": "midpoint", "kappa": 1.0, **_ORDER},
    samplers.sample_dpmpp_2m_sde: {"variant": "midpoint", **_SDE},
    samplers.sample_dpmpp_3m_sde: _SDE,
    samplers.sample_seeds_2: {"r": 0.5, "variant": "phi_2", **_SDE},
    samplers.sample_seeds_3: _SDE,
    samplers.sample_er_sde: {"order": 3, "function": "released", "kappa": 0.0, **_SDE},
    samplers.sample_sa_solver: {
        "predictor": 2, "corrector": 2, "tau": 1.0, "tau_min": 0.0, "tau_max": math.inf,
        "s_noise": 1.0, "simple": False, "pece": False,
    },
    samplers.sample_unipc: {
        "order": 3, "variant": "bh2", "lower_order_final": True, "corrector": True,
    },
    samplers.sample_deis: {"order": 3, "space": "log", **_ORDER},
    samplers.sample_ipndm: {"order": 4, "start": "euler"},
    samplers.sample_lms: {"order": 4},
    samplers.sample_restart: {"segments": (Segment(3, 2, 0.14, 0.30),), "s_noise": 1.0},
    samplers.sample_lcm: {"s_noise": 1.0},
    reflected.sample_reflected: {
        "box": Box(-1.0, 1.0), "kappa": 1.0, "boundary": "reflect", "snr": 0.01,
        "corrector_steps": 0, "max_correction": 1.0, "variances": None,
    },
    samplers.sample_adaptive: {
        "solver": "dopri5", "rtol": 1e-5, "atol": 1e-5, "max_steps": 4096, "stats": False,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "name", sorted(name for name, info in SAMPLERS.items() if "s_noise" in info.options)
)
def test_all_noise_has_its_scale(name, x64):
    """From x = 0 with D = 0 a state is a sum of the noise so far, at each of the levels."""
    sigmas = grids.karras_sigmas(5, sigma_min=0.1, sigma_max=10.0)
    x, keys = jnp.zeros((2, 3)), seeds.image_keys([3, 4])
    eta = {"eta": 1.0} if "eta" in SAMPLERS[name].options else {}
    run = functools.partial(SAMPLERS[name], lambda x, sigma: 0 * x, trajectory=True, **eta)
    one, more = (run(x, sigmas, keys, s_noise=scale).x for scale in (1.0, 1.7))
    assert np.all(one[-2] != 0)
    np.testing.assert_allclose(more, 1.7 * one, rtol=1e-12)


def _defaults(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


@pytest.mark.parametrize("function", DEFAULTS, ids=lambda function: function.__name__)
def test_defaults_are_those_documented(function):
    found = _defaults(function)
    for name, expected in {"key": None, "noise_fn": None, "noise": "step"}.items():
        assert name in DEFAULTS[function] or found.pop(name, expected) == expected
    assert found == DEFAULTS[function]


def test_every_sampler_is_among_them():
    assert {info.fn for info in SAMPLERS.values()} == set(DEFAULTS)


@pytest.mark.parametrize(
    ("table", "sampler"),
    [
        (baselines.ddim_rows, samplers.sample_ddim),
        (deis.deis_rows, samplers.sample_deis),
        (dpmpp.dpmpp_2m_rows, samplers.sample_dpmpp_2m),
        (dpmpp.dpmpp_3m_rows, samplers.sample_dpmpp_3m),
        (er_sde.er_sde_rows, samplers.sample_er_sde),
        (ipndm.ipndm_rows, samplers.sample_ipndm),
        (lms.lms_rows, samplers.sample_lms),
        (sa_solver.sa_rows, samplers.sample_sa_solver),
        (seeds_2_3.seeds_2_rows, samplers.sample_seeds_2),
        (seeds_2_3.seeds_3_rows, samplers.sample_seeds_3),
        (unipc.unipc_rows, samplers.sample_unipc),
    ],
    ids=lambda function: function.__name__,
)
def test_tables_have_the_defaults_of_their_samplers(table, sampler):
    found, expected = _defaults(table), _defaults(sampler)
    # Those of DPM-Solver++ serve the ODE; others always draw, unless told not to.
    ode = table in (dpmpp.dpmpp_2m_rows, dpmpp.dpmpp_3m_rows)
    own = {"eta": 0.0, "s_noise": 1.0, "noisy": False} if ode else {"noisy": True}
    assert found == {name: {**own, **expected}[name] for name in found}


@pytest.mark.parametrize(
    ("step", "documented"),
    [
        (samplers.general_step, {"alpha": 1.0}),
        (samplers.dpmpp_2s_step, {"r": 0.5}),
        (samplers.ddpm_step, {"v": 0.0, "shift": None}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_defaults_of_public_steps(step, documented):
    assert _defaults(step) == documented


def test_a_step_of_ddpm_has_the_small_variance():
    """sigma'^2 (sigma^2 - sigma'^2)/sigma^2, of Ho et al. 2020; D = 0 leaves the noise alone."""
    x, noise = jnp.zeros((1, 2)), jnp.ones((1, 2))
    moved, _ = samplers.ddpm_step(lambda x, sigma: 0 * x, x, 2.0, 1.0, noise)
    np.testing.assert_allclose(moved, math.sqrt(0.75), rtol=1e-6)  # float32


def test_segments_of_restart_are_those_published():
    """Xu et al. 2023, EDM on CIFAR-10 at 43 calls and ImageNet-64 at 203."""
    values = [(s.levels, s.repeats, s.sigma_lo, s.sigma_hi) for s in restart.IMAGENET64]
    assert values == [
        (4, 1, 19.35, 40.79), (4, 1, 1.09, 1.92), (4, 5, 0.59, 1.09), (4, 5, 0.30, 0.59),
        (6, 6, 0.06, 0.30),
    ]  # fmt: skip
    (cifar10,) = restart.CIFAR10
    assert (cifar10.levels, cifar10.repeats) == (3, 2)
    assert (cifar10.sigma_lo, cifar10.sigma_hi) == (0.14, 0.30)
