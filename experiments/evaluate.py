"""Evaluation of a model against its data: numbers, pictures and a table."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import generate, losses, samplers
from edm_jax.data.sources.base import ImageSource
from edm_jax.model import Model
from edm_jax.noise import sample_sigma
from edm_jax.train import distributed
from edm_jax.train.sharding import batch_sharding, make_mesh, replicated
from experiments import figures
from experiments.config.experiment import Experiment, data_difference
from experiments.config.groups import pick
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
    """A bar with rate and time left, on a terminal only, of one process."""
    from tqdm import tqdm

    disable = True if jax.process_index() else None
    return tqdm(total=total, desc=name, unit="img", disable=disable, leave=False)


def local_sharding() -> jax.sharding.NamedSharding:
    """Images split over the devices of this process."""
    return batch_sharding(make_mesh(jax.local_devices()))


def draw_samples(
    model: Model,
    seeds: np.ndarray,
    labels: np.ndarray | None,
    arguments: dict,
    name: str,
    poll: Callable[[], None] | None = None,
) -> np.ndarray:
    """Samples on all devices of all processes, which must call this together.

    Args:
      model: to sample from; the same on every process.
      seeds, labels: see `edm_jax.sample`.
      arguments: of `edm_jax.sample`; the batch size is that of one process.
      name: shown with the progress.
      poll: called after each batch; may raise, then on every process.

    Returns:
      ``(len(seeds), H, W, C)`` float32, on every process.
    """
    here = local_sharding()
    variables = jax.device_put(model.variables, replicated(here.mesh))
    model = model.replace(variables)
    processes = jax.process_count()
    batch = min(arguments["batch_size"], -(-len(seeds) // processes))
    parts = []
    with progress_bar(len(seeds), name) as bar:
        for start in range(0, len(seeds), batch * processes):
            rows = start + batch * jax.process_index() + np.arange(batch)
            rows = np.minimum(rows, len(seeds) - 1)  # the last is drawn again as padding
            images = generate.sample(
                model,
                seeds[rows],
                None if labels is None else labels[rows],
                sharding=here,
                **arguments,
            )
            parts.append(distributed.gather(images)[: len(seeds) - start])
            bar.update(len(parts[-1]))
            if poll is not None:
                poll()
    return np.concatenate(parts)


def sampler_arguments(experiment: Experiment) -> dict[str, Any]:
    """Keyword arguments for `edm_jax.sample`."""
    return {"sampling": experiment.sampling, "batch_size": experiment.sample_batch}


def evaluate(
    model: Model,
    experiment: Experiment,
    report: Report = print,
    poll: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Draw samples and measure them as an experiment asks.

    All processes draw, process 0 measures.

    Args:
      model: to sample from.
      experiment: of the run.
      report: told what is going on.
      poll: called for each batch of samples; may raise.

    Returns:
      JSON values: number of images, NFE, and one or more numbers for each metric; nothing
      on processes other than 0.
    """
    group = experiment.evaluation
    arguments = sampler_arguments(experiment)
    source = experiment.data.open()
    if difference := data_difference(model.description, source):
        raise ValueError(f"the model makes {difference}; give the --config of its data")
    seeds = group.first_seed + np.arange(group.num_images)
    labels = np.arange(group.num_images) % model.num_classes if model.num_classes else None
    nfe = experiment.sampling.nfe(model.preconditioning)
    report(f"drawing {group.num_images} images, {nfe} network calls each")
    samples = draw_samples(model, seeds, labels, arguments, "evaluation", poll)
    if jax.process_index():
        return {}
    # Measured as they would be saved: rounded to bytes.
    samples = as_floats(generate.to_uint8(samples))
    result: dict[str, Any] = {
        "num_images": int(group.num_images),
        "nfe": nfe,
        "num_steps": experiment.sampling.num_steps,
        "sampling": experiment.sampling.to_json(),
        "weights": model.variant,
        "progress": model.description.get("progress"),
    }
    train_images, train_labels = stack_source(source)
    train = (as_floats(train_images), train_labels)
    test = None
    if (test_source := experiment.data.open_test()) is not None:
        test_images, test_labels = stack_source(test_source)
        test = (as_floats(test_images), test_labels)
    for name in group.metrics:
        measure = pick(METRICS, name, "config.evaluation.metrics")
        result |= measure((samples, labels), train, test)
    return result


# Images and their labels; the labels are None or empty for images without.
Labelled = tuple[np.ndarray, np.ndarray | None]


def _frechet_pixels(samples: Labelled, train: Labelled, test: Labelled | None) -> dict[str, float]:
    """Of the samples, and of real images that were not trained on, to those that were."""
    from edm_jax.metrics.frechet import frechet_distance, gaussian_statistics

    real = gaussian_statistics(_flat(train[0]))
    found = {"frechet_distance": samples} | ({"frechet_distance_floor": test} if test else {})
    return {
        key: frechet_distance(*gaussian_statistics(_flat(images)), *real)
        for key, (images, _) in found.items()
    }


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


