r"""Autoregressive diffusion on handwritten digits: bits, classes and the number of calls.

python experiments/main.py --mode=study --study=ardm --workdir=runs/ardm

Trains four models of one network and length: any order, the raster order alone, and coarse to
fine with both parameterisations.  Measures bits per dimension of the test digits (beside
independent pixels), what each policy costs, and whether the class that was asked for is seen in
what is drawn.  docs/ardm.md discusses the result.  Writes ardm.json, ardm.md, ardm.png and
ardm_decoding.png beside the trainings and the cells; what is there of these is kept, so that the
same command goes on where it was stopped.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import edm_jax
from configs import digits_ardm, digits_ardm_upscale
from edm_jax.ardm import registry, uniform_policy
from edm_jax.ardm.likelihood import estimate
from edm_jax.ardm.model_bits import model_bits, model_values
from edm_jax.ardm.policy import monotone_profile, policy_cost
from edm_jax.ardm.request import Decoding
from edm_jax.ardm.sample import sample_ardm
from edm_jax.data.sources.base import stack_source
from edm_jax.data.sources.digits import digits
from edm_jax.evaluation import evaluate, reporting
from edm_jax.evaluation.planning import Plan, make_plan
from edm_jax.figures import files
from edm_jax.figures.decodings import decoding_frames, shown_steps
from edm_jax.figures.sheets import sample_grid
from edm_jax.figures.ticks import log_axes
from edm_jax.model import Model
from edm_jax.seeds import image_keys
from experiments.config import build
from experiments.studies._cells import kept
from experiments.training import loop
from experiments.workdir import write_atomically

METRICS = ("classifier",)
NUM_VALUES, VARIABLES, CLASSES = 17, 64, 10
ANY, RASTER, UPSCALE, DIRECT = "any order", "raster order", "coarse to fine", "same, direct"
# Of the digits, bits per dimension (spec of the paper's method; another split, K = 16): what a
# prototype reached after 3000 updates.
REFERENCE = 1.67
COLOURS = {ANY: "#2a7f4f", UPSCALE: "#1b5a8a", DIRECT: "#6fb2dd", RASTER: "#b5482f"}


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is trained, drawn and measured.

    Attributes:
      kimg: of each model.
      calls: network calls for an image, over all stages.
      num_images: drawn in a cell.
      passes: random orders of every test image.
      rows: images in the strips.
    """

    kimg: float = 128.0
    calls: tuple[int, ...] = (5, 10, 20, 64)
    num_images: int = 500
    passes: int = 1
    rows: int = 3


def configurations(size: Size) -> dict[str, Any]:
    """What is trained, by what it is called."""
    found = {
        ANY: digits_ardm.get_config(),
        RASTER: digits_ardm.get_config("raster"),
        UPSCALE: digits_ardm_upscale.get_config(),
        DIRECT: digits_ardm_upscale.get_config("direct"),
    }
    for config in found.values():
        config.train.update(total_kimg=size.kimg, lr_end_kimg=max(size.kimg, 10.0))
        config.train.sample_kimg = 0.0
        config.evaluation.update(num_images=0, trajectory_seeds=0)  # measured below
    return found


def trained(workdir: pathlib.Path, size: Size) -> dict[str, Model]:
    """Train what is not there yet, and load all."""
    models = {}
    for name, config in configurations(size).items():
        path = workdir / name.replace(", ", "_").replace(" ", "_")
        print(f"--- {path}", flush=True)
        loop.train(build.experiment(config), path)
        models[name] = edm_jax.load(path)
    return models


def independent_bits() -> float:
    """Bits per dimension of test digits under histograms of each pixel, with add-one counts."""
    levels = [np.rint(stack_source(digits(s))[0] / (255 / 16)).astype(int).reshape(-1, 64)
              for s in ("train", "test")]  # fmt: skip
    counts = np.stack([np.sum(levels[0] == v, axis=0) for v in range(NUM_VALUES)]) + 1.0
    shares = counts / counts.sum(axis=0)
    return float(-np.log2(shares[levels[1], np.arange(VARIABLES)]).mean())


