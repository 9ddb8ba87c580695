"""The schedule of a run in steps; where its images are."""

import numpy as np
import pytest

from experiments.config.options import Data, Intervals
from tests.support.made_images import encode, write_folder


def intervals(batch_size=128, **kimg):
    return Intervals.from_kimg(
        batch_size, **{"total_kimg": 10.0, "log_kimg": 1.0, "checkpoint_kimg": 1.0} | kimg
    )


def test_thousands_of_images_in_steps():
    # 10,000 / 128 = 78.1, rounded up: the whole is trained; 1,000 / 128 = 7.8, rounded.
    made = intervals(sample_kimg=2.0)
    assert (made.total, made.log, made.checkpoint, made.sample) == (79, 8, 8, 16)
    assert made.evaluation == made.keep_every == 0
    assert intervals(log_kimg=1e-9).log == 1  # never less than a step


@pytest.mark.parametrize(("kimg", "steps"), [(2.0, 16), (2.7, 24), (0.5, 8), (0.0, 0)])
def test_what_is_kept_is_among_what_is_saved(kimg, steps):
    """The nearest multiple of the 8 steps between checkpoints, and at least one."""
    assert intervals(keep_every_kimg=kimg).keep_every == steps


def test_what_is_due():
    made = intervals(batch_size=1000, sample_kimg=4.0, every_kimg=5.0)
    assert [step for step in range(11) if made.grid_due(step)] == [0, 4, 8, 10]
    # Not at the end, which has its own.
    assert [step for step in range(11) if made.evaluation_due(step)] == [5]
    never = intervals(batch_size=1000)
    assert [step for step in range(11) if never.grid_due(step)] == [0, 10]
    assert not any(never.evaluation_due(step) for step in range(11))


def test_the_home_folder_of_a_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    pixels = np.zeros((4, 4, 3), np.uint8)
    write_folder(tmp_path / "mine", {f"{c}/{i}.png": encode(pixels) for c in "ab" for i in "01"})
    data = Data("images", "~/mine")
    assert len(data.open()) == 4 and data.path == "~/mine"
