"""The study of strong guidance: its measures, its cells, and what the document says of it."""

import numpy as np
import pytest

from edm_jax.data.sources.base import ArraySource
from edm_jax.evaluation.planning import make_plan
from edm_jax.generate import Sampling
from edm_jax.guidance.compose import Chain
from experiments.studies import reflected
from tests.support.paths import ROOT
from tests.support.reflected import random_model


def test_measures_of_known_images():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    # Two classes that no classifier confuses: dark and bright.
    pixels = np.where(labels[:, None, None, None] == 1, 200, 50) + rng.integers(0, 9, (40, 2, 2, 1))
    source = ArraySource(pixels.astype(np.uint8), labels)
    plan = make_plan(
        reflected.METRICS, source, num_images=40, image_shape=(2, 2, 1), classes=2,
        report=lambda line: None,
    )  # fmt: skip
    found = reflected.measure(pixels / 127.5 - 1, plan)
    assert found["accuracy"] == 1 and found["outside"] == 0 and found["ends"] == 0
    assert found["frechet"] == pytest.approx(0, abs=1e-6)
    assert found["largest"] == pytest.approx(208 / 127.5 - 1)
    # A quarter of the pixels beyond the range, half of the others nearly at its end.
    images = pixels / 127.5 - 1
    images[:, 0, 0], images[:, 0, 1], images[0, 1, 1] = -3.0, 0.95, np.nan
    found = reflected.measure(images, plan)
    assert found["outside"] == pytest.approx(41 / 160)
    assert found["ends"] == pytest.approx(80 / 160)
    assert found["beyond"] == pytest.approx(41 / 160)
    images[:, 0, 0] = -1.01
    found = reflected.measure(images, plan)
    assert found["outside"] == pytest.approx(41 / 160)
    assert found["beyond"] == pytest.approx(1 / 160)
    assert found["frechet"] > 1


def test_every_way_is_one_that_its_model_takes():
    model = random_model()
    ways = reflected.ways()
    assert len({way.name for way in ways}) == len(ways) == 9
    for way in ways:
        way.sampling.check(model.preconditioning)
        guided = way.guided(2.0)
        assert isinstance(guided, Chain) == bool(way.limit)
        if way.model == "reflected":
            guided.check(model)
    calls = {way.law: way.sampling.nfe(model.preconditioning) for way in ways}
    assert calls == {"SDE": 48, "ODE": 23}


def test_a_cell_is_drawn_once(tmp_path, monkeypatch):
    model, path = random_model(), tmp_path / "cells" / "one.npz"
    way = reflected.Way("reflected", "ODE", "none", Sampling("heun", num_steps=2))
    images = reflected.draw(model, way, 15.0, 4, path)
    assert images.shape == (4, 8, 8, 1) and np.abs(images).max() <= 1
    monkeypatch.setattr(reflected.generate, "sample", None)
    np.testing.assert_array_equal(reflected.draw(model, way, 15.0, 4, path), images)
    with pytest.raises(TypeError):  # another scale is another cell
        reflected.draw(model, way, 8.0, 4, path)
    assert [file.name for file in path.parent.iterdir()] == ["one.npz"]


def test_files_of_a_study(tmp_path):
    sampling = Sampling("heun", num_steps=2)
    ways = [reflected.Way("reflected", "ODE", "none", sampling)]
    models = {"reflected": random_model()}
    rows = reflected.run(tmp_path, (1.0, 4.0), 6, ways, models, figure_format="svg")
    assert {f.name for f in tmp_path.iterdir()} == {
        "cells", "reflected.csv", "reflected.svg", "reflected_samples.png",
    }  # fmt: skip
    assert rows == reflected.from_csv((tmp_path / "reflected.csv").read_text())
    assert [row["scale"] for row in rows] == [1.0, 4.0, ""]
    assert rows[-1]["model"] == "real test images" and rows[0]["outside"] == 0
    assert (
        reflected.table(rows, "outside").splitlines()[2] == "| reflected ODE, none | 0.0% | 0.0% |"
    )


def test_the_published_tables_are_those_of_the_published_numbers():
    rows = reflected.from_csv((ROOT / "docs/reflected.csv").read_text())
    text = (ROOT / "docs/reflected.md").read_text()
    for name in reflected.MEASURES:
        assert reflected.table(rows, name) in text, name
