"""The laws that the samplers produce, against that of the data: orders, and who agrees.

One-dimensional, with levels on both faces.  Steps are taken for a whole law at once: 2^14
sorted particles whose noise is a low-discrepancy sequence (array-RQMC, L'Ecuyer et al.
2008), which brings the sampling error from 1e-2 to below 1e-3.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import grids, samplers
from edm_jax.domains.box import Box
from edm_jax.reflected import sampling
from edm_jax.reflected.sources import ReflectedPoints
from edm_jax.samplers import reflected_steps as steps
from edm_jax.seeds import image_keys

UNIT = Box(0.0, 1.0)
LEVELS, PROB = np.array([0.0, 1 / 3, 2 / 3, 1.0]), np.array([0.1, 0.4, 0.3, 0.2])
SOURCE = ReflectedPoints(LEVELS, PROB, UNIT)
NUM = 2**14
FLOOR = 1e-3


def _van_der_corput(num):
    """Bit-reversed fractions: any sorted neighbourhood sees all of (0, 1) evenly."""
    bits = num.bit_length() - 1
    reverse = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(num)]
    return (np.array(reverse) + 0.5) / num


def _frequencies(x):
    nearest = np.abs(np.asarray(x)[:, None] - LEVELS).argmin(1)
    return np.bincount(nearest, minlength=len(LEVELS)) / len(x)


@functools.cache
def _law_step(boundary):
    sequence = jnp.asarray(_van_der_corput(NUM))

    @jax.jit
    def step(x, sigma, variance, shift, kappa):
        x = jnp.sort(x)
        noise = jax.scipy.special.ndtri(jnp.clip((sequence + shift) % 1, 1e-9, 1 - 1e-9))
        lifted = UNIT.lift(SOURCE.denoise)
        return steps.reflected_step(
            lifted, x, sigma, variance, noise, box=UNIT, kappa=kappa, boundary=boundary
        )[0]

    return step


def _error(num_steps, boundary="reflect", kappa=1.0):
    """Largest error of a level's frequency after num_steps steps, the last from 0.01."""
    sigmas = grids.make_sigmas("ve", num_steps, sigma_min=0.01, sigma_max=5.0)[:-1]
    x, rng = (np.arange(NUM) + 0.5) / NUM, np.random.default_rng(0)
    step = _law_step(boundary)
    for now, after in itertools.pairwise(sigmas):
        x = step(x, now, now**2 - after**2, rng.uniform(), kappa)
    return np.abs(_frequencies(UNIT.clip(x)) - PROB).max()


@pytest.mark.slow
def test_weak_orders_of_reflection_and_clipping(x64):
    """Reflection 1, both ways of clipping 1/2."""
    coarse, fine = 25, 100
    orders = {}
    for boundary in steps.BOUNDARIES:
        errors = [_error(n, boundary) for n in (coarse, fine)]
        # What is compared must stand above the error of the particles.
        assert min(errors) > 2 * FLOOR
        orders[boundary] = np.log(errors[0] / errors[1]) / np.log(fine / coarse)
    for boundary, promised in [("reflect", 1.0), ("project", 0.5), ("threshold", 0.5)]:
        assert abs(orders[boundary] - promised) < 0.25, orders
        name = {"reflect": "reflected"}.get(boundary, f"reflected_{boundary}")
        assert samplers.SAMPLERS[name].order == promised


def test_partial_noise_has_the_same_law(x64):
    """kappa = 0, 1/2, 1: the reverse steps of section 6.4 of reflected.md."""
    for kappa in (0.0, 0.5, 1.0):
        # 0.007 at 50 steps for kappa = 1, from the specification's own table.
        assert _error(64, kappa=kappa) < 0.012


def test_clipping_is_worse_at_equal_cost(x64):
    """At 50 steps 0.007 with reflection, 0.051 to 0.053 with clipping."""
    assert _error(50) == pytest.approx(0.007, abs=0.002)
    assert _error(50, "project") == pytest.approx(0.051, abs=0.003)
    assert _error(50, "threshold") == pytest.approx(0.053, abs=0.005)


@pytest.mark.parametrize(
    ("name", "num_steps"),
    [("reflected", 100), ("heun", 30), ("dpmpp_2m", 30)],
)
def test_sde_and_ode_draw_the_same_two_dimensional_data(name, num_steps, golden):
    """Frequencies of the five points of the golden toy, in float32."""
    arrays = golden("13_reflected")
    points = np.float32(arrays["toy/points"].reshape(5, 2))
    source = ReflectedPoints(points, np.float32(arrays["toy/weights"]), UNIT)
    sampler, num = samplers.get(name), 20_000
    sigmas = grids.make_sigmas("ve", num_steps, sigma_min=0.01, sigma_max=2.0)

    @jax.jit
    def run(noise, keys):
        return sampling.run(sampler, source.denoise, noise, sigmas, keys, domain=UNIT)

    noise = np.random.default_rng(1).normal(size=(num, 2)).astype(np.float32)
    x = np.asarray(run(noise, image_keys(range(num))))
    assert np.all((x >= 0) & (x <= 1))
    distance = np.linalg.norm(x[:, None] - points, axis=-1)
    counts = np.bincount(distance.argmin(1), minlength=5)
    # Three standard errors, 0.009, and the error of the steps, at 100 below 0.005.
    np.testing.assert_allclose(counts / num, arrays["toy/weights"], atol=0.014)


def test_correctors_keep_the_law():
    """Their steps depend on norms, which in an image of 256 independent elements are nearly
    constant; in two dimensions they are not, and the corrector has a large bias."""
    source = ReflectedPoints(np.float32(LEVELS), np.float32(PROB), UNIT)
    sampler = samplers.get("reflected_predictor_corrector")
    sigmas = grids.make_sigmas("ve", 50, sigma_min=0.01, sigma_max=2.0)

    @jax.jit
    def run(noise, keys):
        return sampling.run(
            sampler, source.denoise, noise, sigmas, keys, domain=UNIT, snr=0.1, corrector_steps=1
        )

    noise = np.random.default_rng(2).normal(size=(150, 16, 16, 1)).astype(np.float32)
    x = np.asarray(run(noise, image_keys(range(150))))
    # Three standard errors are 0.008, the predictor's own error at 50 steps is 0.007.
    np.testing.assert_allclose(_frequencies(x.ravel()), PROB, atol=0.015)
