"""Classes of images by the folders that they lie in."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from edm_jax.data.sources.labels import Metadata, enclosing_folders
from edm_jax.data.sources.names import shown
from edm_jax.pytree import short_repr

# Folders of thousands of images, not classes: of the EDM format, the first five digits of the
# running number; of drawn images (EDM section 7.1), the number of their first.
_EDM = re.compile(r"(?P<folder>\d{5})/img(?P<number>(?P<first>\d{5})\d{3})\.png")
_DRAWN = re.compile(r"(?P<folder>\d{3,}000)/(?P<number>(?P<first>\d{3,})\d{3})\.png")
_WHOLE = re.compile(r"[+-]?[0-9]+")
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_SPLIT = re.compile(
    r"(train(ing)?|test(ing)?|val(id|idation)?|eval(uation)?|dev)(set|data|split|images?|imgs?)?",
    re.IGNORECASE,
)


@short_repr
@dataclasses.dataclass(frozen=True)
class ClassFolders:
    """Classes by the folders that images lie in.

    Attributes:
      labels: ``(N,)`` int32.
      names: of the classes.
    """

    labels: np.ndarray
    names: tuple[str, ...]


def labels_from_folders(
    names: Sequence[str], metadata: Metadata | None = None
) -> ClassFolders | str | None:
    """Class = number of the top-level folder, below the folders that hold all images.

    Folders are numbered in the order of ``label_names`` where a dataset.json gives them, else
    sorted by name, or by value where all are whole numbers.

    Args:
      names: of all images, clean.
      metadata: what a dataset.json without labels says.

    Returns:
      The classes; or a text, why folders that look like classes cannot be, and a cure; or None
      if nothing looks like classes.

    Raises:
      ValueError: if ``label_names`` are not the names of these folders.
    """
    classes, tops = _top_folders(names)
    found = None
    if len(classes) > 1 and not in_numbered_folders(names):
        found = _why_not(names, classes, tops)
        if found is None:
            found = _numbered_as(classes, tops, metadata)
    if found is None and metadata is not None and metadata.label_names is not None:
        raise ValueError(
            f'{metadata.where}: "label_names" names {len(metadata.label_names)} classes, but no '
            'image has one: there is no key "labels", and no two or more class folders; add '
            'the labels, or leave "label_names" out'
        )
    return found


def _inner(names: Sequence[str]) -> list[str]:
    folder = enclosing_folders(names)[-1]
    return [name[len(folder) :] for name in names]


def _top_folders(names: Sequence[str]) -> tuple[list[str], list[str | None]]:
    """The folders, sorted, and that of every image."""
    tops = [name.split("/", 1)[0] if "/" in name else None for name in _inner(names)]
    classes = sorted({top for top in tops if top is not None})
    if all(_WHOLE.fullmatch(name) for name in classes):
        classes.sort(key=lambda name: (int(name), name))
    return classes, tops


def _numbered(name: str) -> bool:
    """Whether the folder follows from the number of the image."""
    match = _EDM.fullmatch(name) or _DRAWN.fullmatch(name)
    return match is not None and match["folder"] in (match["first"], match["first"] + "000")


def in_numbered_folders(names: Sequence[str]) -> bool:
    """Whether folders are those of running numbers, as the EDM format and drawn images have."""
    return all(_numbered(name) for name in _inner(names))


def _why_not(
    names: Sequence[str], classes: Sequence[str], tops: Sequence[str | None]
) -> str | None:
    """Why folders that look like classes cannot be; None if they can."""
    inner = _inner(names)
    outside = [name for name, top in zip(names, tops, strict=True) if top is None]
    if outside:
        return (
            f"{len(classes)} folders look like classes, but {len(outside)} of {len(names)} images "
            f"lie in none of them, for example {shown(outside[0])}; move them into a class or away"
        )
    # A number that is there twice cannot be a running one; in the first folder any fits.
    matches = [_EDM.fullmatch(name) for name in inner]
    numbers = [match["number"] for match in matches if match is not None]
    running = [n for n in inner if _numbered(n) and int(n.split("/")[0])]
    if running and len(numbers) == len(set(numbers)):
        other = next(name for name in inner if not _numbered(name))
        return (
            f"folders may be classes, or those of the EDM format, as {shown(running[0])} but not "
            f"{shown(other)}; rename the folders if they are classes, or move such images away"
        )
    return _why_splits(classes, inner)


def _is_split(folder: str) -> bool:
    words = _WORDS.findall(folder)
    return any(_SPLIT.fullmatch(word) for word in words[:1] + words[-1:])


def _why_splits(classes: Sequence[str], inner: Sequence[str]) -> str | None:
    """A text where the folders are the splits of a data set rather than classes."""
    splits = [name for name in classes if _is_split(name)]
    below = {tuple(name.split("/")[:2]) for name in inner if name.count("/") > 1}
    times = collections.Counter(folder for top, folder in below if _is_split(top))
    shared = sorted(folder for folder, count in times.items() if count > 1)
    if len(splits) < 2 or not (shared or len(splits) == len(classes)):
        return None
    first = next((name for name in splits if "train" in name.lower()), splits[0])
    hold = f", which hold the same folders ({', '.join(map(shown, shared[:3]))})" if shared else ""
    return (
        f"the folders {', '.join(map(shown, splits[:4]))} are splits of a data set, not classes"
        f"{hold}; give one of them, such as --source=.../{shown(first)}, or rename them "
        "if they are classes"
    )


def _numbered_as(
    classes: Sequence[str], tops: Sequence[str | None], metadata: Metadata | None
) -> ClassFolders:
    """The classes, in the order of ``label_names`` if there are any."""
    given = None if metadata is None else metadata.label_names
    names = tuple(shown(name) for name in classes)
    if given is None:
        given = names
    if list(classes) == [str(i) for i in range(len(given))] and not set(names) <= set(given):
        names = given  # folders are the indices of classes
    if not set(names) <= set(given):
        odd = next((name for name in names if name not in given), names[0])
        raise ValueError(
            f'{metadata.where}: "label_names" are not the names of the {len(names)} class folders: '
            f"{odd!r} is not among {len(given)} names; repair it or leave it out"
        )
    number = {folder: given.index(name) for folder, name in zip(classes, names, strict=True)}
    return ClassFolders(np.array([number[top] for top in tops], np.int32), given)
