"""What a training run leaves to be looked at: grids, figures, evaluations, the last words."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from edm_jax.train.state import TrainState
from experiments import build, evaluate, figures, workdir, writers
from experiments.run import Run

GRID_COLUMNS = 10
GRID_UNLABELLED = 64


def save_grid(run: Run, state: TrainState, step: int) -> None:
    """The sample grid of the fixed seeds, a row per class."""
    paused = run.status.pause()
    model = run.model(state, step)
    if not run.leads:
        return
    arguments = build.sampler_arguments(run.config)
    classes = min(model.num_classes, 10)
    count = classes * GRID_COLUMNS if classes else GRID_UNLABELLED
    columns = GRID_COLUMNS if classes else 8
    labels = np.arange(count) // GRID_COLUMNS if classes else None
    samples = evaluate.draw_samples(model, np.arange(count), labels, arguments, "samples")
    names = None
    if classes:
        names = (model.label_names or [str(i) for i in range(classes)])[:classes]
    kimg = step * run.batch_size / 1000
    path = run.path / "samples" / f"kimg-{kimg:08.1f}.png"
    figures.sample_grid(
        path,
        samples,
        columns,
        row_names=names,
        title=f"{kimg:g} kimg, {evaluate.nfe(arguments['num_steps'])} network calls",
    )
    run.monitor.picture(step, "samples", path)
    run.status.resume(paused)


def evaluate_now(run: Run, state: TrainState, step: int) -> None:
    """An evaluation during training: a line of numbers, and their curve so far."""
    paused = run.status.pause()
    model = run.model(state, step)
    if run.leads:
        result = evaluate.evaluate(model, run.config, report=run.status.say)
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


def finish(run: Run, state: TrainState, started: float) -> dict[str, Any] | None:
    """Figures, evaluation and the closing table."""
    step = int(state.step)
    model, initial = run.model(state, step), run.model(run.make_state(), 0)
    run.store.wait()
    if not run.leads:
        return None
    run.status.say("drawing figures ...")
    evaluate.draw_figures(run.path / "figures", initial, model, run.config, run.source)
    rows = writers.read_metrics(run.path)
    figures.training_curve(
        run.path / "figures" / "loss.png", [r["kimg"] for r in rows], [r["loss"] for r in rows]
    )
    result = None
    if run.config.evaluation.num_images:
        result = evaluate.evaluate(model, run.config, report=run.status.say)
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
