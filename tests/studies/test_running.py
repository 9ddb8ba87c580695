"""Studies of a model whose flow is known, and what stops a cell or a study."""

import itertools
import json

import jax
import numpy as np
import pytest

from edm_jax import generate, grids, seeds
from edm_jax.generate import Sampling
from edm_jax.studies import Study, guidances, lanes, run
from edm_jax.studies import grid as grid_lib
from edm_jax.studies.files import CellFiles
from tests.support import exact_model as toy

MODEL = toy.exact_model()
SEED, COUNT = 5, 6


def study_of(grid, **more):
    told = {"grid": grid, "num_images": COUNT, "blocks": 2, "first_seed": SEED, **more}
    return Study.from_json(told, models=("toy",))


def results_of(grid, directory=None, model=MODEL, **more):
    lines = []
    found = run(study_of(grid, **more), {"toy": model}, directory, report=lines.append)
    return found, lines


def start(block, sigma):
    """The latents of a block, times sigma, in float64."""
    mine = SEED + block * COUNT + np.arange(COUNT)
    noise = seeds.latents(seeds.image_keys(mine), (COUNT, *toy.SHAPE))
    return np.asarray(noise, np.float64) * sigma


def euler_factor(sigma, after):
    """x -> x' of an Euler step on Gaussian data of mean 0, slope x s / (s^2 + d^2)."""
    return 1 + (after - sigma) * sigma / (sigma**2 + toy.STD**2)


def flow_factor(sigma, after):
    """The same of the exact flow."""
    return np.sqrt((toy.STD**2 + after**2) / (toy.STD**2 + sigma**2))


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def test_distance_is_that_of_the_closed_form():
    found, _ = results_of({"sampler": "euler", "num_steps": [4, 8]})
    for row, num_steps in zip(found.rows, (4, 8), strict=True):
        sigmas = grids.make_sigmas("edm", num_steps)
        pairs = list(itertools.pairwise(sigmas))
        euler = np.prod([euler_factor(*pair) for pair in pairs])
        # The accurate solution ends with D at its last level, as every sampler here does.
        flow = flow_factor(sigmas[0], sigmas[-2]) * euler_factor(sigmas[-2], 0.0)
        expected = [rms(start(block, sigmas[0]) * (euler - flow)) for block in range(2)]
        # float32 of states that begin at 80, and Heun's own error after 256 steps
        np.testing.assert_allclose(row["values"]["distance"]["blocks"], expected, atol=2e-4)
        assert row["values"]["distance"]["mean"] == pytest.approx(np.mean(expected), abs=2e-4)
        spread = np.std(expected, ddof=1) / np.sqrt(2)
        assert row["values"]["distance"]["standard_error"] == pytest.approx(spread, abs=2e-4)
        assert row["nfe"] == num_steps and row["status"] == "done"


def test_truncation_is_that_of_the_closed_form():
    found, _ = results_of({"sampler": "euler", "num_steps": 5}, quality="truncation", blocks=1)
    sigmas = grids.make_sigmas("edm", 5)
    expected = []
    for sigma, after in itertools.pairwise(sigmas[:-1]):
        here = start(0, sigmas[0]) * flow_factor(sigmas[0], sigma)
        expected.append(rms(here * (euler_factor(sigma, after) - flow_factor(sigma, after))))
    steps = found.rows[0]["steps"]
    np.testing.assert_allclose(steps["sigmas"], sigmas[:-2], rtol=1e-6)
    # 64 Heun steps in between leave less than a thousandth of the error of one Euler step
    np.testing.assert_allclose(steps["errors"], expected, rtol=2e-3, atol=1e-5)
    assert found.rows[0]["values"]["truncation"]["mean"] == pytest.approx(sum(expected), rel=2e-3)


def test_scaled_states_are_compared_unscaled():
    """Euler in any variable of the same flow is consistent: its step error falls with the step."""
    grid = {"sampler": "general", "solver": "euler", "schedule": "vp", "scaling": "vp",
            "num_steps": [8, 32]}  # fmt: skip
    found, _ = results_of(grid, quality="truncation", blocks=1)
    coarse, fine = (row["values"]["truncation"]["mean"] for row in found.rows)
    assert fine < coarse < 20 and fine < 0.5 * coarse


