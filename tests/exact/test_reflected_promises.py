"""The measuring instruments of the reflected rows of --mode=validate."""

import math
import types

import jax.numpy as jnp
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


def test_the_law_goes_through_every_level_once(monkeypatch):
    """From evenly spread particles, by steps of two levels and an end that is not taken."""
    asked = []

    def step(info, start, sigmas, shift):
        asked.append((np.asarray(start), sigmas))
        return start

    monkeypatch.setattr(promises, "_law_step", step)
    promises.law_error(samplers.get("reflected"), 5)
    levels = promises._sigmas(5)[:-1]
    np.testing.assert_array_equal([s for _, s in asked], [[*p, 0] for p in zip(levels, levels[1:])])  # noqa: B905, RUF007
    spread = np.sort(asked[0][0].ravel())
    np.testing.assert_allclose(spread[[0, -1]], [-1 + 2**-14, 1 - 2**-14], atol=1e-9)


def test_the_flow_is_compared_at_the_last_level(x64):
    """A sampler that stays where it is: what is exact at the last level but not 0, is none."""
    visited = [np.full((16, 4, 4, 1), v) for v in (-0.5, 0.3, 0.9)]

    def info(denoise, x, sigmas, trajectory):
        return types.SimpleNamespace(x=[jnp.asarray(v) for v in visited])

    u = (np.arange(256) + 0.5) / 256
    there = promises._cdf(np.array([0.3]), promises._sigmas(9)[-2])
    expected = np.sqrt(np.mean(np.square(there - u)))
    assert promises.flow_error(info, 9) == pytest.approx(float(expected), abs=1e-12)


def test_the_order_of_a_refinement(monkeypatch):
    """A sixteenth of the error for four times the steps, in uneven stages: order 2."""
    monkeypatch.setattr(promises.contract, "independence", lambda subject, run: (True, True))
    info, steps = samplers.get("heun"), (25, 40, 100)
    report = promises._report(info, "heun", steps, [0.16, 0.09, 0.01], promised=2)
    assert report.measured_order == pytest.approx(2) and report.passed
    report = promises._report(info, "heun", steps, [0.16, 0.09, 0.04], promised=2)
    assert "it converges with order 1.00, promised 2" in report.failures


def test_laws_are_measured_in_double_precision(monkeypatch):
    """Samples in the plane are drawn as users draw them, in float32."""
    kinds = []

    def measure(info, num_steps):
        kinds.append(jnp.asarray(0.5).dtype.name)
        return 0.01

    def plane(info, num_steps):
        return measure(info, num_steps)

    monkeypatch.setattr(promises, "plane_error", plane)
    monkeypatch.setattr(promises, "_report", lambda *given, **promise: given)
    info = samplers.get("reflected")
    rows = [(info, "law", (8,), measure, {}), (info, "plane", (8,), plane, {})]
    monkeypatch.setattr(promises, "_rows", lambda: iter(rows))
    list(promises.reports())
    assert kinds == ["float64", "float32"]
