"""Folders of drawn images: the settings that all of them share, and their classes."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from edm_jax.data.sources.decode import has_image_extension
from edm_jax.data.sources.labels import METADATA
from edm_jax.data.sources.names import is_left_out
from experiments.workdir import WorkdirError, prepare, write_atomically

SETTINGS = "settings.json"
# Of these, what follows from the others; older programs did not write it.
FOLLOWS = ("nfe", "network_rows")


def open_folder(
    outdir: pathlib.Path, settings: Mapping[str, Any], labels: Mapping[str, Any] | None
) -> None:
    """Prepare a folder for images, or refuse one that holds others.

    Args:
      outdir: created if need be.
      settings: what its images share; stands in settings.json afterwards.
      labels: the class of every seed, or label vector, remembered there; None without classes.

    Raises:
      WorkdirError: if it cannot be written, its images are of other settings, or it holds
        images or a data set that no such command wrote.
    """
    path = outdir / SETTINGS
    there = _settings_of(path)
    if there is None and (foreign := _foreign(outdir)):
        raise WorkdirError(
            f"--outdir={outdir} holds {foreign}, and no {SETTINGS} of drawn images: it is not a "
            "folder of samples, and nothing is written into it; choose another --outdir"
        )
    prepare(outdir, "outdir")
    new: dict[str, Any] = dict(settings) | {"labels": None if labels is None else dict(labels)}
    pictures = (p for p in outdir.rglob("*") if p.suffix in (".png", ".pdf"))
    if there is not None and next(pictures, None) is not None:
        new["labels"] = _both(there, new["labels"])
        keys = (new.keys() | there.keys()).difference(FOLLOWS)
        differing = sorted(k for k in keys if new.get(k) != there.get(k))
        if differing:
            raise WorkdirError(
                f"--outdir={outdir} holds samples of other settings ({', '.join(differing)} "
                "differ); choose another --outdir"
            )
    write_atomically(path, json.dumps(new, indent=2) + "\n")


def _settings_of(path: pathlib.Path) -> dict[str, Any] | None:
    """What settings.json says; None if there is none, or one of another program."""
    try:
        there = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(there, dict) and {"sampling", "labels"} <= there.keys()
    return there if ours else None


def _foreign(outdir: pathlib.Path) -> str:
    """What a folder holds that would be lost or mixed up, in words; "" for nothing."""
    if not outdir.is_dir():
        return ""
    for entry in outdir.iterdir():
        if entry.name.lower() in (METADATA, SETTINGS):
            return entry.name
    names = (path.relative_to(outdir).as_posix() for path in outdir.rglob("*"))
    name = next((n for n in names if has_image_extension(n) and not is_left_out(n)), None)
    return "" if name is None else f"images, such as {name}"


def _both(there: dict[str, Any], labels: dict[str, Any] | None) -> dict[str, Any] | None:
    """The labels of all seeds, where those of both agree; adds the new ones to ``there``."""
    old = there["labels"]
    if isinstance(old, dict) and labels is not None:
        both = old | labels
        if all(both[seed] == label for seed, label in old.items()):
            there["labels"] = both
            return both
    return labels


def metadata(pairs: Sequence[Sequence[Any]], label_names: Sequence[str] | None) -> str:
    """dataset.json of drawn images: names with labels, and the names of the classes if known."""
    content: dict[str, Any] = {"labels": [list(pair) for pair in pairs]}
    if label_names is not None:
        content["label_names"] = list(label_names)
    return json.dumps(content) + "\n"


def write_classes(outdir: pathlib.Path, label_names: Sequence[str] | None) -> None:
    """dataset.json: the labels of the images that are there, so that they are a data set."""
    labels = json.loads((outdir / SETTINGS).read_text())["labels"]
    if labels is None:
        return
    names = sorted(path.relative_to(outdir).as_posix() for path in outdir.rglob("*.png"))
    pairs = []
    for name in names:
        stem = pathlib.Path(name).stem
        if stem.isdigit() and str(int(stem)) in labels:
            pairs.append([name, labels[str(int(stem))]])
    write_atomically(outdir / METADATA, metadata(pairs, label_names))
