"""Several metrics at once, accumulated batch by batch."""

import dataclasses

import numpy as np
import pytest

from edm_jax.metrics import frechet
from edm_jax.metrics.extractors import Extractor, Outputs, build, from_function
from edm_jax.metrics.feature_metrics import Accumulation
from edm_jax.metrics.registry import METRICS, check_metrics

SIZE = (4, 4)


def images(count, seed=0, top=256):
    rng = np.random.default_rng(seed)
    return rng.integers(0, top, (count, *SIZE, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def pixels():
    return build("pixels")


@pytest.fixture(scope="module")
def reference(pixels):
    made = Accumulation((), pixels, SIZE, more=("halves", "features"))
    real = images(400)
    for start in range(0, 400, 150):
        made.update(pixels(real[start : start + 150]), start)
    return made.reference("noise")


ALL = ("frechet", "kid", "pr", "fid_infinity")


def accumulated(pixels, generated, names=ALL, batch=64):
    found = Accumulation(names, pixels, SIZE)
    for start in range(0, len(generated), batch):
        found.update(pixels(generated[start : start + batch]), start)
    return found


def numbers(results):
    return {name: (result.value, result.uncertainty) for name, result in results.items()}


def test_reference(reference, pixels):
    features = pixels(images(400)).features
    np.testing.assert_array_equal(reference.features, features)
    np.testing.assert_allclose(reference.cov, np.cov(features.T.astype(float)), rtol=1e-10)
    floor = frechet.frechet_between(features[::2], features[1::2])
    np.testing.assert_allclose(reference.floor, floor, rtol=1e-9)
    assert (reference.count, reference.floor_count, reference.resolution) == (400, 200, SIZE)


def test_all_at_once(pixels, reference):
    generated = images(300, 1, 200)
    found = accumulated(pixels, generated).results(reference)
    features = pixels(generated).features
    expected = frechet.frechet_between(features, reference.features)
    np.testing.assert_allclose(found["frechet"].value, expected, rtol=1e-9)
    parts = {"precision", "recall", "density", "coverage"}
    assert set(found) == {"frechet", "kid", "fid_infinity"} | {f"pr/{p}" for p in parts}
    remarks = " ".join(found["frechet"].remarks)
    assert "300 images: the distance is biased upwards" in remarks
    assert "two halves of the reference, 200 images each" in remarks
    assert found["kid"].uncertainty > 0 and "300 instead of 1000" in " ".join(found["kid"].remarks)
    assert found["kid"].to_json().keys() == {"value", "uncertainty", "remarks"}


def test_a_shared_accumulator(pixels):
    found = Accumulation(("kid", "pr", "frechet"), pixels, SIZE)
    assert set(found.accumulators) == {"features", "moments"}


def test_resumed_and_sharded_runs_give_the_same_numbers(pixels, reference, tmp_path):
    generated = images(300, 1, 200)
    whole = accumulated(pixels, generated)
    first = accumulated(pixels, generated[:128])
    np.savez(tmp_path / "state.npz", **first.state())
    resumed = Accumulation(ALL, pixels, SIZE)
    with np.load(tmp_path / "state.npz", allow_pickle=False) as state:
        resumed.restore(state)
    assert resumed.count == 128
    resumed.update(pixels(generated[128:]), 128)
    hosts = [Accumulation(ALL, pixels, SIZE) for _ in range(2)]
    for i, start in enumerate(range(0, 300, 32)):
        hosts[i % 2].update(pixels(generated[start : start + 32]), start)
    hosts[1].merge(hosts[0])
    expected = numbers(whole.results(reference))
    assert numbers(resumed.results(reference)) == expected
    assert numbers(hosts[1].results(reference)) == expected


def test_a_state_of_something_else(pixels):
    state = accumulated(pixels, images(10), ("frechet",)).state()
    with pytest.raises(ValueError, match="go on with has no features"):
        Accumulation(("kid",), pixels, SIZE).restore(state)
    with pytest.raises(ValueError, match="another extractor or size"):
        Accumulation(("frechet",), pixels, (8, 8)).restore(state)


def test_inception_score_takes_logits():
    def function(x):
        return x.reshape(len(x), -1), np.eye(10)[x[:, 0, 0, 0] % 10] * 50

    extractor = Extractor("inception", "", function, 16)
    found = Accumulation(("is",), extractor, SIZE)
    found.update(extractor(images(100)), 0)
    result = found.results(None)["is"]
    assert 5 < result.value < 10 and "biased downwards" in " ".join(result.remarks)
    with pytest.raises(ValueError, match="gives no logits"):
        found.update(Outputs(np.zeros((1, 16), np.float32)), 100)


def test_what_is_refused(pixels, reference):
    with pytest.raises(ValueError, match="did you mean 'frechet'"):
        check_metrics(["frechet", "frechett"], "pixels")
    with pytest.raises(ValueError, match="fid is defined on the extractor 'inception'"):
        Accumulation(("fid",), pixels, SIZE)
    with pytest.raises(ValueError, match="images of 2x8 pixels among images of 4x4"):
        Accumulation(("frechet",), pixels, SIZE).update(pixels(images(2).reshape(2, 2, 8, 1)), 0)
    few = accumulated(pixels, images(1), ("frechet",))
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        few.results(reference)
    with pytest.raises(ValueError, match="frechet needs a reference"):
        few.results(None)
    bare = dataclasses.replace(reference, features=None)
    with pytest.raises(ValueError, match="kid needs the features of the reference, and noise"):
        accumulated(pixels, images(20), ("kid",)).check_reference(bare)
    other = from_function(lambda x: x.mean(axis=(1, 2)), "mean")
    found = Accumulation(("frechet",), other, SIZE)
    with pytest.raises(ValueError, match="extractor 'pixels', the images of 'mean'"):
        found.check_reference(reference)


def test_every_metric_says_what_it_needs():
    for metric in METRICS.values():
        assert metric.needs and metric.reference in ("", "statistics", "features")
        assert metric.better in ("lower", "higher")
