"""Strips of interpolated images, and the figure of code errors."""

import numpy as np
import pytest

from edm_jax.figures.codes import draw_code_errors, strip
from edm_jax.likelihood.code_errors import CodeErrors


def test_strip_holds_every_frame_magnified():
    frames = np.zeros((2, 3, 8, 8, 3))
    frames[1, 2] = 1.0  # the last of the second row is white
    frames[0, 1] = -1.0  # black
    sheet = strip(frames, gap=4, side=64)
    # Three tiles of 64, four gaps, and one more beside each end.
    assert sheet.shape == (2 * 64 + 3 * 4, 3 * 64 + 4 * 4 + 2 * 4, 3) and sheet.dtype == np.uint8
    assert sheet[4, 4].tolist() == [128] * 3 and sheet[0, 0].tolist() == [255] * 3
    middle = 4 + 64 + 4 + 4  # the ends stand apart
    assert sheet[4:68, middle : middle + 64].max() == 0
    assert np.all(sheet[4:68, middle - 8 : middle] == 255)
    with pytest.raises(ValueError, match="frames must have shape"):
        strip(np.zeros((2, 8, 8, 3)))


def test_large_frames_keep_their_size():
    assert strip(np.zeros((1, 2, 100, 90, 1)), gap=0).shape == (100, 180, 1)


def test_errors_are_drawn(tmp_path):
    numbers = np.array([8, 16, 32])
    errors = CodeErrors(numbers, 1.0 / numbers**4, 2.0 / numbers**4, 0.1 / numbers**4, "rk4")
    draw_code_errors([errors, errors._replace(solver="heun")], tmp_path / "errors.png")
    assert (tmp_path / "errors.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_code_errors([], tmp_path / "none.png")
