"""Flags as data: what is parsed, and what is said of mistakes."""

import importlib
import pathlib

import pytest

from experiments import flags
from experiments.config.flag import UsageError

DECLARED = (
    flags.path("workdir", "A directory.", example="runs/x", required=True),
    flags.integer("num_steps", "Steps.", least=1),
    flags.number("rho", "A number."),
    flags.text("name", "A text."),
    flags.switch("grid", "On or off."),
    flags.choice("kind", ("new", "legacy"), "A choice."),
    flags.config(required=False),
)


def parse(*words, owners=lambda name: []):
    return flags.parse(words, DECLARED, owners)


def test_values_in_every_way_of_writing():
    values = parse("--workdir=w", "--num_steps", "3", "-rho", "-1.5", "--grid", "--kind=new")
    assert values.workdir == pathlib.Path("w") and values.num_steps == 3 and values.rho == -1.5
    assert values.grid is True and values.kind == "new" and values.config is None
    assert values.given == {"workdir", "num_steps", "rho", "grid", "kind"}
    assert parse("--workdir=w", "--nogrid").grid is False
    assert parse("--workdir=w", "--grid=false").grid is False
    assert parse("--workdir=w", "--num_steps=1", "--num_steps=2").num_steps == 2
    assert parse("--workdir=w").num_steps is None


def test_the_home_of_the_user(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parse("--workdir=~/runs").workdir == pathlib.Path("/home/me/runs")


def test_a_configuration_and_its_options(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = ["--config.train.lr", "-1e-3", "--workdir=w", "--config", "configs/tiny.py"]
    values = parse(*words, "--noconfig.data.mirror", "--config.train.ema_halflife_kimg=(1.0,)")
    assert values.config.train.lr == -1e-3 and values.config.data.mirror is False
    assert values.config.train.ema_halflife_kimg == (1.0,)
    assert pathlib.Path(values.config_file).is_file()
    copy = tmp_path / "mine.py"
    copy.write_text(pathlib.Path(values.config_file).read_text())
    assert parse("--workdir=w", "--config=mine.py").config_file == str(copy)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--workdir is missing, for example --workdir=runs/x"),
        (["--workdir="], "--workdir=: must not be empty"),
        (["--workdir=w", "--name= "], "--name= : must not be empty"),
        (["--workdir=w", "--num_steps=0"], "--num_steps=0: must be a whole number of at least 1"),
        (["--workdir=w", "--rho=nan"], "--rho=nan: must be a number"),
        (["--workdir=w", "--kind=lagacy"], "must be one of new, legacy; did you mean legacy?"),
        (["--workdir=w", "--rho"], "--rho needs a value"),
        (["--workdir=w", "--num_step=3"], "unknown option --num_step; did you mean --num_steps?"),
        (["--workdir=w", "word"], "unexpected argument 'word'"),
        (["--workdir=w", "--config.train.lr=1"], "but --config is missing"),
        (["--workdir=w", "--config=configs/tiny.py", "--config.x=1"], "configuration option"),
    ],
)
def test_mistakes_are_one_line(words, message):
    with pytest.raises(UsageError) as found:
        parse(*words)
    assert message in str(found.value) and "\n" not in str(found.value)


def test_a_flag_of_another_mode_names_it():
    with pytest.raises(UsageError, match="--seeds belongs to --mode=sample or --mode=tune"):
        parse("--seeds=3", owners=lambda name: ["sample", "tune"] if name == "seeds" else [])


def test_help_has_each_flag_with_its_words():
    text = flags.describe(DECLARED)
    assert "--workdir=runs/x" in text and "A directory. Required." in text
    assert "  --grid  " in text and "One of new, legacy." in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_what_a_command_does_not_take_has_a_reason_and_no_help():
    declared = [flags.text("seeds", "Which seeds."), flags.refusal("s_churn", "there is no noise")]
    with pytest.raises(UsageError, match=r"^--s_churn: there is no noise; leave it out$"):
        flags.parse(["--s_churn=3"], declared, lambda name: [])
    assert "s_churn" not in flags.describe(declared)


@pytest.mark.parametrize(
    ("command", "flag"), [("sample", "workdir"), ("import_", "source"), ("dataset", "dest")]
)
def test_a_home_that_is_not_known(command, flag):
    declared = importlib.import_module(f"experiments.commands.{command}").FLAGS
    message = f"^--{flag}=~nouser/x: the home of ~nouser is not known; write it out$"
    with pytest.raises(UsageError, match=message):
        flags.parse([f"--{flag}=~nouser/x"], declared, lambda name: [])
