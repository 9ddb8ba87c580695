"""The figures of the paper from any denoiser or test bed: what they show, not how it looks."""

import colorsys
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import exact, grids, schedules
from edm_jax.figures import curvature, denoising, files, flow, ladder, nfe


def test_noisy_and_denoised_images_are_in_their_cells(monkeypatch, tmp_path):
    seen = {}
    real = denoising.image_sheet

    def sheet(images, columns):
        seen.update(images=images, columns=columns)
        return real(images, columns)

    monkeypatch.setattr(denoising, "image_sheet", sheet)
    images = np.float32(np.random.default_rng(0).uniform(-1, 1, (2, 3, 3, 1)))
    data = exact.FiniteData(images)
    path = tmp_path / "fig1.svg"
    denoising.denoised_images(path, images, [0.1, 5.0], {"ideal": data.denoise})
    noise = np.asarray(jax.random.normal(jax.random.key(0, impl="threefry2x32"), images.shape))
    # rows: noisy 0, ideal 0, noisy 1, ideal 1; columns: the two levels
    assert seen["columns"] == 2 and seen["images"].shape == (8, 3, 3, 1)
    np.testing.assert_allclose(seen["images"][1], images[0] + 5 * noise[0], atol=1e-5)
    expected = data.denoise(jnp.asarray(images + 0.1 * noise), 0.1)
    np.testing.assert_allclose(seen["images"][6], expected[1], atol=1e-6)
    text = path.read_text()
    assert "ideal" in text and "units" in text
    with pytest.raises(ValueError, match="needs images"):
        denoising.denoised_images(path, images[0], [1.0], {"ideal": data.denoise})


def test_a_straight_path_turns_nowhere_and_a_right_angle_is_one():
    times = np.linspace(1, 0, 9)
    states = np.stack([times * 3, -times])[..., None].transpose(1, 0, 2)
    np.testing.assert_allclose(curvature.turning_angles(states, times), 0, atol=1e-12)
    # Stands still for half the time, then moves: from the direction of t to 1 : 2 in x : t.
    bent = np.array([0.0, 0.0, 0.0, 1.0, 2.0])[:, None, None]
    angles = curvature.turning_angles(bent, np.arange(5.0))
    np.testing.assert_allclose(angles, [0, np.arctan(2.0), 0], atol=1e-12)
    with pytest.raises(ValueError, match="N >= 2"):
        curvature.turning_angles(bent[:2], np.arange(2.0))


def test_the_paper_s_schedule_bends_least(x64):
    """EDM's claim about Fig. 3, on two points of data, with the exact flow in each variable."""
    data = exact.GaussianMixture(np.array([-1.0, 1.0]), 0.05)
    sigmas = grids.make_sigmas("edm", 400, sigma_max=25.0, sigma_min=0.01)[:-1]
    starts = np.linspace(-50, 50, 12) + 0.5
    lines = np.asarray(data.flow(np.broadcast_to(starts, (400, 12)), 25.0, sigmas))
    totals = {}
    for name, schedule, scaling in (
        ("edm", schedules.LinearSchedule(), schedules.NoScaling()),
        ("ve", schedules.VESchedule(), schedules.NoScaling()),
    ):
        scaled = lines * np.asarray(scaling.scale(sigmas))[:, None]
        times = np.asarray(schedule.inverse(sigmas))
        totals[name] = curvature.turning_angles(scaled[..., None], times).sum()
    assert totals["edm"] < totals["ve"]


def test_every_figure_is_vectors_with_units(tmp_path, x64):
    data = exact.GaussianMixture(np.array([-1.0, 1.0]), 0.05)
    flow.flow_panels(tmp_path / "flow.svg", data, flow.PANELS[:2], num_lines=4)
    angles = np.full(9, 0.1)
    curvature.curvature_curves(
        tmp_path / "turn.svg", {"EDM": (np.geomspace(80, 0.01, 9), angles)}, title="two points"
    )
    nfe.quality_curves(tmp_path / "nfe.svg", {"a": [(9, 2.0, 0.1), (35, 0.1, 0.05)]}, "FID")
    nfe.step_error_curves(
        tmp_path / "steps.svg", {"heun": {"sigmas": [80, 1], "errors": [1e-2, 1e-4]}}
    )
    ladder.ladder(tmp_path / "ladder.svg", "AB", {"VP": [[1, 2], []], "VE": [[2], [1]]}, "FID")
    for name, words in {
        "flow": "units", "turn": "degrees", "nfe": "NFE", "steps": "data units",
        "ladder": "FID",
    }.items():  # fmt: skip
        text = (tmp_path / f"{name}.svg").read_text()
        assert words in text and "<path" in text
    for name, draw in {
        "nfe": lambda path: nfe.quality_curves(path, {}, "FID"),
        "steps": lambda path: nfe.step_error_curves(path, {}),
        "turn": lambda path: curvature.curvature_curves(path, {}),
    }.items():
        with pytest.raises(ValueError, match="nothing to draw"):
            draw(tmp_path / f"{name}.pdf")
    with pytest.raises(ValueError, match="scalar data"):
        flow.flow_panels(tmp_path / "x.svg", exact.GaussianMixture(np.zeros((2, 3)), 0.1))


