"""An evaluation from the library: no configuration, no command line."""

import numpy as np
import pytest

import edm_jax
from edm_jax.data.sources.base import ArraySource
from edm_jax.evaluation import drawing, protocol
from edm_jax.generate import Sampling
from edm_jax.metrics import registry
from tests.evaluation.test_loss_levels import silent_model

REQUEST = Sampling(num_steps=2)


@pytest.fixture(scope="module")
def source():
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), dtype=np.uint8)
    return ArraySource(images, np.arange(40) % 3)


def test_samples_are_those_of_their_seeds():
    model, seeds, labels = silent_model(), np.array([5, 3, 9]), np.array([0, 1, 2])
    calls = []
    images = drawing.draw(model, seeds, labels, REQUEST, batch_size=2, poll=lambda: calls.append(1))
    expected = edm_jax.to_uint8(edm_jax.sample(model, seeds, labels, sampling=REQUEST))
    assert images.dtype == np.uint8 and calls
    # other batches move a pixel by a rounding of float32 at most
    assert np.abs(images.astype(int) - expected.astype(int)).max() <= 1


def test_a_result_says_what_was_asked_and_found(source, monkeypatch):
    seen = {}

    def count(samples, train, test):
        seen.update(samples=samples, train=train, test=test)
        return {"count": float(len(samples[0]))}

    monkeypatch.setitem(registry.METRICS, "count", count)
    said = []
    result = protocol.evaluate(
        silent_model(), source, metrics=["count"], num_images=8, first_seed=100,
        sampling=REQUEST, report=said.append,
    )  # fmt: skip
    assert result["count"] == 8 and result["nfe"] == 3 and result["first_seed"] == 100
    assert result["sampling"] == REQUEST.to_json() and result["metrics"] == ["count"]
    assert said == ["drawing 8 images, 3 network calls each"]
    images, labels = seen["samples"]
    assert images.dtype == np.uint8 and images.shape == (8, 4, 4, 1)
    np.testing.assert_array_equal(labels, np.arange(8) % 3)  # every class equally often
    np.testing.assert_array_equal(seen["train"][0][7], source[7]["image"])
    assert seen["test"] is None


def test_what_is_wrong_is_said_before_any_work(source):
    def refuse(line):
        raise AssertionError(line)

    for options, message in (
        ({"metrics": ["frechet"]}, "unknown metric 'frechet'; did you mean 'frechet_pixels'"),
        ({"num_images": 1}, "num_images must be at least 2, got 1"),
        ({"sampling": Sampling("heunn")}, "did you mean 'heun'"),
    ):
        with pytest.raises(ValueError, match=message):
            protocol.evaluate(silent_model(), source, report=refuse, **options)


def test_the_metrics_of_real_images_of_the_same_law(source):
    """The Frechet distance of a set to itself is 0; the floor is that of the test images."""
    images, labels = protocol.stack_source(source)
    found = registry.frechet_pixels((images, None), (images, labels), (images[:20], labels[:20]))
    # eigenvalues of a 16x16 covariance in float64
    assert found["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert found["frechet_distance_floor"] > 0.1
    assert registry.classifier((images, None), (images, labels), None) == {}


def test_tables():
    one = {"num_images": 10, "nfe": 35, "frechet_distance": 0.5}
    two = {"num_images": 10, "nfe": None, "class_accuracy": 0.25}
    assert "network calls per image" in protocol.result_table(one)
    assert "network calls" not in protocol.result_table(two)
    lines = protocol.comparison_table({"(headline)": one, "adaptive": two}).splitlines()
    assert lines[0].split() == ["[1]", "[2]", "[3]", "[4]"]
    assert lines[1].split() == ["(headline)", "-", "0.5000", "10", "35"]
    assert lines[2].split() == ["adaptive", "25.00%", "-", "10", "-"]
    assert lines[3].split(maxsplit=1) == ["[1]", "class accuracy of samples"]
