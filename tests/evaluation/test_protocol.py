"""An evaluation from the library: no configuration, no command line."""

import json
import re

import jax
import numpy as np
import pytest

import edm_jax
from edm_jax.data.sources.base import ArraySource, Mirrored, Subset, stack_source
from edm_jax.evaluation import (
    drawing,
    make_reference,
    measuring,
    planning,
    protocol,
    references,
    reporting,
)
from edm_jax.evaluation.labels import labels_of
from edm_jax.generate import Sampling
from edm_jax.metrics import classifier, extractors, kid
from edm_jax.metrics.frechet import frechet_between
from edm_jax.metrics.reference import save_reference
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


def test_a_result_says_what_was_asked_and_found(source):
    said, shown = [], []
    result = edm_jax.evaluation.evaluate(
        silent_model(), source, metrics=["classifier", "frechet_pixels", "kid@pixels"],
        num_images=8, first_seed=100, sampling=REQUEST, report=said.append,
        on_samples=lambda seeds, images: shown.append((seeds, images)),
    )  # fmt: skip
    assert result["nfe"] == 3 and result["first_seed"] == 100 and result["num_images"] == 8
    assert result["sampling"] == REQUEST.to_json()
    assert said == ["drawing 8 images, 3 network calls each"]
    ((seeds, images),) = shown
    expected = drawing.draw(silent_model(), seeds, np.arange(8) % 3, REQUEST)
    np.testing.assert_array_equal(images, expected)  # every class equally often
    # The same numbers by other means.
    real, labels = stack_source(source)
    fitted = classifier.fit_pixel_classifier(real / 127.5 - 1, labels)
    accuracy = np.mean(fitted(images / 127.5 - 1) == np.arange(8) % 3)
    assert result["class_accuracy"] == accuracy
    features = (x.reshape(len(x), -1) / 127.5 - 1 for x in (images, real))
    # float32 features against float64
    assert result["frechet_distance"] == pytest.approx(frechet_between(*features), rel=1e-5)
    assert result["results"]["kid@pixels"]["uncertainty"] > 0
    assert "biased upwards" in " ".join(result["results"]["frechet_pixels"]["remarks"])
    assert len(result["weights_sha256"]) == 64 and result["versions"]["jax"] == jax.__version__
    reference = result["references"]["pixels"]
    assert reference["count"] == 40 and reference["floor_count"] == 20
    json.dumps(result)


def test_what_is_wrong_is_said_before_any_work(source):
    def refuse(line):
        raise AssertionError(line)

    for options, message in (
        ({"metrics": ["frechet_pixel"]}, "did you mean 'frechet_pixels'"),
        ({"metrics": ["frechet"]}, "say of which"),
        ({"labels": "all"}, "labels must be balanced, random or a class index"),
        ({"labels": 3}, "the model has 3"),
        ({"blocks": 0}, "blocks must be an integer >= 1, got 0"),
        ({"metrics": ["fid", "kid"]}, "pt_inception.*about 96 MB.*inception-2015"),
        ({"num_images": 1}, "num_images must be an integer >= 2, got 1"),
        ({"sampling": Sampling("heunn")}, "did you mean 'heun'"),
    ):
        with pytest.raises(ValueError, match=message):
            protocol.evaluate(silent_model(), source, report=refuse, **options)


