"""One copy of the network in the program of every fixed-step sampler, and the loop's options."""

import functools
import itertools
import re

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import exact, grids, samplers, seeds
from edm_jax.samplers import SAMPLERS, Churn

FIXED = sorted(name for name, info in SAMPLERS.items() if info.nfe_fn is not None)
OPTIONS = {"edm": {"churn": Churn(8.0)}, "ve_predictor_corrector": {"corrector_steps": 2}}
BED = exact.Gaussian(0.3, 0.5)


def _marked(x, sigma):
    """D of Gaussian data with an operation that no sampler has."""
    return jax.lax.clamp(-1e30, BED.denoise(x, sigma), 1e30)


def _count(jaxpr, primitive):
    """How often a primitive stands in a program, those within it included."""
    found = 0
    for equation in jaxpr.eqns:
        found += equation.primitive.name == primitive
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found += _count(inner, primitive)
    return found


def _args(name, num_steps):
    sigmas = grids.make_sigmas(SAMPLERS[name].grid, num_steps)
    keys = seeds.image_keys(range(2))
    return seeds.latents(keys, (2, 2, 2, 1)) * sigmas[0], sigmas, keys


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("how", [{}, {"trajectory": True, "progress": lambda *_: None}])
def test_the_network_stands_once_in_the_program(name, how):
    x, sigmas, keys = _args(name, 24)
    run = functools.partial(SAMPLERS[name], _marked, **OPTIONS.get(name, {}), **how)
    program = jax.make_jaxpr(lambda x, s: run(x, s, keys))(x, sigmas)
    assert _count(program.jaxpr, "clamp") == 1


@pytest.mark.parametrize("name", ["heun", "edm", "general", "dpmpp_2s"])
def test_one_step_is_one_denoising(name, x64):
    x, keys = jnp.ones((2, 3)) * 5.0, seeds.image_keys([0, 1])
    visited = SAMPLERS[name](BED.denoise, x, [5.0, 0.0], keys, trajectory=True)
    np.testing.assert_allclose(visited.x[-1], BED.denoise(x, 5.0), rtol=1e-13)
    assert visited.x.shape == (2, 2, 3) and visited.denoised.shape == (1, 2, 3)


@pytest.mark.parametrize("name", ["ve_predictor_corrector", "reflected_predictor_corrector"])
def test_a_predictor_shows_what_it_saw_itself(name):
    """Not what the correctors before it saw: the last one ends on its own D."""
    x, keys = jnp.array([[0.9], [-0.4]]), seeds.image_keys([0, 1])
    options = {"corrector_steps": 2, "snr": 0.3, "trajectory": True}
    visited = SAMPLERS[name](lambda x, sigma: 0.5 * x, x, [0.8, 0.4, 0.0], keys, **options)
    # Rounding of x + (D - x), which is how the box has it.
    np.testing.assert_allclose(visited.x[-1], visited.denoised[-1], rtol=1e-6)


def _heun_by_hand(x, sigmas):
    visited = [x]
    for now, after in itertools.pairwise(sigmas[:-1]):
        visited.append(samplers.heun_step(BED.denoise, visited[-1], now, after)[0])
    last = samplers.euler_step(BED.denoise, visited[-1], sigmas[-2], 0.0)[0]
    return jnp.stack([*visited, last])


