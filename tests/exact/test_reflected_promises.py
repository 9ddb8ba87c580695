"""The measuring instruments of the reflected rows of --mode=validate."""

import math

import numpy as np
import pytest

from edm_jax import samplers
from edm_jax.exact import reflected_promises as promises


def test_van_der_corput():
    np.testing.assert_allclose(
        promises.van_der_corput(8), np.array([0, 4, 2, 6, 1, 5, 3, 7]) / 8 + 1 / 16
    )


def test_cdf_against_quadrature(x64):
    nodes = promises.BOX.low + 2 * (np.arange(20_000) + 0.5) / 20_000
    for sigma in (0.05, 1.0):
        density = np.exp(promises.LEVELS.log_density(nodes, sigma))
        for x in (-0.9, 0.1, 1.0):
            expected = density[nodes < x].sum() * 1e-4
            np.testing.assert_allclose(promises._cdf(np.array([x]), sigma), expected, atol=1e-6)


@pytest.mark.slow
def test_a_sampler_of_another_law_is_noticed(x64):
    """Noise that does not fit the drift leaves an error that no number of steps removes."""
    info = samplers.get("reflected")
    right = promises.law_error(promises._with_kappa(info, 1.3), 100)
    wrong = promises.law_error(_Louder(info, 1.3), 100)
    assert right < 0.01 and wrong > 2 * right


class _Louder:
    """A sampler whose noise is multiplied."""

    def __init__(self, info, factor):
        self.info, self.factor = info, factor

    def __call__(self, denoise, x, sigmas, *, noise_fn, trajectory):
        louder = lambda i: self.factor * noise_fn(i)  # noqa: E731
        return self.info(denoise, x, sigmas, noise_fn=louder, trajectory=trajectory)


@pytest.mark.soak
def test_every_row_passes():
    reports = list(promises.reports())
    assert [r.failures for r in reports if not r.passed] == []
    measured = {r.name: r.measured_order for r in reports}
    assert abs(measured["reflected"] - 1) < 0.25
    assert abs(measured["reflected_project"] - 0.5) < 0.25
    assert math.isnan(measured["heun (plane)"])
