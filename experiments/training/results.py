"""What a training run leaves to be looked at: grids, figures, evaluations, the last words."""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from edm_jax import requests
from edm_jax.arguments import user_path
from edm_jax.data.sources.base import stack_source
from edm_jax.evaluation import drawing, protocol, reporting
from edm_jax.evaluation.labels import asked_labels, has_label_vectors
from edm_jax.evaluation.loss_levels import loss_at_levels
from edm_jax.figures import curves, files, sheets, trajectories
from edm_jax.generate import sample
from edm_jax.metrics.registry import columns
from edm_jax.model import Model
from edm_jax.noise import sample_sigma
from edm_jax.train import distributed
from edm_jax.train.state import TrainState
from experiments import bounds, evaluations, workdir
from experiments.config.options import label_choice
from experiments.training import accuracy, order_agnostic, writers
from experiments.training.run import Run

Poll = Callable[[], None]
GRID_COLUMNS = 10
GRID_UNLABELLED = 64
NUM_LOSS_LEVELS = 32
LOSS_IMAGES = 64


def show(run: Run, state: TrainState, step: int, poll: Poll, *, missing: bool = False) -> None:
    """The grid and the evaluation that are due after a step.

    Args:
      run, state, step: what is shown, when.
      poll: called for each batch of samples; may raise to cut it short.
      missing: only what a run that stopped right after this step has left undone.
    """

    def wanted(due: bool, exists: Callable[[], bool]) -> bool:
        return due and not (missing and distributed.lead_says(exists))

    intervals = run.intervals
    draws = run.experiment.draws_images
    if draws and wanted(intervals.grid_due(step), grid_path(run, step).exists):
        _save_grid(run, state, step, poll)
    texts = grid_path(run, step).with_suffix(".txt")
    if run.experiment.sequences and wanted(intervals.grid_due(step), texts.exists):
        model = run.model(state, step)
        if run.leads:
            order_agnostic.save_texts(run, texts, model)
    if wanted(intervals.evaluation_due(step), lambda: _is_evaluated(run, step)):
        _evaluate_now(run, state, step, poll)


def figure_path(run: Run, name: str) -> pathlib.Path:
    """Where a figure of the run is."""
    return run.path / "figures" / f"{name}.{run.figure_format}"


@contextlib.contextmanager
def figure(run: Run, name: str) -> Iterator[pathlib.Path]:
    """Where a figure goes; one that fails costs neither the evaluation nor other figures."""
    path = figure_path(run, name)
    with files.costing_nothing_else(path):
        yield path


def grid_path(run: Run, step: int) -> pathlib.Path:
    """Where the sample grid of a step is."""
    return run.path / workdir.SAMPLES / f"kimg-{step * run.batch_size / 1000:08.1f}.png"


def _is_evaluated(run: Run, step: int) -> bool:
    rows = writers.read_metrics(run.path, workdir.EVALUATIONS)
    return any(row["step"] == step for row in rows)


def _save_grid(run: Run, state: TrainState, step: int, poll: Poll) -> None:
    """The sample grid of the fixed seeds, a row per class that has images."""
    paused = run.status.pause()
    model = run.model(state, step)
    sampling = run.experiment.sampling
    classes = model.classes[:10]
    count, columns, labels = GRID_UNLABELLED, 8, None
    if model.num_classes and has_label_vectors(run.source):
        classes, labels = (), asked_labels(model, run.source, count)
    elif classes:
        count, columns = len(classes) * GRID_COLUMNS, GRID_COLUMNS
        labels = np.repeat(classes, GRID_COLUMNS)
    seeds = np.arange(count)
    samples = drawing.draw(
        model, seeds, labels, sampling, batch_size=run.experiment.sample_batch, poll=poll
    )
    if not run.leads:
        return
    names = None
    if classes:
        names = [model.label_names[i] if model.label_names else str(i) for i in classes]
    path, kimg = grid_path(run, step), step * run.batch_size / 1000
    calls = protocol.describe_calls(requests.network_calls(model, sampling))
    with files.costing_nothing_else(path):
        sheets.sample_grid(
            path,
            samples,
            columns,
            row_names=names,
            title=f"{kimg:g} kimg, {calls}",
            told={
                "seeds": seeds.tolist(),
                "labels": None if labels is None else labels.tolist(),
                "sampling": workdir.to_json(sampling.to_json()),
                "weights": model.variant,
                "progress": model.description.get("progress"),
            },
        )
        run.monitor.picture(step, "samples", path)
    run.status.resume(paused)


