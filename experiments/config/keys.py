"""The keys of a configuration: those of configs/base.py, and groups that are added on purpose."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

# A group of a new name may stand in these, for a network, a data source, an objective, ... of
# one's own: what is chosen by name and has a group of constants.
CHOICES = ("name", "source")


def check_keys(values: Mapping[str, Any]) -> None:
    """Whether nothing is set that no code reads, such as a key that is misspelt.

    Args:
      values: a configuration as dictionaries.

    Raises:
      ValueError: for the first key that configs/base.py lacks, with the nearest it has; the
        groups of one's own (``config.model.MyNet``) may hold what they like.
    """
    from configs import base
    from experiments.config.groups import flatten  # loads jax, which --help does without

    known = base.get_config().to_dict()
    if key := _first_unknown(values, known):
        raise ValueError(
            f"there is no option config.{key}, {nearest(key, list(flatten(known)))} (what is your "
            "own has a group of its own, such as config.model.MyNet)"
        )


def _first_unknown(values: Mapping[str, Any], known: Mapping[str, Any], at: str = "") -> str | None:
    for key, value in values.items():
        if key in known:
            groups = isinstance(value, Mapping), isinstance(known[key], Mapping)
            if all(groups):
                found = _first_unknown(value, known[key], f"{at}{key}.")
                if found:
                    return found
            continue
        # A group whose name differs from another in its spelling alone is that one.
        names = [name.replace("_", "").casefold() for name in known]
        own = any(choice in known for choice in CHOICES) and isinstance(value, Mapping)
        if not own or str(key).replace("_", "").casefold() in names:
            return f"{at}{key}"
    return None


def nearest(option: str, known: Sequence[str]) -> str:
    """The options that one which there is not may stand for: those with its last name first."""
    groups = {name.rsplit(".", i)[0] for name in known for i in range(1, name.count(".") + 1)}
    level = sorted(name for name in groups if name.count(".") == option.count("."))
    last = [name.rsplit(".", 1)[-1] for name in known]
    wanted = option.rsplit(".", 1)[-1]
    near = [name for name, end in zip(known, last, strict=True) if end == wanted]
    near = near or difflib.get_close_matches(option, level, n=1, cutoff=0.8)
    near = near or difflib.get_close_matches(option, known, n=1)
    ends = difflib.get_close_matches(wanted, last, n=1)
    near = near or [name for name, end in zip(known, last, strict=True) if end in ends]
    # Of the same group, where it has one.
    group = option.rpartition(".")[0]
    near = [name for name in near if group and name.rpartition(".")[0] == group] or near
    if near:
        return f"did you mean config.{' or config.'.join(near)}?"
    return f"there are {', '.join(sorted({name.split('.')[0] for name in known}))}"
