"""SA-Solver: the levels between which it adds noise, and every pair of its orders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


ORDERS = [(p, c) for p in range(1, 5) for c in range(5) if (p, c) != (1, 1)]


@pytest.mark.parametrize(("predictor", "corrector"), ORDERS)
def test_a_constant_denoiser_is_a_fixed_point_at_every_pair_of_orders(predictor, corrector):
    table = sa_solver.sa_rows(SIGMAS, predictor=predictor, corrector=corrector)
    predict, correct = table.predict, table.correct
    np.testing.assert_allclose(predict.a + predict.b.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(correct.a + correct.b.sum(1) + table.new, 1, rtol=1e-12)
    if corrector:
        rows = sa_solver.sa_rows(SIGMAS, predictor=predictor, corrector=corrector, pece=True)
        np.testing.assert_allclose(rows.a + rows.b.sum(1), 1, rtol=1e-12)


def _trace(**options):
    x, keys = jnp.ones((1, 2)), seeds.image_keys([0])
    run = lambda x: sa_solver.sample_sa_solver(lambda x, s: x, x, SIGMAS, keys, **options)  # noqa: E731
    return jax.eval_shape(run, x)


def test_pairs_of_orders_that_cannot_be():
    for predictor, corrector in ((1, 2), (2, 1), (4, 4), (1, 0)):
        assert _trace(predictor=predictor, corrector=corrector).shape == (1, 2)
    assert _trace(corrector=1, pece=True).shape == (1, 2)
    with pytest.raises(ValueError, match="corrector=1 gains nothing over predictor=1"):
        _trace(predictor=1, corrector=1)
    with pytest.raises(ValueError, match="needs a corrector of 1 to 4"):
        _trace(corrector=0, pece=True)
    for option, low in (("predictor", 1), ("corrector", 0)):
        for order in (low - 1, 5, 2.0):
            with pytest.raises(ValueError, match=f"{option} must be .* {low} to 4, got {order}"):
                _trace(**{option: order})
