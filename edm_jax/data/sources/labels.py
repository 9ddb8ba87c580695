"""Labels of image files: from dataset.json, or from the folders that the images lie in.

``{"labels": [[name, label], ...], "label_names": [name of class 0, ...]}``: a label is a
whole number or a list of numbers; the names may be left out.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from edm_jax.data.sources import base as source_lib
from edm_jax.data.sources.names import clean, shown
from edm_jax.data.sources.stores import FileStore
from edm_jax.pytree import short_repr

METADATA = "dataset.json"
# Folders of the EDM format are ranges of numbers, not classes.
_NUMBERED = re.compile(r"\d{5}/img\d{8}\.png")
_WHOLE = re.compile(r"[+-]?[0-9]+")
_RULE = (
    "a label is a whole number from 0 on, or a list of numbers, all of one kind and length "
    '(names of classes go into "label_names")'
)


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What dataset.json says.

    Attributes:
      where: the file, for messages.
      labels: label by clean name of the image, relative to the store; None for null.
      label_names: of the classes, or None.
    """

    where: str
    labels: dict[str, Any] | None
    label_names: tuple[str, ...] | None


def enclosing_folders(names: Sequence[str]) -> list[str]:
    """``["", "a/", "a/b/"]``: the folders that hold all images, outermost first."""
    if not names:
        return [""]
    parents = [name.split("/")[:-1] for name in (min(names), max(names))]  # sorted as strings
    folders = [""]
    for first, last in zip(*parents, strict=False):
        if first != last:
            break
        folders.append(f"{folders[-1]}{first}/")
    return folders


def read_metadata(store: FileStore, names: Sequence[str]) -> Metadata | None:
    """dataset.json, beside the images or in a folder around them; None if there is none.

    Args:
      store: with the file.
      names: of the images, clean.

    Raises:
      ValueError: if it is not of the form that this module states.
    """
    spelt = {clean(name).lower(): number for number, name in enumerate(store.names)}
    for folder in enclosing_folders(names):
        number = spelt.get(f"{folder}{METADATA}".lower())
        if number is not None:
            where = f"{shown(store.path)}: {shown(clean(store.names[number]))}"
            return _parse(store.read(number), where, folder)
    return None


def _parse(data: bytes, where: str, folder: str) -> Metadata:
    try:
        content = json.loads(data)
        pairs, label_names = content.get("labels"), content.get("label_names")
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f'{where} must be a JSON object such as {{"labels": null}} ({error}); repair it'
        ) from error
    if label_names is not None:
        label_names = _check_names(label_names, where)
    if pairs is None:
        return Metadata(where, None, label_names)
    well_formed = isinstance(pairs, list) and all(
        isinstance(p, list) and len(p) == 2 and isinstance(p[0], str) for p in pairs
    )
    if not well_formed:
        bad = next((p for p in pairs if not isinstance(p, list) or len(p) != 2), pairs)
        raise ValueError(
            f'{where}: "labels" must be a list of [file name, label] pairs, got '
            f"{str(bad)[:80]}; repair it"
        )
    labels: dict[str, Any] = {}
    for name, label in pairs:
        key = folder + clean(name)
        if key in labels:
            raise ValueError(f"{where} labels {name!r} twice; repair it")
        labels[key] = label
    return Metadata(where, labels, label_names)


def _check_names(names: Any, where: str) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f'{where}: "label_names" must be a list of texts, one per class, got '
            f"{str(names)[:80]}; repair it"
        )
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f'{where}: "label_names" has {twice[0]!r} twice; repair it')
    return tuple(names)


