"""A grid of settings from the command line and from a file."""

import inspect
import json
import types

import numpy as np
import pytest

from edm_jax.likelihood.code_errors import CodeErrors
from edm_jax.studies import Study
from experiments.commands import study
from experiments.studies import (
    flow_1d,
    guidance_toy,
    likelihood_errors,
    sampler_costs,
    sampling_claim,
)
from tests.support.small_model import write_small_model

SMALL = ("--num_images=4", "--blocks=2", "--batch_size=16")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [write_small_model(folder / f"{i}.safetensors", i) for i in range(2)]


def test_a_grid_of_flags_and_the_same_again(models, call, tmp_path):
    words = ("--mode=study", f"--models={','.join(models)}", f"--workdir={tmp_path / 'out'}",
             "--grid=sampler=euler,heun;num_steps=2,3", *SMALL)  # fmt: skip
    said = call(*words).stdout
    assert said.count("[8/8]") == 1 and "means over 2 blocks of 4 images" in said
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["nfe"] for row in rows] == [2, 3, 3, 5] * 2
    assert {row["model"] for row in rows} == set(models)
    assert (tmp_path / "out" / "distance.png").stat().st_size > 1000
    before = (tmp_path / "out" / "results.csv").read_text()
    again = call(*words, "--figure_format=pdf").stdout
    assert again.count("4 cells are there already") == 2 and "[1/8]" not in again
    assert (tmp_path / "out" / "results.csv").read_text() == before


def test_a_file_and_metrics_of_a_configuration(models, call, tmp_path):
    told = {
        "models": {"a": models[0]}, "grid": {"num_steps": 2, "rho": [5, 7]},
        "quality": ["frechet_pixels"], "num_images": 80, "blocks": 1,
    }  # fmt: skip
    (tmp_path / "study.json").write_text(json.dumps(told))
    (tmp_path / "study.py").write_text(f"def get_config():\n    return {told!r}\n")
    out = [tmp_path / "json", tmp_path / "py"]
    for folder, file in zip(out, ("study.json", "study.py"), strict=True):
        call("--mode=study", f"--study={tmp_path / file}", f"--workdir={folder}",
             "--config=configs/digits.py")  # fmt: skip
    texts = [(folder / "results.csv").read_text() for folder in out]
    assert texts[0] == texts[1] and "frechet_distance_mean" in texts[0]


def write(path, told):
    path.write_text(json.dumps(told))
    return f"--study={path}"