def decodings(model: Model, name: str, calls: tuple[int, ...]) -> dict[str, Decoding]:
    """The cells of a model: naive and optimal schedules, as far as there is a choice."""
    process = registry.build(**model.description["process"])
    if name == RASTER:
        return {"sequential": Decoding()}
    found = {}
    for total in calls:
        n = total // process.num_stages
        if n >= VARIABLES or n < 1:
            continue
        found |= {f"{policy} {n}": Decoding(n, policy) for policy in ("uniform", "optimal")}
    return found | {"sequential": Decoding()}


def measure(workdir: pathlib.Path, models: Mapping[str, Model], size: Size) -> list[dict[str, Any]]:
    """A row for each model and decoding; those in ``workdir/cells`` are kept."""
    source, test = digits(), digits("test")
    images, labels = stack_source(test)
    plans: list[Plan] = []

    def plan() -> Plan:
        if not plans:  # fitting the classifier takes its time: only where a cell is missing
            plans.append(
                make_plan(
                    METRICS, source, num_images=size.num_images, image_shape=(8, 8, 1),
                    classes=CLASSES,
                )
            )  # fmt: skip
        return plans[0]

    def cell(model: Model, decoding: Decoding) -> dict[str, Any]:
        policies = decoding.of_model(model)
        rows = model.label_rows(labels, len(labels))
        found = estimate(
            model_bits(
                model, images, rows, policies=policies, exact=True, passes=size.passes,
                batch_size=len(images),
            )
        )  # fmt: skip
        profile = monotone_profile(model.description["loss_per_step"], len(policies))
        promised = sum(
            policy_cost(loss, policy)
            for loss, policy in zip(profile.reshape(len(policies), -1), policies, strict=True)
        )
        drawn = evaluate(
            model, plan(), metrics=METRICS, num_images=size.num_images, sampling=decoding,
            batch_size=min(size.num_images, 250), report=lambda line: None,
        )  # fmt: skip
        return {
            "calls": policies.shape[0] * (policies.shape[1] - 1),
            "bits": found.mean,
            "bits_error": found.standard_error,
            "bits_promised": promised,
            "accuracy": drawn["results"]["classifier"]["value"],
        }

    table = []
    for name, model in models.items():
        digest = reporting.weights_digest(model)
        for title, decoding in decodings(model, name, size.calls).items():
            asked = [name, decoding.to_json(), digest, size.num_images, size.passes]
            path = workdir / "cells" / f"{name} {title}.json".replace(", ", "_").replace(" ", "_")
            row = kept(path, asked, lambda m=model, d=decoding: cell(m, d))
            row = {"model": name, "schedule": title.split()[0], **row}
            print(told(row), flush=True)
            table.append(row)
    return table


def told(row: Mapping[str, Any]) -> str:
    """A row in words."""
    return (
        f"{row['model']}, {row['schedule']}, {row['calls']} calls: {row['bits']:.3f} bits, "
        f"accuracy {row['accuracy']:.3f}"
    )


def to_markdown(table: list[dict[str, Any]], independent: float) -> str:
    """Both tables of docs/ardm.md."""
    label_bits = math.log2(CLASSES) / VARIABLES
    lines = ["| model | bits / dim given the class | with the class coded too |", "|---|---|---|"]
    lines.append(f"| uniform code | | {math.log2(NUM_VALUES):.3f} |")
    lines.append(f"| independent pixels | | {independent:.3f} |")
    lines.append(f"| a prototype of this method, 16 levels, another split | | {REFERENCE:.2f} |")
    for row in table:
        if row["schedule"] == "sequential":
            bits = f"{row['bits']:.3f} +- {row['bits_error']:.3f}"
            lines.append(f"| {row['model']} | {bits} | {row['bits'] + label_bits:.3f} |")
    lines += ["", "| model | schedule | calls | bits / dim | promised | class accuracy |"]
    lines.append("|---|---|---|---|---|---|")
    for row in table:
        lines.append(
            f"| {row['model']} | {row['schedule']} | {row['calls']} | {row['bits']:.3f} | "
            f"{row['bits_promised']:.3f} | {100 * row['accuracy']:.1f} % |"
        )
    return "\n".join(lines) + "\n"