def labels_from_metadata(
    metadata: Metadata, names: Sequence[str]
) -> tuple[np.ndarray, int, tuple[str, ...] | None]:
    """The labels of the images ``names``, in their order.

    Args:
      metadata: with labels.
      names: of all images, clean.

    Returns:
      ``(N,)`` int32 or ``(N, K)`` float32, the dimension of the labels, and the names of the
      classes if they are known.

    Raises:
      ValueError: if an image has no label, labels differ in kind or length, or there are
        fewer names than classes.
    """
    labels, where = metadata.labels, metadata.where
    missing = [name for name in names if name not in labels]
    if missing:
        raise ValueError(
            f"{where}: {len(missing)} of {len(names)} images have no label, for example "
            f"{shown(missing[0])!r}; label every image or none"
        )
    values = [plain_label(labels[name]) for name in names]
    example = next((v for v in values if type(v) is int or _is_vector(v)), None)
    if example is None or not all(_like(value, example) for value in values):
        bad = next(i for i, v in enumerate(values) if example is None or not _like(v, example))
        beside = next((i for i, v in enumerate(values) if v is example), None)
        other = "" if beside is None else f" beside {_cut(example)} for {shown(names[beside])!r}"
        raise ValueError(
            f"{where}: {_RULE}; got {_cut(values[bad])} for {shown(names[bad])!r}{other}; repair it"
        )
    known, count = metadata.label_names, len(names)
    if type(example) is not int:
        found, dim = source_lib.check_labels(np.array(values, np.float64), count, where=where)
    else:
        classes = None if known is None else max(len(known), 1)
        array = np.array(values, object)
        if max(values) >= 2**31 - 1 or min(values) < 0:
            low, high = min(values), max(values)
            raise ValueError(f"{where}: {_RULE}; got {low} to {high}; renumber them")
        found, dim = source_lib.check_labels(array.astype(np.int64), count, classes, where=where)
    if known is not None and len(known) != dim:
        raise ValueError(
            f'{where}: "label_names" has {len(known)} names for labels of dimension {dim}; repair '
            "it or leave it out"
        )
    return found, dim, known


def plain_label(value: Any) -> Any:
    """A label as JSON gives it; 3.0, as some programs write the number 3, is 3."""
    if type(value) is float and value.is_integer():
        return int(value)
    return value


def _cut(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(x) in (int, float) for x in value)


def _like(value: Any, example: Any) -> bool:
    if type(example) is int:
        return type(value) is int
    return _is_vector(value) and len(value) == len(example)


@short_repr
@dataclasses.dataclass(frozen=True)
class ClassFolders:
    """Classes by the folders that images lie in.

    Attributes:
      labels: ``(N,)`` int32.
      names: of the classes.
      note: a remark, or "".
    """

    labels: np.ndarray
    names: tuple[str, ...]
    note: str = ""


def labels_from_folders(names: Sequence[str]) -> ClassFolders | str | None:
    """Class = number of the top-level folder, below the folders that hold all images.

    Folders are sorted by name, or by value where all are whole numbers.

    Args:
      names: of all images, clean.

    Returns:
      The classes; or a text, why folders that look like classes cannot be; or None if
      nothing looks like classes.
    """
    folder = enclosing_folders(names)[-1]
    inner = [name[len(folder) :] for name in names]
    if all(_NUMBERED.fullmatch(name) for name in inner):
        return None
    tops = [name.split("/", 1)[0] if "/" in name else None for name in inner]
    classes = sorted({top for top in tops if top is not None})
    if len(classes) < 2:
        return None
    if None in tops:
        outside = [name for name, top in zip(names, tops, strict=True) if top is None]
        return (
            f"{len(classes)} folders look like classes, but {len(outside)} of {len(names)} images "
            f"lie in none of them, for example {shown(outside[0])}"
        )
    if all(_WHOLE.fullmatch(name) for name in classes):
        classes.sort(key=lambda name: (int(name), name))
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[top] for top in tops], np.int32)
    return ClassFolders(labels, tuple(shown(name) for name in classes), _splits(classes, inner))


_SPLITS = frozenset(("train", "training", "test", "testing", "val", "valid", "validation", "dev"))


def _splits(classes: Sequence[str], names: Sequence[str]) -> str:
    """A remark where the classes are probably the splits of a data set."""
    if not all(name.lower() in _SPLITS for name in classes):
        return ""
    below = {name.split("/")[1] for name in names if name.count("/") > 1}
    if len(below) < 2:
        return ""
    return (
        f"the classes are the folders {', '.join(classes)}, which hold folders themselves "
        f"({', '.join(sorted(below)[:3])}, ...): to have those as classes, give one of the former"
    )
