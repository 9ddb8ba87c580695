"""The paper's sampling claim: its laws, its closed forms, and what the document says of it."""

import json

import numpy as np

from edm_jax import grids
from experiments.studies import sampling_claim
from tests.support.paths import ROOT


def test_image_law_has_the_stated_deviation_and_denoiser(x64):
    for name in sampling_claim.LAWS:
        law = sampling_claim.image_law(name)
        assert law.counts.sum() == 32 * 32
        variance = np.sum(law.counts * law.scales**2) / law.counts.sum()
        np.testing.assert_allclose(variance, 0.25, rtol=1e-12)
        # Unit components: mean 0 and variance 1.
        unit = law.unit
        np.testing.assert_allclose(np.sum(unit.weights * unit.means), 0, atol=1e-12)
        second = np.sum(unit.weights * (unit.stds**2 + unit.means**2))
        np.testing.assert_allclose(second, 1, rtol=1e-12)
    law = sampling_claim.image_law("Gaussian")
    x = np.random.default_rng(0).normal(size=(5, len(law.scales)))
    shrink = law.scales**2 / (law.scales**2 + 0.7**2)
    np.testing.assert_allclose(law.denoise(x, 0.7), shrink * x, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(law.denoise(x, np.full(5, 0.7)), shrink * x, rtol=1e-9, atol=1e-12)


def test_claim_curves_on_gaussian_data_have_a_closed_form(x64, monkeypatch):
    """Samples of Gaussian components are Gaussian; W2 is the difference of deviations."""
    monkeypatch.setattr(sampling_claim, "EULER_STEPS", (16,))
    monkeypatch.setattr(sampling_claim, "HEUN_STEPS", (12,))
    monkeypatch.setattr(sampling_claim, "RK45_TOLERANCES", (1e-3,))
    law = sampling_claim.image_law("Gaussian")
    results = sampling_claim.curves(law, "ve")
    ((nfe, error),) = results["edm"]
    assert nfe == 23
    sigmas = grids.karras_sigmas(12, sigma_min=0.02)
    gains = []
    for scale in law.scales:
        slope = lambda s, scale=scale: s / (s**2 + scale**2)  # noqa: E731 (dx/dsigma per x)
        gain = 1.0
        for now, after in zip(sigmas[:-2], sigmas[1:-1], strict=True):  # noqa: RUF007
            h = after - now
            gain *= 1 + h / 2 * (slope(now) + slope(after) * (1 + h * slope(now)))
        gains.append(gain * scale**2 / (scale**2 + 0.02**2))
    deviations = np.array(gains) * 80
    expected = np.sqrt(np.sum(law.counts * (deviations - law.scales) ** 2) / law.counts.sum())
    # 256 quantiles know the second moment of a Gaussian to 0.5 %.
    np.testing.assert_allclose(error, expected / 0.5, rtol=5e-3)


def published_numbers():
    """docs/sampling_claim.json as the study returns them: by law, column and curve."""
    results = {}
    for name, points in json.loads((ROOT / "docs/sampling_claim.json").read_text()).items():
        law, column, curve = name.split("/")
        results.setdefault(law, {}).setdefault(column, {})[curve] = points
    return results


def test_the_published_table_is_that_of_the_published_numbers():
    text = (ROOT / "docs/sampling_claim.json").read_text()
    results = published_numbers()
    assert sampling_claim.to_text(results) == text
    assert list(results) == list(sampling_claim.LAWS)
    assert sampling_claim.table(results) in (ROOT / "docs/sampling.md").read_text()


def test_what_the_document_says_of_the_table():
    """Its general sentences, each over all laws and errors."""
    results = published_numbers()
    calls, missing = sampling_claim.calls_for, []
    for law, columns in results.items():
        for target in sampling_claim.TARGETS:
            n = {c: {k: calls(v, target) for k, v in columns[c].items()} for c in columns}
            missing += [(law, c, target) for c in n if n[c]["edm"] is None]
            if missing and missing[-1][::2] == (law, target):
                continue
            ratio = {c: n[c]["original"] / n[c]["edm"] for c in n}
            assert ratio["ve"] > ratio["iddpm"] > ratio["vp"], (law, target)
            assert 6.45 < ratio["ve"] < 54.05
            assert target == 0.05 or min(ratio.values()) > 1
            assert 2.15 < n["ve"]["heun"] / n["ve"]["edm"] < 4.55
            assert n["ve"]["original"] / n["ve"]["heun"] > n["ve"]["heun"] / n["ve"]["edm"]
            assert 0.6 < n["vp"]["heun"] / n["vp"]["edm"] < 1.15
            assert all(0.75 < n[c]["rk45"] / n[c]["edm"] < 2.05 for c in n)
    assert missing == [("clusters", "ve", 0.01)]
    floors = [min(e for _, e in curves["edm"]) for c in results.values() for curves in c.values()]
    assert 0.0005 < min(floors) < 0.00055 and 0.0105 < max(floors) < 0.0115


def test_calls_for_a_target():
    curve = [(10, 1.0), (20, 0.1), (40, 0.01), (80, 0.011)]
    np.testing.assert_allclose(sampling_claim.calls_for(curve, 0.1), 20)
    np.testing.assert_allclose(sampling_claim.calls_for(curve, 10**-0.5), 10 * 2**0.5)
    assert sampling_claim.calls_for(curve, 0.001) is None
    assert sampling_claim.calls_for(curve, 0.0105) is None  # not for good
    assert sampling_claim.calls_for(curve, 2.0) == 10