BAD = {
    "nothing": ([], None, "--study is missing, a file or a name; or --grid"),
    "no models": (["--grid=rho=7"], None, "the study names no models: give --models"),
    "no grid": (["--models=m"], {"models": ["m"]}, "the grid is empty"),
    "empty grid": ([], {"models": ["m"], "grid": {"rho": []}}, "rho has no values"),
    "setting": ([], {"models": ["m"], "grid": {"rhoo": 7}}, "unknown setting 'rhoo'; did you"),
    "flag": (["--grid=rho"], None, "'rho' is not setting=value,value"),
    "vanished": (["--models=gone", "--grid=rho=7"], None, "model gone: no such file"),
    "file": (["--study=gone.json"], None, "--study=gone.json: no such file"),
    "quality": (["--models=m", "--grid=rho=7", "--quality=fidd"], None,
                "error: --quality=fidd: unknown measure 'fidd'; did you mean 'fid'? Known: dist"),
    "null": ([], {"models": ["m"], "grid": {"rho": 7}, "quality": None}, ": quality must be a te"),
    "number": ([], {"models": 5, "grid": {"rho": 7}}, ": models must be a text or a list"),
    "no study": ([], [1, 2], "a study is a dictionary by name"),
    "flags of a grid": (
        ["--study=flow_1d", "--blocks=3"], None, "--blocks is about a grid, and --study=flow_1d",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_studies_are_one_line(case, call, tmp_path):
    words, told, message = BAD[case]
    if told is not None:
        words = [write(tmp_path / "study.json", told)]
    done = call("--mode=study", f"--workdir={tmp_path / 'w'}", *words, code=2)
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "w").exists()


def test_cells_that_cannot_work_are_named_once_and_in_the_exit_code(models, call, tmp_path):
    done = call("--mode=study", f"--models={models[0]}", f"--workdir={tmp_path / 'w'}",
                "--grid=sampler=euler,huen;num_steps=2,3,4", *SMALL, code=1)  # fmt: skip
    first = done.stdout.splitlines()[0]
    assert first.startswith("cannot work: 3 cells, the first huen, num_steps 2: unknown sampler")
    assert "[3/3]" in done.stdout and done.stdout.count("unknown sampler") == 2  # and the table


def test_help_shows_the_defaults_of_a_study():
    shown = {flag.name: flag.help for flag in study.FLAGS}
    for name in ("num_images", "blocks", "first_seed", "labels", "batch_size", "quality"):
        default = getattr(Study, name)
        told = ",".join(default) if isinstance(default, tuple) else default
        assert shown[name].endswith(f"Default: {told}."), name


def test_a_model_that_is_gone_and_a_file_that_raises(models, call, tmp_path):
    (tmp_path / "a.py").write_text("def get_config():\n    return 1 / 0\n")
    done = call("--mode=study", f"--study={tmp_path / 'a.py'}", "--workdir=w", code=2)
    assert "ZeroDivisionError: division by zero" in done.stderr
    done = call("--mode=study", f"--models={models[0]}:raw", "--grid=rho=7",
                f"--workdir={tmp_path / 'w'}", *SMALL, code=2)  # fmt: skip
    assert "no weights 'raw'" in done.stderr
    assert not (tmp_path / "w").exists()  # found after the directory was made, and nothing in it


# --------------------------------------------------------------- studies of this repository

HEADS = {"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}


@pytest.mark.parametrize("figure_format", HEADS)
def test_the_command_passes_it_on(tmp_path, call, monkeypatch, figure_format):
    asked = []

    def draw(path, *, figure_format):
        asked.append((path, figure_format))

    monkeypatch.setattr(study, "load", lambda name: types.SimpleNamespace(run=draw))
    words = [] if figure_format == "png" else [f"--figure_format={figure_format}"]
    call("--mode=study", "--study=flow_1d", f"--workdir={tmp_path}", *words)
    assert asked == [(tmp_path, figure_format)]


def test_a_format_there_is_not(tmp_path, call):
    refused = call(
        "--mode=study", "--study=flow_1d", f"--workdir={tmp_path / 'x'}", "--figure_format=jpg",
        code=2,
    ).stderr  # fmt: skip
    assert "--figure_format=jpg: must be one of png, pdf, svg" in refused
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("figure_format", ["pdf", "svg"])
def test_studies_write_it(tmp_path, monkeypatch, figure_format):
    """Their measurements, which take minutes, are replaced by a point of each curve."""
    curve = {"a": {10: 0.1, 40: 0.01}}
    monkeypatch.setattr(sampler_costs, "measure", lambda *_, **__: curve)
    monkeypatch.setattr(sampler_costs, "draw_paths", lambda path: path.write_bytes(b""))
    monkeypatch.setattr(likelihood_errors, "CALLS", (8,))
    monkeypatch.setattr(likelihood_errors, "COLOURS", ("k",))
    monkeypatch.setattr(likelihood_errors, "density_errors", lambda size: {"rk4": [(8, 0.1)]})
    codes = CodeErrors(*[np.array([4, 8])] * 4, "rk4")
    monkeypatch.setattr(likelihood_errors, "measured_codes", lambda size: [codes])
    curves = {name: [(10, 0.1), (100, 1e-4)] for name in sampling_claim.CURVES}
    monkeypatch.setattr(sampling_claim, "image_law", lambda name: None)
    monkeypatch.setattr(sampling_claim, "curves", lambda law, column: curves)
    monkeypatch.setattr(flow_1d, "draw_flow_picture", lambda path: path.write_bytes(b""))
    monkeypatch.setattr(guidance_toy, "branching_toy", lambda: None)
    monkeypatch.setattr(guidance_toy, "guided_toy", lambda path, toy: path.write_bytes(b""))
    for module in (sampler_costs, likelihood_errors, sampling_claim, flow_1d, guidance_toy):
        module.run(tmp_path, figure_format=figure_format)
    figures = {p.stem: p for p in tmp_path.iterdir() if p.suffix != ".json"}
    assert {p.suffix for p in figures.values()} == {f".{figure_format}"}
    assert set(figures) == {
        "sampler_costs", "noise_path", "likelihood_errors", "sampling_claim", "flow_1d",
        "guidance_toy",
    }  # fmt: skip
    for name in ("sampler_costs", "likelihood_errors", "sampling_claim"):
        assert figures[name].read_bytes().startswith(HEADS[figure_format])


def test_every_study_that_draws_takes_a_format(call, tmp_path):
    for name in set(study.NAMES) - {"topologies"}:
        parameters = inspect.signature(study.load(name).run).parameters
        assert parameters["figure_format"].default == "png", name
    words = ["--mode=study", "--study=topologies", f"--workdir={tmp_path / 'x'}"]
    refused = call(*words, "--figure_format=pdf", code=2).stderr
    assert "--figure_format: the study topologies draws nothing" in refused
    assert not (tmp_path / "x").exists()
