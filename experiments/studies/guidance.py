r"""Guidance on handwritten digits: what it gives and what it takes, over its scale.

python experiments/main.py --mode=study --study=guidance --workdir=runs/guidance

Trains a class-conditional model that knows the digits without labels too, a smaller one that
is trained for a quarter of the time, and a classifier of noisy digits; then draws images under
classifier-free guidance (at all noise levels and in an interval), autoguidance and classifier
guidance (at all levels and in the interval), and measures class accuracy, Frechet distance,
precision and recall of three blocks of seeds.  docs/guidance.md discusses the result.  Writes
guidance_digits.csv, guidance_digits.md and guidance_digits.png beside the trainings and the
cells; what is there of these is kept, so that the same command goes on where it was stopped.
Eight minutes of one core.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import edm_jax
from configs import digits, digits_classifier
from edm_jax import guidance as guidances
from edm_jax.classifier import load_classifier
from edm_jax.evaluation import evaluate, evaluate_images, protocol, reporting
from edm_jax.evaluation.planning import Plan, make_plan
from edm_jax.figures import files
from edm_jax.figures.ticks import log_axes
from edm_jax.model import Model
from experiments.config import build
from experiments.studies._cells import kept
from experiments.training import loop
from experiments.workdir import write_atomically

METRICS = ("classifier", "frechet_pixels", "pr@pixels")
# Key among the results -> title, number of decimals.
SHOWN = {
    "classifier": ("class accuracy", 3),
    "frechet_pixels": ("Frechet distance", 2),
    "pr@pixels/precision": ("precision", 3),
    "pr@pixels/recall": ("recall", 3),
}
# That of EDM2-S on ImageNet (Kynkaanniemi et al. 2024), (0.28, 2.90] at a deviation of the data
# of 0.5, for the digits' 0.75.  Not searched for.
INTERVAL = (0.42, 4.35)
# Label -> kind, whether in the interval, colour.
METHODS = {
    "classifier-free": ("classifier_free", False, "#b5482f"),
    "classifier-free, interval": ("classifier_free", True, "#e09f1f"),
    "autoguidance": ("autoguidance", False, "#2a7f4f"),
    "classifier": ("classifier", False, "#1b5a8a"),
    "classifier, interval": ("classifier", True, "#6fb2dd"),
}
NONE = "none"
# Exact Bayes: gamma on a conditional model is w = 1 + gamma of the others.
FRECHET_TICKS = (0.5, 1.0, 2.0, 4.0)
AXIS = "w (of the classifier: 1 + gamma)"


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is trained, drawn and measured.

    Attributes:
      kimg: of the model; the others follow.
      scales: w, above 1.
      num_images: of a block; as many as there are real test digits, whose Frechet distance
        then compares.
      blocks: of seeds.
      num_steps: of the sampler.
    """

    kimg: float = 61.44
    scales: tuple[float, ...] = (1.5, 2.0, 3.0, 5.0)
    num_images: int = 297
    blocks: int = 3
    num_steps: int = 16


def configurations(size: Size) -> dict[str, Any]:
    """What is trained, by the name of its directory."""
    found = {
        "model": digits.get_config("cfg"),
        "weaker": digits.get_config("cfg"),
        "classifier": digits_classifier.get_config(),
    }
    shares = {"model": 1.0, "weaker": 0.25, "classifier": 0.5}
    for name, config in found.items():
        config.train.total_kimg = size.kimg * shares[name]
        config.evaluation.trajectory_seeds = 0
        if name != "classifier":
            config.evaluation.num_images = 0  # measured below
        config.train.sample_kimg = 0.0
    found["weaker"].model.SongUNet.model_channels = 16
    return found


@dataclasses.dataclass(frozen=True)
class Networks:
    """The trained ones."""

    model: Model
    weaker: Model
    classifier: Any

    def digests(self) -> list[str]:
        """Of all weights."""
        return [reporting.weights_digest(one) for one in (self.model, self.weaker, self.classifier)]


