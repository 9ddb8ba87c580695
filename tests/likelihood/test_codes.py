"""Codes: the spec's table of errors, recorded interpolations, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import samplers
from edm_jax.likelihood import codes
from edm_jax.likelihood.code_errors import code_errors
from edm_jax.likelihood.codes import flow_decode, flow_encode, slerp
from edm_jax.likelihood.levels import flow_levels
from edm_jax.schedules import karras_sigmas
from tests.support import likelihood_golden as recorded


@pytest.fixture(scope="module")
def data():
    return recorded.archive()


def _rms(difference):
    return float(np.sqrt(np.mean(np.square(difference))))


@pytest.mark.parametrize(("name", "expected"), [("mix8", 4.3e-3), ("gauss16", 4.8e-3)])
def test_recorded_round_trip(data, name, expected, x64):
    """Heun in sigma up and down the EDM grid of 18 levels."""
    denoise, x = recorded.denoiser(data, name), jnp.asarray(data[f"{name}/flow/x0"])
    get = lambda key: np.asarray(data[f"{name}/roundtrip/N18/{key}"])  # noqa: E731
    sigmas = flow_levels(18, sigma_min=0.002, sigma_max=80.0, rho=7.0)
    up = jax.jit(lambda x: flow_encode(denoise, x, sigmas, solver="heun_sigma"))
    down = jax.jit(lambda z: flow_decode(denoise, z, sigmas, solver="heun_sigma"))
    z = up(x)
    np.testing.assert_allclose(z, get("latent"), rtol=1e-9)
    back = down(z)
    np.testing.assert_allclose(back, get("x"), rtol=1e-8)
    assert _rms(back - x) == pytest.approx(expected, rel=0.02)  # two digits are tabulated
    # One way, against the converged code.
    tabulated = {"mix8": 0.044, "gauss16": 0.044}[name]
    assert _rms(z - data[f"{name}/flow/latent"]) == pytest.approx(tabulated, rel=0.02)


def test_recorded_decoding_is_edms_sampler(data, x64):
    """Its sampler ends on D(x; s0); decoding with `final_denoise` does too."""
    denoise, z = recorded.denoiser(data, "mix8"), jnp.asarray(data["mix8/flow/latent"])
    sampled = jax.jit(lambda x: samplers.sample_heun(denoise, x, karras_sigmas(18)))(z * 80)
    np.testing.assert_allclose(sampled, data["mix8/decode/N18/x"], rtol=1e-8)
    sigmas = karras_sigmas(18)[-2::-1]
    decoded = jax.jit(
        lambda z: flow_decode(denoise, z, sigmas, solver="heun_sigma", final_denoise=True)
    )(z)
    np.testing.assert_allclose(decoded, sampled, rtol=1e-9)


def test_errors_as_tabulated(data, x64):
    """Codes by rk4 in ln sigma: .044, .0046, 3.7e-4 at N = 8, 16, 32, of the worst case."""
    errors = code_errors(
        recorded.denoiser(data, "mix8"), data["mix8/flow/x0"], num_steps=(8, 16, 32),
        reference_steps=128,
    )  # fmt: skip
    assert np.all(errors.latent < np.array([0.044, 0.0046, 3.7e-4]) * 1.1)
    assert np.all(errors.latent[:-1] / errors.latent[1:] > 6)
    assert np.all(np.diff(errors.image) < 0) and errors.solver == "rk4"
    # Errors of the two ways cancel in part: the round trip flatters.
    assert np.all(errors.round_trip < errors.image + errors.latent * 1.0)
    with pytest.raises(ValueError, match="reference_steps must be at least 64"):
        code_errors(lambda x, s: x, np.ones((1, 2)), num_steps=(32,), reference_steps=32)


@pytest.mark.parametrize("pair", range(6))
def test_recorded_slerp(data, pair, x64):
    a, b = (jnp.asarray(data[f"slerp/{v}"][pair])[None] for v in "ab")
    weights = data["slerp/weights"]
    result = slerp(a, b, weights)[:, 0]
    expected = data["slerp/out"][pair] if data["slerp/out"].shape[0] == 6 else None
    # Nearly equal ones: linear here; recorded to the same rule.
    np.testing.assert_allclose(result, expected, atol=1e-9)


def test_slerp_of_images(x64):
    rng = np.random.default_rng(0)
    a, b = jnp.asarray(rng.normal(size=(2, 3, 32, 32, 3)))
    path = slerp(a, b, [0.0, 0.5, 1.0])
    np.testing.assert_allclose(path[0], a, atol=1e-12)
    np.testing.assert_allclose(path[2], b, atol=1e-12)
    # Orthogonal within 0.02 and equally long: the middle keeps the length, a line would not.
    assert np.std(path[1]) == pytest.approx(1, rel=0.02)
    assert np.std((a + b) / 2) == pytest.approx(0.5**0.5, rel=0.02)


def test_recorded_interpolation(data, x64):
    denoise = recorded.denoiser(data, "mix8")
    z = jnp.asarray(data["mix8/flow/latent"])
    path = slerp(z[:1], z[1:2], data["mix8/interpolate/weights"])[:, 0]
    np.testing.assert_allclose(path, data["mix8/interpolate/latents"], atol=1e-9)
    decoded = jax.jit(lambda z: flow_decode(denoise, z, flow_levels(64)))(path)
    # The tabulated error of 64 steps of rk4, in codes 2.6e-5 and in images ten times that.
    np.testing.assert_allclose(decoded, data["mix8/interpolate/x"], atol=5e-4)


def test_bad_input():
    a = jnp.ones((1, 4))
    with pytest.raises(ValueError, match="opposite codes"):
        slerp(a, -a, [0.5])
    with pytest.raises(ValueError, match="length 0"):
        slerp(a, 0 * a, [0.5])
    with pytest.raises(ValueError, match="must both have shape"):
        slerp(a, jnp.ones((2, 4)), [0.5])
    with pytest.raises(ValueError, match="made by another model"):
        codes.check_codes(np.ones((1, 8, 8, 3)), (8, 8, 1))
    with pytest.raises(ValueError, match="root mean square of about 1, got 80"):
        codes.check_codes(np.full((1, 2, 2, 1), 80.0), (2, 2, 1))
    with pytest.raises(ValueError, match="increase from sigma_min"):
        flow_encode(lambda x, s: x, np.ones((1, 2)), np.array([80.0, 0.002]))
