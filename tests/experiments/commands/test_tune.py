"""Tuning from the command line, down to the flags to paste."""

import re
import shlex

import pytest

from edm_jax.studies import Study
from experiments import tuning
from experiments.commands import tune
from tests.support.small_model import write_small_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_small_model(tmp_path_factory.mktemp("model") / "small.safetensors")


@pytest.mark.slow
def test_tune_ends_with_flags_that_sample_takes(model, call, tmp_path):
    words = ("--mode=tune", f"--workdir={model}", f"--outdir={tmp_path / 'out'}", "--budget=4",
             "--tune=rho=3..12,sigma_max", "--num_steps=2", "--quality=distance",
             "--num_images=4", "--blocks=2")  # fmt: skip
    said = call(*words).stdout
    assert "[4/4]" in said and "on fresh seeds" in said
    pasted = shlex.split(said.strip().splitlines()[-1])
    assert pasted[:2] == ["python", "experiments/main.py"] and "--num_steps=2" in pasted
    call(*pasted[2:], "--seeds=0-1", f"--outdir={tmp_path / 'images'}")
    assert len(list((tmp_path / "images").glob("*.png"))) == 2
    again = call(*words).stdout
    assert "all 4 trials are there already" in again
    assert again.strip().splitlines()[-1] == said.strip().splitlines()[-1]


BAD = {
    "zero": (["--tune=rho", "--budget=0"], "--budget=0: the budget must be at least 1 setting"),
    "nothing": (["--tune=,"], "--tune=,: is empty"),
    "range": (["--tune=rho=a..b"], "'rho=a..b' is no range"),
    "setting": (["--tune=rhoo"], "unknown setting 'rhoo'"),
    "guidance": (["--tune=guidance_scale"], "guidance_scale says nothing without --guidance"),
    "quality": (["--tune=rho", "--quality=fidd"], "--quality=fidd: unknown measure 'fidd'; did"),
    "two": (
        ["--tune=rho", "--quality=pr,frechet_pixels"],
        "--quality=pr,frechet_pixels: tuning makes one number better, and this is pr_prec",
    ),
    "model": (["--tune=rho"], "no such file or directory: gone"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_one_line(case, call, tmp_path):
    words, message = BAD[case]
    done = call("--mode=tune", "--workdir=gone", *words, code=2, cwd=tmp_path)
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("eta=0..1", "eta=0..1 cannot work: sampler 'heun' has no option 'eta'"),
        ("rho,sampler=euler|huen", "sampler=huen cannot work: unknown sampler 'huen'; did you"),
        ("s_noise", "s_noise=0.995..1.015 cannot work: sampler 'heun' has no option 's_noise'"),
    ],
)
def test_a_space_that_cannot_work_is_one_line(space, message, model, call, tmp_path):
    done = call("--mode=tune", f"--workdir={model}", f"--outdir={tmp_path / 'out'}", "--budget=3",
                f"--tune={space}", "--quality=distance", "--num_images=4", code=2)  # fmt: skip
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert "[1/3]" not in done.stdout and not (tmp_path / "out").exists()


def test_help_shows_the_defaults_of_a_study():
    for name in ("first_seed", "labels"):
        (flag,) = [flag for flag in tune.FLAGS if flag.name == name]
        assert flag.default == getattr(Study, name)


def test_settings_as_flags():
    settings = {"sampler": "edm", "num_steps": 18, "s_churn": 12.25, "model": "ema_5kimg",
                "guidance": "cfg", "guidance_scale": 1.5, "guidance_interval": [0.25, 1.5],
                "alpha": 0.5, "rho": None}  # fmt: skip
    words = tuning.flags_of(settings, "runs/a")
    assert words == [
        "--workdir=runs/a", "--sampler=edm", "--num_steps=18", "--s_churn=12.25",
        "--variant=ema_5kimg", "--guidance=cfg", "--guidance_scale=1.5",
        "--guidance_interval=0.25,1.5", "--sampler_options=alpha=0.5",
    ]  # fmt: skip


def test_spaces_of_words():
    told = tuning.parse_space("s_churn,rho=3..12,s_tmax=1..80:log,solver=heun|euler,num_steps=4..9")
    assert told["s_churn"] is None
    assert told["rho"] == {"low": 3, "high": 12, "log": False, "whole": False}
    assert told["s_tmax"]["log"] and told["solver"] == {"choices": ["heun", "euler"]}
    assert told["num_steps"]["whole"]
    with pytest.raises(ValueError, match=re.escape("after a range stands :log or nothing")):
        tuning.parse_space("rho=3..12:lin")
