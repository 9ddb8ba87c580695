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
        ("config.trian.lr = 3.0", "AttributeError: 'trian' Did you mean \"train\""),
        ("config.train.lr = 'high'", "line 5: TypeError: Could not override field 'lr'"),
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
