"""Names in figures are shown as they were written, whatever characters they have."""

import itertools

import numpy as np
import pytest
from PIL import Image

from edm_jax import karras_sigmas
from edm_jax.figures import (
    curvature,
    curves,
    denoising,
    diagnosis,
    files,
    ladder,
    nfe,
    sheets,
    trajectories,
)

# The first is no formula that matplotlib can read, the third would end one.
AWKWARD = (
    r"$\frac$ x",
    "$a_b$",
    r"cost \$5",
    "100% & #_^{}~",
    "\\",
    "two\nlines\tand a tab",
    "\udcff",
)
LEVELS = np.array([0.01, 0.1, 1.0])


def _trajectories(path, name):
    x = np.zeros((3, 1, 4, 4, 1))
    trajectories.denoising_trajectories(path, x, x[:-1], karras_sigmas(2), [name])


DRAWN = {
    "accuracy": lambda path, name: curves.accuracy_per_noise_level(
        path, LEVELS, {name: LEVELS}, 2, title=name
    ),
    "loss": lambda path, name: curves.loss_per_noise_level(
        path, LEVELS, np.ones((3, 2)), np.ones((3, 2)), LEVELS, title=name
    ),
    "evaluations": lambda path, name: curves.evaluation_curves(path, [0, 1], {name: [1, 2]}),
    "models": lambda path, name: curves.lines_of_models(path, {name: {name: [(0, 1), (1, 2)]}}),
    "one time": lambda path, name: curves.lines_of_models(path, {name: {name: [(0, 1)]}}),
    "quality": lambda path, name: nfe.quality_curves(
        path, {name: [(1, 2, 0)], "b": [(2, 2, 0)]}, "FID", title=name
    ),
    "steps": lambda path, name: nfe.step_error_curves(
        path, {name: {"sigmas": LEVELS, "errors": LEVELS}}, title=name
    ),
    "turns": lambda path, name: curvature.curvature_curves(
        path, {name: (LEVELS, LEVELS)}, title=name
    ),
    "ladder": lambda path, name: ladder.ladder(path, [name], {name: [[1.0]]}, "FID", title=name),
    "denoised": lambda path, name: denoising.denoised_images(
        path, np.zeros((1, 4, 4, 1)), LEVELS, {name: lambda x, sigma: x}
    ),
    "errors": lambda path, name: files.save(
        diagnosis.error_curves(LEVELS, {name: LEVELS}, title=name), path
    ),
    "distances": lambda path, name: files.save(
        diagnosis.distance_histogram({name: LEVELS}, title=name), path
    ),
    "trajectories": _trajectories,
}  # fmt: skip


@pytest.mark.parametrize("figure", DRAWN)
def test_a_name_is_no_formula(figure, tmp_path):
    for i, name in enumerate(AWKWARD):
        path = tmp_path / f"{i}.svg"
        DRAWN[figure](path, name)
        if i == 0:  # text stays text; each line of a name may be a line of its own
            text = path.read_text()
            assert "frac" in text and ("$\\frac$" in text or figure == "trajectories")


def test_a_sheet_takes_any_name(tmp_path):
    for name in (*AWKWARD, "long " * 100):
        path = tmp_path / "grid.png"
        sheets.sample_grid(path, np.zeros((1, 4, 4, 1)), 1, row_names=[name], title=name)
        assert Image.open(path).width < 2000
        sheets.image_grid(np.zeros((1, 4, 4, 1)), [name])


def test_names_are_shortened_in_the_middle():
    # By hand: 40 characters, the first 19, an ellipsis, the last 20.
    assert files.one_line("a" * 30 + "b" * 30) == "a" * 19 + "…" + "b" * 20
    assert files.one_line("a\n b\t\x00c") == "a b c"
    assert files.plain("$x$") == r"\$x\$"


@pytest.mark.parametrize(
    ("num_steps", "name"),
    itertools.product([1, 2, 3, 18], ["seed 1, class 3", "seed 1, class " + "shorthair cat " * 9]),
)
def test_no_word_of_trajectories_is_cut_off(num_steps, name, monkeypatch, tmp_path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    found = []
    monkeypatch.setattr(files, "save", lambda fig, path: found.append(fig))
    x = np.zeros((num_steps + 1, 2, 4, 4, 1))
    with files.style():
        trajectories.denoising_trajectories(
            tmp_path / "a.png", x, x[:-1], karras_sigmas(num_steps), [name] * 2
        )
        fig = found[0]
        FigureCanvasAgg(fig).draw()
        texts = [*fig.texts, *fig.axes[0].get_xticklabels(), *fig.axes[0].get_yticklabels()]
        texts = [text for text in (*texts, fig._supxlabel) if text.get_text()]
        assert len(texts) > 4
        for text in texts:
            box = text.get_window_extent()
            # Half a pixel: boxes are rounded outwards.
            assert box.x0 >= -0.5 and box.x1 <= fig.bbox.x1 + 0.5, text.get_text()
            assert box.y0 >= -0.5 and box.y1 <= fig.bbox.y1 + 0.5, text.get_text()


class Asked(RuntimeError):
    """A request to stop, of a program."""


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Asked("stop")])
def test_errors_that_are_none_of_drawing_pass(error, tmp_path):
    with pytest.raises(type(error)), files.costing_nothing_else(tmp_path / "a.png"):
        raise error


def test_half_a_picture_is_not_left(tmp_path):
    path = tmp_path / "a.png"
    with pytest.warns(UserWarning, match=r"the figure .*a\.png could not be drawn: no such word$"):
        with files.costing_nothing_else(path), files.replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("no such\nword")
    assert not list(tmp_path.iterdir())
