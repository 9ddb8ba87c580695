"""DDPM tables and respacing rules against published values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edm_jax import arguments, respacing, schedules


def test_published_levels():
    cosine = respacing.ddpm_levels("cosine")[:-1][::-1]
    np.testing.assert_allclose(
        cosine[[0, 991, 998, 999]], [0.006425, 80.204, 641.7, 20291], rtol=8e-5
    )
    linear = respacing.ddpm_levels("linear")[:-1][::-1]
    np.testing.assert_allclose(linear[[0, -1]], [0.0100, 157.4], rtol=4e-4)  # digits printed


def test_cosine_table_is_iddpms():
    np.testing.assert_allclose(respacing.ddpm_levels("cosine"), schedules.iddpm_levels(), rtol=1e-9)


def test_linear_table_is_the_product_of_alphas():
    betas = np.linspace(1e-4, 0.02, 1000)
    abar = np.cumprod(1 - betas)
    np.testing.assert_allclose(
        respacing.ddpm_levels("linear")[:-1][::-1], np.sqrt(1 / abar - 1), rtol=1e-9
    )
    # Fewer levels scale the betas so that the largest noise level stays comparable.
    assert 100 < respacing.ddpm_levels("linear", 250)[0] < 250


def test_published_respacings():
    hundred = respacing.respaced_indices(1000, "100")
    assert list(hundred[:3]) == [0, 10, 20] and list(hundred[-3:]) == [979, 989, 999]
    assert list(respacing.respaced_indices(1000, "ddim25")) == list(range(0, 1000, 40))
    assert list(respacing.respaced_indices(10, [2, 3])) == [0, 4, 5, 7, 9]
    assert list(respacing.respaced_indices(10, "1,1")) == [0, 5]


@settings(max_examples=40, deadline=None)
@given(num_levels=st.integers(2, 400), data=st.data())
def test_respaced_indices_are_distinct_and_within(num_levels, data):
    steps = data.draw(st.integers(1, num_levels))
    indices = respacing.respaced_indices(num_levels, steps)
    assert len(indices) == steps and indices[0] == 0
    assert np.all(np.diff(indices) > 0) and indices[-1] < num_levels
    if steps > 1:
        assert indices[-1] == num_levels - 1


def test_respaced_grid_visits_the_levels_of_the_indices():
    levels = respacing.ddpm_levels("cosine")
    indices = respacing.respaced_indices(1000, "ddim25")
    sigmas = respacing.respaced_sigmas(levels, indices)
    arguments.check_grid(sigmas)
    assert sigmas.shape == (26,)
    assert sigmas[-2] == levels[999] and sigmas[0] == levels[999 - 960]
    whole = respacing.respaced_sigmas(levels, respacing.respaced_indices(1000, 1000))
    np.testing.assert_array_equal(whole, levels)


def test_bad_respacings_are_named():
    with pytest.raises(ValueError, match="no stride"):
        respacing.respaced_indices(1000, "ddim999")
    with pytest.raises(ValueError, match="cannot give 11 steps"):
        respacing.respaced_indices(10, 11)
    with pytest.raises(ValueError, match="variance schedule"):
        respacing.ddpm_levels("cosin")
    with pytest.raises(ValueError, match="indices must lie"):
        respacing.respaced_sigmas(respacing.ddpm_levels(), [1000])


def test_a_linear_schedule_of_too_few_levels_is_refused():
    """b_M = 20 / M must be below 1: 20 levels would end in abar = 0."""
    for num_levels in (2, 19, 20):
        with pytest.raises(ValueError, match="at least 21 for the linear schedule"):
            respacing.ddpm_levels("linear", num_levels)
    assert np.all(np.isfinite(respacing.ddpm_levels("linear", 21)))
    assert np.all(np.isfinite(respacing.ddpm_levels("cosine", 2)))


def test_counts_and_indices_that_are_none():
    for steps in ([], 2.5):
        with pytest.raises(ValueError, match="steps must be a count, or a list of counts, got"):
            respacing.respaced_indices(1000, steps)
    with pytest.raises(ValueError, match="at least one index"):
        respacing.respaced_sigmas([2.0, 1.0, 0.0], [])
