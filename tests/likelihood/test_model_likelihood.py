"""Likelihoods of a Model's images, against the exact density of the distribution it knows."""

import json

import jax
import numpy as np
import pytest
import scipy.stats

import edm_jax
from edm_jax.likelihood import likelihood_settings, quantisation
from edm_jax.likelihood.record import Record, likelihoods
from edm_jax.train.sharding import batch_sharding, make_mesh
from tests.support.exact_model import SHAPE, STD, exact_model, images

# 32 steps of rk4 on elements of this size: 1e-3 bits for each of 4, 2.8e-3 nats, and the rest of
# the float32 network; the prior of a class mean 0.25 is off by 0.25 |x1| / S^2 in each.
ATOL = 6e-3


def _log_density(x, sigma, mean=0.0):
    return scipy.stats.norm(mean, np.hypot(STD, sigma)).logpdf(x).sum(axis=(1, 2, 3))


@pytest.fixture(scope="module")
def pixels():
    return images(5)


@pytest.mark.parametrize("method", ["edm", "vp", "ve", "iddpm"])
def test_density_of_every_preconditioning(method, pixels):
    x = (pixels / 127.5 - 1).astype(np.float32)
    result = edm_jax.log_likelihood(
        exact_model(method), x, num_steps=64 if method == "iddpm" else 32
    )
    assert result.settings["solver"] == ("adams" if method == "iddpm" else "rk4")
    assert result.settings["dequantisation"] == "none"
    expected = _log_density(x, result.settings["sigma_min"])
    np.testing.assert_allclose(np.asarray(result), expected, atol=3 * ATOL)
    assert np.all(result.standard_error == 0)
    # Fourth order: half the steps are off by about fifteen times as much.
    assert np.all(np.abs(result.step_difference) < 30 * ATOL) and np.any(result.step_difference)
    low = {"edm": 0.002, "vp": 0.002, "ve": 0.02, "iddpm": 0.0064223}[method]
    assert result.settings["sigma_min"] == pytest.approx(low, rel=1e-4)
    with pytest.raises(ValueError, match="for a stated bin width only"):
        result.bits_per_dim  # noqa: B018


def _decoder_gain(sigma):
    """What encoder and level decoder add to ln(p w) of each element where p is smooth, in nats.

    E[ln p(z) + ln P(v | z)] + ln(sigma sqrt(2 pi e)) - ln(p w), by quadrature in NumPy.
    """
    e = np.linspace(-9, 9, 4001)
    weight = np.exp(-0.5 * e**2) / np.exp(-0.5 * e**2).sum()
    gap = np.arange(-3, 4)[:, None] * quantisation.BIN_WIDTH / sigma
    cost = weight @ np.log(np.sum(np.exp(gap * e[None] - gap**2 / 2), axis=0))
    return np.log(sigma * np.sqrt(2 * np.pi * np.e) / quantisation.BIN_WIDTH) - cost


def test_probability_of_bytes_by_both_methods(pixels):
    """The Gaussian encoder, the uniform one and the bound, against the sum over each bin."""
    model, x = exact_model(), pixels / 127.5 - 1
    width = quantisation.BIN_WIDTH
    law = scipy.stats.norm(0, STD)
    log_p = np.log(law.cdf(x + width / 2) - law.cdf(x - width / 2)).sum(axis=(1, 2, 3))
    flow = edm_jax.log_likelihood(model, pixels, passes=2)
    assert flow.settings["dequantisation"] == "gaussian" and flow.settings["passes"] == 2
    assert np.all(flow.calls == 2 * 128) and np.all(np.isfinite(flow.standard_error))
    # This density is smooth, not the spikes that the Gaussian encoder is for.
    encoded = log_p + 4 * _decoder_gain(0.002)
    # The noise moves the density by |x| s0 / STD^2 = 0.02 nats for an element of 2, the solver by
    # less.
    np.testing.assert_allclose(flow.log_likelihood, encoded, atol=0.05)
    uniform = edm_jax.log_likelihood(model, pixels, dequantisation="uniform", sigma_min=0.0005)
    np.testing.assert_allclose(uniform.log_likelihood, log_p, atol=0.05)
    np.testing.assert_allclose(flow.bits_per_dim, -flow.log_likelihood / (4 * np.log(2)))
    bound = edm_jax.log_likelihood(model, pixels, method="bound", num_steps=256)
    # Monte Carlo: within five of its own stated errors, which are a few per cent of the number.
    assert np.all(np.abs(bound.log_likelihood - encoded) < 5 * bound.standard_error)
    assert np.all(bound.standard_error < 0.15 * np.abs(log_p))
    assert np.all(bound.calls == 256)


