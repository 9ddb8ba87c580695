"""Files of configurations that are none, or not what was meant: one line each."""

import json
import pathlib

import pytest

from configs import tiny
from experiments import workdir
from experiments.config import build, flag

HEAD = """from configs import digits

def get_config():
    config = digits.get_config()
"""


@pytest.fixture
def write(tmp_path):
    """Writes a file and returns its path as text."""

    def written(text, name="mine.py"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return written


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.train.lrr = 3", "line 5: there is no option 'lrr', did you mean config.train.lr?"),
        (
            "config.train.update(lr_ramp_kimg=5.0)",
            "line 5: there is no option 'lr_ramp_kimg', did you mean config.train.lr_rampup_kimg?",
        ),
        ("config.train['bach_size'] = 3", "did you mean config.train.batch_size"),
        ("config.trian.lr = 3.0", "there is no option 'trian', did you mean config.train?"),
        ("config.train.lr = 'high'", "line 5: config.train.lr = 'high': must be a number"),
        ("config.train.keep_last = 2.5", "config.train.keep_last = 2.5: must be a whole number"),
        ("config.evaluation.metrics = 'fid'", "metrics = 'fid': must be a tuple"),
        ("config.evaluation.update(num_image=3)", "did you mean config.evaluation.num_images?"),
        ("print(config.train.lrr)", "there is no option 'lrr', did you mean config.train.lr?"),
        ("config.update({'train.lrr': 3})", "no option 'train.lrr', did you mean config.train.lr?"),
        ("config.update({'train.lr': 3})", "write config.train.lr = ..."),
        # Keys that pass by the lock of the base.
        (
            "config.unlock(); config.train.lrr = 3",
            ".lrr, did you mean config.train.lr?",
        ),
        (
            "config.train = dict(config.train, lrr=3)",
            "there is no option config.train.lrr, did you mean config.train.lr?",
        ),
        (
            "values = config.to_dict(); values['train']['lrr'] = 3; return type(config)(values)",
            "there is no option config.train.lrr, did you mean config.train.lr?",
        ),
        (
            "config.evaluation = dict(config.evaluation, num_image=3)",
            "did you mean config.evaluation.num_images?",
        ),
        (
            "config.unlock(); config.trian = dict(lr=3.0)",
            ".trian, did you mean config.train?",
        ),
        ("config.unlock(); config.model.songunet = dict(dropout=0.1)", "config.model.songunet, "),
        ("raise ValueError('no such\\nvariant')", "mine.py: no such variant"),
        ("return None", "its get_config() returns None, no ConfigDict"),
        ("import no_such_module", "line 5: ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_what_is_wrong_in_a_file(line, message, write):
    path = write(f"{HEAD}    {line}\n    return config\n")
    with pytest.raises(flag.UsageError) as caught:
        flag.read_config([f"--config={path}"])
    said = str(caught.value)
    assert said.startswith(f"--config={path}: ") and message in said and "\n" not in said


def test_a_new_option_is_added_on_purpose(write):
    path = write(
        f"{HEAD}    with config.unlocked():\n        config.model.MyNet = dict(width=3)\n"
        "    return config\n"
    )
    assert flag.default_config(path).model.MyNet.width == 3
    config, file = flag.read_config(["--config", path, "--config.model.MyNet.width=4"])
    assert config.model.MyNet.width == 4 and file == path
    with pytest.raises(flag.UsageError, match=r"did you mean config.model.MyNet.width\?"):
        flag.read_config([f"--config={path}", "--config.model.MyNet.with=1"])


@pytest.mark.parametrize(
    ("text", "variant", "message"),
    [
        ("x = 1\n", "", "it has no get_config(), which returns the configuration"),
        (f"{HEAD}    return config\n", ":small", "takes no variant; leave out ':small'"),
        (
            HEAD.replace("()", "(size)", 1) + "    return config\n",
            "",
            "its get_config() needs a variant: --config=",
        ),
        (f"{HEAD}    return config(\n", "", "'(' was never closed"),
    ],
)
def test_files_and_their_variants(text, variant, message, write):
    path = write(text)
    with pytest.raises(flag.UsageError) as caught:
        flag.read_config([f"--config={path}{variant}"])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_configuration_of_a_run(write):
    config = tiny.get_config()
    config.train.lr = 0.5
    text = json.dumps(workdir.to_json(build.experiment(config).config))
    path = write(text, "config.json")
    read, file = flag.read_config([f"--config={path}"])
    assert pathlib.Path(file.partition(":")[0]) == flag.STORED
    assert read.to_dict() == config.to_dict()
    with pytest.raises(flag.UsageError, match=r"did you mean config.train.lr"):
        flag.read_config([f"--config={path}", "--config.lr=1"])


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"num_images": 40, "train": 3}'])
def test_what_is_no_configuration_of_a_run(text, write):
    path = write(text, "config.json")
    with pytest.raises(flag.UsageError, match=f"^--config={path}: ") as caught:
        flag.read_config([f"--config={path}"])
    assert "\n" not in str(caught.value)


def test_a_run_s_configuration_with_a_key_that_there_is_not(write, tmp_path):
    values = workdir.to_json(build.experiment(tiny.get_config()).config)
    values["train"]["lrr"] = 3
    path = write(json.dumps(values), "config.json")
    message = r"there is no option config\.train\.lrr, did you mean config\.train\.lr\?"
    with pytest.raises(flag.UsageError, match=message):
        flag.read_config([f"--config={path}"])
    with pytest.raises(workdir.WorkdirError, match=message):
        workdir.read_config(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config="], "^--config needs a file, for example --config=configs/digits.py$"),
        (["--config"], "^--config needs a file, for example --config=configs/digits.py$"),
        (["--config=RUN"], r"is the directory of a run; .* --config=.*config\.json$"),
        (["--config=RUN/config.json:cond"], "has no variants; leave out ':cond'$"),
        (["--config=~nouser/a.py"], "^--config=~nouser/a.py: the home of ~nouser is not known"),
    ],
)
def test_words_that_name_no_configuration(words, message, write, tmp_path):
    write(json.dumps(workdir.to_json(build.experiment(tiny.get_config()).config)), "config.json")
    with pytest.raises(flag.UsageError, match=message):
        flag.read_config([word.replace("RUN", str(tmp_path)) for word in words])
