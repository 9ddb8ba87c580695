r"""Strong guidance on a box and on the whole space: an ordinary and a reflected model of digits.

python experiments/main.py --mode=study --study=reflected --workdir=runs/reflected_study

Trains configs/digits.py:cfg and configs/digits_reflected.py, the same network on the same number
of images, and draws images of both at guidance scales 1 to 15: by a stochastic sampler and by the
probability flow, with thresholding and without.  Of each it measures the share of pixels outside
the range of images before they are rounded, class accuracy, Frechet distance, and the share of
pixels at the ends of the range.  docs/reflected.md has the tables and discusses them.

Writes ``reflected.csv``, ``reflected.png`` and ``reflected_samples.png``, and prints the tables.
Half of the time goes into the trainings.  A study that was stopped goes on: every setting keeps
its images in ``cells/``.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from edm_jax import generate, guidance
from edm_jax.data.sources.base import ArraySource, ImageSource
from edm_jax.data.sources.digits import digits
from edm_jax.evaluation import protocol, reporting
from edm_jax.evaluation.planning import Plan, make_plan
from edm_jax.figures import files, sheets
from edm_jax.figures.ticks import log_axes
from edm_jax.generate import Sampling
from edm_jax.model import Model
from experiments.workdir import write_atomically

SCALES = (1.0, 2.0, 4.0, 8.0, 15.0)
NUM_IMAGES = 200
METRICS = ("frechet_pixels", "classifier")
CONFIGS = {"ordinary": "configs/digits.py:cfg", "reflected": "configs/digits_reflected.py"}
# Half the distance between two of the 17 levels that the digits have, on [-1, 1].
HALF_LEVEL = 1 / 16
MEASURES = {
    "outside": ("pixels outside [-1, 1] before rounding", "{:.1%}"),
    "beyond": ("pixels outside by more than half a grey level", "{:.1%}"),
    "largest": ("largest absolute value of a pixel", "{:.3g}"),
    "accuracy": ("class accuracy", "{:.1%}"),
    "frechet": ("Frechet distance in pixels to the training images", "{:.2f}"),
    "ends": ("pixels at the ends of the range (within half a grey level)", "{:.1%}"),
}
PANELS = ("beyond", "accuracy", "frechet", "ends")
SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Way:
    """How images are drawn.

    Attributes:
      model: a key of CONFIGS.
      law: "SDE" or "ODE".
      threshold: what keeps images in range, for people; "none" where nothing does.
      sampling: the request.
      limit: "static" or "dynamic" thresholding of D; "" for none.
    """

    model: str
    law: str
    threshold: str
    sampling: Sampling
    limit: str = ""

    @property
    def name(self) -> str:
        """All of it, for tables and files."""
        return f"{self.model} {self.law}, {self.threshold}"

    def guided(self, scale: float) -> Any:
        """Classifier-free guidance with the threshold after it."""
        guide = guidance.classifier_free(scale)
        limits = {"static": guidance.static_threshold, "dynamic": guidance.dynamic_threshold}
        return guidance.chain(guide, limits[self.limit]()) if self.limit else guide


def ways(sde_steps: int = 48, ode_steps: int = 12) -> tuple[Way, ...]:
    """All of them; 48 and 23 calls of the denoiser."""
    ode = Sampling("heun", num_steps=ode_steps)
    # The reverse SDE by Euler and Maruyama; both models from noise that hides all, evenly in
    # ln sigma.
    sde = Sampling("ve_reverse_diffusion", "ve", num_steps=sde_steps, sigma_max=20.0)
    on_box = {
        name: Sampling(sampler, "ve", num_steps=sde_steps)
        for name, sampler in {"none": "reflected", "before noise": "reflected_threshold"}.items()
    }
    ordinary = [
        Way("ordinary", law, limit or "none", sampling, limit)
        for law, sampling in (("SDE", sde), ("ODE", ode))
        for limit in ("", "static", "dynamic")
    ]
    reflected = [Way("reflected", "SDE", name, sampling) for name, sampling in on_box.items()]
    return (*ordinary, *reflected, Way("reflected", "ODE", "none", ode))


# --------------------------------------------------------------------------------- cells


def train(workdir: pathlib.Path, changes: Mapping[str, Any] | None = None) -> dict[str, Model]:
    """Both models, trained where they are not yet.

    Args:
      workdir: of the study; the runs are in folders of it.
      changes: other values of the options of the configurations, such as
        ``{"train.total_kimg": 1.0}``.
    """
    import edm_jax
    from experiments.config import build
    from experiments.config.flag import default_config, find_config
    from experiments.training import loop

    found = {}
    for name, file in CONFIGS.items():
        config = default_config(find_config(file))
        # What is measured here is measured on other images.
        quiet = {"evaluation.num_images": 0, "train.sample_kimg": 0.0}
        config.update_from_flattened_dict({**quiet, **(changes or {})})
        loop.train(build.experiment(config), workdir / name)
        found[name] = edm_jax.load(workdir / name)
    return found


def draw(model: Model, way: Way, scale: float, num_images: int, path: pathlib.Path) -> np.ndarray:
    """Images of seeds 0, 1, ..., the classes in turn; those of the file if it has the same.

    Args:
      model: of the way.
      way: how.
      scale: w of the guidance.
      num_images: how many.
      path: file of the cell.

    Returns:
      ``(n, H, W, C)`` float32, as the sampler left them.
    """
    asked = {
        "way": dataclasses.asdict(dataclasses.replace(way, sampling=None)),
        "sampling": way.sampling.to_json(),
        "scale": scale,
        "num_images": num_images,
        "weights": reporting.weights_digest(model),
    }
    told = json.dumps(asked, sort_keys=True)
    if path.exists():
        with np.load(path) as kept:
            if str(kept["told"]) == told:
                return kept["images"]
    images = generate.sample(
        model, range(num_images), np.arange(num_images) % model.num_classes,
        sampling=way.sampling, guidance=way.guided(scale), batch_size=num_images,
    )  # fmt: skip
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, images=images, told=told)
    return images


def measure(images: np.ndarray, plan: Plan) -> dict[str, float]:
    """The numbers of one cell.

    Args:
      images: ``(n, H, W, C)`` float, the classes in turn, as the sampler left them.
      plan: what the metrics compare with.
    """
    size = np.abs(images)
    found = _metrics(generate.to_uint8(np.nan_to_num(images)), plan)
    return {
        "outside": float(np.mean(~(size <= 1))),
        "beyond": float(np.mean(~(size <= 1 + HALF_LEVEL))),
        "largest": float(size.max()),
        **found,
        "ends": float(np.mean(size > 1 - HALF_LEVEL)),
    }


def _metrics(pixels: np.ndarray, plan: Plan, labels: np.ndarray | None = None) -> dict[str, float]:
    """Accuracy and distance of bytes."""
    labels = np.arange(len(pixels)) % plan.real.num_classes if labels is None else labels
    source = ArraySource(pixels, labels, num_classes=plan.real.num_classes)
    found = protocol.evaluate_images(source, plan, metrics=METRICS, report=lambda line: None)
    return {"accuracy": found["class_accuracy"], "frechet": found["frechet_distance"]}


def real_row(test: ImageSource, plan: Plan) -> dict[str, Any]:
    """The same numbers of real images that were not trained on."""
    count = min(plan.num_images, len(test))
    images = np.stack([test[i]["image"] for i in range(count)])
    labels = np.asarray(test.labels[:count])
    size = np.abs(images / 127.5 - 1)
    row = {"model": "real test images", "law": "", "threshold": "", "scale": ""}
    return {
        **row,
        "outside": 0.0,
        "beyond": 0.0,
        "largest": float(size.max()),
        **_metrics(images, plan, labels),
        "ends": float(np.mean(size > 1 - HALF_LEVEL)),
    }


# ------------------------------------------------------------------------------- results


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each cell, numbers to four digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()


def from_csv(text: str) -> list[dict[str, Any]]:
    """What `to_csv` wrote."""

    def value(key: str, shown: str) -> Any:
        return float(shown) if shown and key in ("scale", *MEASURES) else shown

    return [{k: value(k, v) for k, v in row.items()} for row in csv.DictReader(io.StringIO(text))]


def table(rows: Sequence[Mapping[str, Any]], measure: str) -> str:
    """Markdown: one of MEASURES, a line for each way, a column for each scale."""
    form = MEASURES[measure][1]
    scales = sorted({row["scale"] for row in rows if row["scale"] != ""})
    lines = [
        f"| {MEASURES[measure][0]}, w = | " + " | ".join(f"{s:g}" for s in scales) + " |",
        "|---|" + "---|" * len(scales),
    ]
    for name, of_way in _by_way(rows).items():
        if of_way[0]["scale"] == "":
            cells = [form.format(of_way[0][measure])] + [""] * (len(scales) - 1)
        else:
            cells = [form.format(row[measure]) for row in of_way]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _in_words(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {form.format(row[name])}" for name, (_, form) in MEASURES.items())


def _by_way(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        name = f"{row['model']} {row['law']}, {row['threshold']}" if row["law"] else row["model"]
        found.setdefault(name, []).append(row)
    return found


def plot(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """A panel for each measure of PANELS, a curve for each way over the scale."""
    colours = {"ordinary": "#b5482f", "reflected": "#2a7f4f"}
    dashes = {"none": "-", "static": "--", "dynamic": ":", "before noise": "--"}
    with files.style():
        fig, axes = files.subplots(2, 2, size=(2.1 * files.COLUMN, 5.2))
        for axis, name in zip(axes.ravel(), PANELS, strict=True):
            for way, of_way in _by_way(rows).items():
                if of_way[0]["scale"] == "":
                    axis.axhline(of_way[0][name], color="#777777", lw=0.8, label=way)
                    continue
                model, law, threshold = (of_way[0][k] for k in ("model", "law", "threshold"))
                axis.plot(
                    [row["scale"] for row in of_way], [row[name] for row in of_way],
                    color=colours[model], ls=dashes[threshold], label=way,
                    marker="o" if law == "ODE" else "^", ms=3,
                )  # fmt: skip
            log_axes(axis, "x")
            scales = sorted({row["scale"] for row in rows if row["scale"] != ""})
            axis.set_xticks(scales, [f"{s:g}" for s in scales])
            axis.set_xticks([], minor=True)
            axis.set(title=MEASURES[name][0].split(" (")[0], xlabel="guidance scale w")
            if name == "frechet":
                log_axes(axis, "y")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        files.save(fig, path)


def run(
    workdir: pathlib.Path,
    scales: Sequence[float] = SCALES,
    num_images: int = NUM_IMAGES,
    all_ways: Sequence[Way] | None = None,
    models: Mapping[str, Model] | None = None,
    *,
    figure_format: str = "png",
) -> list[dict[str, Any]]:
    """Train, draw, measure, and write the table and the pictures.

    Args:
      workdir: a directory, which must exist.
      scales: of the guidance.
      num_images: of each cell.
      all_ways: how they are drawn; by default `ways`.
      models: by the keys of CONFIGS; by default they are trained.
      figure_format: png, pdf or svg, of the curves; the sheet of samples is a PNG.

    Returns:
      The rows of the table.
    """
    all_ways = ways() if all_ways is None else all_ways
    models = train(workdir) if models is None else models
    source, test = digits(), digits("test")
    plan = make_plan(
        METRICS, source, num_images=num_images, image_shape=source.image_shape,
        classes=source.num_classes, report=lambda line: None,
    )  # fmt: skip
    rows, pictures = [], []
    for way in all_ways:
        for scale in scales:
            file = (
                workdir / "cells" / f"{way.name.replace(', ', '-').replace(' ', '-')}-{scale:g}.npz"
            )
            images = draw(models[way.model], way, scale, num_images, file)
            told = {"model": way.model, "law": way.law, "threshold": way.threshold}
            rows.append({**told, "scale": float(scale), **measure(images, plan)})
            pictures.append(images[:SHOWN])
            print(f"{way.name}, w = {scale:g}: {_in_words(rows[-1])}", flush=True)
    rows.append(real_row(test, plan))
    write_atomically(workdir / "reflected.csv", to_csv(rows))
    rows = from_csv(to_csv(rows))
    plot(rows, workdir / f"reflected.{figure_format}")
    sheets.sample_grid(
        workdir / "reflected_samples.png",
        np.clip(np.nan_to_num(np.concatenate(pictures)), -1, 1),
        SHOWN * len(scales),
        row_names=[way.name for way in all_ways],
        title=f"the same seeds, {SHOWN} images each at w = " + ", ".join(f"{s:g}" for s in scales),
    )
    print("\n\n".join(table(rows, name) for name in MEASURES))
    return rows