def test_the_metrics_of_real_images_of_the_same_law(source):
    """The Frechet distance of a set to itself is 0; the floor is that of the test images."""
    metrics = ["frechet_pixels", "classifier"]
    plan = planning.make_plan(
        metrics, source, Subset(source, range(20)), num_images=40, image_shape=(4, 4, 1), classes=3
    )
    found = edm_jax.evaluation.evaluate_images(source, plan, metrics=metrics, report=str)
    # eigenvalues of a 16x16 covariance in float64
    assert found["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert found["frechet_distance_floor"] > 0.1
    assert found["class_accuracy_real_test"] > 0.9 and found["class_accuracy"] > 0.9


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (lambda source: Subset(source, [3]), "takes 2 test images, and there is 1"),
        (lambda source: Mirrored(Subset(source, [3])), "takes 2 test images, and there is 1"),
        (lambda source: ArraySource(np.zeros((4, 5, 4, 1), np.uint8)), r"are \(5, 4, 1\), not"),
    ],
)
def test_test_images_that_make_no_floor_are_told(source, test, message):
    """The numbers that can be given are given."""
    said = []
    found = edm_jax.evaluation.evaluate(
        silent_model(), source, test(source), metrics=["frechet_pixels"], num_images=8,
        sampling=REQUEST, report=said.append,
    )  # fmt: skip
    assert any(re.search(message, line) for line in said), said
    assert found["frechet_distance"] > 0 and "frechet_distance_floor" not in found


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (dict(model="runs/x"), "model must be a Model, got 'runs/x'"),
        (dict(reference=3), "reference must be images.* or the path of one, got 3"),
        (dict(test=3), "test must be images.*, got 3"),
        (dict(metrics=None), "metrics must be a list of names, got None"),
        (dict(metrics="fid"), "metrics must be a list of names, got 'fid'"),
        (dict(num_images="a"), "num_images must be an integer >= 2, got 'a'"),
        (dict(num_images=10**9), "num_images times blocks must be at most 100,000,000, got 1,000"),
        (dict(blocks=None), "blocks must be an integer >= 1, got None"),
        (dict(first_seed=-1), "first_seed must be an integer >= 0, got -1"),
        (dict(batch_size=1.5), "batch_size must be an integer >= 1, got 1.5"),
        (dict(sampling="heun"), "sampling must be a Sampling, got 'heun'"),
        (dict(guidance=2.0), "guidance must be a value with guide, check, got 2.0"),
        (dict(guidance_json=2), "guidance_json must be a dictionary by name, got 2"),
        (dict(weights="FILE"), "weights must be a dictionary by name, got 'FILE'"),
        (dict(extractors=[1]), r"extractors must be a dictionary by name, got \[1\]"),
        (dict(cache=1), "cache must be the name of a file or folder, got 1"),
        (dict(resume=1), "resume must be the name of a file or folder, got 1"),
        (dict(save_seconds=None), "save_seconds must be at least 0"),
        (dict(save_seconds=[1]), r"save_seconds must be a number, got \[1\]"),
        (dict(strict="no"), "strict must be True or False, got 'no'"),
        (dict(report=None), "report must be a function of a line, got None"),
        (dict(poll=1), "poll must be a function, got 1"),
        (dict(finished="x"), "finished must be a function, got 'x'"),
    ],
)
def test_arguments_that_cannot_work(source, call, message):
    options = {
        "model": silent_model(), "reference": source, "metrics": ["frechet_pixels"],
        "num_images": 8, "sampling": REQUEST, "report": str,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message) as error:
        edm_jax.evaluation.evaluate(**options | call)
    assert "\n" not in str(error.value)


def test_blocks_quote_the_minimum_and_the_mean(source):
    metrics = ["frechet_pixels", "kid@pixels"]
    options = dict(sampling=REQUEST, report=str, metrics=metrics, labels="random")
    both = edm_jax.evaluation.evaluate(silent_model(), source, num_images=8, blocks=2, **options)
    each = [
        edm_jax.evaluation.evaluate(
            silent_model(), source, num_images=8, first_seed=protocol.FIRST_SEED + start, **options
        )
        for start in (0, 8)
    ]
    single = [one["frechet_distance"] for one in each]
    found = both["results"]["frechet_pixels"]
    assert found["blocks"] == single and found["value"] == min(single)
    assert found["mean"] == pytest.approx(np.mean(single)) and both["num_blocks"] == 2
    assert "minimum of" in reporting.result_table(both)
    # A deviation is of a block: beside the mean of blocks there is none, but a list.
    detail = both["results"]["kid@pixels"]
    assert "uncertainty" not in detail
    assert detail["uncertainties"] == [one["results"]["kid@pixels"]["uncertainty"] for one in each]


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_a_stopped_evaluation_goes_on_to_the_same_number(source, tmp_path, stop_at, monkeypatch):
    """Stopped after a batch of three, or while measuring (3), and begun again."""
    options = dict(
        metrics=["frechet_pixels", "pr@pixels", "classifier"], num_images=11, batch_size=4,
        sampling=REQUEST, resume=tmp_path, save_seconds=0,
    )  # fmt: skip
    polls, said = [], []

    def poll():
        polls.append(1)
        if len(polls) == stop_at:
            raise Stop

    def stop(*unused):
        raise Stop

    model = silent_model()
    with monkeypatch.context() as patch, pytest.raises(Stop):
        if stop_at == 3:
            patch.setattr(measuring.Measurement, "results", stop)
        plan = planning.make_plan(
            options["metrics"], source, num_images=11, image_shape=(4, 4, 1), classes=3
        )
        evaluate = edm_jax.evaluation.evaluate
        evaluate(model, plan, report=str, poll=None if stop_at == 3 else poll, **options)
    assert list(tmp_path.rglob("*.npz"))
    resumed = evaluate(model, source, report=said.append, **options)
    assert any("going on after" in line for line in said)
    assert not list(tmp_path.rglob("*.npz"))
    assert resumed == evaluate(model, source, report=str, **options)


