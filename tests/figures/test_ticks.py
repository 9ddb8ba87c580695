"""The numbers on logarithmic axes: few enough to read, and right."""

import itertools

import numpy as np
import pytest

from edm_jax.figures import files
from edm_jax.figures.ticks import log_axes


def numbers(low, high, which="x"):
    """Ticks within the limits: their places and what is written there."""
    with files.style():
        fig, axes = files.subplots(size=(files.COLUMN, 2.4))
        axes.plot([low, high], [low, high])
        log_axes(axes)
        axes.set(xlim=(low, high), ylim=(low, high))
        fig.draw_without_rendering()
        axis = getattr(axes, f"{which}axis")
        assert not any(label.get_text() for label in axis.get_ticklabels(minor=True))
        found = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
        within = [(v, t) for v, t in found if low * 0.999 <= v <= high * 1.001]
        boxes = [text.get_window_extent() for _, text in within]
    return [v for v, _ in within], [t.get_text() for _, t in within], boxes


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.35, 1.0, ["0.4", "0.5", "0.6", "0.8", "1"]),  # what was 4x10^-1 and 6x10^-1, crowded
        (0.017, 1.5, ["0.02", "0.05", "0.1", "0.2", "0.5", "1"]),
        (0.9, 1.1, ["0.9", "1", "1.1"]),
        (30.0, 5000.0, [r"$\mathdefault{10^{2}}$", r"$\mathdefault{10^{3}}$"]),
        (
            1.5e-6,
            1e-5,
            [r"$\mathdefault{2\times10^{-6}}$", r"$\mathdefault{5\times10^{-6}}$",
             r"$\mathdefault{1\times10^{-5}}$"],
        ),
    ],
)  # fmt: skip
def test_short_axes_have_plain_numbers_and_long_ones_powers_of_ten(low, high, labels):
    assert numbers(low, high)[1] == labels


@pytest.mark.parametrize("low", [0.002, 0.9])
@pytest.mark.parametrize("factor", [1.05, 1.8, 2.5, 6.0, 15.0, 90.0, 1e3, 1e9])
@pytest.mark.parametrize("which", ["x", "y"])
def test_there_are_some_and_they_do_not_touch(low, factor, which):
    places, _, boxes = numbers(low, low * factor, which)
    assert len(places) >= 2 and np.all(np.diff(places) > 0)
    ends = ("x0", "x1") if which == "x" else ("y0", "y1")
    for first, second in itertools.pairwise(boxes):
        assert getattr(first, ends[1]) < getattr(second, ends[0])