def test_samplers_are_loops_of_their_public_steps(x64):
    """The tables of coefficients say what the formulas of the steps say."""
    sigmas = grids.karras_sigmas(7)
    x = jnp.linspace(-2.0, 2.0, 6).reshape(2, 3) * sigmas[0]
    keys = seeds.image_keys([4, 5])
    # Equal up to the order of the additions.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)
    close(samplers.sample_heun(BED.denoise, x, sigmas, trajectory=True).x, _heun_by_hand(x, sigmas))

    churn, states = Churn(20.0, 0.01, 50.0, 1.01), [x]
    gammas = churn.gamma(sigmas[:-1], 7)
    for i in range(6):
        noise = seeds.churn_noise(keys, i, x.shape, x.dtype)
        step = functools.partial(samplers.stochastic_step, BED.denoise, states[-1], sigmas[i])
        states.append(step(sigmas[i + 1], gammas[i], churn.s_noise, noise)[0])
    visited = samplers.sample_stochastic(BED.denoise, x, sigmas, keys, churn, trajectory=True)
    close(visited.x[:-1], jnp.stack(states))

    setting = samplers.table1(7, schedule="vp", scaling="vp")
    states = [x * setting.scaling.scale(sigmas[0])]
    for now, after in itertools.pairwise(sigmas[:-1]):
        step = samplers.general_step(BED.denoise, states[-1], now, after, *setting[1:], 0.7)
        states.append(step[0])
    last = samplers.general_euler_step(BED.denoise, states[-1], sigmas[-2], 0.0, *setting[1:])
    visited = samplers.sample_general(
        BED.denoise, x, sigmas, schedule=setting.schedule, scaling=setting.scaling, alpha=0.7,
        trajectory=True,
    )  # fmt: skip
    close(visited.x, jnp.stack([*states, last[0]]))

    states = [x]
    for now, after in itertools.pairwise(sigmas[:-1]):
        states.append(samplers.dpmpp_2s_step(BED.denoise, states[-1], now, after, 0.4)[0])
    visited = samplers.sample_dpmpp_2s(BED.denoise, x, sigmas, r=0.4, trajectory=True)
    close(visited.x[:-1], jnp.stack(states))


@pytest.mark.parametrize("shape", [(1, 3), (3,), (2, 1), ()])
def test_replayed_noise_has_the_shape_of_the_state(shape):
    """Smaller ones would give all images the same noise."""
    x, sigmas = jnp.ones((2, 3)), grids.karras_sigmas(4)
    for name, options in (("edm", {"churn": Churn(8.0)}), ("ddim", {"eta": 1.0}), ("lcm", {})):
        with pytest.raises(
            ValueError, match=r"noise_fn must return .*\(2, 3\), got " + re.escape(str(shape))
        ):
            SAMPLERS[name](BED.denoise, x, sigmas, noise_fn=lambda i: jnp.zeros(shape), **options)


def test_gradients_are_finite_and_right_at_every_end(x64):
    """Through grid, noise settings and state, where the last step has level 0."""
    keys = seeds.image_keys([0])

    def result(scale, s_churn, x, name):
        sigmas = jnp.asarray(grids.karras_sigmas(5)) * scale
        options = {"churn": Churn(s_churn)} if name == "edm" else {}
        return jnp.sum(SAMPLERS[name](BED.denoise, x, sigmas, keys, **options))

    x = jnp.array([[30.0, -20.0]])
    for name in ("heun", "edm", "ddpm", "dpmpp_2s", "ve_predictor_corrector"):
        run = jax.jit(functools.partial(result, name=name))
        slopes = jax.jit(jax.grad(run, argnums=(0, 1)))(1.0, 3.0, x)
        for i, slope in enumerate(slopes):
            step = np.eye(2)[i] * 1e-5
            difference = (
                run(1 + step[0], 3 + step[1], x) - run(1 - step[0], 3 - step[1], x)
            ) / 2e-5
            # Central differences of a smooth function, in double precision.
            np.testing.assert_allclose(slope, difference, rtol=1e-5, atol=1e-8)


def test_an_option_that_no_sampler_has_is_refused():
    for run in (samplers.sample_heun, samplers.sample_dpmpp_2m):
        with pytest.raises(TypeError, match=r"unexpected option 'trajektory'.*trajectory"):
            run(BED.denoise, jnp.ones((1, 2)), grids.karras_sigmas(4), trajektory=True)


def test_a_grid_is_long_enough_and_decreases():
    x = jnp.ones((1, 2))
    with pytest.raises(ValueError, match="needs at least 4 steps for its order, got a grid of 3;"):
        samplers.sample_lms(BED.denoise, x, grids.karras_sigmas(3), order=4)
    with pytest.raises(ValueError, match="strictly decreasing"):
        samplers.sample_heun(BED.denoise, x, np.array([2.0, 1.0, 1.0, 0.0]))
