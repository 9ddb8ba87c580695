"""Labels as the command line gives them."""

import functools
import json
import pathlib

import numpy as np
import pytest

from edm_jax import generate
from edm_jax.data.sources.image_files import open_images
from edm_jax.generate import Sampling
from edm_jax.guidance import classifier_free
from edm_jax.loading import warn_unless_finite
from edm_jax.model import from_description
from experiments import image_files
from experiments.image_files import Drawing, are_names, labels_of, write_grid, write_images
from experiments.sample_folders import SETTINGS, metadata, open_folder, write_classes
from experiments.workdir import WorkdirError
from tests.support.made_images import encode, noise, write_folder
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
    open_folder(tmp_path, guided.settings(), guided.labels_by_seed)
    told = json.loads((tmp_path / SETTINGS).read_text())
    assert told["nfe"] == 7 and told["network_rows"] == {"denoiser": 11}
    # A folder of before these were written takes more images of the same request.
    (tmp_path / "000000.png").write_bytes(b"")
    (tmp_path / SETTINGS).write_text(
        json.dumps({key: told[key] for key in told if key not in ("nfe", "network_rows")})
    )
    open_folder(tmp_path, guided.settings(), guided.labels_by_seed)


@pytest.mark.parametrize(
    "theirs",
    [
        {"000000.png": b"mine", "dataset.json": b'{"labels": [["000000.png", 7]]}'},
        {"000000/000000.png": b"mine"},
        {"photo.JPG": b"mine"},
        {"dataset.json": b"{}"},
        {"Dataset.json": b"{}"},
        {"000000.png": b"mine", "settings.json": b'{"theme": "dark"}'},
        {"settings.json": b"mine"},
    ],
)
@pytest.mark.parametrize("write", [write_images, functools.partial(write_grid, name="g.png")])
def test_a_data_set_is_no_folder_for_samples(tmp_path, monkeypatch, theirs, write):
    monkeypatch.setattr(generate, "batches", None)  # would fail if called
    path = write_folder(tmp_path / "mine", theirs)
    drawn = Drawing(tiny_model(), [0, 1], np.array([0, 1]), Sampling(num_steps=2))
    with pytest.raises(WorkdirError, match=r"mine holds .*; choose another --outdir"):
        write(drawn, path)
    there = {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert there == theirs


def test_other_files_are_in_nobodys_way(tmp_path):
    path = write_folder(tmp_path / "out", {"notes.txt": b"", ".cache/x.png": b""})
    drawn = Drawing(tiny_model(), [0], np.array([0]), Sampling(num_steps=2))
    open_folder(path, drawn.settings(), drawn.labels_by_seed)
    assert json.loads((path / SETTINGS).read_text())["labels"] == {"0": 0}


def drawn_folder(path, model, seeds):
    """A folder as `write_images` leaves it, the pixels apart."""
    drawn = Drawing(model, seeds, labels_of(None, model, seeds), Sampling(num_steps=2))
    open_folder(path, drawn.settings(), drawn.labels_by_seed)
    write_folder(path, {f"{seed:06d}.png": encode(noise(4, 4)) for seed in seeds})
    write_classes(path, model.label_names)
    return drawn, open_images(path, use_labels=True)


def test_drawn_images_are_a_data_set_with_names_of_classes(tmp_path):
    model = named("ant", "cat", "dog")
    drawn, source = drawn_folder(tmp_path, model, [3, 4, 9])
    assert source.label_names == ("ant", "cat", "dog")
    assert source.labels.tolist() == drawn.labels.tolist()
    assert json.loads(metadata([("0.png", 2)], None)) == {"labels": [["0.png", 2]]}


def test_label_vectors_are_drawn_and_recorded(tmp_path):
    model, kept = tiny_model(), [[0.5, -1.0, 2.0], [0.25, 0.0, 3.0]]
    data = {"data": {"label_vectors": kept}}
    model = from_description(model.description | data, model.variables)
    drawn, source = drawn_folder(tmp_path, model, list(range(8)))
    # Of 8 draws, not all are the same vector: a chance of 2^-7, and seeds are fixed.
    assert {tuple(row) for row in source.labels.tolist()} == set(map(tuple, kept))
    np.testing.assert_array_equal(source.labels, drawn.labels)
    told = json.loads((tmp_path / SETTINGS).read_text())["labels"]
    assert told["5"] == drawn.labels[5].tolist()
    open_folder(tmp_path, drawn.settings(), drawn.labels_by_seed)  # the same request goes on
    for text in ("1", "0-2", "cat"):
        with pytest.raises(ValueError, match=rf"--labels={text}: .* label vectors of 3 numbers"):
            labels_of(text, model, [0])


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