def test_a_cell_is_what_sample_draws_whatever_runs_beside_it():
    rows = []
    for rho in ([5.0, 7.0, 9.0], [7.0]):
        grid = {"sampler": "heun", "num_steps": 3, "rho": rho}
        rows.append(results_of(grid)[0].rows)
    alone = rows[1][0]["values"]["distance"]["blocks"]
    # rounding of float32 at sigma = 80 in programs of other batch sizes
    np.testing.assert_allclose(rows[0][1]["values"]["distance"]["blocks"], alone, atol=1e-4)
    accurate = generate.sample(MODEL, SEED + np.arange(COUNT), sampling=Sampling(num_steps=256))
    coarse = generate.sample(MODEL, SEED + np.arange(COUNT), num_steps=3)
    assert alone[0] == pytest.approx(rms(coarse - accurate), abs=1e-4)


def test_one_compilation_for_a_number_of_steps(tmp_path, monkeypatch):
    grid = {"num_steps": [2, 3], "rho": [3.0, 5.0, 7.0, 9.0, 11.0], "sigma_max": [60.0, 80.0]}
    lanes._sample.clear_cache()
    traced, sample_batch = [], generate.sample_batch

    def counted(*args, **options):
        if isinstance(options["sigmas"], jax.core.Tracer):  # a program of lanes
            traced.append(options["sigmas"].shape)
        return sample_batch(*args, **options)

    monkeypatch.setattr(generate, "sample_batch", counted)
    results_of(grid, tmp_path / "a", batch_size=4 * COUNT)
    programs = list(traced)
    assert sorted(programs) == [(3,), (4,)]
    # Cells that are left after a stop run in the same programs, and so do other weights.
    cells = sorted((tmp_path / "a" / "cells").iterdir())
    for path in cells[::2]:
        path.unlink()
    _, lines = results_of(grid, tmp_path / "a", batch_size=4 * COUNT)
    assert f"{len(cells[1::2])} cells are there already" in lines
    other = MODEL.replace({"params": {"means": np.array([0.5, -0.5], np.float32)}})
    results_of(grid, model=other, batch_size=4 * COUNT)
    assert traced == programs


def test_churn_is_a_number_and_needs_no_features(tmp_path):
    grid = [{"num_steps": 3, "s_churn": [0, 2, 4]}, {"sampler": "edm", "num_steps": 3}]
    found, lines = results_of(grid)
    assert [row["status"] for row in found.rows] == ["done", "impossible", "impossible", "done"]
    assert found.rows[0]["sampling"]["sampler"] == "heun"
    (told,) = [line for line in lines if line.startswith("cannot work: ")]
    assert told.startswith("cannot work: 2 cells, the first s_churn 2: ")
    assert "draws noise of its own" in told
    (again,) = [line for line in found.table().splitlines() if "impossible: " in line]
    assert again.startswith("2 cells, the first s_churn 2: impossible: ")


def test_a_metric_that_the_data_do_not_allow_is_left_out(tmp_path):
    """Of images without classes: no accuracy of a classifier, and the distance all the same."""
    from edm_jax.data.sources.base import ArraySource

    lines, study = [], study_of({"num_steps": 2}, quality=["classifier", "frechet_pixels"])
    for _ in range(2):  # and it goes on as the same study
        found = run(
            study, {"toy": MODEL}, tmp_path, reference=ArraySource(toy.images(20)),
            report=lines.append,
        )  # fmt: skip
        (row,) = found.rows
        assert row["status"] == "done" and list(row["values"]) == ["frechet_distance"]
    assert "1 cells are there already" in lines
    assert any("classifier is left out" in line for line in lines)
    assert "class accuracy" not in found.table()