def test_other_pictures_of_the_same_name_are_not_gone_on_with(source, tmp_path):
    """What was measured of the images of before does not mix with those that are there now."""
    draw = np.random.default_rng(1).integers
    before, now = (draw(0, 256, (300, 4, 4, 1), dtype=np.uint8) for _ in range(2))
    options = dict(metrics=["frechet_pixels"], name="out", resume=tmp_path, save_seconds=0)
    measure = edm_jax.evaluation.evaluate_images
    with pytest.raises(Stop):
        measure(ArraySource(before), source, report=str, finished=lambda _: raise_(Stop), **options)
    assert list(tmp_path.rglob("*.npz"))
    said = []
    found = measure(ArraySource(now), source, report=said.append, **options)
    assert not any("going on" in line for line in said)
    real = stack_source(source)[0]
    features = (x.reshape(len(x), -1) / 127.5 - 1 for x in (now, real))
    # float32 features against float64
    assert found["frechet_distance"] == pytest.approx(frechet_between(*features), rel=1e-5)
    assert found["images_sha256"] == references.source_digest(ArraySource(now))


def test_images_outlive_a_metric_that_fails(source, tmp_path, monkeypatch):
    options = dict(
        metrics=["frechet_pixels", "kid@pixels"], num_images=6, sampling=REQUEST, resume=tmp_path
    )
    evaluate, model, said = edm_jax.evaluation.evaluate, silent_model(), []
    with monkeypatch.context() as patch:
        patch.setattr(kid, "kernel_distance", lambda *a, **k: raise_(ValueError("no memory")))
        failed = evaluate(model, source, report=said.append, **options)
    assert failed["left_out"] == {"kid@pixels": "no memory"}
    assert "the images are not lost" in said[-1]
    again = evaluate(model, source, report=said.append, **options)
    assert "evaluation: going on after 6 of 6 images" in said
    assert again["results"]["kid@pixels"] and not list(tmp_path.rglob("*.npz"))


def test_a_published_file_is_of_the_network_of_its_width(source, tmp_path):
    """``mu`` and ``sigma`` do not say of which; for another network the data are taken."""
    np.savez(tmp_path / "published.npz", mu=np.zeros(4), sigma=np.eye(4))
    wide, narrow = (
        extractors.from_function(lambda x, n=n: x.reshape(len(x), -1)[:, :n] / 255, f"first{n}")
        for n in (5, 4)
    )
    plan = planning.make_plan(
        ["frechet@first5", "frechet@first4"], [tmp_path / "published.npz", source], num_images=8,
        image_shape=(4, 4, 1), classes=3, extractors_given={"first5": wide, "first4": narrow},
        report=str,
    )  # fmt: skip
    assert plan.references["first4"].source == "published.npz"
    assert plan.references["first5"].count == len(source)


def test_a_reference_with_negative_variances_is_refused_before_work(source, tmp_path):
    np.savez(tmp_path / "wrong.npz", mu=np.zeros(16), sigma=np.diag([1.0] * 15 + [-1.0]))
    with pytest.raises(ValueError, match=r"wrong\.npz: a covariance must be symmetric and"):
        planning.make_plan(
            ["frechet_pixels"], tmp_path / "wrong.npz", num_images=8, image_shape=(4, 4, 1),
            classes=3,
        )  # fmt: skip


def test_a_reference_that_does_not_fit_is_told_by_its_file(source, tmp_path):
    save_reference(tmp_path / "of_mine.npz", make_reference(source, extractors.pixels()))
    with pytest.raises(ValueError, match=r"of_mine\.npz: .* 4x4 pixels, these have 2x8"):
        planning.make_plan(
            ["frechet_pixels"], tmp_path / "of_mine.npz", num_images=8, image_shape=(2, 8, 1),
            classes=3,
        )  # fmt: skip


