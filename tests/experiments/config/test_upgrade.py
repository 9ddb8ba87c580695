"""Configurations of runs that older code left, against one that it did leave."""

import json
import zipfile

import pytest

from configs import tiny
from experiments import workdir
from experiments.config import build, stored
from experiments.config.groups import flatten, plain
from experiments.config.upgrade import parse_config
from tests.support.paths import GOLDEN

# What the fixture says that it changed of configs/tiny.py (tests/golden/README.md).
CHANGED = {
    "train.total_kimg": 0.24,
    "train.checkpoint_kimg": 0.24,
    "train.keep_last": 2,
    "evaluation.num_images": 0,
}


@pytest.fixture
def old_run(tmp_path):
    """The directory of the run."""
    with zipfile.ZipFile(GOLDEN / "old_run.zip") as archive:
        archive.extractall(tmp_path)
    return tmp_path


def todays():
    """The configuration of that run in today's words."""
    config = tiny.get_config()
    for key, value in CHANGED.items():
        group, name = key.split(".")
        config[group][name] = value
    return build.experiment(config)


def test_an_old_run_is_that_of_todays_configuration(old_run):
    experiment = todays()
    assert workdir.check_same_config(old_run, experiment.config) == []
    old = build.experiment(workdir.read_config(old_run))
    assert old.network == experiment.network and old.sampling == experiment.sampling
    assert old.objective == experiment.objective and old.weight == experiment.weight
    assert old.network_arguments(old.data.open()) == experiment.network_arguments(old.data.open())


def test_what_differs_from_an_old_run_is_still_said(old_run):
    config = tiny.get_config()
    config.model.SongUNet.dropout = 0.2
    config.model.DhariwalUNet.dropout = 0.3  # not chosen: nothing changes
    with pytest.raises(ValueError, match=r"SongUNet\.dropout: 0\.1 there, 0\.2 now") as caught:
        workdir.check_same_config(old_run, build.experiment(config).config)
    assert "Dhariwal" not in str(caught.value)


def test_the_configuration_of_a_run_as_a_file(old_run):
    """Today's types too, so that options can be set."""
    config = stored.get_config(str(old_run / "config.json"))
    assert config.is_locked and config.sampler.s_tmax == float("inf")
    assert config.model.SongUNet.channel_mult == (1,)
    differing = {
        key for key, value in flatten(config.to_dict()).items()
        if value != flatten(todays().config).get(key)
    }  # fmt: skip
    assert not differing


def test_old_networks_get_what_they_took():
    model = dict(name="DhariwalUNet", model_channels=8, dropout=0.1, dtype="float16", remat="none")
    old = {"model": model | dict(embedding_type="positional", resample_filter=[1, 1])}
    assert parse_config(json.dumps(old)) == {
        "model": {
            "name": "DhariwalUNet",
            "dtype": "float16",
            "remat": "none",
            "DhariwalUNet": {"model_channels": 8, "dropout": 0.1},
        }
    }


def test_old_samplers_keep_their_levels():
    old = {"sampler": dict(sigma_min=0.002, sigma_max=40.0, rho=7.0, num_steps=9)}
    new = parse_config(json.dumps(old))["sampler"]
    assert new == dict(
        name="heun", discretization="edm", sigmas=[], options="",
        sigma_min=None, sigma_max=40.0, rho=None, num_steps=9, policy="uniform",
    )  # fmt: skip


def test_old_tables_were_one_and_rates_did_not_fall():
    old = {"precond": {"name": "iddpm", "iddpm": {"num_levels": 50}}, "train": {"lr": 1e-3}}
    old["noise"] = {"name": "discrete", "discrete": {}}
    new = parse_config(json.dumps(old))
    assert new["precond"]["iddpm"] == {"num_levels": 50, "schedule": "cosine"}
    assert new["noise"]["discrete"] == {"num_levels": 1000, "schedule": "cosine"}
    assert new["train"] == {"lr": 1e-3, "weight_decay": 0.0, "lr_end_kimg": 0.0}


def test_todays_words_stay():
    config = plain(tiny.get_config().to_dict())
    text = json.dumps(workdir.to_json(config))
    assert plain(parse_config(text)) == config
    assert parse_config(json.dumps(workdir.to_json(parse_config(text)))) == parse_config(text)