def test_an_image_does_not_depend_on_its_batch_or_devices(pixels):
    model = exact_model(num_classes=2)
    labels = np.array([0, 1, 0, 1, 1])
    options = {"num_probes": 2, "num_steps": 8}
    together = edm_jax.log_likelihood(model, pixels, labels, **options)
    cut = edm_jax.log_likelihood(model, pixels, labels, batch_size=2, **options)
    alone = edm_jax.log_likelihood(model, pixels[3:4], 1, image_ids=[3], **options)
    sharding = batch_sharding(make_mesh(jax.devices()[:2]))
    spread = edm_jax.log_likelihood(model, pixels, labels, sharding=sharding, **options)
    for field in ("log_likelihood", "step_difference"):
        base = getattr(together, field)
        # float32 sums of another order.
        np.testing.assert_allclose(getattr(cut, field), base, atol=1e-4)
        np.testing.assert_allclose(getattr(spread, field), base, atol=1e-4)
        np.testing.assert_allclose(getattr(alone, field), base[3:4], atol=1e-4)
    other = edm_jax.log_likelihood(model, pixels[3:4], 0, image_ids=[3], **options)
    assert abs(other.log_likelihood - alone.log_likelihood) > 0.1  # the label counts
    again = edm_jax.log_likelihood(model, pixels[3:4], 1, image_ids=[4], **options)
    assert again.log_likelihood != alone.log_likelihood  # and so does the id


def test_summary_says_what_it_depends_on(pixels):
    result = edm_jax.log_likelihood(exact_model(), pixels, num_steps=8)
    summary = json.loads(json.dumps(result.summary()))
    assert summary["images"] == 5 and summary["model"]["ema"] == "ema_test"
    wanted = {"method", "dequantisation", "sigma_min", "sigma_max", "solver", "num_steps",
              "num_probes", "passes", "data_scaling", "bits_per_dim",
              "bits_per_dim_standard_error", "step_difference_bits_per_dim"}  # fmt: skip
    assert wanted <= set(summary)
    assert summary["bits_per_dim"] == pytest.approx(result.bits_per_dim.mean())
    error = result.bits_per_dim.std(ddof=1) / 5**0.5
    assert summary["bits_per_dim_standard_error"] == pytest.approx(error)


def test_adaptive(pixels):
    pytest.importorskip("diffrax")
    x = (pixels[:2] / 127.5 - 1).astype(np.float32)
    result = edm_jax.log_likelihood(exact_model(), x, solver="adaptive", tolerance=1e-4)
    np.testing.assert_allclose(result.log_likelihood, _log_density(x, 0.002), atol=0.02)
    assert result.settings["num_steps"] is None and result.settings["tolerance"] == 1e-4
    assert np.all((40 < result.calls) & (result.calls < 150))


def test_progress_counts_images(pixels):
    seen = []
    edm_jax.log_likelihood(
        exact_model(), pixels, num_steps=2, batch_size=2, progress=lambda *a: seen.append(a)
    )
    assert seen == [(0, 5), (2, 5), (4, 5), (5, 5)]


