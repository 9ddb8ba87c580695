"""The one-dimensional picture of EDM Figure 3."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import grids, samplers
from experiments.studies import flow_1d


def test_churn_paths_are_those_of_the_sampler(x64):
    data = flow_1d.exact.GaussianMixture(np.array([-1.0, 1.0]), 0.02)
    sigmas, churn = grids.karras_sigmas(6, sigma_min=0.01, sigma_max=3.0), samplers.Churn(2.0)
    starts, key = np.array([-1.0, 0.5, 2.0]), jax.random.key(0)
    levels, states = flow_1d.churn_paths(data, starts, sigmas, churn, key)
    visited = samplers.sample_stochastic(
        data.denoise, jnp.asarray(starts), sigmas, churn=churn, trajectory=True,
        noise_fn=lambda i: jax.random.normal(jax.random.fold_in(key, i), (3,)),
    )  # fmt: skip
    np.testing.assert_allclose(states[::2], visited.x, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(levels[::2, 0], sigmas)
    assert np.all(levels[1::2] >= levels[:-1:2])


@pytest.mark.slow
def test_picture_is_drawn(tmp_path, call):
    call("--mode=study", "--study=flow_1d", f"--workdir={tmp_path / 'new'}")
    assert (tmp_path / "new" / "flow_1d.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="sigma_zoom"):
        flow_1d.draw_flow_picture(tmp_path / "flow.png", sigma_zoom=30.0)