def _evaluate_now(run: Run, state: TrainState, step: int, poll: Poll) -> None:
    """An evaluation during training: a line of numbers, and their curve so far."""
    paused = run.status.pause()
    model = run.model(state, step)
    group = run.experiment.evaluation
    result = _evaluate(run, model, poll, group.every_num_images or group.num_images)
    if run.leads:
        run.monitor.evaluation(step, result)
        run.status.say("\n" + _table(result) + "\n")
        _draw_evaluations(run)
    run.status.resume(paused)


def _evaluate(run: Run, model: Model, poll: Poll, num_images: int) -> dict[str, Any]:
    """The evaluation that the run's configuration asks for."""
    if run.experiment.kind == "classifier":
        return accuracy.evaluate(run, model, num_images, poll)
    bound = bounds.bound(
        model, run.source, run.experiment.data.open_test(), batch_size=run.experiment.sample_batch
    )
    if run.experiment.sequences:
        told = {"weights": model.variant, "progress": model.description.get("progress")}
        return {"kind": model.kind, **told, **bound}
    group = run.experiment.evaluation
    with evaluations.unfinished(run.path / evaluations.FOLDER) as kept:
        result = protocol.evaluate(
            model,
            [user_path("config.evaluation.reference", group.reference), run.source]
            if group.reference
            else run.source,
            run.experiment.data.open_test(),
            metrics=tuple(group.metrics),
            num_images=num_images,
            blocks=group.blocks if num_images == group.num_images else 1,
            first_seed=group.first_seed,
            labels=label_choice(group.labels),
            sampling=run.experiment.sampling,
            weights=group.weights,
            options={name: f"config.evaluation.{name}" for name in group.weights},
            batch_size=run.experiment.sample_batch,
            cache=evaluations.references_directory(),
            resume=kept,
            report=run.status.say,
            poll=poll,
            strict=False,
            more=bound,
        )
    # An infinite end of churn is not JSON.
    return {k: workdir.to_json(v) if k == "sampling" else v for k, v in result.items()}


def _table(result: dict[str, Any]) -> str:
    """The numbers of an evaluation as lines for the user."""
    if "sampling" not in result and "bits_per_dim" in result:
        return bounds.table(result)
    return (accuracy.table if "top_1" in result else reporting.result_table)(result)


def _draw_evaluations(run: Run, *last: dict[str, Any]) -> None:
    """The evaluations during training, and the one at the end, over kimg."""
    if not run.experiment.draws_images:
        return
    rows = [*writers.read_metrics(run.path, workdir.EVALUATIONS), *last]
    if rows:
        measures = {
            column.label: [row[column.key] for row in rows]
            for column in columns(run.experiment.evaluation.metrics)
            if all(column.key in row for row in rows)
        }
        with figure(run, "evaluations") as path:
            curves.evaluation_curves(path, [row["kimg"] for row in rows], measures)


def _draw_losses(run: Run, path: pathlib.Path, initial: Model, trained: Model) -> None:
    """Loss per noise level before and after training (EDM Fig. 5a)."""
    images, labels = stack_source(run.source, LOSS_IMAGES)
    sigmas = run.experiment.shown_levels(NUM_LOSS_LEVELS, run.experiment.preconditioning)
    given = (
        images / 127.5 - 1,
        sigmas,
        labels if trained.num_classes else None,
        run.experiment.weight,
    )
    draws = sample_sigma(
        run.experiment.distribution, jax.random.key(0, impl="threefry2x32"), (20_000,)
    )
    curves.loss_per_noise_level(
        path,
        sigmas,
        loss_at_levels(initial, *given),
        loss_at_levels(trained, *given),
        np.asarray(draws),
    )


