"""Exact reflected denoisers against golden arrays and against sums over unfolded sources."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.domains.box import Box
from edm_jax.reflected.sources import ReflectedCells, ReflectedPoints
from tests.support import reflected_toy as toy


def test_points(golden, x64):
    arrays = golden("13_reflected")
    x, sigma = arrays["toy/x"], arrays["toy/sigma"]
    source = toy.source(arrays)
    np.testing.assert_allclose(
        toy.call(source.log_density, x, sigma), arrays["toy/log_density"], rtol=1e-11, atol=1e-14
    )
    np.testing.assert_allclose(toy.call(source.denoise, x, sigma), arrays["toy/D"], atol=1e-11)
    score = toy.call(source.score, x, sigma)
    np.testing.assert_allclose(score, arrays["toy/score"], rtol=1e-9, atol=1e-9)
    column = sigma.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(
        toy.call(source.scaled_score, x, sigma), column * arrays["toy/score"], atol=1e-11
    )
    # Folded Tweedie on the faces: D = x there.
    on_face = (x == 0) | (x == 1)
    assert on_face.sum() >= 2
    np.testing.assert_allclose(np.asarray(score)[on_face], 0, atol=1e-10)


def test_points_of_a_class(golden, x64):
    arrays = golden("13_reflected")
    conditional = toy.by_label(arrays, arrays["toy/y"])
    denoised = toy.call(conditional, arrays["toy/x"], arrays["toy/sigma"])
    np.testing.assert_allclose(denoised, arrays["toy/D_cond"], atol=1e-11)


def test_lift(golden, x64):
    arrays = golden("13_reflected")
    lifted = toy.UNIT.lift(toy.source(arrays).denoise)
    denoised = toy.call(lifted, arrays["toy/v"], arrays["toy/sigma"])
    # |v| up to 5 is folded: as many digits less.
    np.testing.assert_allclose(denoised, arrays["toy/D_lift"], atol=1e-10)


def test_folded_tweedie(x64):
    """D_lift is the posterior mean of the unfolded source: an explicit sum over sources."""
    levels, weights = np.array([-1.0, -0.2, 1.0]), np.array([0.2, 0.5, 0.3])
    source = ReflectedPoints(levels, weights)
    box, rng = Box(), np.random.default_rng(0)
    for sigma in (0.1, 0.7, 2.0):
        v = rng.normal(0, 5, size=50)
        copies = np.concatenate([levels + 4 * k for k in range(-20, 21)])
        mirrored = np.concatenate([2 - levels + 4 * k for k in range(-20, 21)])
        sources = np.concatenate([copies, mirrored])
        logits = np.log(np.tile(weights, 82)) - (v[:, None] - sources) ** 2 / (2 * sigma**2)
        posterior = np.exp(logits - logits.max(1, keepdims=True))
        expected = (posterior @ sources) / posterior.sum(1)
        denoised = toy.call(box.lift(source.denoise), v, sigma)
        np.testing.assert_allclose(denoised, expected, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.02, 0.9, 1.1])
def test_cells(sigma, x64):
    """Density against quadrature of the kernel, score against its derivative."""
    lows, weights = np.array([[0.0, 0.25], [0.5, 0.75], [0.25, 0.0]]), np.array([0.5, 0.2, 0.3])
    source = ReflectedCells(lows, 0.25, weights, toy.UNIT)
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(size=(4, 2)), [[0.0, 1.0]]])
    nodes, masses = np.polynomial.legendre.leggauss(60)

    def factor(x, low):
        y = low + 0.25 * (nodes + 1) / 2
        return masses / 2 @ np.exp(toy.UNIT.log_kernel(np.full_like(y, x), y, sigma))

    expected = [
        sum(w * factor(p[0], c[0]) * factor(p[1], c[1]) for w, c in zip(weights, lows, strict=True))
        for p in x
    ]
    log_density = toy.call(source.log_density, x, sigma)
    # 60 nodes resolve sigma = 0.02 on cells of 0.25 to 1e-9.
    np.testing.assert_allclose(log_density, np.log(expected), rtol=1e-8, atol=1e-9)
    inside = x[:4]
    gradient = jax.jit(jax.vmap(jax.grad(lambda x: source.log_density(x, sigma))))(inside)
    np.testing.assert_allclose(
        toy.call(source.score, inside, sigma), gradient, rtol=1e-8, atol=1e-8
    )


def test_samples_and_units(x64):
    points = np.array(list(itertools.product((-1.0, 1.0), (-1.0, 0.5))))
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    source = ReflectedPoints(points, weights)
    samples = np.asarray(source.sample(jax.random.key(0), (4000,)))
    counts = [np.sum(np.all(samples == p, axis=1)) for p in points]
    assert np.sum((counts - 4000 * weights) ** 2 / (4000 * weights)) < 25  # 3 degrees of freedom
    cells = ReflectedCells(points - [0, 0.5], 0.5, weights, Box(-2.0, 2.0))
    within = np.asarray(cells.sample(jax.random.key(1), (1000,)))
    assert np.all(np.any(np.all((within[:, None] >= cells.points), axis=2), axis=1))
    # A source on [0, 1] and its image on [-1, 1] with twice the sigma.
    unit = ReflectedPoints((points + 1) / 2, weights, toy.UNIT)
    x = np.random.default_rng(0).uniform(size=(6, 2))
    np.testing.assert_allclose(
        source.denoise(2 * x - 1, 0.6), 2 * unit.denoise(x, 0.3) - 1, atol=1e-13
    )


def test_bad_sources():
    with pytest.raises(ValueError, match=r"points must lie in the box \[-1, 1\]"):
        ReflectedPoints(np.array([0.0, 1.5]))
    with pytest.raises(ValueError, match="cells must lie in the box"):
        ReflectedCells(np.array([0.8]), 0.5)
    with pytest.raises(ValueError, match="weights must be positive"):
        ReflectedPoints(np.array([0.0]), weights=np.array([-1.0]))
    assert jax.tree.leaves(ReflectedPoints(jnp.zeros(1)))