def trained(workdir: pathlib.Path, size: Size) -> Networks:
    """Train what is not there yet, and load all."""
    for name, config in configurations(size).items():
        print(f"--- {workdir / name}", flush=True)
        loop.train(build.experiment(config), workdir / name)
    return Networks(
        edm_jax.load(workdir / "model"),
        edm_jax.load(workdir / "weaker"),
        load_classifier(workdir / "classifier"),
    )


def guidance_of(networks: Networks, method: str, scale: float) -> guidances.Guidance | None:
    """The guidance of one cell; None for NONE."""
    if method == NONE:
        return None
    kind, within, _ = METHODS[method]
    interval = INTERVAL if within else None
    if kind == "classifier_free":
        return guidances.classifier_free(scale, interval)
    if kind == "autoguidance":
        return guidances.autoguidance(networks.weaker, scale, interval)
    return guidances.classifier_guidance(networks.classifier, scale - 1, interval)


def cells(size: Size) -> list[tuple[str, float]]:
    """(method, w) of all that is drawn; w = 1 is without guidance, for all methods."""
    return [(NONE, 1.0), *((method, w) for method in METHODS for w in size.scales)]


def measure(workdir: pathlib.Path, networks: Networks, size: Size) -> list[dict[str, Any]]:
    """A row for each cell, and one of real test digits; those in ``workdir/cells`` are kept."""
    data = build.experiment(configurations(size)["model"]).data
    source, test = data.open(), data.open_test()
    sampling = edm_jax.Sampling("dpmpp_2m", num_steps=size.num_steps)
    plans: list[Plan] = []

    def plan() -> Plan:
        if not plans:  # fitting the metrics takes its time: only where something is missing
            plans.append(
                make_plan(
                    METRICS, source, num_images=size.num_images,
                    image_shape=networks.model.image_shape, classes=networks.model.num_classes,
                )
            )  # fmt: skip
        return plans[0]

    def drawn(method: str, scale: float) -> dict[str, Any]:
        result = evaluate(
            networks.model, plan(), metrics=METRICS, num_images=size.num_images,
            blocks=size.blocks, sampling=sampling,
            guidance=guidance_of(networks, method, scale), batch_size=size.num_images,
            report=lambda line: None,
        )  # fmt: skip
        rows = result.get("network_rows", {"denoiser": result["nfe"]})
        return row_of(method, scale, result, rows)

    digests = networks.digests()
    found = []
    for method, scale in cells(size):
        interval = INTERVAL if METHODS.get(method, (None, False))[1] else None
        asked = json.loads(
            json.dumps([method, scale, interval, size.num_images, size.blocks,
                        sampling.to_json(), protocol.FIRST_SEED, list(METRICS), digests])
        )  # fmt: skip
        name = f"{method}-{scale:g}".replace(", ", "-")
        row = kept(workdir / "cells" / f"{name}.json", asked, lambda m=method, s=scale: drawn(m, s))
        print(f"{method}, w = {scale:g}: {told(row)}", flush=True)
        found.append(row)
    real = kept(
        workdir / "cells" / "real.json",
        [list(METRICS), len(test)],
        lambda: row_of(
            "real test digits", None,
            evaluate_images(test, source, metrics=METRICS, report=lambda line: None), {},
        ),
    )  # fmt: skip
    return [*found, real]


def row_of(
    method: str, scale: float | None, result: Mapping[str, Any], rows: Mapping[str, int]
) -> dict[str, Any]:
    """The numbers of a cell: of each metric the values of the blocks; images per network."""
    values = {
        key: result["results"][key].get("blocks", [result["results"][key]["value"]])
        for key in SHOWN
    }
    return {"method": method, "scale": scale, "values": values, "rows": dict(rows)}


def told(row: Mapping[str, Any]) -> str:
    """The means of a row in words."""
    return ", ".join(
        f"{title} {np.mean(row['values'][key]):.{digits_}f}"
        for key, (title, digits_) in SHOWN.items()
    )