def test_metrics_of_the_evaluation(tmp_path):
    from edm_jax.data.sources.base import ArraySource

    source = ArraySource(toy.images(200))
    found = run(
        study_of({"num_steps": [1, 12]}, quality=["frechet_pixels"], num_images=150),
        {"toy": MODEL}, reference=source, report=lambda line: None,
    )  # fmt: skip
    one, many = (row["values"]["frechet_distance"]["mean"] for row in found.rows)
    assert many < 0.2 * one  # one step of Euler gives the mean of the data, without deviation
    assert found.best()["settings"]["num_steps"] == 12
    from edm_jax.evaluation import evaluate

    again = evaluate(
        MODEL, source, metrics=["frechet_pixels"], num_images=150, first_seed=SEED,
        sampling=Sampling(num_steps=12), report=lambda line: None,
    )  # fmt: skip
    expected = found.rows[1]["values"]["frechet_distance"]["blocks"][0]
    assert again["frechet_distance"] == pytest.approx(expected, rel=1e-3)  # a byte may round


def test_metrics_of_models_of_two_sizes_are_refused_before_references_are_made(monkeypatch):
    class Other:
        image_shape = (4, 4, 1)

    monkeypatch.setattr("edm_jax.studies.running.make_plan", None)
    study = Study.from_json({"grid": {"rho": 7}, "quality": "frechet_pixels"}, ["toy", "b"])
    with pytest.raises(ValueError, match="one image size: toy has 2x2x1, b has 4x4x1"):
        run(study, {"toy": MODEL, "b": Other()})


def test_a_failed_cell_is_marked_and_the_rest_goes_on(tmp_path, monkeypatch):
    draw = lanes.batches

    def faulty(model, seeds, rows_of, side_by_side, **more):
        if len(side_by_side[0][0]) == 4:  # levels: the cell of three steps
            raise RuntimeError("the device is on fire")
        yield from draw(model, seeds, rows_of, side_by_side, **more)

    monkeypatch.setattr(lanes, "batches", faulty)
    grid = {"num_steps": [2, 3, 4]}
    found, lines = results_of(grid, tmp_path)
    assert [row["status"] for row in found.rows] == ["done", "failed", "done"]
    assert found.rows[1]["reason"] == "the device is on fire"
    assert any("num_steps 3: failed: the device is on fire" in line for line in lines)
    assert len(list((tmp_path / "cells").iterdir())) == 2
    monkeypatch.setattr(lanes, "batches", draw)
    again, lines = results_of(grid, tmp_path)
    assert again.count("done") == 3 and "2 cells are there already" in lines


@pytest.mark.parametrize(
    "damage",
    [
        lambda row: {"values": 3},
        lambda row: [row],
        lambda row: {**row, "values": {}},
        lambda row: {**row, "nfe": None},
        lambda row: {**row, "values": {"distance": {**row["values"]["distance"], "mean": "nan"}}},
        lambda row: {**row, "steps": 1},
    ],
)
def test_a_damaged_cell_is_measured_anew(damage, tmp_path):
    files, key = CellFiles(tmp_path), ["distance"]
    value = {"mean": 0.5, "standard_error": None, "minimum": 0.5, "maximum": 0.5, "blocks": [0.5]}
    row = {"nfe": 3, "network_calls": 3, "seconds": 0.1, "values": {"distance": value}}
    files.write("a", row)
    assert files.read("a", key) == row and files.read("a", ["truncation"]) is None
    files.write("a", damage(row))
    assert files.read("a", key) is None


def test_another_study_does_not_take_the_place_of_one(tmp_path):
    grid = {"sampler": "euler", "num_steps": [2, 3]}
    results_of(grid, tmp_path)
    before = (tmp_path / "study.json").read_text()
    for more in ({"quality": "truncation"}, {"num_images": 5}, {"first_seed": 6}):
        with pytest.raises(ValueError, match=r"holds another study \(.* now\); use another dir"):
            results_of(grid, tmp_path, **more)
    other = Study.from_json({"grid": grid, "num_images": COUNT, "first_seed": SEED}, ["other"])
    with pytest.raises(ValueError, match=r"another study \(models: {'toy': ''} there, {'other'"):
        run(other, {"other": MODEL}, tmp_path)
    assert (tmp_path / "study.json").read_text() == before
    # A larger grid and more blocks are the same study.
    found, lines = results_of({**grid, "num_steps": [2, 3, 4]}, tmp_path)
    assert "2 cells are there already" in lines and found.count("done") == 3
    assert not any("the grid before" in line for line in lines)
    found, lines = results_of({**grid, "num_steps": [4, 5]}, tmp_path)
    assert lines[0].startswith("2 cells of the grid before are not in this one: ")
    assert len(list((tmp_path / "cells").iterdir())) == 4
    assert results_of({**grid, "num_steps": [4, 5]}, tmp_path, blocks=3)[0].count("done") == 2
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(ValueError, match=r"study.json, .* what the study there is .* read \("):
        results_of(grid, tmp_path)