def test_a_damaged_state_costs_time_only(source, tmp_path):
    options = dict(
        metrics=["frechet_pixels"], num_images=6, sampling=REQUEST, resume=tmp_path, save_seconds=0
    )
    evaluate, model = edm_jax.evaluation.evaluate, silent_model()
    with pytest.raises(Stop):
        evaluate(model, source, report=str, finished=lambda result: raise_(Stop), **options)
    (state,) = tmp_path.rglob("*.npz")
    state.write_bytes(state.read_bytes()[:200])
    said = []
    evaluate(model, source, report=said.append, **options)
    assert not any("going on" in line for line in said)


def raise_(error):
    raise error


def test_features_of_ones_own(source):
    mean = extractors.from_function(lambda x: x.mean(axis=(1, 2)) / 255, "mean")
    result = edm_jax.evaluation.evaluate(
        silent_model(), source, metrics=["frechet@mean"], num_images=8, sampling=REQUEST,
        extractors={"mean": mean}, report=str,
    )  # fmt: skip
    assert result["frechet@mean"] > 0 and result["extractors"] == {"mean": mean.digest}


def test_features_that_are_not_finite(source):
    bad = extractors.from_function(lambda x: x[:, :, 0, 0] / np.float32(0) * 0, "bad")
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="not finite for 1 of 1"):
        plan = planning.make_plan(
            ["frechet@bad"], make_reference(source, extractors.pixels()), num_images=8,
            image_shape=(4, 4, 1), classes=3, extractors_given={"bad": bad},
        )  # fmt: skip
        edm_jax.evaluation.evaluate(silent_model(), plan, num_images=8, sampling=REQUEST)


def test_images_that_are_not_finite(source):
    model = silent_model()
    broken = model.replace(jax.tree.map(lambda a: a * np.nan, model.variables))
    with pytest.raises(ValueError, match="images that are not finite, the first of seed 100000000"):
        edm_jax.evaluation.evaluate(
            broken, source, metrics=["frechet_pixels"], num_images=8, sampling=REQUEST, report=str
        )


def test_what_cannot_be_given_is_left_out_and_said_first(source):
    said = []
    alone = ArraySource(np.stack([source[i]["image"] for i in range(10)]))
    result = edm_jax.evaluation.evaluate(
        silent_model(), alone, metrics=["classifier", "kid@pixels", "frechet_pixels", "pr@pixels"],
        num_images=3, sampling=REQUEST, report=said.append,
    )  # fmt: skip
    assert set(result["results"]) == {"kid@pixels", "frechet_pixels"}
    assert "classifier is left out: it needs classes, and the real images have no" in said[0]
    assert "pr@pixels is left out: it needs at least 4 images, got 3" in said[1]
    assert set(result["left_out"]) == {"classifier", "pr@pixels"}
    with pytest.raises(ValueError, match="nothing to measure: classifier needs classes"):
        edm_jax.evaluation.evaluate(
            silent_model(), alone, metrics=["classifier"], num_images=3, report=said.append
        )


def test_tables():
    one = {"num_images": 10, "nfe": 35, "frechet_distance": 0.5}
    two = {"num_images": 10, "nfe": None, "class_accuracy": 0.25}
    assert "network calls per image" in reporting.result_table(one)
    rows = {"denoiser": 40, "classifier": 20}
    assert "40 denoiser + 20 classifier" in reporting.result_table({**one, "network_rows": rows})
    assert "network calls" not in reporting.result_table(two)
    lines = reporting.comparison_table({"(headline)": one, "adaptive": two}).splitlines()
    assert lines[0].split() == ["[1]", "[2]", "[3]", "[4]"]
    assert lines[1].split() == ["(headline)", "-", "0.5000", "10", "35"]
    assert lines[2].split() == ["adaptive", "25.00%", "-", "10", "-"]
    assert lines[3].split(maxsplit=1) == ["[1]", "class accuracy of samples"]


def test_only_what_images_have_is_asked_for():
    model = silent_model()
    model = edm_jax.model.from_description(
        {**model.description, "data": {"classes": [0, 2]}}, model.variables
    )
    images = np.zeros((4, 4, 4, 1), np.uint8)
    for source in (None, ArraySource(images, np.array([0, 2, 2, 0]))):
        asked = labels_of(model, np.arange(5), "balanced", source)
        assert asked.tolist() == [0, 2, 0, 2, 0]
    vectors = np.arange(12.0).reshape(4, 3)
    asked = labels_of(model, np.arange(6), "balanced", ArraySource(images, vectors))
    np.testing.assert_array_equal(asked, vectors[[0, 1, 2, 3, 0, 1]])
