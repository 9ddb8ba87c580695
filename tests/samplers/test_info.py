"""What `SamplerInfo` promises of every sampler alike, on samplers defined here."""

import jax
import numpy as np
import pytest

from edm_jax import grids, precond
from edm_jax.samplers.info import SamplerInfo

SIGMAS = np.array([8.0, 2.0, 0.5, 0.0])


def recording(denoise, x, sigmas, key, noise_fn=None):
    """Returns what it was given."""
    return sigmas, key


def plain(denoise, x, sigmas):
    return sigmas


def test_an_exact_sampler_unless_it_says_otherwise():
    info = SamplerInfo("own", plain, order=2)
    assert (info.bias, info.draws, info.min_steps, info.grid) == (0.0, 1, 1, "edm")
    assert info.linear and not info.stochastic and info.domain == "any"


def test_the_largest_step_count_within_a_budget():
    """2 N - 1 calls: 35 pay for 18 steps, 36 for no more."""
    info = SamplerInfo("own", plain, order=2, nfe_fn=lambda steps, options: 2 * steps - 1)
    assert [info.steps_within(nfe) for nfe in (1, 2, 3, 34, 35, 36)] == [1, 1, 2, 17, 18, 18]
    costly = SamplerInfo("costly", plain, order=1, nfe_fn=lambda steps, options: 3 * steps)
    assert costly.steps_within(3) == 1
    for nfe in (0, 2):
        with pytest.raises(ValueError, match="one step of 'costly' takes more than nfe"):
            costly.steps_within(nfe)


def test_least_steps_are_enough():
    info = SamplerInfo("own", plain, order=2, min_steps=3)
    assert info(None, None, SIGMAS) is SIGMAS
    with pytest.raises(ValueError, match="needs at least 3 steps, got 2"):
        info(None, None, SIGMAS[1:])


def test_keys_reach_those_that_draw():
    info = SamplerInfo("own", recording, order=1, stochastic=True)
    sigmas, key = info(None, None, SIGMAS, "key")
    assert sigmas is SIGMAS and key == "key"


def test_known_levels_are_rounded_once_and_traced_ones_kept():
    """Three levels of which two have the same nearest entry: two steps of a known grid."""
    net = precond.iddpm_preconditioning()
    table = np.asarray(grids.make_sigmas("iddpm", 10, preconditioning=net))[3:5]
    close = np.array([table[0] * 1.0001, table[0] * 0.9999, table[1], 0.0])
    info = SamplerInfo("own", plain, order=1)
    rounded = info(None, None, close, preconditioning=net)
    np.testing.assert_allclose(rounded, [table[0], table[1], 0.0], rtol=1e-6)  # float32 entries
    traced = jax.jit(lambda s: info(None, None, s, preconditioning=net))(close)
    np.testing.assert_allclose(traced, [table[0], table[0], table[1], 0.0], rtol=1e-6)
