"""Schedules and scalings: properties over every member, golden VP values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edm_jax import schedules
from edm_jax.schedules import NoScaling, VPScaling, VPSchedule

SCHEDULES = sorted(schedules.SCHEDULES)
TIMES = st.floats(1e-4, 1.0)
POSITIVE_BETAS = st.tuples(st.floats(1.0, 30.0), st.floats(1e-3, 1.0))


def _make(name, betas):
    return VPSchedule(*betas) if name == "vp" else schedules.SCHEDULES[name]()


@pytest.mark.parametrize("name", SCHEDULES)
@settings(max_examples=30, deadline=None)
@given(t=TIMES, betas=POSITIVE_BETAS)
def test_inverse_and_derivative(name, t, betas):
    schedule = _make(name, betas)
    with jax.enable_x64(True):
        t = jnp.float64(t)
        sigma = schedule.sigma(t)
        # 1e-9: the square root of expm1 at t = 1e-4 leaves 7 spare digits of 16.
        np.testing.assert_allclose(schedule.inverse(sigma), t, rtol=1e-9)
        np.testing.assert_allclose(schedule.sigma_dot(t), jax.grad(schedule.sigma)(t), rtol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("scaling", [VPScaling(), NoScaling()])
@settings(max_examples=20, deadline=None)
@given(t=TIMES)
def test_scale_dot_is_the_time_derivative(name, scaling, t):
    schedule = schedules.SCHEDULES[name]()
    with jax.enable_x64(True):
        t = jnp.float64(t)
        scale_dot = scaling.scale_dot(schedule.sigma(t), schedule.sigma_dot(t))
        expected = jax.grad(lambda t: scaling.scale(schedule.sigma(t)))(t)
        np.testing.assert_allclose(scale_dot, expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(t=st.floats(1e-3, 1.0))
def test_vp_scaling_on_the_vp_schedule_is_table_1(t):
    with jax.enable_x64(True):
        t = jnp.float64(t)
        scale = VPScaling().scale(VPSchedule().sigma(t))
        np.testing.assert_allclose(scale, jnp.exp(-0.25 * 19.9 * t**2 - 0.5 * 0.1 * t), rtol=1e-12)
        np.testing.assert_allclose(VPScaling().inverse(scale), VPSchedule().sigma(t), rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(low=st.floats(1e-3, 0.1), ratio=st.floats(10.0, 1e5), eps_s=st.floats(1e-4, 1e-2))
def test_fitted_vp_schedule_meets_its_range(low, ratio, eps_s):
    try:
        schedule = VPSchedule.fit(low, low * ratio, eps_s)
    except ValueError as error:
        assert "does not increase" in str(error)
        return
    with jax.enable_x64(True):
        sigma = schedule.sigma(jnp.array([eps_s, 1.0]))
    np.testing.assert_allclose(sigma, [low, low * ratio], rtol=1e-6)


def test_fitted_constants():
    """The defaults of Table 1, and the values published for EDM's range."""
    schedule = VPSchedule.fit(0.010485992786706, 152.1669702839464)
    np.testing.assert_allclose([schedule.beta_d, schedule.beta_min], [19.9, 0.1], rtol=1e-11)
    schedule = VPSchedule.fit(0.002, 80.0)
    np.testing.assert_allclose(
        [schedule.beta_d, schedule.beta_min], [17.53796, -0.0047690], rtol=2e-5
    )


def test_fit_accepts_traced_ranges():
    fitted = jax.jit(VPSchedule.fit)(0.0105, 152.0)
    expected = VPSchedule.fit(0.0105, 152.0)
    np.testing.assert_allclose(fitted.beta_d, expected.beta_d, rtol=1e-5)


def test_golden_vp_schedule(golden, x64):
    archive = golden("01_preconditioning")
    schedule = VPSchedule()
    np.testing.assert_allclose(
        schedule.sigma(archive["vp/t"]), archive["vp/sigma_of_t_f64"], rtol=1e-9
    )
    np.testing.assert_allclose(
        schedule.inverse(archive["vp/sigma"].astype(np.float64)),
        archive["vp/t_of_sigma_f64"],
        rtol=1e-9,
    )
    np.testing.assert_allclose(schedule.inverse(1.0), 0.25896, atol=5e-6)  # published digits


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", SCHEDULES)
def test_no_nan_over_the_whole_range(name, dtype):
    schedule = schedules.SCHEDULES[name]()
    sigmas = jnp.asarray([0.001, 0.5, 80.0, 152.0], dtype)
    t = schedule.inverse(sigmas)
    values = [t, schedule.sigma(t), schedule.sigma_dot(t)]
    for scaling in (VPScaling(), NoScaling()):
        values += [scaling.scale(sigmas), scaling.scale_dot(sigmas, schedule.sigma_dot(t))]
    assert all(np.all(np.isfinite(np.asarray(v, np.float32))) for v in values)
    assert not np.any(np.isnan(np.asarray(schedule.sigma(jnp.zeros((), dtype)), np.float32)))


@pytest.mark.parametrize("eps_s", [0.0, 1.0, -0.1, 2.0])
def test_the_last_time_lies_within_the_schedule(eps_s):
    """At both ends the constants are infinite."""
    with pytest.raises(ValueError, match="eps_s must lie between 0 and 1"):
        VPSchedule.fit(0.002, 80.0, eps_s)