def _spread(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def to_csv(table: Sequence[Mapping[str, Any]]) -> str:
    """All numbers: mean and standard deviation over the blocks."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [title.replace(" ", "_") for title, _ in SHOWN.values()]
    networks = ("denoiser", "weaker", "classifier")
    writer.writerow(
        ["guidance", "w", *(f"{n}{end}" for n in names for end in ("", "_deviation"))]
        + [f"{name}_rows" for name in networks]
    )  # fmt: skip
    for row in table:
        numbers = []
        for values in (row["values"][key] for key in SHOWN):
            numbers += [f"{np.mean(values):.4f}", f"{_spread(values):.4f}"]
        calls = [row["rows"].get(name, 0) if row["rows"] else "" for name in networks]
        scale = "" if row["scale"] is None else f"{row['scale']:g}"
        writer.writerow([row["method"], scale, *numbers, *calls])
    return out.getvalue()


def to_markdown(table: Sequence[Mapping[str, Any]]) -> str:
    """The same for people."""
    head = ["guidance", "w", *(title for title, _ in SHOWN.values()), "network rows"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in table:
        cells_ = []
        for key, (_, places) in SHOWN.items():
            values = row["values"][key]
            spread = f" +- {_spread(values):.{places}f}" if len(values) > 1 else ""
            cells_.append(f"{np.mean(values):.{places}f}{spread}")
        calls = " + ".join(
            f"{count}" + ("" if name == "denoiser" else f" {name}")
            for name, count in row["rows"].items()
        )
        scale = "" if row["scale"] is None else f"{row['scale']:g}"
        lines.append("| " + " | ".join([row["method"], scale, *cells_, calls]) + " |")
    return "\n".join(lines) + "\n"


def draw(path: pathlib.Path, table: Sequence[Mapping[str, Any]]) -> None:
    """A panel for each number over w, a line for each guidance, a band of one deviation."""
    (plain,) = (row for row in table if row["method"] == NONE)
    (real,) = (row for row in table if row["scale"] is None)
    with files.style():
        figure, axes = files.subplots(2, 2, size=(2 * files.COLUMN, 4.6), sharex=True)
        for axis, (key, (title, _)) in zip(axes.ravel(), SHOWN.items(), strict=True):
            for method, (_, within, colour) in METHODS.items():
                rows = [plain, *(row for row in table if row["method"] == method)]
                scales = np.array([row["scale"] for row in rows])
                means = np.array([np.mean(row["values"][key]) for row in rows])
                spread = np.array([_spread(row["values"][key]) for row in rows])
                style = {"color": colour, "ls": "--" if within else "-"}
                axis.plot(scales, means, "o", ms=2.5, label=method, **style)
                axis.fill_between(scales, means - spread, means + spread, color=colour, alpha=0.12)
            label = "real test digits"
            axis.axhline(np.mean(real["values"][key]), color="#222222", ls=":", label=label)
            axis.set_title(title)
            axis.grid(alpha=0.3)
        for axis in axes[-1]:
            axis.set_xlabel(AXIS)
        log_axes(axes[0, 1], "y")
        axes[0, 1].set_yticks(FRECHET_TICKS, [f"{value:g}" for value in FRECHET_TICKS])
        axes[0, 1].set_yticks([], minor=True)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
        files.save(figure, path)


def run(
    workdir: pathlib.Path, size: Size | None = None, *, figure_format: str = "png"
) -> list[dict[str, Any]]:
    """Train, measure, and write the table and the figure.

    Args:
      workdir: a directory, which must exist.
      size: how much; None for what docs/guidance.md shows.
      figure_format: png, pdf or svg.
    """
    size = Size() if size is None else size
    table = measure(workdir, trained(workdir, size), size)
    write_atomically(workdir / "guidance_digits.csv", to_csv(table))
    write_atomically(workdir / "guidance_digits.md", to_markdown(table))
    draw(workdir / f"guidance_digits.{figure_format}", table)
    print("\n" + to_markdown(table))
    return table