def test_what_does_not_fit_side_by_side_runs_alone(monkeypatch):
    draw, widths = lanes.batches, []

    def small(model, seeds, rows_of, side_by_side, **more):
        widths.append(len(side_by_side))
        if len(side_by_side) > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        yield from draw(model, seeds, rows_of, side_by_side, **more)

    monkeypatch.setattr(lanes, "batches", small)
    found, _ = results_of({"num_steps": 2, "rho": [5.0, 7.0, 9.0]}, blocks=1)
    assert found.count("done") == 3 and widths == [3, 1, 1, 1]


def test_images_that_are_not_finite_fail_one_cell():
    variables = {"params": {"means": np.array([np.nan, 0.0], np.float32)}}
    bad = toy.exact_model(num_classes=2).replace(variables)
    found, _ = results_of({"num_steps": [2]}, model=bad)
    assert found.rows[0]["status"] == "failed"
    assert "not finite, the first of seed 5" in found.rows[0]["reason"]


def test_cells_that_cannot_work_are_named_first():
    grid = [{"sampler": ["heun", "ddim", "dpmpp_3m"], "eta": 0.0, "num_steps": 2}]
    found, lines = results_of(grid)
    assert [row["status"] for row in found.rows] == ["impossible", "done", "impossible"]
    assert lines[0].startswith("cannot work: heun: sampler 'heun' has no option 'eta'")
    with pytest.raises(ValueError, match=r"no cell of the study can work; the first, .*'eta'"):
        results_of({"sampler": "heun", "eta": 0.5})
    with pytest.raises(ValueError, match=r"no cell .* dpmpp_2m remembers earlier ones"):
        results_of({"sampler": "dpmpp_2m"}, quality="truncation")


