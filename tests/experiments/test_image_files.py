"""Labels as the command line gives them."""

import json
import pathlib

import numpy as np
import pytest

from edm_jax.generate import Sampling
from edm_jax.guidance import classifier_free
from edm_jax.loading import warn_unless_finite
from edm_jax.model import from_description
from experiments import image_files
from experiments.image_files import SETTINGS, Drawing, are_names, labels_of, open_outdir, write_grid
from tests.test_generate import tiny_model


def named(*names):
    model = tiny_model()
    return from_description({**model.description, "label_names": list(names)}, model.variables)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("cat", [1, 1]), ("dog,cat", [2, 1]), (" dog , dog ", [2, 2]), ("a, b", [0, 0]),
     ("2", [2, 2]), ("0-1", [0, 1])],
)  # fmt: skip
def test_names_and_numbers_of_classes(text, expected):
    np.testing.assert_array_equal(labels_of(text, named("a, b", "cat", "dog"), [5, 6]), expected)


def test_numbers_are_indices_whatever_classes_are_called():
    model = named("1", "2", "10")
    assert labels_of("1", model, [0]).tolist() == [1]
    with pytest.raises(ValueError, match="10 is out of range"):
        labels_of("10", model, [0])
    assert are_names("cat") and are_names("1,cat") and not are_names("0-3, 5")


def test_unknown_names():
    with pytest.raises(ValueError, match="'cta'; did you mean 'cat'"):
        labels_of("cta", named("ant", "cat", "dog"), [0])
    with pytest.raises(ValueError, match="'cat' is not a number or a range"):
        labels_of("cat", tiny_model(), [0])
    with pytest.raises(ValueError, match="3 labels for 2 seeds"):
        labels_of("cat,cat,dog", named("ant", "cat", "dog"), [0, 1])


def test_what_an_image_costs_stands_beside_it(tmp_path):
    """Heun on 4 steps calls the model 7 times, classifier-free guidance twice where it acts."""
    model, labels = tiny_model(label_dropout=0.1), np.array([0, 1])
    plain = Drawing(model, [0, 1], labels, Sampling(num_steps=4))
    assert plain.told() == "2 images, 7 network calls each"
    guided = Drawing(
        model, [0, 1], labels, Sampling(sigmas=(40.0, 10.0, 1.0, 0.05, 0.0)),
        classifier_free(2.0, (0.1, 20.0)), {"name": "classifier_free", "scale": 2.0},
    )  # fmt: skip
    # Both calls of the steps to 10, 1 and 0.05, and the one to 0: at 40, 10, 10, 1, 1, 0.05, 0.05.
    assert guided.told() == "2 images, 7 network calls (guided: 11 denoiser) each"
    open_outdir(guided, tmp_path)
    told = json.loads((tmp_path / SETTINGS).read_text())
    assert told["nfe"] == 7 and told["network_rows"] == {"denoiser": 11}
    # A folder of before these were written takes more images of the same request.
    (tmp_path / "000000.png").write_bytes(b"")
    (tmp_path / SETTINGS).write_text(
        json.dumps({key: told[key] for key in told if key not in ("nfe", "network_rows")})
    )
    open_outdir(guided, tmp_path)


def test_a_grid_of_images_that_are_not_finite_is_refused(monkeypatch, tmp_path):
    broken = np.full((1, 8, 8, 1), np.nan)
    monkeypatch.setattr(image_files.drawing, "draw", lambda *unused, **options: broken)
    drawn = Drawing(tiny_model(), [5], np.array([0]), Sampling(num_steps=1))
    with pytest.raises(ValueError, match="the image of seed 5 is not finite"):
        write_grid(drawn, tmp_path, name="grid.png")
    assert not (tmp_path / "grid.png").exists()


def test_weights_that_are_not_finite_are_told():
    tree = {"params": {"a": np.ones(2), "b": np.array([1, np.nan])}}
    with pytest.warns(UserWarning, match="f.pkl, weights raw: b holds numbers that are not fin"):
        warn_unless_finite(tree, "raw", pathlib.Path("f.pkl"))