def _draw_trajectories(run: Run, path: pathlib.Path, model: Model) -> None:
    """What the sampler of the run sees on the way from noise to some images."""
    count = run.experiment.evaluation.trajectory_seeds
    sampling = run.experiment.sampling
    if not count:
        return
    seeds = np.arange(count)
    vectors = model.num_classes and has_label_vectors(run.source)
    labels = asked_labels(model, run.source, count)
    visited = sample(model, seeds, labels, sampling=sampling, trajectory=True)
    classes = None
    if labels is not None and not vectors:
        names = model.label_names or [str(i) for i in range(model.num_classes)]
        classes = [names[label] for label in labels]
    trajectories.denoising_trajectories(
        path,
        visited.x,
        visited.denoised,
        sampling.grid(model.preconditioning),
        [f"seed {s}" + (f", class {classes[s]}" if classes else "") for s in seeds],
        sigma_data=model.preconditioning.sigma_data or 0.5,
    )


def is_finished(run: Run, step: int) -> bool:
    """Whether a run that ends at a step, which is behind it, has made everything else too."""
    if not figure_path(run, "loss").exists():
        return False
    if not run.experiment.evaluation.num_images:
        return True
    # Not one of earlier weights, or of another average, that --mode=evaluate left.
    result = evaluations.read(run.path) or {}
    progress, variant = result.get("progress"), run.experiment.averaging.names()[0]
    whole = isinstance(progress, dict) and progress.get("step") == step
    return whole and result.get("weights") == variant


def finish(run: Run, state: TrainState, started: float, poll: Poll) -> dict[str, Any] | None:
    """Figures, evaluation and the closing table; ``poll`` may cut the evaluation short."""
    step = int(state.step)
    model, draws = run.model(state, step), run.experiment.draws_images
    kind = run.experiment.kind
    initial = run.model(run.make_state(), 0) if draws and kind != "ardm" else None
    run.store.wait()
    if run.leads:
        run.status.say("drawing figures ...")
        if kind == "ardm":
            with figure(run, "loss_per_step") as path:
                order_agnostic.draw_profile(path, model)
            if draws:
                with figure(run, "trajectories") as path:
                    order_agnostic.draw_decodings(run, path, model)
        elif draws:
            with figure(run, "loss_per_noise_level") as path:
                _draw_losses(run, path, initial, model)
            with figure(run, "trajectories") as path:
                _draw_trajectories(run, path, model)
        rows = writers.read_metrics(run.path)
        with figure(run, "loss") as path:
            curves.training_curve(path, [r["kimg"] for r in rows], [r["loss"] for r in rows])
    poll()
    if not run.experiment.evaluation.num_images:
        return summary(run, None)
    result = _evaluate(run, model, poll, run.experiment.evaluation.num_images)
    if not run.leads:
        return None
    result["seconds"] = round(time.perf_counter() - started, 1)
    evaluations.write(run.path, result)
    if kind == "classifier":
        with figure(run, "accuracy_per_noise_level") as path:
            accuracy.draw(path, result)
    if run.intervals.evaluation:
        _draw_evaluations(run, {"kimg": step * run.batch_size / 1000, **result})
    return summary(run, result)


def summary(run: Run, result: dict[str, Any] | None) -> dict[str, Any] | None:
    """Say what was made and where."""
    if not run.leads:
        return result
    if result is not None:
        print("\n" + _table(result) + "\n")
    for name, what in (
        ("checkpoints", "weights; edm_jax.load(...) takes this run directory"),
        ("samples", "grids of the same seeds during training"),
        ("figures", "loss curves, loss or accuracy per noise level, trajectories"),
        (workdir.METRICS, "one JSON object per log line"),
        (workdir.EVALUATIONS, "one JSON object per evaluation during training"),
        ("profile", "trace of the steps that --profile_steps asked for"),
        (workdir.EVALUATION, "the numbers above"),
    ):
        if (run.path / name).exists():
            print(f"  {run.path / name}  ({what})")
    return result
