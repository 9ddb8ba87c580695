"""The reflected Gaussian against mpmath (60 digits), its limits, and in float32."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.domains import kernel
from edm_jax.domains.box import Box

UNIT = Box(0.0, 1.0)
SWITCH = kernel.SWITCH
log_kernel, scaled_score, score, target, corrupt = (
    jax.jit(getattr(Box, name))
    for name in ("log_kernel", "scaled_score", "score", "target", "corrupt")
)


def _grid(golden, dtype=np.float64):
    arrays = golden("13_reflected")
    grid = np.meshgrid(
        arrays["kernel/sigma"], arrays["kernel/y"], arrays["kernel/x"], indexing="ij"
    )
    return arrays, *(a.astype(dtype) for a in grid)


def test_density_score_and_target(golden, x64):
    arrays, sigma, y, x = _grid(golden)
    log_density = log_kernel(UNIT, x, y, sigma)
    # Exponents reach 1e8, of which float64 keeps 16 digits.
    np.testing.assert_allclose(log_density, arrays["kernel/log_density"], rtol=1e-13, atol=1e-13)
    visible = arrays["kernel/density"] > 0
    np.testing.assert_allclose(
        np.exp(log_density)[visible], arrays["kernel/density"][visible], rtol=1e-10
    )
    scaled = sigma * arrays["kernel/score"]
    np.testing.assert_allclose(scaled_score(UNIT, x, y, sigma), scaled, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(
        score(UNIT, x, y, sigma), arrays["kernel/score"], rtol=1e-12, atol=1e-10
    )
    np.testing.assert_allclose(target(UNIT, x, y, sigma), arrays["kernel/target"], atol=1e-14)


def test_another_box(golden, x64):
    arrays = golden("13_reflected")
    grid = (arrays["box/sigma"], arrays["box/y"], arrays["box/x"])
    sigma, y, x = np.meshgrid(*grid, indexing="ij")
    box = Box(*arrays["box/range"])
    density = np.exp(log_kernel(box, x, y, sigma))
    np.testing.assert_allclose(density, arrays["box/density"], rtol=1e-10)
    np.testing.assert_allclose(score(box, x, y, sigma), arrays["box/score"], atol=1e-12)


@pytest.mark.parametrize("sigma", [1e-4, 1e-3, 0.01, 0.05, 0.14, 0.15, 0.3, 0.5, 0.51, 1.0])
def test_float32(sigma, x64):
    """sigma * score of samples, to 1e-6: no digits are lost at any level."""
    rng = np.random.default_rng(0)
    y = (rng.integers(256, size=20000) / 255).astype(np.float32)
    sigma = np.float32(sigma)
    x = corrupt(UNIT, y, sigma, rng.normal(size=y.shape).astype(np.float32))
    assert x.dtype == jnp.float32
    exact = scaled_score(UNIT, np.float64(x), np.float64(y), np.float64(sigma))
    error = np.abs(np.float64(scaled_score(UNIT, x, y, sigma)) - exact)
    # A standard normal number of up to 5, to float32; see the table of reflected.md for the
    # published program (3e-4 at 1e-4, 2e-3 at 0.15).
    assert error.max() < 1e-6
    expected = target(UNIT, np.float64(x), np.float64(y), np.float64(sigma))
    np.testing.assert_allclose(np.float64(target(UNIT, x, y, sigma)), expected, atol=4e-7)


def test_score_vanishes_on_faces(golden):
    _, sigma, y, _ = _grid(golden, np.float32)
    for face in (0.0, 1.0):
        x = np.full_like(y, face)
        # The argument of the sines is 5 pi, to float32.
        np.testing.assert_allclose(scaled_score(UNIT, x, y, sigma), 0, atol=2e-6)
        np.testing.assert_allclose(target(UNIT, x, y, sigma), x, atol=2e-6)


def test_score_is_the_gradient(x64):
    rng = np.random.default_rng(1)
    x, y = jnp.asarray(rng.uniform(size=(2, 400)))
    sigma = jnp.asarray(np.exp(rng.uniform(math.log(0.02), math.log(3), 400)))
    gradient = jax.jit(jax.vmap(jax.grad(UNIT.log_kernel)))(x, y, sigma)
    np.testing.assert_allclose(score(UNIT, x, y, sigma), gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("function", ["log_kernel", "scaled_score", "target"])
def test_gradients_are_finite(function, golden):
    """In float32, at every sigma and beyond, on faces and with all exponentials underflown."""
    _, sigma, y, x = _grid(golden, np.float32)
    gradients = jax.jit(jax.vmap(jax.grad(getattr(UNIT, function), argnums=(0, 1, 2))))
    for scale in (1e-2, 1.0, 1e3):
        for gradient in gradients(*(a.ravel() for a in (x, y, sigma * np.float32(scale)))):
            assert np.all(np.isfinite(gradient))


def test_both_series_agree_at_the_switch(x64):
    x, y = np.meshgrid(np.linspace(0, 1, 23), np.linspace(0, 1, 19))
    images = kernel._images(x, y, SWITCH, 0.0, 1.0)
    cosines = kernel._cosines(x, y, SWITCH, 0.0, 1.0)
    # The sixth cosine is exp(-(6 pi / 2)^2 / 2) = 5e-20, the next image exp(-48).
    np.testing.assert_allclose(images[0], cosines[0], atol=1e-13)
    np.testing.assert_allclose(((y - x) + images[1]) / SWITCH, cosines[1], atol=1e-13)


@pytest.mark.parametrize("sigma", [0.05, 0.3, 0.6, 2.0])
def test_identities(sigma, x64):
    """Mass 1, symmetry, composition of two kernels, the heat equation."""
    num = 2000
    nodes = (np.arange(num) + 0.5) / num  # midpoints: spectral for even periodic functions
    y = np.array([0.0, 0.13, 0.5, 0.97, 1.0])

    def density(x, y, sigma):
        shape = np.broadcast_shapes(x.shape, y.shape)
        return np.exp(log_kernel(UNIT, *np.broadcast_arrays(x, y), np.full(shape, sigma)))

    q = density(nodes[None], y[:, None], sigma)
    np.testing.assert_allclose(q.mean(1), 1, atol=1e-12)
    np.testing.assert_allclose(q, density(y[:, None], nodes[None], sigma), rtol=1e-11)
    np.testing.assert_allclose(q, density(1 - nodes[None], 1 - y[:, None], sigma), rtol=1e-10)
    second, x = 0.2, np.array([0.02, 0.4, 0.99])
    composed = density(x[:, None, None], nodes, second) * q
    direct = density(x[:, None], y[None], math.hypot(sigma, second))
    np.testing.assert_allclose(composed.mean(-1), direct, rtol=1e-10)

    def at(x, t):
        return jnp.exp(log_kernel(UNIT, x, jnp.asarray(0.3), jnp.sqrt(2 * t)))

    x, t = jnp.array([0.01, 0.35, 0.8]), jnp.full(3, sigma**2 / 2)
    laplacian = jax.jit(jax.vmap(jax.grad(jax.grad(at))))(x, t)
    derivative = jax.jit(jax.vmap(jax.grad(at, 1)))(x, t)
    np.testing.assert_allclose(derivative, laplacian, rtol=1e-9, atol=1e-9)


def test_limits(x64):
    x, y, sigma = np.array([0.302, 0.1]), np.array([0.3, 0.1]), 1e-3
    normal = -0.5 * ((x - y) / sigma) ** 2 - math.log(sigma * math.sqrt(2 * math.pi))
    np.testing.assert_allclose(log_kernel(UNIT, x, y, sigma), normal, rtol=1e-13)
    np.testing.assert_allclose(score(UNIT, x, y, sigma), (y - x) / sigma**2, rtol=1e-13)
    # A source on the face counts twice.
    on_face = log_kernel(UNIT, np.zeros(1), np.zeros(1), sigma)
    doubled = math.log(2 / (sigma * math.sqrt(2 * math.pi)))
    np.testing.assert_allclose(on_face, doubled, rtol=1e-13)
    # Far from 0 the slowest mode is left.
    x, y, sigma = np.array([0.2]), np.array([0.6]), 2.0
    mode = math.exp(-(math.pi**2) * sigma**2 / 2)
    slope = -2 * math.pi * mode * math.sin(math.pi * 0.2) * math.cos(math.pi * 0.6)
    np.testing.assert_allclose(score(UNIT, x, y, sigma), slope, rtol=1e-8)


def test_mean_square_of_what_the_network_learns(x64):
    """The table of reflected.md, section 4: c_out = sigma gives a unit target."""
    rng = np.random.default_rng(3)
    y = rng.integers(256, size=200_000) / 255
    noise = rng.normal(size=y.shape)
    for sigma, expected in [(0.01, 0.99), (0.1, 0.84), (0.3, 0.54), (0.5, 0.22), (1.0, 5e-4)]:
        x = corrupt(UNIT, y, sigma, noise)
        mean = float(np.mean(np.square(scaled_score(UNIT, x, y, sigma))))
        # Two printed digits, and a sampling error of 1/sqrt(200000) times a few.
        assert mean == pytest.approx(expected, rel=0.03, abs=5e-3 if expected > 0.01 else 5e-5)
