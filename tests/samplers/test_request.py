"""Samplers and options from JSON values."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import exact, grids, samplers, schedules, seeds
from edm_jax.samplers import SAMPLERS, Churn, request

BED = exact.Gaussian(0.3, 0.5)
SIGMAS = grids.karras_sigmas(6)
# A value of every option that is a name.
NAMED = {
    "solver": "heun", "schedule": "vp", "scaling": "vp", "variance": "large", "variant": None,
    "boundary": "reflect",
    "method": "reverse_diffusion", "noise": "tree", "function": "power", "space": "vp",
    "start": "heun",
}  # fmt: skip


def _value(info, option, kind):
    if kind == "name" or kind == "name or number":
        if info.name == "adaptive":
            return "tsit5"
        if option == "variant":
            return {"unipc": "bh1", "seeds": "phi_1"}.get(info.name.split("_")[0], "taylor")
        return NAMED[option]
    plain = {"number": 0.75, "count": 2, "true or false": False, "list": [[3, 2, 0.1, 0.3]]}
    allowed = {
        "corrector_steps": 0,
        "max_steps": 100,
        "alpha": 1.0,
        "beta_d": 19.9,
        "beta_min": 0.1,
    }
    return allowed.get(option, plain[kind])


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_option_of_every_sampler_has_a_json_value(name):
    if name == "adaptive":
        pytest.importorskip("diffrax")
    info = SAMPLERS[name]
    accepted = samplers.accepted(info)
    functions = {"noise_fn", "round_sigma", "stats", "shift", "variances", "box"}
    own = set(info.options) - set(samplers.LoopOptions.__annotations__) - functions
    assert own - {"churn"} <= set(accepted)
    options = {option: _value(info, option, kind) for option, kind in accepted.items()}
    options = json.loads(json.dumps(options))
    asked = request(name, options)
    assert set(dict(asked.static)) == {o for o, k in accepted.items() if k in (
        "count", "true or false", "name") and o not in ("schedule", "scaling")} | (
        {"variance"} & set(accepted))  # fmt: skip
    assert all(isinstance(leaf, float) for leaf in jax.tree.leaves(asked.traced))
    assert asked == request(name, options) and hash(asked.static) is not None


def test_numbers_never_recompile_and_names_do(x64):
    traces = []

    @jax.jit
    def run(asked, x, sigmas, keys):
        traces.append(asked.sampler)
        return asked(BED.denoise, x, sigmas, keys)

    x, keys = jnp.ones((2, 3)) * SIGMAS[0], seeds.image_keys([0, 1])
    for s_churn in (0, 4, 7.5):
        asked = request("edm", {"s_churn": s_churn, "s_noise": 1.003}, sigmas=SIGMAS)
        result = run(asked, x, SIGMAS, keys)
        direct = samplers.sample_stochastic(
            BED.denoise, x, SIGMAS, keys, Churn(s_churn, s_noise=1.003)
        )
        np.testing.assert_allclose(result, direct, rtol=1e-12)
    assert traces == ["edm"]
    for alpha in (1, 0.5, 0.7):
        run(request("general", {"alpha": alpha, "schedule": "vp"}, sigmas=SIGMAS), x, SIGMAS, keys)
    assert traces == ["edm", "general"]
    euler = request("general", {"solver": "euler"})
    run(euler, x, SIGMAS, keys)
    assert len(traces) == 3 and euler.nfe(6) == 6 and request("heun").nfe(6) == 11


def test_a_request_by_another_name(x64):
    asked = request("Euler a", {"s_noise": 1}, sigmas=SIGMAS)
    x, keys = jnp.ones((2, 3)) * SIGMAS[0], seeds.image_keys([0, 1])
    result = jax.jit(lambda a, x: a(BED.denoise, x, SIGMAS, keys))(asked, x)
    direct = samplers.sample_ddim(BED.denoise, x, SIGMAS, keys, eta=1.0)
    np.testing.assert_allclose(result, direct, rtol=1e-12)
    assert asked.nfe(6) == 6 and request("restart").nfe(6) == 11 + 8


def test_the_vp_schedule_is_fitted_to_the_grid():
    made = request("general", {"schedule": "vp"}, sigmas=SIGMAS).traced["schedule"]
    np.testing.assert_allclose(made.sigma(1.0), 80.0, rtol=1e-5)  # float32
    np.testing.assert_allclose(made.sigma(schedules.VP_EPS_S), 0.002, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("huen", {}, "did you mean 'heun'"),
        ("edm", {"s_chrun": 1}, "did you mean 's_churn'"),
        ("edm", {"s_churn": -1}, "s_churn must be at least 0"),
        ("edm", {"s_churn": "40"}, "must be a number, got '40'"),
        ("edm", {"s_churn": True}, "must be a number, got True"),
        ("edm", {"s_tmin": 3, "s_tmax": 1}, "s_tmin <= s_tmax"),
        ("ddim", {"alpha": 1}, "samplers with it: general"),
        ("dpmpp_2m", {"s_churn": 1}, "samplers with it: edm, general"),
        ("general", {"solver": "huen"}, "did you mean 'heun'"),
        ("general", {"schedule": "vpp"}, "did you mean 'vp'"),
        ("edm", {"noise_fn": 1}, "is no number or name"),
        ("edm", {"churn": 1}, "use s_churn, s_tmin"),
        ("heun", {"trajectory": True}, "pass it where it runs"),
        ("unipc_3", {"order": 2.0}, "must be a whole number"),
        ("unipc_3", {"order": 7}, "order must be 1, 2 or 3"),
        ("vp_ode", {"ode": "yes"}, "must be true or false"),
        ("vp_ancestral", {"ode": True}, "no ODE form"),
        ("ddpm", {"variance": "smal"}, "did you mean 'small'"),
        ("ddpm", {"variance": 3}, "variance must be"),
        ("seeds_2", {"noise": "path"}, "unknown noise 'path'"),
        ("seeds_2", {"noise": "tree", "eta": 9}, "use less eta"),
        ("restart", {"segments": [[3, 2, 0.1]]}, "must be a list of"),
        ("restart", {"segments": [[3, 0, 0.1, 0.3]]}, "repeats of a segment"),
        ("sa_solver", {"predictor": 1, "corrector": 1}, "gains nothing"),
        ("dpm_fast", {}, "left out.*unipc_3"),
    ],
)
def test_mistakes_are_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        request(name, options)
    assert "\n" not in str(error.value)


def test_the_grid_is_checked_with_the_options():
    with pytest.raises(ValueError, match="at least 3 steps"):
        request("dpmpp_3m", sigmas=grids.karras_sigmas(2))
    with pytest.raises(ValueError, match="evenly spaced times"):
        request("vp_ode", sigmas=SIGMAS)
