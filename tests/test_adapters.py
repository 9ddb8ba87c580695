"""Adapters: every prediction against its definition, exact round trips, discrete labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edm_jax import adapters, exact, grids, precond, respacing, samplers

PATHS = {
    "vp": adapters.VPPath(),
    "ve": adapters.VEPath(),
    "flow": adapters.FlowPath(),
    "flow_reversed": adapters.FlowPath(label_scale=1000.0, data_at_one=True),
    "cosine": adapters.CosinePath(),
    "table": adapters.TablePath(respacing.ddpm_levels("linear")),
    "table_interpolated": adapters.TablePath(respacing.ddpm_levels("linear"), interpolate=True),
}
CONTINUOUS = ["vp", "ve", "flow", "flow_reversed", "cosine"]
PREDICTIONS = sorted(adapters.PREDICTIONS)
PAIRS = [(n, p) for n in PATHS for p in PREDICTIONS if n in CONTINUOUS or p != "velocity"]


def _signal_and_noise(name, t):
    """alpha(t) and std(t), from each path's definition in its own time."""
    if name == "vp":
        alpha = jnp.exp(-0.25 * 19.9 * t**2 - 0.5 * 0.1 * t)
        return alpha, jnp.sqrt(-jnp.expm1(-0.5 * 19.9 * t**2 - 0.1 * t))
    if name == "ve":
        return jnp.ones_like(t), t
    if name == "flow":
        return 1 - t, t
    if name == "flow_reversed":
        return t, 1 - t
    return jnp.cos(jnp.pi * t / 2), jnp.sin(jnp.pi * t / 2)


LABEL_SCALE = {"vp": 999.0, "flow_reversed": 1000.0}


@pytest.mark.parametrize("name", CONTINUOUS)
@settings(max_examples=25, deadline=None)
@given(t=st.floats(0.02, 0.98), y=st.floats(-1, 1), n=st.floats(-2, 2))
def test_every_prediction_recovers_the_data(name, t, y, n):
    """From z = alpha(t) y + std(t) n and the true target, D is y."""
    with jax.enable_x64(True):
        t, path = jnp.float64(t), PATHS[name]
        (alpha, std), (alpha_dot, std_dot) = jax.jvp(
            lambda t: _signal_and_noise(name, t), (t,), (jnp.ones_like(t),)
        )
        z = alpha * y + std * n
        targets = {
            "eps": n,
            "x0": y,
            "v": alpha * n - std * y,
            "score": -(z - alpha * y) / std**2,
            "velocity": alpha_dot * y + std_dot * n,
        }
        label = LABEL_SCALE.get(name, 1.0) * t
        np.testing.assert_allclose(path.sigma(label), std / alpha, rtol=1e-9)
        for prediction, target in targets.items():
            seen = {}

            def net_fn(z, label, target=target, seen=seen):
                seen.update(z=z, label=label)
                return jnp.full_like(z, target)

            denoise = adapters.adapt(net_fn, prediction, path)
            denoised = denoise((z / alpha)[None], std / alpha)
            # 1e-9 allows for the inversion of sigma(t) and 1/alpha up to 150.
            np.testing.assert_allclose(denoised[0], y, atol=1e-9)
            np.testing.assert_allclose(seen["label"], label, rtol=1e-9)
            np.testing.assert_allclose(seen["z"][0], z, atol=1e-12)


