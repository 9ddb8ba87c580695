"""What a training run leaves to be looked at: grids, figures, evaluations, the last words."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from edm_jax.train import distributed
from edm_jax.train.state import TrainState
from experiments import evaluate, figures, workdir
from experiments.training import writers
from experiments.training.run import Run

Poll = Callable[[], None]
GRID_COLUMNS = 10
GRID_UNLABELLED = 64


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
    if wanted(intervals.grid_due(step), grid_path(run, step).exists):
        _save_grid(run, state, step, poll)
    if wanted(intervals.evaluation_due(step), lambda: _is_evaluated(run, step)):
        _evaluate_now(run, state, step, poll)


def grid_path(run: Run, step: int) -> pathlib.Path:
    """Where the sample grid of a step is."""
    return run.path / workdir.SAMPLES / f"kimg-{step * run.batch_size / 1000:08.1f}.png"


def _is_evaluated(run: Run, step: int) -> bool:
    rows = writers.read_metrics(run.path, workdir.EVALUATIONS)
    return any(row["step"] == step for row in rows)


def _save_grid(run: Run, state: TrainState, step: int, poll: Poll) -> None:
    """The sample grid of the fixed seeds, a row per class."""
    paused = run.status.pause()
    model = run.model(state, step)
    arguments = evaluate.sampler_arguments(run.experiment)
    classes = min(model.num_classes, 10)
    count = classes * GRID_COLUMNS if classes else GRID_UNLABELLED
    columns = GRID_COLUMNS if classes else 8
    labels = np.arange(count) // GRID_COLUMNS if classes else None
    samples = evaluate.draw_samples(model, np.arange(count), labels, arguments, "samples", poll)
    if not run.leads:
        return
    names = None
    if classes:
        names = (model.label_names or [str(i) for i in range(classes)])[:classes]
    path, kimg = grid_path(run, step), step * run.batch_size / 1000
    calls = run.experiment.sampling.nfe(model.preconditioning)
    figures.sample_grid(
        path,
        samples,
        columns,
        row_names=names,
        title=f"{kimg:g} kimg, {calls} network calls",
    )
    run.monitor.picture(step, "samples", path)
    run.status.resume(paused)


def _evaluate_now(run: Run, state: TrainState, step: int, poll: Poll) -> None:
    """An evaluation during training: a line of numbers, and their curve so far."""
    paused = run.status.pause()
    model = run.model(state, step)
    result = evaluate.evaluate(model, run.experiment, report=run.status.say, poll=poll)
    if run.leads:
        run.monitor.evaluation(step, result)
        run.status.say("\n" + evaluate.result_table(result) + "\n")
        _draw_evaluations(run)
    run.status.resume(paused)


def _draw_evaluations(run: Run, *last: dict[str, Any]) -> None:
    """The evaluations during training, and the one at the end, over kimg."""
    rows = [*writers.read_metrics(run.path, workdir.EVALUATIONS), *last]
    if rows:
        figures.evaluation_curves(
            run.path / "figures" / "evaluations.png",
            [row["kimg"] for row in rows],
            {
                label: [row[key] for row in rows]
                for key, label, _ in evaluate.MEASURED
                if all(key in row for row in rows)
            },
        )


def is_finished(run: Run, step: int) -> bool:
    """Whether a run that ends at a step, which is behind it, has made everything else too."""
    if not (run.path / "figures" / "loss.png").exists():
        return False
    if not run.experiment.evaluation.num_images:
        return True
    # Not one of earlier weights, or of another average, that --mode=evaluate left.
    result = evaluate.read_evaluation(run.path) or {}
    progress, variant = result.get("progress"), run.experiment.averaging.names()[0]
    whole = isinstance(progress, dict) and progress.get("step") == step
    return whole and result.get("weights") == variant


def finish(run: Run, state: TrainState, started: float, poll: Poll) -> dict[str, Any] | None:
    """Figures, evaluation and the closing table; ``poll`` may cut the evaluation short."""
    step = int(state.step)
    model, initial = run.model(state, step), run.model(run.make_state(), 0)
    run.store.wait()
    if run.leads:
        run.status.say("drawing figures ...")
        evaluate.draw_figures(run.path / "figures", initial, model, run.experiment, run.source)
        rows = writers.read_metrics(run.path)
        figures.training_curve(
            run.path / "figures" / "loss.png", [r["kimg"] for r in rows], [r["loss"] for r in rows]
        )
    poll()
    if not run.experiment.evaluation.num_images:
        return summary(run, None)
    result = evaluate.evaluate(model, run.experiment, report=run.status.say, poll=poll)
    if not run.leads:
        return None
    result["seconds"] = round(time.perf_counter() - started, 1)
    evaluate.write_evaluation(run.path, result)
    if run.intervals.evaluation:
        _draw_evaluations(run, {"kimg": step * run.batch_size / 1000, **result})
    return summary(run, result)


def summary(run: Run, result: dict[str, Any] | None) -> dict[str, Any] | None:
    """Say what was made and where."""
    if not run.leads:
        return result
    if result is not None:
        print("\n" + evaluate.result_table(result) + "\n")
    for name, what in (
        ("checkpoints", "weights; edm_jax.load(...) takes this run directory"),
        ("samples", "grids of the same seeds during training"),
        ("figures", "loss curves, loss per noise level, trajectories"),
        (workdir.METRICS, "one JSON object per log line"),
        (workdir.EVALUATIONS, "one JSON object per evaluation during training"),
        ("profile", "trace of the steps that --profile_steps asked for"),
        (workdir.EVALUATION, "the numbers above"),
    ):
        if (run.path / name).exists():
            print(f"  {run.path / name}  ({what})")
    return result
