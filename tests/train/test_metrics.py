"""Bins of the running loss: which of them a level on an edge belongs to."""

import jax.numpy as jnp
import numpy as np

from edm_jax.train import metrics


def test_levels_and_their_bins():
    """The first bin ends at 1e-3, the last begins beyond 100; an edge belongs below."""
    edges = np.float32(metrics.SIGMA_BIN_EDGES)
    np.testing.assert_allclose(edges[[0, 1, 4, 20]], [1e-3, 10**-2.75, 1e-2, 100], rtol=1e-6)
    assert len(edges) == 21 and metrics.NUM_SIGMA_BINS == 22
    cases = [(1e-5, 0), (edges[0], 0), (edges[0] * 1.001, 1), (edges[20], 20), (1e3, 21)]
    zero = jnp.zeros(())
    for level, where in cases:
        found = metrics.of_step(jnp.ones(1), jnp.float32([level]), zero, zero, zero > 1)
        count = np.asarray(found["loss_per_level"]["count"])
        np.testing.assert_array_equal(count, np.arange(22) == where)
