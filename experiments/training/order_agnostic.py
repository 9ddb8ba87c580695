"""What a run leaves that trains an autoregressive model, beside what any model leaves."""

from __future__ import annotations

import pathlib

import numpy as np

from edm_jax.ardm.registry import build
from edm_jax.evaluation.labels import asked_labels
from edm_jax.figures import profiles
from edm_jax.figures.decodings import decoding_sheet
from edm_jax.generate import sample
from edm_jax.model import Model
from experiments import text_files
from experiments.training.run import Run
from experiments.workdir import write_atomically

NUM_TEXTS = 8


def draw_profile(path: pathlib.Path, model: Model) -> None:
    """The loss of every step, and what the number of calls costs."""
    process = build(**model.description["process"])
    profiles.loss_per_step(
        path,
        model.description["loss_per_step"],
        process.num_stages,
        policies=process.order == "random",
    )


def draw_decodings(run: Run, path: pathlib.Path, model: Model) -> None:
    """Some images on their way from nothing known to everything."""
    count = run.experiment.evaluation.trajectory_seeds
    if not count:
        return
    path = path.with_suffix(path.suffix if path.suffix in (".png", ".pdf") else ".png")
    seeds, labels = np.arange(count), asked_labels(model, run.source, count)
    visited = sample(model, seeds, labels, sampling=run.experiment.sampling, trajectory=True)
    num_values = build(**model.description["process"]).num_values
    decoding_sheet(
        path, visited.x, visited.known, num_values, names=[f"seed {seed}" for seed in seeds]
    )


def save_texts(run: Run, path: pathlib.Path, model: Model) -> None:
    """Texts of the first seeds, a line each."""
    tokens = sample(model, range(NUM_TEXTS), sampling=run.experiment.sampling)
    lines = [line.replace("\n", "\\n") for line in text_files.texts(model, tokens)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "\n".join(lines) + "\n")
