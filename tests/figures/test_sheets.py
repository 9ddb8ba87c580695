"""Many images on one sheet, and what the sheet says of them."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import edm_jax
from edm_jax.figures import sheets


def test_every_image_has_its_place():
    images = np.linspace(-1, 1, 5)[:, None, None, None] * np.ones((5, 2, 3, 1))
    sheet = sheets.image_sheet(images, 3)
    assert sheet.shape == (2 * (2 + 1) + 1, 3 * (3 + 1) + 1, 1)
    values = edm_jax.to_uint8(images)[:, 0, 0, 0]
    for i in range(5):
        row, column = divmod(i, 3)
        tile = sheet[1 + 3 * row : 3 + 3 * row, 1 + 4 * column : 4 + 4 * column]
        assert (tile == values[i]).all()
    assert (sheet[4:6, 9:12] == 255).all()  # there is no sixth image


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_for_notebooks(channels):
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (6, 8, 8, channels))
    grid = edm_jax.image_grid(images, num_columns=3, scale=1)
    assert grid.mode == "RGB" and grid.size == (3 * 10 + 2, 2 * 10 + 2)
    corner = np.asarray(grid)[2:10, 2:10]
    np.testing.assert_array_equal(
        corner, np.broadcast_to(edm_jax.to_uint8(images)[0], corner.shape)
    )
    # Bytes are taken as they are, and labels stand beneath.
    labelled = edm_jax.image_grid(edm_jax.to_uint8(images), [3] * 6, num_columns=3, scale=1)
    assert labelled.height > grid.height
    np.testing.assert_array_equal(np.asarray(labelled)[2:10, 2:10], corner)
    beneath = np.asarray(labelled)[10:24]
    assert (beneath < 128).any()


def test_names_stand_in_front_of_their_rows():
    images = np.zeros((5, 8, 8, 1), np.uint8)
    plain = np.asarray(edm_jax.image_grid(images, [3] * 5, num_columns=2, scale=2))
    named = edm_jax.image_grid(
        images, [3] * 5, num_columns=2, scale=2, row_names=["heun", "", "a longer name"]
    )
    named, margin = np.asarray(named), named.width - plain.shape[1]
    np.testing.assert_array_equal(named[:, margin:], plain)
    # Where something is written: beside the images of the first and of the third row.
    step = 16 + 14 + 2  # an image, the label beneath, and the gap
    written = np.flatnonzero((named[:, :margin] < 128).any(axis=(1, 2)))
    rows = (written - 2) // step
    assert set(rows) == {0, 2} and np.all((written - 2) % step < 16)
    assert np.all(named[:, :2] == 255)  # the longest is not cut off


def test_bad_grids_are_named():
    for images, labels, message in (
        (np.zeros((4, 8, 8)), None, r"got \(4, 8, 8\)"),
        (np.zeros((4, 8, 8, 2)), None, r"\(n, H, W, 1\) or \(n, H, W, 3\)"),
        (np.zeros((4, 8, 8, 3)), [1, 2], "one label for each of 4 images, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            edm_jax.image_grid(images, labels)
    with pytest.raises(ValueError, match="one name for each of 2 rows, got 1"):
        edm_jax.image_grid(np.zeros((4, 8, 8, 3)), num_columns=2, row_names=["a"])


def test_a_sheet_keeps_what_it_was_told(tmp_path):
    told = {"seeds": [3, 1], "labels": None, "sampling": {"sampler": "heun (\u03c3)"}}
    path = tmp_path / "new" / "grid.png"
    sheets.sample_grid(path, np.zeros((2, 4, 4, 3)), 2, title="0 kimg", told=told)
    assert sheets.read_told(path) == told
    sheets.sample_grid(tmp_path / "a.pdf", np.zeros((2, 4, 4, 3)), 2, title="0 kimg", told=told)
    assert sheets.read_told(tmp_path / "a.pdf") == told
    sheets.sample_grid(tmp_path / "b.pdf", np.zeros((2, 4, 4, 3)), 2)
    assert sheets.read_told(tmp_path / "b.pdf") is None
    sheets.save_image(tmp_path / "plain.png", np.zeros((4, 4, 1), np.uint8))
    assert sheets.read_told(tmp_path / "plain.png") is None
    with Image.open(tmp_path / "plain.png") as picture:
        assert picture.mode == "L"
    assert sorted(p.name for p in tmp_path.rglob("*.png")) == ["grid.png", "plain.png"]


def test_nothing_is_loaded_before_it_is_needed():
    code = (
        "import sys; from edm_jax.figures import curves, sheets, trajectories\n"
        "assert not {'matplotlib', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_label_for_all_and_columns_that_are_none():
    images = np.zeros((4, 8, 8, 1))
    one, four = edm_jax.image_grid(images, 3), edm_jax.image_grid(images, [3] * 4)
    np.testing.assert_array_equal(np.asarray(one), np.asarray(four))
    for wrong in (-2, 2.5, 0):
        with pytest.raises(ValueError, match=r"^num_columns must be an integer >= 1, got"):
            edm_jax.image_grid(images, num_columns=wrong)