BAD = {
    "setting": ({"grid": {"smapler": "heun"}}, "unknown setting 'smapler'; did you mean 'sampler'"),
    "entry": ({"grid": {"rho": 7}, "bloks": 3}, "unknown entry of a study 'bloks'; did you mean"),
    "no grid": ({}, "the grid is empty"),
    "empty": ({"grid": {"rho": []}}, "the grid is empty: rho has no values"),
    "quality": (
        {"grid": {"rho": 7}, "quality": "fidd"},
        "quality: unknown measure 'fidd'; did you",
    ),
    "list": ({"grid": {"rho": 7}, "quality": "x@"}, "known: distance, truncation, "),
    "null": ({"grid": {"rho": 7}, "quality": None}, "quality must be a text or a list of texts"),
    "models": ({"grid": {"rho": 7}, "models": 5}, "models must be a text or a list of texts or"),
    "paths": ({"grid": {"rho": 7}, "models": {"a": 5}}, "models: the path of 'a' must be text"),
    "reference": ({"grid": {"rho": 7}, "reference": [5]}, "reference must be a text or a list"),
    "accurate": ({"grid": {"rho": 7}, "accurate": 5}, "accurate must be the settings of a"),
    "labels": ({"grid": {"rho": 7}, "labels": None}, "labels must be balanced, random or a class"),
    "no quality": ({"grid": {"rho": 7}, "quality": []}, "quality is empty"),
    "blocks": ({"grid": {"rho": 7}, "blocks": 0}, "blocks must be at least 1"),
    "images": ({"grid": {"rho": 7}, "num_images": "many"}, "num_images must be a whole number"),
    "model": ({"grid": {"model": "b"}}, "unknown model 'b'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_declarations_are_one_line(case):
    told, message = BAD[case]
    with pytest.raises(ValueError) as caught:
        Study.from_json(told, models=("a",))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_budgets_are_steps():
    told = [{"sampler": ["heun", "euler"], "nfe": 10}]
    cells = study_of(told).cells
    assert [cell.sampling.num_steps for cell in cells] == [5, 10]  # 2N - 1 and N calls
    assert [cell.sampling.nfe() for cell in cells] == [9, 10]


def test_lists_are_one_value_where_a_value_is_a_list():
    points = grid_lib.expand({"sigmas": [80, 1, 0], "guidance_interval": [[0.1, 1], None]})
    assert [p["sigmas"] for p in points] == [[80, 1, 0]] * 2
    assert [p["guidance_interval"] for p in points] == [[0.1, 1], None]


def test_results_as_files(tmp_path):
    grid = {"sampler": ["euler", "heun"], "num_steps": [2, 4], "eta": [None]}
    found, _ = results_of(grid)
    for path in found.write(tmp_path, figure_format="svg"):
        assert path.stat().st_size > 100
    table = (tmp_path / "table.txt").read_text()
    assert "euler, num_steps 4" in table and "+-" in table
    assert "means over 2 blocks of 6 images +- standard error" in table
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["nfe"] for row in rows] == [2, 4, 3, 7]
    head, *lines = (tmp_path / "results.csv").read_text().splitlines()
    assert head.startswith("cell,model,sampler,num_steps,eta,nfe,network_calls,distance_mean")
    assert lines[0].startswith('"euler, num_steps 2",toy,euler,2,,2,2,')
    assert "NFE" in (tmp_path / "distance.svg").read_text()
    axis, curves = found.lines("distance")
    assert axis == "" and [x for x, _, _ in curves["heun"]] == [3, 7]
    axis, curves = results_of({"num_steps": 2, "rho": [9.0, 5.0, 7.0]})[0].lines("distance")
    assert axis == "rho" and [x for x, _, _ in curves["default"]] == [5.0, 7.0, 9.0]
    # Two samplers of one number of steps differ in calls, and so would be points over them.
    grid = {"sampler": ["euler", "heun"], "rho": [5.0, 7.0], "num_steps": 2}
    axis, curves = results_of(grid)[0].lines("distance")
    assert axis == "rho" and {n: [x for x, _, _ in line] for n, line in curves.items()} == {
        "euler": [5.0, 7.0], "heun": [5.0, 7.0],
    }  # fmt: skip
    # And where no number differs either, over calls it is.
    axis, curves = results_of({"sampler": ["euler", "heun"], "num_steps": 2})[0].lines("distance")
    assert axis == "" and [x for ((x, _, _),) in curves.values()] == [2, 3]


def test_guided_cells_count_every_network_call():
    model = toy.exact_model(num_classes=2)
    # A model that was trained with label dropout says so.
    description = {**model.description, "network": {"name": "exact", "label_dropout": 0.1}}
    model = type(model)(model.net, model.preconditioning, model.variables, description, "ema")
    grid = {"guidance": "cfg", "guidance_scale": [1.5, 2.0], "num_steps": 3,
            "guidance_interval": [None, [0.1, 10.0]]}  # fmt: skip
    found, _ = results_of(grid, model=model)
    assert [row["status"] for row in found.rows] == ["done"] * 4
    assert found.rows[0]["network_calls"] == 10 and found.rows[0]["nfe"] == 5
    assert found.rows[1]["network_calls"] < 10  # the interval leaves levels out


def test_other_weights_of_the_guiding_model_are_other_cells(tmp_path, monkeypatch):
    def load(path):
        return toy.exact_model(num_classes=2, scale=float(open(path).read()))

    monkeypatch.setattr(guidances, "load", load)
    second, moved = tmp_path / "second", tmp_path / "moved"
    told = {"num_steps": 2, "guidance": "autoguidance", "guidance_scale": 2.0}
    model = toy.exact_model(num_classes=2)

    def distance(path):
        grid = {**told, "guidance_model": str(path)}
        found, lines = results_of(grid, tmp_path / "out", model=model, blocks=1)
        return found.rows[0]["values"]["distance"]["mean"], "1 cells are there already" in lines

    second.write_text("4")
    first, there = distance(second)
    assert not there and distance(second) == (first, True)
    second.write_text("-4")
    changed, there = distance(second)
    # Both solutions follow the guidance; float32 of states that begin at 80 is good to 1e-4.
    assert not there and abs(changed - first) > 1e-2
    # The same weights under another name are the same cell.
    moved.write_text("-4")
    assert distance(moved) == (changed, True)
