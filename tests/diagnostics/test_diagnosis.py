"""A page about a model, and what it warns of."""

import dataclasses
import html.parser
import re

import numpy as np
import pytest

from edm_jax.data.sources.base import ArraySource
from edm_jax.diagnostics import diagnose, diagnosis, neighbours, page
from edm_jax.figures import diagnosis as draw
from edm_jax.generate import Sampling
from tests.support import exact_model as toy

RNG = np.random.default_rng(0)
FEW = dict(num_levels=4, num_images=40, num_samples=40, sampling=Sampling(num_steps=12),
           report=lambda line: None)  # fmt: skip


@pytest.fixture(scope="module")
def found():
    source = ArraySource(toy.images(200), None)
    return diagnose(toy.exact_model(), source, ArraySource(toy.images(40, seed=1), None), **FEW)


def test_what_is_measured(found):
    pixels = toy.images(200) / 127.5 - 1
    assert found.sigma_data == pytest.approx(pixels.std(), rel=1e-5)
    assert found.sigma_data_config == 0.5
    assert found.samples.shape == (40, *toy.SHAPE) and found.nearest_images.shape[:2] == (40, 3)
    assert found.unseen.error.shape == (4,)
    # ln sigma of EDM's distribution: mean -1.2, deviation 1.2, of 20,000 draws
    logs = np.log(found.sigma_draws)
    assert logs.mean() == pytest.approx(-1.2, abs=0.04)
    assert logs.std() == pytest.approx(1.2, abs=0.03)
    # The spread of two independent Gaussian images is sqrt(2) deviations, clipped at one.
    expected = np.sqrt(2 * np.mean(np.var(pixels, axis=0, ddof=1)))
    assert found.training_spread == pytest.approx(expected, rel=1e-5)
    assert found.warnings == ()


def test_neighbours_are_the_nearest():
    images, others = RNG.normal(size=(5, 2, 2, 1)), RNG.normal(size=(9000, 2, 2, 1))
    mine = neighbours.nearest(images, others, 2)
    distances = np.sqrt(np.mean((images[:, None] - others[None]) ** 2, axis=(2, 3, 4)))
    np.testing.assert_array_equal(mine.index, np.argsort(distances, axis=1)[:, :2])
    np.testing.assert_allclose(mine.distance, np.sort(distances, axis=1)[:, :2], atol=1e-3)
    alone = neighbours.nearest(images, images, 9, skip_itself=True)
    assert alone.index.shape == (5, 4) and not np.any(alone.index == np.arange(5)[:, None])


def replaced(found, **changes):
    return diagnosis.remarks(dataclasses.replace(found, **changes))


def test_each_warning_has_its_cause(found):
    assert replaced(found) == []
    (line,) = replaced(found, sigma_data_config=0.75)
    measured = (toy.images(200) / 127.5 - 1).std()  # clipped: less than the toy's deviation
    assert f"sigma_data is {measured:.3g} in the training images" in line
    assert "config.precond.edm.sigma_data" in line
    near = found.sample_neighbours._replace(distance=found.sample_neighbours.distance * 0)
    (line,) = replaced(found, sample_neighbours=near)
    assert line.startswith("40 of 40 samples are nearly training images")
    (line,) = replaced(found, spread=0.5 * found.training_spread)
    assert "lack variety" in line
    worse = found.unseen._replace(error=found.levels.error * 2)
    (line,) = replaced(found, unseen=worse)
    assert "2 times that of training images: the model overfits" in line
    (line,) = replaced(found, sigma_draws=np.full(100, 0.01))
    assert "next to no level above 0.01" in line


class Balance(html.parser.HTMLParser):
    """That every element which is opened is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_beside_it(found, tmp_path):
    path = page.write_page(tmp_path / "page.html", found, "A <model>")
    text = path.read_text()
    parser = Balance()
    parser.feed(text)
    assert not parser.open and {"svg", "img", "table", "title"} <= parser.seen
    # Nothing is loaded from elsewhere: names of formats (xmlns) are no addresses to load.
    assert not re.search(r'(src|href)="(?!data:|#)', text.replace("xlink:href", "href"))
    assert "A &lt;model&gt;" in text and "Nothing stands out" in text
    assert len(list(tmp_path.iterdir())) == 1
    again = page.write_page(tmp_path / "again.html", found, "A <model>")
    without_ids = [re.sub(r"[a-z]?[0-9a-f]{10}", "", p.read_text()) for p in (path, again)]
    assert without_ids[0] == without_ids[1]


def test_no_label_leaves_its_figure():
    sigmas, curve = np.array([0.01, 1.0, 80.0]), np.array([0.1, 0.5, 1.0])
    figures = [
        draw.distance_histogram({"samples": curve}),
        draw.error_curves(sigmas, {"model": curve}),
        draw.loss_curves(sigmas, {"training": np.stack([curve, curve], 1)}),
        draw.gradient_curve(sigmas, curve),
        draw.sigma_histogram(curve, sigmas),
    ]
    for figure in figures:
        figure.draw_without_rendering()
        inside = figure.bbox
        (axes,) = figure.axes
        for label in (axes.xaxis.label, axes.yaxis.label):
            box = label.get_window_extent()
            assert inside.x0 <= box.x0 and box.x1 <= inside.x1, label.get_text()
            assert inside.y0 <= box.y0 and box.y1 <= inside.y1, label.get_text()


def test_errors_of_zero_are_left_out_and_said_to_be():
    sigmas = np.geomspace(0.01, 10, 4)
    model = np.array([0.01, 0.1, 0.3, 0.4])
    curves = {"model": model, "ideal": np.array([0, 1e-9, 0.2, 0.4]), "unseen": model}
    figure = draw.error_curves(sigmas, curves)
    axes = figure.axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    np.testing.assert_array_equal(lines["model"].get_ydata(), model)
    np.testing.assert_array_equal(lines["ideal"].get_ydata(), [np.nan, np.nan, 0.2, 0.4])
    assert [text.get_text() for text in axes.texts] == ["errors below $10^{-6}$ are left out"]
    # Equal curves: the later one is thinner, and has gaps.
    below, above = lines["model"], lines["unseen"]
    assert above.get_linewidth() < below.get_linewidth() and above.get_linestyle() == ":"
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    assert not draw.error_curves(sigmas, {"model": model}).axes[0].texts


def test_bad_input_is_one_line():
    model = toy.exact_model()
    with pytest.raises(ValueError, match=r"shape \(2, 2, 1\), the data have \(8, 8, 1\)"):
        diagnose(model, ArraySource(np.zeros((4, 8, 8, 1), np.uint8), None), **FEW)
    with pytest.raises(ValueError, match="must be at least 2"):
        diagnose(model, ArraySource(toy.images(10), None), **{**FEW, "num_levels": 1})
    variables = {"params": {"means": np.array([np.nan, np.nan], np.float32)}}
    bad = toy.exact_model(num_classes=2).replace(variables)
    labels = np.arange(20) % 2
    with pytest.raises(ValueError, match="images that are not finite"):
        diagnose(bad, ArraySource(toy.images(20), labels), **FEW)