def draw(path: pathlib.Path, table: list[dict[str, Any]], independent: float) -> None:
    """Bits and class accuracy over calls, a line for each model and schedule."""
    with files.style():
        figure, axes = files.subplots(1, 2, size=(2 * files.COLUMN, 2.7))
        for axis, key, title in (
            (axes[0], "bits", "bits per dimension, test digits"),
            (axes[1], "accuracy", "class accuracy of what is drawn"),
        ):
            for name, colour in COLOURS.items():
                for schedule, style in (("uniform", "--"), ("optimal", "-")):
                    rows = [r for r in table if r["model"] == name]
                    rows = [r for r in rows if r["schedule"] in (schedule, "sequential")]
                    if name == RASTER and schedule == "uniform":
                        continue
                    rows.sort(key=lambda r: r["calls"])
                    label = name if name == RASTER else f"{name}, {schedule}"
                    calls, values = ([r[k] for r in rows] for k in ("calls", key))
                    axis.plot(calls, values, style, marker="o", ms=2.5, color=colour, label=label)
            axis.set(xlabel="network calls for an image", title=title)
            log_axes(axis, "x")
            axis.grid(alpha=0.3)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
        files.save(figure, path)


def draw_strips(path: pathlib.Path, models: Mapping[str, Model], size: Size) -> None:
    """Decoding in random order, the same from coarse to fine, and lower halves filled in."""
    frames, names = [], []
    for name in (ANY, UPSCALE):
        model = models[name]
        labels = np.arange(size.rows) + 2
        seen = edm_jax.sample(
            model, range(size.rows), labels, num_steps=64 // len(_stages(model)), trajectory=True
        )
        steps = shown_steps(len(seen.x) - 1, 11)
        for i in range(size.rows):
            frames += [*decoding_frames(seen.x[steps, i], seen.known[steps, i], NUM_VALUES)]
            names.append(f"{name}: {labels[i]}")
    for i, label in enumerate((0, 3, 6)[: size.rows]):
        frames += [*_completions(models[ANY], label, 10)]
        names.append(f"lower half of a test {label}, seeds {10 * i} on")
    sample_grid(
        path, np.stack(frames), 11, row_names=names,
        title="blue is not known yet; below: left what is given, then ten ways to go on",
    )  # fmt: skip


def _stages(model: Model) -> range:
    return range(registry.build(**model.description["process"]).num_stages)


def _completions(model: Model, label: int, count: int) -> np.ndarray:
    """``(count + 1, 8, 8, 3)``: the upper half of a test digit, and digits with that half."""
    images, labels = stack_source(digits("test"))
    chosen = images[labels == label][:1]
    values = np.broadcast_to(np.asarray(model_values(model, chosen)), (count, 8, 8, 1))
    given = np.zeros((count, 8, 8, 1), bool)
    given[:, :4] = True

    @jax.jit
    def fill(model: Model, rows: jax.Array, values: jax.Array) -> jax.Array:
        predict, process = registry.model_predictor(model, rows)
        policy = 32 + uniform_policy(32, 32)
        return sample_ardm(
            predict, process, image_keys(range(count)), (8, 8, 1), policy,
            values=values, given=given,
        )  # fmt: skip

    drawn = np.asarray(fill(model, model.label_rows(label, count), values))
    first = decoding_frames(values[:1], given[:1], NUM_VALUES)
    return np.concatenate([first, decoding_frames(drawn, np.ones_like(given), NUM_VALUES)])


def run(
    workdir: pathlib.Path, size: Size | None = None, *, figure_format: str = "png"
) -> list[dict[str, Any]]:
    """Train, measure, and write tables and figures.

    Args:
      workdir: a directory, which must exist.
      size: how much; None for what docs/ardm.md shows.
      figure_format: png, pdf or svg, of the curves; the strips are a PNG.
    """
    size = Size() if size is None else size
    models = trained(workdir, size)
    table = measure(workdir, models, size)
    independent = independent_bits()
    text = to_markdown(table, independent)
    told_ = {"independent": independent, "rows": table}
    write_atomically(workdir / "ardm.json", json.dumps(told_, indent=1) + "\n")
    write_atomically(workdir / "ardm.md", text)
    draw(workdir / f"ardm.{figure_format}", table, independent)
    draw_strips(workdir / "ardm_decoding.png", models, size)
    print("\n" + text)
    return table
