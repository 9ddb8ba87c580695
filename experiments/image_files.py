"""Images of given seeds as PNG files, or as one grid, with what was asked of them beside."""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from edm_jax import generate
from edm_jax.evaluation import drawing
from edm_jax.figures import sheets
from edm_jax.generate import Sampling
from edm_jax.model import Model, check_labels
from edm_jax.train.sharding import batch_sharding, make_mesh
from edm_jax.typing import ArrayLike, PyTree
from experiments.workdir import WorkdirError, prepare, to_json, write_atomically

SETTINGS = "settings.json"
MAX_SEEDS = 100_000_000


def parse_ranges(text: str, what: str) -> list[int]:
    """``"1,2,5-10"`` -> [1, 2, 5, 6, 7, 8, 9, 10].

    Raises:
      ValueError: for anything else, naming the part that is wrong.
    """
    values: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match:
            raise ValueError(
                f"--{what}={text}: {part!r} is not a number or a range; "
                f"write it like --{what}=0-63 or --{what}=1,2,5-10"
            )
        first = int(match[1])
        last = int(match[2] or first)
        if last < first:
            raise ValueError(f"--{what}={text}: the range {part!r} runs backwards")
        if len(values) + last - first >= MAX_SEEDS:
            raise ValueError(f"--{what}={text}: more than {MAX_SEEDS} values")
        values.extend(range(first, last + 1))
    return values


def parse_seeds(text: str) -> list[int]:
    """Seeds of ``--seeds``, each once."""
    seeds = parse_ranges(text, "seeds")
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"--seeds={text}: a seed stands there twice")
    return seeds


def labels_of(text: str | None, model: Model, seeds: Sequence[int]) -> np.ndarray | None:
    """The class of every seed: those of ``--labels``, else what each seed draws.

    A number is the index of a class; anything else is taken for names of classes.

    Returns:
      ``(n,)`` integers; None for an unconditional model.

    Raises:
      ValueError: for labels that the model has not, or another number of them.
    """
    if text is None:
        return generate.drawn_labels(model, seeds)
    if not model.num_classes:
        raise ValueError(f"--labels={text}: the model is unconditional; leave --labels out")
    labels = np.asarray(_class_indices(text, model))
    if len(labels) not in (1, len(seeds)):
        raise ValueError(
            f"--labels={text}: {len(labels)} labels for {len(seeds)} seeds; give one, or one per "
            "seed"
        )
    labels = np.broadcast_to(labels, (len(seeds),))
    check_labels(labels, model.num_classes, len(seeds))
    return labels


def _class_indices(text: str, model: Model) -> ArrayLike:
    names = model.label_names or ()
    given = [text] if text in names else [part.strip() for part in text.split(",")]
    if not are_names(text) or not names:
        return parse_ranges(text, "labels")
    return model.class_indices(given)


def are_names(text: str) -> bool:
    """Whether ``--labels`` holds names of classes, and not numbers and ranges."""
    return any(not re.fullmatch(r"[\s\d-]*", part) for part in text.split(","))


def write_images(
    model: Model,
    outdir: pathlib.Path,
    seeds: Sequence[int],
    labels: np.ndarray | None,
    sampling: Sampling,
    *,
    batch_size: int,
) -> None:
    """Write ``<seed>.png`` for each seed that is not there yet.

    Args:
      model: to sample from.
      outdir: the settings of its images, ``settings.json``, must be these.
      seeds, labels: one label per seed, or None.
      sampling: the request.
      batch_size: images at a time.
    """
    open_outdir(model, outdir, seeds, labels, sampling)
    missing = [i for i, s in enumerate(seeds) if not (outdir / f"{s:06d}.png").exists()]
    if len(missing) < len(seeds):
        print(f"{len(seeds) - len(missing)} of {len(seeds)} images are there already")
    if missing:
        _write_missing(model, outdir, seeds, labels, sampling, missing, batch_size)
    print(f"{len(seeds)} images: {outdir}/<seed>.png")


