"""Evaluation of a model against its data: numbers, pictures and a table."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from edm_jax import generate
from edm_jax.data.source import ImageSource
from edm_jax.noise import sample_sigma
from edm_jax.precond import precondition
from edm_jax.train.sharding import batch_sharding, make_mesh
from edm_jax.weights.model import Model
from experiments import build, figures
from experiments.workdir import EVALUATION, write_atomically

Report = Callable[[str], None]
NUM_LOSS_LEVELS = 32
LOSS_IMAGES = 64


def as_floats(images: np.ndarray) -> np.ndarray:
    """uint8 -> float64 [-1, 1]."""
    return images / 127.5 - 1


def stack_source(source: ImageSource, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """All (or the first) images and labels of a source, labels empty if it has none."""
    count = len(source) if limit is None else min(limit, len(source))
    examples = [source[i] for i in range(count)]
    images = np.stack([e["image"] for e in examples])
    labels = np.stack([e["label"] for e in examples]) if source.num_classes else np.zeros(0)
    return images, labels


def progress_bar(total: int, name: str) -> Any:
    """A bar with rate and time left, on a terminal only."""
    from tqdm import tqdm

    return tqdm(total=total, desc=name, unit="img", disable=None, leave=False)


def draw_samples(
    model: Model, seeds: np.ndarray, labels: np.ndarray | None, arguments: dict, name: str
) -> np.ndarray:
    """Samples on all local devices, with a progress bar."""
    with progress_bar(len(seeds), name) as bar:
        return generate.sample(
            model,
            seeds,
            labels,
            sharding=batch_sharding(make_mesh(jax.local_devices())),
            on_batch=lambda done: bar.update(done - bar.n),
            **arguments,
        )


def nfe(num_steps: int) -> int:
    """Network calls per image of the Heun samplers: 2N - 1."""
    return 2 * num_steps - 1


def evaluate(
    model: Model, config: ml_collections.ConfigDict, report: Report = print
) -> dict[str, Any]:
    """Draw samples and measure them as ``config.evaluation`` asks.

    Returns:
      JSON values: number of images, NFE, and one or more numbers for each metric.
    """
    group = config.evaluation
    arguments = build.sampler_arguments(config)
    seeds = group.first_seed + np.arange(group.num_images)
    labels = np.arange(group.num_images) % model.num_classes if model.num_classes else None
    report(f"drawing {group.num_images} images, {nfe(arguments['num_steps'])} network calls each")
    samples = draw_samples(model, seeds, labels, arguments, "evaluation")
    # Measured as they would be saved: rounded to bytes.
    samples = as_floats(generate.to_uint8(samples))
    result: dict[str, Any] = {
        "num_images": int(group.num_images),
        "nfe": nfe(arguments["num_steps"]),
        "num_steps": int(arguments["num_steps"]),
        "weights": model.variant,
        "progress": model.description.get("progress"),
    }
    train_images, train_labels = stack_source(build.build_source(config))
    test_images, test_labels = stack_source(build.build_source(config, split="test"))
    train, test = as_floats(train_images), as_floats(test_images)
    for name in group.metrics:
        measure = build.pick(METRICS, name, "evaluation.metrics")
        result |= measure(samples, labels, train, train_labels, test, test_labels)
    return result


def _frechet_pixels(samples, labels, train, train_labels, test, test_labels) -> dict[str, float]:
    from edm_jax.metrics.frechet import frechet_between

    flat = [a.reshape(len(a), -1) for a in (samples, train, test)]
    return {
        "frechet_distance": frechet_between(flat[0], flat[1]),
        "frechet_distance_floor": frechet_between(flat[2], flat[1]),
    }


def _classifier(samples, labels, train, train_labels, test, test_labels) -> dict[str, float]:
    if labels is None:
        return {}
    from edm_jax.metrics.classifier import class_accuracy, fit_pixel_classifier

    classify = fit_pixel_classifier(train, train_labels)
    return {
        "class_accuracy": class_accuracy(classify(samples), labels),
        "class_accuracy_real_test": class_accuracy(classify(test), test_labels),
    }


METRICS = {"frechet_pixels": _frechet_pixels, "classifier": _classifier}


def write_evaluation(workdir: pathlib.Path, result: dict[str, Any]) -> pathlib.Path:
    """Write evaluation.json."""
    path = workdir / EVALUATION
    write_atomically(path, json.dumps(result, indent=2) + "\n")
    return path


ROWS = (
    ("class_accuracy", "class accuracy of samples", "{:.2%}"),
    ("class_accuracy_real_test", "class accuracy of real test images", "{:.2%}"),
    ("frechet_distance", "Frechet distance, samples to train", "{:.4f}"),
    ("frechet_distance_floor", "Frechet distance, real test to train", "{:.4f}"),
    ("num_images", "images", "{:d}"),
    ("nfe", "network calls per image", "{:d}"),
)


def result_table(result: dict[str, Any]) -> str:
    """The result as a short table."""
    rows = [(label, form.format(result[key])) for key, label, form in ROWS if key in result]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"  {label:<{width}}  {value:>10}" for label, value in rows)


# ------------------------------------------------------------------------------ pictures


def loss_at_levels(
    model: Model, config: ml_collections.ConfigDict, source: ImageSource, sigmas: np.ndarray
) -> np.ndarray:
    """Weighted loss per element of some images at every noise level.

    Args:
      model: any weights.
      config: gives the weight.
      source: images; the first ones are used.
      sigmas: ``(S,)``.

    Returns:
      ``(S, n)`` float32.
    """
    images, labels = stack_source(source, LOSS_IMAGES)
    y = jnp.asarray(as_floats(images), jnp.float32)
    rows = model.label_rows(jnp.asarray(labels), len(y)) if model.num_classes else None
    weight = build.build_weight(config)
    net, preconditioning = model.net, model.preconditioning
    key = jax.random.key(config.seed, impl="threefry2x32")

    @jax.jit
    def at_level(variables, index, sigma):
        noise = jax.random.normal(jax.random.fold_in(key, index), y.shape)

        def net_fn(x, c_noise):
            return net.apply(variables, x, c_noise, rows)

        denoised = precondition(net_fn, preconditioning)(y + sigma * noise, sigma)
        return weight(sigma) * jnp.mean(jnp.square(denoised - y), axis=(1, 2, 3))

    levels = [at_level(model.variables, i, s) for i, s in enumerate(sigmas.astype(np.float32))]
    return np.stack([np.asarray(level) for level in levels])


def loss_figure(
    path: pathlib.Path,
    initial: Model,
    trained: Model,
    config: ml_collections.ConfigDict,
    source: ImageSource,
) -> None:
    """Loss per noise level before and after training (EDM Fig. 5a)."""
    sigmas = np.geomspace(config.sampler.sigma_min, config.sampler.sigma_max, NUM_LOSS_LEVELS)
    key = jax.random.key(0, impl="threefry2x32")
    draws = sample_sigma(build.build_distribution(config), key, (20_000,))
    figures.loss_per_noise_level(
        path,
        sigmas,
        loss_at_levels(initial, config, source, sigmas),
        loss_at_levels(trained, config, source, sigmas),
        np.asarray(draws),
    )


def trajectory_figure(path: pathlib.Path, model: Model, config: ml_collections.ConfigDict) -> None:
    """Denoising trajectories of a few seeds."""
    seeds = np.arange(config.evaluation.trajectory_seeds)
    labels = seeds % model.num_classes if model.num_classes else None
    arguments = build.sampler_arguments(config)
    trajectory = generate.sample(model, seeds, labels, trajectory=True, **arguments)
    sigmas = build.sampler_sigmas(model.preconditioning, arguments)
    figures.denoising_trajectories(path, trajectory.x, trajectory.denoised, sigmas, seeds.tolist())