def drawn_by(monkeypatch, draw, *args, **kwargs):
    """The axes and the legend's handles of a figure that would be saved."""
    drawn = []
    monkeypatch.setattr(files, "save", lambda fig, path: drawn.append(fig))
    draw("a.png", *args, **kwargs)
    (figure,) = drawn
    legends = [*figure.legends, *filter(None, [figure.axes[0].get_legend()])]
    return figure.axes[0], [text.get_text() for legend in legends for text in legend.get_texts()]


def bars_of(axes):
    """Label of each line with bars -> the lengths of these, upwards and downwards."""
    return {
        group.get_label(): [
            float(np.ptp(segment[:, 1]))
            for segment in group.lines[2][0].get_segments()
            if len(segment)
        ]
        for group in axes.containers
    }


def test_bars_are_where_there_are_errors(monkeypatch):
    lines = {"one": [(4, 2.0, 0.0), (8, 1.0, 0.0)], "two": [(4, 3.0, 0.5), (8, 2.0, 0.0)]}
    axes, legend = drawn_by(monkeypatch, nfe.quality_curves, lines, "FID", note="bars: errors")
    assert bars_of(axes) == {"two": [1.0]}
    assert legend == ["one", "two"]  # in the order that was asked for
    assert [text.get_text() for text in axes.texts] == ["bars: errors"]
    sure = {name: [(x, y, 0.0) for x, y, _ in line] for name, line in lines.items()}
    axes, legend = drawn_by(monkeypatch, nfe.quality_curves, sure, "FID", note="bars: errors")
    assert not axes.containers and not axes.texts and legend == ["one", "two"]
    # Of a ladder a single run has no error either: that of 1 and 3 is 1, upwards and downwards.
    runs = {"VP": [[1.0], [2.0]], "VE": [[1.0, 3.0], [2.0]]}
    axes, legend = drawn_by(monkeypatch, ladder.ladder, "AB", runs, "FID")
    assert bars_of(axes) == {"VE": [2.0]} and legend == ["VP", "VE"]


def test_the_error_of_a_single_step_is_seen(monkeypatch):
    curves = {
        "2 steps": {"sigmas": [80.0], "errors": [1e-2]},
        "3 steps": {"sigmas": [80.0, 1.0], "errors": [1e-2, 1e-4]},
    }
    axes, _ = drawn_by(monkeypatch, nfe.step_error_curves, curves)
    alone, line = (each.get_markersize() for each in axes.get_lines())
    assert alone >= 5 > line  # points; those of the axes' text are 7


def test_a_long_name_of_a_measure_is_not_cut_off(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(files, "save", lambda fig, path: drawn.append(fig))
    name = "RMS distance to the accurate solution of the same latents (data units)"
    nfe.quality_curves(tmp_path / "a.png", {"a": [(9, 2.0, 0.1)]}, name)
    (figure,) = drawn
    figure.draw_without_rendering()
    box = figure.axes[0].yaxis.label.get_window_extent()
    assert 0 <= box.y0 and box.y1 <= figure.bbox.height and box.x0 >= 0


def dichromat(colour):
    """What is left of a colour without red-green vision: blue against yellow, and light.

    Vienot, Brettel & Mollon 1999, deuteranopia: linear RGB through LMS with M from L and S.
    """
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lms = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714],
                    [0.0299566, 0.184309, 1.46709]]) @ linear  # fmt: skip
    lms[1] = 0.494207 * lms[0] + 1.24827 * lms[2]
    return np.cbrt(lms / np.array([65.5, 34.5, 1.68]))


def test_colours_are_told_apart_without_red_and_green():
    seen = [dichromat(colour) for colour in files.COLOURS]
    apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    # the classical mistake, matplotlib's own red beside its green, by the same measure
    assert np.linalg.norm(dichromat("#d62728") - dichromat("#2ca02c")) < 0.1
    assert min(apart) > 0.15
    lightness = [colorsys.rgb_to_hls(*(int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)))[1]
                 for c in files.COLOURS]  # fmt: skip
    assert max(lightness) < 0.7  # visible on white