def test_a_data_set_stops_and_goes_on(pixels):
    model = exact_model(num_classes=2)
    labels = np.array([0, 1, 0, 1, 1])
    settings = likelihood_settings(model, num_steps=4)

    def batches(width):
        for start in range(0, 5, width):
            at = slice(start, start + width)
            yield np.arange(5)[at], pixels[at], labels[at]

    whole = list(likelihoods(model, batches(3), settings, batch_size=2))[-1]
    assert len(whole) == 5 and not whole.missing(range(5))
    first = next(iter(likelihoods(model, batches(2), settings, batch_size=2)))
    assert len(first) == 2 and first.missing(range(4)) == [2, 3]
    resumed = Record.from_state(first.state())
    *_, resumed = likelihoods(model, batches(5), settings, record=resumed, batch_size=2)
    for name, values in whole.state().items():
        np.testing.assert_array_equal(resumed.state()[name], values)
    direct = edm_jax.log_likelihood(model, pixels, labels, num_steps=4)
    # The same program for other batch sizes: float32 sums of another order.
    np.testing.assert_allclose(whole.state()["log_likelihood"], direct.log_likelihood, atol=1e-4)
    assert whole.summary()["bits_per_dim"] == pytest.approx(direct.summary()["bits_per_dim"])
    other = likelihood_settings(model, num_steps=8)
    with pytest.raises(ValueError, match="the record was made with num_steps=4, not 8"):
        next(likelihoods(model, batches(2), other, record=resumed))
    with pytest.raises(ValueError, match="settings missing"):
        Record.from_state({k: v for k, v in whole.state().items() if k != "settings"})
    with pytest.raises(ValueError, match="the record is empty"):
        Record(whole.settings, 4).summary()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance": 2.0}, "take no guidance, got 2.0"),
        ({"images": np.zeros((1, 3, 3, 1), np.uint8)}, r"shape \(B, 2, 2, 1\), got \(1, 3, 3, 1\)"),
        ({"images": np.full((1, *SHAPE), 200.0)}, "values up to 200; scale bytes"),
        ({"images": np.zeros((1, *SHAPE), np.int64)}, "got int64"),
        ({"images": np.full((1, *SHAPE), np.nan)}, "values up to nan"),
        ({"images": np.full((1, *SHAPE), 0.1234), "dequantisation": "uniform"}, "not 8-bit ones"),
        ({"labels": [0]}, "the model is unconditional"),
        ({"sigma_min": 1.0, "sigma_max": 0.5}, "0 < sigma_min < sigma_max"),
        ({"method": "elbo"}, "unknown method of likelihood 'elbo'"),
        ({"solver": "rk5"}, "did you mean 'rk4'"),
        ({"num_steps": 1}, "num_steps must be an integer >= 2"),
        ({"method": "bound", "num_steps": 5}, "even number of noise levels"),
        ({"method": "bound", "dequantisation": "uniform"}, "has its own decoder"),
        ({"dequantisation": "normal"}, "unknown dequantisation"),
        ({"passes": 0}, "passes must be an integer >= 1"),
        ({"num_probes": -1}, "num_probes must be an integer >= 0"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1"),
        ({"image_ids": [1, 2]}, "image_ids must be 1 integers >= 0"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
        ({"tolerance": [1e-5]}, r"tolerance must be a number, got \[1e-05\]"),
        ({"sigma_min": [0.1]}, r"sigma_min must be a number, got \[0.1\]"),
        ({"num_steps": "a"}, "num_steps must be an integer >= 2, got 'a'; the difference"),
        ({"num_steps": np.nan}, "num_steps must be an integer >= 2, got nan"),
        ({"num_probes": "a"}, "num_probes must be an integer >= 0, got 'a'"),
        ({"passes": None}, "passes must be an integer >= 1, got None"),
        ({"batch_size": None}, "batch_size must be an integer >= 1, got None"),
        ({"solver": ""}, "unknown solver of the flow"),
        ({"sharding": 2}, "sharding must be a NamedSharding, got 2"),
    ],
)
def test_bad_input(arguments, message):
    call = {"images": images(1), **arguments}
    with pytest.raises(ValueError, match=message):
        edm_jax.log_likelihood(exact_model(), call.pop("images"), **call)


def test_bad_input_of_other_models(pixels):
    with pytest.raises(ValueError, match="has 2 classes and another flow for each; pass labels"):
        edm_jax.log_likelihood(exact_model(num_classes=2), pixels)
    with pytest.raises(
        ValueError, match=r"within the noise levels of the ve network, \[0.02, 100\]"
    ):
        edm_jax.log_likelihood(exact_model("ve"), pixels, sigma_min=0.002)
    with pytest.raises(ValueError, match=r"knows a table of noise levels only.*adams, heun"):
        edm_jax.log_likelihood(exact_model("iddpm"), pixels, solver="rk4")