def _classifier(samples: Labelled, train: Labelled, test: Labelled | None) -> dict[str, float]:
    """How often a classifier of the training images sees the class that was asked for."""
    if samples[1] is None:
        return {}
    from edm_jax.metrics.classifier import class_accuracy, fit_pixel_classifier

    classify = fit_pixel_classifier(*train)
    found = {"class_accuracy": samples} | ({"class_accuracy_real_test": test} if test else {})
    return {
        key: class_accuracy(classify(images), labels) for key, (images, labels) in found.items()
    }


# The covariance of pixels is a matrix of this size squared: half a minute and 0.1 GB here.
MAX_PIXEL_NUMBERS = 4096
METRICS = {"frechet_pixels": _frechet_pixels, "classifier": _classifier}


def write_evaluation(workdir: pathlib.Path, result: dict[str, Any]) -> pathlib.Path:
    """Write evaluation.json."""
    path = workdir / EVALUATION
    write_atomically(path, json.dumps(result, indent=2) + "\n")
    return path


def read_evaluation(workdir: pathlib.Path) -> dict[str, Any] | None:
    """What `write_evaluation` wrote, or None if there is nothing readable."""
    try:
        return json.loads((workdir / EVALUATION).read_text())
    except (OSError, ValueError):
        return None


# Key, label and format of what is measured, and of the other rows of the table.
MEASURED = (
    ("class_accuracy", "class accuracy of samples", "{:.2%}"),
    ("class_accuracy_real_test", "class accuracy of real test images", "{:.2%}"),
    ("frechet_distance", "Frechet distance, samples to train", "{:.4f}"),
    ("frechet_distance_floor", "Frechet distance, real test to train", "{:.4f}"),
)
ROWS = (
    *MEASURED,
    ("num_images", "images", "{:d}"),
    ("nfe", "network calls per image", "{:d}"),
)


def result_table(result: dict[str, Any]) -> str:
    """The result as a short table."""
    rows = [(label, form.format(result[key])) for key, label, form in ROWS if key in result]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"  {label:<{width}}  {value:>10}" for label, value in rows)


# ------------------------------------------------------------------------------ pictures


def compiled_denoiser(model: Model) -> Callable[..., Any]:
    """``denoise(variables, x, sigma, rows)`` of a model; one program for every figure."""
    return jax.jit(lambda variables, *arguments: model.denoiser(variables)(*arguments))


def loss_at_levels(
    denoise: Callable[..., Any],
    variables: Any,
    images: np.ndarray,
    rows: Any,
    weight: Callable[..., Any],
    sigmas: np.ndarray,
) -> np.ndarray:
    """Weighted loss per element of some images at every noise level.

    Args:
      denoise: see `compiled_denoiser`.
      variables: of its network.
      images: ``(n, H, W, C)`` in [-1, 1].
      rows: labels of the images as the network takes them, or None.
      weight: lambda(sigma).
      sigmas: ``(S,)``.

    Returns:
      ``(S, n)`` float32.
    """
    y = jnp.asarray(images, jnp.float32)
    key = jax.random.key(0, impl="threefry2x32")
    levels = []
    for i, sigma in enumerate(sigmas.astype(np.float32)):
        noise = jax.random.normal(jax.random.fold_in(key, i), y.shape)
        denoised = denoise(variables, y + sigma * noise, sigma, rows)
        loss = losses.sum_per_image(jnp.square(denoised - y)) / y[0].size
        levels.append(np.asarray(weight(sigma) * loss))
    return np.stack(levels)


def draw_figures(
    directory: pathlib.Path,
    initial: Model,
    trained: Model,
    experiment: Experiment,
    source: ImageSource,
) -> None:
    """Loss per noise level before and after training (EDM Fig. 5a), and trajectories."""
    images, labels = stack_source(source, LOSS_IMAGES)
    count = len(images)
    denoise = compiled_denoiser(trained)

    def rows(labels: np.ndarray) -> Any:
        return trained.label_rows(jnp.asarray(labels), count) if trained.num_classes else None

    sampled = experiment.sampling.grid()
    sigmas = np.geomspace(sampled[-2], sampled[0], NUM_LOSS_LEVELS)
    fixed = (as_floats(images), rows(labels), experiment.weight, sigmas)
    draws = sample_sigma(experiment.distribution, jax.random.key(0, impl="threefry2x32"), (20_000,))
    figures.loss_per_noise_level(
        directory / "loss_per_noise_level.png",
        sigmas,
        loss_at_levels(denoise, initial.variables, *fixed),
        loss_at_levels(denoise, trained.variables, *fixed),
        np.asarray(draws),
    )
    sampling = experiment.sampling
    shown = min(experiment.evaluation.trajectory_seeds, count)
    if shown and "trajectory" in samplers.get(sampling.sampler).options:
        seeds = np.arange(shown)
        classes = seeds % trained.num_classes if trained.num_classes else None
        visited = generate.sample(trained, seeds, classes, sampling=sampling, trajectory=True)
        figures.denoising_trajectories(
            directory / "trajectories.png",
            visited.x,
            visited.denoised,
            sampling.grid(trained.preconditioning),
            seeds.tolist(),
        )
