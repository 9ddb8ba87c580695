"""--mode=sample: images of given seeds as PNG files or as one grid."""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
from typing import Any

import jax
import numpy as np

from edm_jax import generate
from edm_jax.grids import make_sigmas
from edm_jax.model import Model, check_labels
from edm_jax.typing import PyTree
from experiments import evaluate, figures
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


def _labels(text: str | None, model: Model, count: int) -> np.ndarray | None:
    if text is None:
        return None
    if not model.num_classes:
        raise ValueError(f"--labels={text}: the model is unconditional; leave --labels out")
    labels = np.asarray(parse_ranges(text, "labels"))
    if len(labels) not in (1, count):
        raise ValueError(
            f"--labels={text}: {len(labels)} labels for {count} seeds; give one, or one per seed"
        )
    labels = np.broadcast_to(labels, (count,))
    check_labels(labels, model.num_classes, count)
    return labels


def write_samples(
    model: Model,
    outdir: pathlib.Path,
    *,
    seeds: str,
    labels: str | None,
    arguments: dict[str, Any],
    grid: bool,
) -> None:
    """Sample and write ``<seed, 6 digits>.png`` files, or ``grid.png``.

    Files already there are kept, so an interrupted call goes on where it stopped; a
    directory of other settings, weights, or labels of the same seeds is refused.

    Args:
      model: what to sample from.
      outdir: created if need be.
      seeds, labels: as given on the command line.
      arguments: for `edm_jax.sample`.
      grid: one sheet instead of a file per image.
    """
    seed_values = parse_ranges(seeds, "seeds")
    if len(set(seed_values)) != len(seed_values):
        raise ValueError(f"--seeds={seeds}: a seed stands there twice")
    label_values = _labels(labels, model, len(seed_values))
    by_seed = dict(
        zip(seed_values, label_values if labels is not None else seed_values, strict=True)
    )
    # All that can be wrong is found out before the first batch.
    make_sigmas(
        "edm",
        **{key: arguments[key] for key in ("num_steps", "sigma_min", "sigma_max", "rho")},
        preconditioning=model.preconditioning,
    )
    prepare(outdir, "outdir")
    settings = {
        "progress": model.description.get("progress"),
        "weights": model.variant,
        "weights_sha256": _digest(model.variables),
        "labels": None if labels is None else {str(s): int(by_seed[s]) for s in seed_values},
        **{k: v for k, v in arguments.items() if k not in ("batch_size", "churn")},
        "churn": None if arguments["churn"] is None else vars(arguments["churn"]),
    }
    _check_settings(outdir, json.loads(json.dumps(to_json(settings))))
    if grid:
        images = evaluate.draw_samples(
            model, np.asarray(seed_values), label_values, arguments, "samples"
        )
        columns = max(1, round(len(images) ** 0.5))
        figures.sample_grid(outdir / "grid.png", images, columns)
        print(f"{len(images)} images: {outdir / 'grid.png'}")
        return
    missing = [s for s in seed_values if not (outdir / f"{s:06d}.png").exists()]
    done = len(seed_values) - len(missing)
    if done:
        print(f"{done} of {len(seed_values)} images are there already")
    chunk = arguments["batch_size"] * 16
    with evaluate.progress_bar(len(missing), "samples") as bar:
        for start in range(0, len(missing), chunk):
            part = missing[start : start + chunk]
            part_labels = None if labels is None else np.asarray([by_seed[s] for s in part])
            images = generate.sample(
                model,
                part,
                part_labels,
                sharding=evaluate.local_sharding(),
                on_batch=lambda n, start=start: bar.update(start + n - bar.n),
                **arguments,
            )
            for seed, image in zip(part, generate.to_uint8(images), strict=True):
                temporary = outdir / f".{seed:06d}.png"
                figures.save_image(temporary, image)
                temporary.rename(outdir / f"{seed:06d}.png")
    print(f"{len(seed_values)} images: {outdir}/<seed>.png")


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