def _write_missing(
    model: Model,
    outdir: pathlib.Path,
    seeds: Sequence[int],
    labels: np.ndarray | None,
    sampling: Sampling,
    missing: list[int],
    batch_size: int,
) -> None:
    """The images of some of the seeds, as they come."""
    with drawing.progress_bar(len(missing), "samples") as bar:
        for some, images in generate.batches(
            model,
            np.asarray([seeds[i] for i in missing]),
            None if labels is None else labels[missing],
            sampling,
            batch_size=batch_size,
            sharding=batch_sharding(make_mesh(jax.local_devices())),
        ):
            for seed, image in zip(some, generate.to_uint8(images), strict=True):
                sheets.save_image(outdir / f"{seed:06d}.png", image)
            bar.update(len(some))


def write_grid(
    model: Model,
    outdir: pathlib.Path,
    seeds: Sequence[int],
    labels: np.ndarray | None,
    sampling: Sampling,
    *,
    batch_size: int,
    name: str,
) -> None:
    """Write one sheet of all images; see `write_images`.

    Args:
      name: of the file: that of its seeds, so that grids of other seeds stay.
    """
    settings = open_outdir(model, outdir, seeds, labels, sampling)
    images = drawing.draw(model, np.asarray(seeds), labels, sampling, batch_size=batch_size)
    columns = max(1, round(len(images) ** 0.5))
    told = settings | {"seeds": list(seeds)}
    if labels is not None:
        told["labels"] = [int(label) for label in labels]
    sheets.sample_grid(outdir / name, images, columns, told=told)
    print(f"{len(images)} images: {outdir / name}")


def grid_name(seeds: str, ending: str = "png") -> str:
    """``grid-0-63.png`` of ``--seeds=0-63``; long lists by their digest."""
    text = re.sub(r"\s", "", seeds)
    if len(text) > 60:
        text = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"grid-{text}.{ending}"


def open_outdir(
    model: Model,
    outdir: pathlib.Path,
    seeds: Sequence[int],
    labels: np.ndarray | None,
    sampling: Sampling,
) -> dict[str, Any]:
    """Prepare a directory for images, or refuse one that holds images of another request.

    Returns:
      The settings of these images, as settings.json has them.

    Raises:
      WorkdirError: if it cannot be written, or its images are others.
    """
    sampling.check(model.preconditioning)
    prepare(outdir, "outdir")
    settings = {
        "progress": model.description.get("progress"),
        "weights": model.variant,
        "weights_sha256": _digest(model.variables),
        "sampling": to_json(sampling.to_json()),
    }
    by_seed = None
    if labels is not None:
        by_seed = {str(s): int(label) for s, label in zip(seeds, labels, strict=True)}
    settings = json.loads(json.dumps(settings))
    _check_settings(outdir, settings | {"labels": by_seed})
    return settings


def _digest(variables: PyTree) -> str:
    """SHA-256 of the weights, so that images of different models do not mix."""
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        sha.update(np.ascontiguousarray(leaf))
    return sha.hexdigest()


def _check_settings(outdir: pathlib.Path, settings: dict[str, Any]) -> None:
    """Compare with those of the images that are there, and note the labels of new seeds."""
    path = outdir / SETTINGS
    if not path.exists():
        write_atomically(path, json.dumps(settings, indent=2) + "\n")
        return
    try:
        there = json.loads(path.read_text())
        old, new = there["labels"], settings["labels"]
    except (ValueError, KeyError, TypeError):
        there, old, new = {}, None, None
    if isinstance(old, dict) and isinstance(new, dict):
        both = old | new
        if all(both[seed] == label for seed, label in old.items()):
            there["labels"] = settings["labels"] = both
    differing = sorted(k for k in settings.keys() | there.keys() if settings.get(k) != there.get(k))
    if differing:
        raise WorkdirError(
            f"--outdir={outdir} holds samples of other settings ({', '.join(differing)} differ); "
            "choose another --outdir"
        )
    write_atomically(path, json.dumps(settings, indent=2) + "\n")