@pytest.mark.parametrize(("name", "prediction"), PAIRS)
def test_round_trips(name, prediction, x64):
    path, bed = PATHS[name], exact.Gaussian(0.1, 0.4)
    there = adapters.unadapt(bed.denoise, prediction, path)
    back = adapters.adapt(there, prediction, path)
    levels = respacing.ddpm_levels("linear")
    sigma = jnp.asarray(levels[[100, 600, 990]])
    x = jnp.array([[3.0, -2.0], [0.7, 0.1], [0.2, -0.4]])
    np.testing.assert_allclose(back(x, sigma), bed.denoise(x, sigma), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(back(x, sigma[0]), bed.denoise(x, sigma[0]), rtol=1e-9, atol=1e-11)


def test_exact_networks_of_gaussian_data(x64):
    """The score and the noise a perfect network would predict, in closed form."""
    bed, path = exact.Gaussian(0.0, 0.5), adapters.VPPath()
    z, t = jnp.array([[0.3, -1.2]]), 0.4
    alpha, std = _signal_and_noise("vp", jnp.float64(t))
    variance = alpha**2 * 0.25 + std**2
    score = adapters.unadapt(bed.denoise, "score", path)(z, 999 * t)
    np.testing.assert_allclose(score, -z / variance, rtol=1e-10)
    eps = adapters.unadapt(bed.denoise, "eps", path)(z, 999 * t)
    np.testing.assert_allclose(eps, std * z / variance, rtol=1e-10)


@pytest.mark.parametrize(("name", "prediction"), [p for p in PAIRS if p[0] != "table"])
def test_any_network_runs_under_the_samplers(name, prediction):
    """Sampling through a converted network equals sampling with the denoiser itself."""
    path, bed = PATHS[name], exact.Gaussian(0.1, 0.4)
    net_fn = adapters.unadapt(bed.denoise, prediction, path)
    sigmas = grids.karras_sigmas(6, sigma_min=0.02, sigma_max=50.0)
    x = jnp.ones((2, 3)) * sigmas[0]
    run = jax.jit(lambda denoise, x: samplers.sample_heun(denoise, x, sigmas), static_argnums=0)
    expected = run(bed.denoise, x)
    # Float32, where v and velocity cancel between c_skip x and c_out F.
    np.testing.assert_allclose(
        run(adapters.adapt(net_fn, prediction, path), x), expected, rtol=2e-4, atol=2e-4
    )


def test_discrete_labels_match_the_table():
    levels = respacing.ddpm_levels("cosine").astype(np.float32)
    path = adapters.TablePath(levels)
    np.testing.assert_array_equal(path.label(levels[:-1]), np.arange(999, -1, -1))
    assert path.label(jnp.float32(1.0)).dtype == jnp.int32
    np.testing.assert_array_equal(path.sigma(path.label(levels[:-1])), levels[:-1])
    smooth = adapters.TablePath(levels, interpolate=True)
    middle = np.sqrt(levels[400] * levels[401])
    np.testing.assert_allclose(smooth.label(middle), 999 - 400.5, atol=1e-3)
    np.testing.assert_allclose(smooth.sigma(999 - 400.5), middle, rtol=1e-5)


def test_a_discrete_eps_network_is_iddpm_preconditioning():
    levels = precond.schedules.iddpm_levels(dtype=np.float32)
    made = adapters.adapted_preconditioning("eps", adapters.TablePath(levels))
    reference = precond.iddpm_preconditioning(levels=levels)
    sigma = jnp.asarray(levels[[3, 500, 900]]) * 1.0001
    for ours, theirs in zip(made(sigma), reference(sigma), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert made.rounds and (made.sigma_min, made.sigma_max) == (
        reference.sigma_min,
        reference.sigma_max,
    )
    sigmas = grids.make_sigmas("edm", 8, preconditioning=made)
    assert set(sigmas.astype(np.float32)) <= set(levels)


def test_clipping():
    denoise = adapters.clipped(lambda x, sigma: 3 * x)
    np.testing.assert_array_equal(denoise(jnp.array([-1.0, 0.25, 2.0]), 1.0), [-1, 0.75, 1])


def test_bad_choices_are_named():
    with pytest.raises(ValueError, match="did you mean 'velocity'"):
        adapters.prediction_coefs("velocty", adapters.VPPath())
    with pytest.raises(ValueError, match="no velocity"):
        adapters.prediction_coefs("velocity", PATHS["table"])(1.0)
    with pytest.raises(ValueError, match="end in 0"):
        adapters.TablePath(np.array([2.0, 1.0]))


@pytest.mark.parametrize("interpolate", [False, True])
def test_labels_of_a_table_stay_in_it(interpolate):
    """Below the smallest level the nearest entry is 0, which has no label; above, the last."""
    levels = respacing.ddpm_levels("linear")
    path = adapters.TablePath(levels, interpolate=interpolate)
    below, above = levels[-2] * np.array([0.4, 1e-6]), levels[0] * np.array([1.5, 1e4])
    np.testing.assert_array_equal(path.label(jnp.asarray(below)), 0)
    np.testing.assert_array_equal(path.label(jnp.asarray(above)), 999)
    rounded = np.asarray(path.round_sigma(jnp.asarray(np.append(below, above))))
    np.testing.assert_allclose(rounded, levels[[-2, -2, 0, 0]], rtol=1e-6)


def test_labels_between_levels_are_linear_in_the_logarithm():
    path = adapters.TablePath(np.array([64.0, 4.0, 1.0, 0.0]), interpolate=True)
    sigmas, labels = jnp.array([1.0, 2.0, 4.0, 16.0, 64.0]), [0, 0.5, 1, 1.5, 2]
    np.testing.assert_allclose(path.label(sigmas), labels, atol=1e-6)
    np.testing.assert_allclose(path.sigma(jnp.array(labels)), sigmas, rtol=1e-6)


def test_ranges_of_adapted_networks():
    levels = respacing.ddpm_levels("linear")
    for interpolate in (False, True):
        path = adapters.TablePath(levels, interpolate=interpolate)
        made = adapters.adapted_preconditioning("eps", path, 0.5, 2.0)
        assert (made.sigma_min, made.sigma_max) == (levels[-2], levels[0])
        assert made.rounds != interpolate
    made = adapters.adapted_preconditioning("v", adapters.VPPath(), 0.5, 2.0)
    assert (made.sigma_min, made.sigma_max, made.rounds) == (0.5, 2.0, False)
    np.testing.assert_array_equal(
        adapters.clipped(lambda x, s: x, -0.5, 2.0)(jnp.array([-1.0, 1.5, 3.0]), 1.0),
        [-0.5, 1.5, 2],
    )
