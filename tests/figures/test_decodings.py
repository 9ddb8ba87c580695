"""Decodings in progress as pictures."""

import numpy as np
from PIL import Image

from edm_jax.figures import decodings, profiles
from edm_jax.figures.sheets import read_told


def test_known_values_are_grey_and_unknown_ones_blue():
    x = np.array([[[[0]], [[4]]], [[[2]], [[4]]]])
    known = np.array([[[[True]], [[True]]], [[[True]], [[False]]]])
    frames = decodings.decoding_frames(x, known, 5)
    assert frames.shape == (2, 2, 1, 3)
    np.testing.assert_array_equal(frames[0, :, 0], [[0] * 3, [255] * 3])
    np.testing.assert_array_equal(frames[1, 0, 0], [128] * 3)
    # 0.3 of what it shows and 0.7 of (66, 133, 244).
    np.testing.assert_array_equal(frames[1, 1, 0], [123, 170, 247])


def test_steps_shown():
    np.testing.assert_array_equal(decodings.shown_steps(3), [0, 1, 2, 3])
    np.testing.assert_array_equal(decodings.shown_steps(100, 3), [0, 50, 100])


def test_sheet(tmp_path):
    x, known = np.zeros((5, 2, 8, 8, 1), int), np.ones((5, 2, 8, 8, 1), bool)
    path = tmp_path / "sheet.png"
    decodings.decoding_sheet(path, x, known, 17, names=["a", "b"], told={"seeds": [0, 1]})
    assert read_told(path) == {"seeds": [0, 1]}
    assert Image.open(path).size[0] > 5 * 40  # five states in a row, enlarged


def test_costs_of_budgets(tmp_path):
    """The profile of the release's unit test: 25, 19, 18, 17.7, 17.65."""
    profile = [5, 4, 3, 2.85, 2.80]
    calls, best, equal = profiles.budget_costs(profile)
    np.testing.assert_array_equal(calls, [1, 2, 3, 4, 5])
    np.testing.assert_allclose(best, [25, 19, 18, 17.7, 17.65])
    # Two equal shares are 0, 2, 5: 2 * 5 + 3 * 3; all others of five steps by hand too.
    np.testing.assert_allclose(equal, [25, 19, 2 * 5 + 3 + 2 * 2.85, 5 + 4 + 2 * 3 + 2.80, 17.65])
    both = profiles.budget_costs([*profile, *profile], num_stages=2)
    np.testing.assert_allclose(both[1], 2 * best)
    profiles.loss_per_step(tmp_path / "profile.png", [*profile, *profile], 2)
    assert (tmp_path / "profile.png").stat().st_size > 1000
    # Of one order there are no policies: the profile alone, half as wide.
    profiles.loss_per_step(tmp_path / "order.png", profile, policies=False)
    widths = [Image.open(tmp_path / f"{name}.png").size[0] for name in ("profile", "order")]
    assert widths[1] < 0.6 * widths[0]
