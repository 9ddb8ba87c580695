"""Losses: golden replay of recorded draws, iDDPM's discrete loss, free combination."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import losses, noise, precond, schedules

CASES = ["vp", "ve", "edm", "edm_augmented"]


def _stand_in(x, c_noise):
    label = jnp.sin(c_noise).reshape(jnp.shape(c_noise) + (1,) * (x.ndim - jnp.ndim(c_noise)))
    return 0.3 * x + 0.1 * label


def _setting(case):
    """Distribution, weight, preconditioning and name of the first draw."""
    if case == "vp":
        return noise.UniformTime(), noise.inverse_square_weight, "vp", "rnd_uniform"
    if case == "ve":
        return noise.LogUniform(), noise.inverse_square_weight, "ve", "rnd_uniform"
    return noise.LogNormal(), noise.edm_weight, "edm", "rnd_normal"


def _replay(archive, case, dtype):
    distribution, weight, name, draw = _setting(case)
    sigma = distribution.sigma(jnp.asarray(archive[f"{case}/{draw}"].reshape(-1), dtype))
    y = jnp.asarray(np.moveaxis(archive[f"{case}/y"], 1, -1), dtype)
    pixel_noise = jnp.asarray(np.moveaxis(archive[f"{case}/rnd_noise"], 1, -1), dtype)
    denoise = precond.precondition(_stand_in, precond.PRECONDITIONINGS[name]())
    loss = losses.denoising_loss(denoise, y, sigma, pixel_noise, weight)
    return sigma, weight(sigma), loss


@pytest.mark.parametrize("case", CASES)
def test_golden_losses(case, golden):
    archive = golden("02_losses")
    sigma, weight, loss = _replay(archive, case, jnp.float32)
    # The float32 reference loses digits in exp(.) - 1: 5e-4 in the VP sigma.
    rtol = 2e-3 if case == "vp" else 1e-4
    np.testing.assert_allclose(sigma, archive[f"{case}/sigma"].reshape(-1), rtol=rtol)
    np.testing.assert_allclose(weight, archive[f"{case}/weight"].reshape(-1), rtol=2 * rtol)
    np.testing.assert_allclose(
        np.moveaxis(np.asarray(loss), -1, 1), archive[f"{case}/loss"], rtol=2 * rtol, atol=1e-5
    )
    np.testing.assert_allclose(
        np.mean(losses.sum_per_image(loss)), archive[f"{case}/train_scalar"], rtol=rtol
    )


@pytest.mark.parametrize("case", CASES)
def test_golden_losses_float64(case, golden, x64):
    archive = golden("02_losses")
    sigma, _, loss = _replay(archive, case, jnp.float64)
    np.testing.assert_allclose(sigma, archive[f"{case}/sigma_f64"].reshape(-1), rtol=1e-9)
    np.testing.assert_allclose(
        np.moveaxis(np.asarray(loss), -1, 1), archive[f"{case}/loss_f64"], rtol=1e-8, atol=1e-12
    )


def test_iddpm_loss_is_table_1():
    """sigma = u_j with uniform j, weight 1 / sigma^2: the plain eps-prediction error."""
    distribution = noise.DiscreteLevels()
    levels = schedules.iddpm_levels()
    draws = distribution.base_draw(jax.random.key(0), (20000,))
    assert draws.min() == 0 and draws.max() == 999
    sigma = distribution.sigma(draws)
    np.testing.assert_allclose(sigma, levels[np.asarray(draws)], rtol=1e-6)
    # Uniform over 1000 levels: the mean index is 499.5 with standard error 2.04.
    np.testing.assert_allclose(np.mean(draws), 499.5, atol=4 * 2.04)

    y, pixel_noise = jnp.ones((3, 2, 2, 1)), jnp.full((3, 2, 2, 1), 0.7)
    sigma = jnp.asarray(levels[[100, 500, 900]], jnp.float32)
    denoise = precond.precondition(lambda x, c: 0.25 * x, precond.iddpm_preconditioning())
    loss = losses.denoising_loss(denoise, y, sigma, pixel_noise, noise.inverse_square_weight)
    column = sigma.reshape(3, 1, 1, 1)
    eps_error = 0.25 * (y + column * pixel_noise) / jnp.hypot(column, 1.0) - pixel_noise
    np.testing.assert_allclose(loss, eps_error**2, rtol=1e-4)


@pytest.mark.parametrize("preconditioning", sorted(precond.PRECONDITIONINGS))
@pytest.mark.parametrize("distribution", sorted(noise.DISTRIBUTIONS))
@pytest.mark.parametrize("weight", sorted(noise.WEIGHTS))
def test_preconditioning_and_loss_combine_freely(preconditioning, distribution, weight):
    """Config D of Table 2 is EDM's network with the VP or VE loss."""
    made = precond.PRECONDITIONINGS[preconditioning]()
    denoise = precond.precondition(_stand_in, made)
    sigma = noise.sample_sigma(noise.DISTRIBUTIONS[distribution](), jax.random.key(1), (8,))
    y = jax.random.normal(jax.random.key(2), (8, 4, 4, 1)) * 0.5
    pixel_noise = jax.random.normal(jax.random.key(3), y.shape)
    loss = losses.denoising_loss(denoise, y, sigma, pixel_noise, noise.WEIGHTS[weight]())
    column = np.asarray(sigma).reshape(8, 1, 1, 1)
    expected = np.square(denoise(y + column * pixel_noise, sigma) - y)
    lam = {"edm": 1 / column**2 + 4, "inverse_square": 1 / column**2}[weight]
    # The residual cancels at small sigma, where the weight is large: float32.
    np.testing.assert_allclose(loss, lam * expected, rtol=1e-3, atol=1e-5)


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match="sigma of shape"):
        losses.denoising_loss(
            lambda x, s: x, jnp.zeros((2, 3)), jnp.ones(3), jnp.zeros((2, 3)), noise.edm_weight
        )


@pytest.mark.parametrize(
    ("sigma", "noise_shape"),
    [
        ((1,), (4, 2, 2, 3)),  # would be one level for all
        ((4, 1), (4, 2, 2, 3)),
        ((), (4, 2, 2, 3)),
        ((4,), (1, 2, 2, 3)),  # would be the same noise for all
        ((4,), (4, 2, 2, 1)),
        ((4,), (2, 2, 3)),
        ((4,), ()),
    ],
)
def test_shapes_that_would_broadcast_are_refused(sigma, noise_shape):
    with pytest.raises(ValueError, match="need sigma of shape"):
        losses.denoising_loss(
            lambda x, s: x, jnp.zeros((4, 2, 2, 3)), jnp.ones(sigma), jnp.zeros(noise_shape),
            noise.edm_weight,
        )  # fmt: skip


def test_sums_keep_the_batch_alone():
    loss = np.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(losses.sum_per_image(jnp.asarray(loss)), [66.0, 210.0])
    np.testing.assert_array_equal(losses.sum_per_image(jnp.arange(3.0)), [0.0, 1.0, 2.0])
