"""The configuration of a run, from its config.json, where a configuration file is expected.

    python experiments/main.py --config=runs/digits/config.json --workdir=runs/again

What the run was not asked, as it is older, has the value of configs/base.py.
"""

import pathlib

import ml_collections

from configs import base
from experiments.config.groups import plain
from experiments.config.upgrade import parse_config


def get_config(path: str) -> ml_collections.ConfigDict:
    """The configuration in a config.json."""
    values = plain(parse_config(pathlib.Path(path).read_text()))
    config = base.get_config()
    with config.unlocked():  # groups of the run's own
        config.update(values)
    return config.lock()
