"""The configuration of a run, from its config.json, where a configuration file is expected.

    python experiments/main.py --config=runs/digits/config.json --workdir=runs/again

What the run was not asked, as it is older, has the value of configs/base.py.
"""

import pathlib

import ml_collections

from configs import base
from experiments.config.groups import plain
from experiments.config.keys import check_keys
from experiments.config.upgrade import parse_config

GROUPS = ("data", "model", "train")  # every run has had them


def get_config(path: str) -> ml_collections.ConfigDict:
    """The configuration in a config.json.

    Raises:
      ValueError: a file of something else, of which nothing would be left but the defaults.
    """
    values = plain(parse_config(pathlib.Path(path).read_text()))
    absent = [name for name in GROUPS if not isinstance(values.get(name), dict)]
    if absent:
        raise ValueError(f"it is no configuration of a run: it has no {', '.join(absent)}")
    check_keys(values)
    config = base.get_config()
    with config.unlocked():  # groups of the run's own
        config.update(values)
    return config.lock()
