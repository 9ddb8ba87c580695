"""The levels between which SA-Solver adds noise, both ends among them."""

import jax.numpy as jnp
import numpy as np

from edm_jax import seeds
from edm_jax.samplers import path, sa_solver

SIGMAS = np.array([16.0, 8.0, 4.0, 2.0, 1.0, 0.0])


def test_both_ends_of_the_range_have_noise():
    """A step has noise if the level it ends on lies in [tau_min, tau_max]."""
    table = sa_solver.sa_rows(SIGMAS, tau_min=2.0, tau_max=4.0)
    # (sigma')^2 (1 - e^{-2 tau^2 h}) with tau = 1 and e^h = 2.
    deviation = np.sqrt(1 - 1 / 4)
    np.testing.assert_allclose(table.predict.c, [0, 4 * deviation, 2 * deviation, 0, 0], rtol=1e-12)
    whole = sa_solver.sa_rows(SIGMAS)
    np.testing.assert_allclose(whole.predict.c[:4], SIGMAS[1:5] * deviation, rtol=1e-12)
    assert whole.predict.c[4] == 0


def test_a_path_of_noise_runs_in_the_steps_that_have_noise(monkeypatch):
    """Those that end in [tau_min, tau_max], from their start above it; the clock has rate tau^2."""
    asked = []

    def silent(key, spans, x):
        asked.append(spans)
        return lambda index: jnp.zeros_like(x)

    monkeypatch.setattr(path, "path_draw", silent)
    options = {"tau": 1.5, "tau_min": 2.0, "tau_max": 4.0, "noise": "tree"}
    keys = seeds.image_keys([0])
    sa_solver.sample_sa_solver(lambda x, s: x, jnp.ones((1, 2)), SIGMAS, keys, **options)
    (spans,) = asked
    length = 1.5**2 * np.log(2)
    np.testing.assert_allclose(spans.stop - spans.start, [0, length, length, 0, 0], rtol=1e-12)
    np.testing.assert_allclose(spans.start[1:3], -(1.5**2) * np.log([8.0, 4.0]), rtol=1e-12)
