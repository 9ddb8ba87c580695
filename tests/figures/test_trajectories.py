"""The picture of trajectories: which steps it shows, and what of them."""

import itertools

import numpy as np
import pytest

from edm_jax import karras_sigmas
from edm_jax.figures import trajectories


@pytest.fixture
def sheet(monkeypatch):
    """The images that are put on the sheet, row by row."""
    seen = {}

    def image_sheet(images, num_columns, **options):
        seen.update(images=images, columns=num_columns)
        return real(images, num_columns, **options)

    real = trajectories.image_sheet
    monkeypatch.setattr(trajectories, "image_sheet", image_sheet)
    return seen


@pytest.mark.parametrize("num_steps", [1, 3, 18, 40])
def test_columns_are_even_and_nothing_is_made_up(num_steps, sheet, tmp_path):
    sigmas = karras_sigmas(num_steps)
    # Every image says its step: states i + 1, predictions -(i + 1).
    steps = np.arange(1, num_steps + 2, dtype=float)[:, None, None, None, None]
    x = np.broadcast_to(steps, (num_steps + 1, 2, 2, 2, 1))
    path = tmp_path / "trajectories.svg"
    trajectories.denoising_trajectories(path, x, -x[:-1], sigmas, ["seed 5, class cat", "seed 6"])
    columns, images = sheet["columns"], sheet["images"][:, 0, 0, 0]
    rows = images.reshape(4, columns)
    assert columns <= trajectories.MAX_COLUMNS
    # No prediction at the image itself: the cell is white.
    shown = [int(-v - 1) for v in rows[1, :-1]] + [num_steps]
    assert rows[1, -1] == 1
    assert len({b - a for a, b in itertools.pairwise(shown)}) <= 1
    contrast = 0.5 / np.sqrt(sigmas[shown] ** 2 + 0.25)
    np.testing.assert_allclose(rows[0], (np.array(shown) + 1) * contrast)
    np.testing.assert_allclose(rows[2], rows[0])
    text = path.read_text()
    assert "seed 5, class cat" in text and "is shown times" in text
