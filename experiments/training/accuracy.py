"""What a run leaves that trains a classifier, which draws no images: accuracy per noise level."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edm_jax.classifier import of_model
from edm_jax.evaluation.accuracy import accuracy_at_levels
from edm_jax.figures import curves
from edm_jax.model import Model
from experiments.training.run import Run

NUM_LEVELS = 17
SHOWN_LEVELS = 6  # in the table that is printed


def evaluate(run: Run, model: Model, num_images: int, poll: Callable[[], None]) -> dict[str, Any]:
    """Accuracy and cross entropy over the noise levels of the run's sampler, as JSON values.

    Of the test images where the data set has some, else of images that were trained on.

    Args:
      run: which says the data and the levels.
      model: a classifier.
      num_images: at most; every so many of the data set.
      poll: called before the work; may raise.
    """
    poll()
    test = run.experiment.data.open_test()
    source = run.source if test is None else test
    chosen = np.linspace(0, len(source) - 1, min(num_images, len(source))).round().astype(int)
    examples = [source[i] for i in chosen.tolist()]
    sigmas = run.experiment.shown_levels(NUM_LEVELS, model.preconditioning)
    found = accuracy_at_levels(
        of_model(model),
        np.stack([example["image"] for example in examples]) / 127.5 - 1,
        np.stack([example["label"] for example in examples]),
        sigmas,
        batch_size=run.experiment.sample_batch,
    )
    return {
        "kind": model.kind,
        "weights": model.variant,
        "progress": model.description.get("progress"),
        "num_images": len(examples),
        "split": "train" if test is None else "test",
        "num_classes": model.num_classes,
        "sigmas": sigmas.tolist(),
        **{name: values.tolist() for name, values in found._asdict().items()},
    }


def table(result: Mapping[str, Any]) -> str:
    """Some of the levels of a result, as lines for the user."""
    index = np.linspace(0, len(result["sigmas"]) - 1, SHOWN_LEVELS).round().astype(int)
    lines = [f"{result['num_images']:,} {result['split']} images", "   sigma   top 1   top 5  nats"]
    for i in index:
        top_1, top_5 = (f"{100 * result[name][i]:5.1f} %" for name in ("top_1", "top_5"))
        nats = f"{result['cross_entropy'][i]:5.2f}"
        lines.append(f"{result['sigmas'][i]:8.3g} {top_1} {top_5} {nats}")
    return "\n".join(lines)


def draw(path: Any, result: Mapping[str, Any]) -> None:
    """The figure of a result."""
    shown = {"top 1": np.asarray(result["top_1"])}
    if result["num_classes"] > 10:
        shown["top 5"] = np.asarray(result["top_5"])
    curves.accuracy_per_noise_level(
        path, np.asarray(result["sigmas"]), shown, result["num_classes"]
    )
