"""Training from start (or wherever it was) to finish."""

from __future__ import annotations

import contextlib
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from edm_jax.data import pipeline
from edm_jax.train import distributed, sharding
from edm_jax.train.state import TrainState
from edm_jax.train.step import all_finite
from experiments import build, costs, evaluate, workdir
from experiments.preemption import Preempted, StopRequest
from experiments.results import evaluate_now, finish, save_grid, summary
from experiments.run import Run, Watch, check_run, open_run


class TrainingError(RuntimeError):
    """Training that cannot go on, said in one line."""


def train(
    config: ml_collections.ConfigDict, path: pathlib.Path, watch: Watch | None = None
) -> dict[str, Any] | None:
    """Train, resuming where an earlier run of the same command stopped.

    Args:
      config: resolved and locked.
      path: the run directory; created if need be.
      watch: what else to look at.

    Returns:
      The evaluation, if config.evaluation asks for one.
    """
    watch = watch or Watch()
    source, net = check_run(config, watch)
    with contextlib.ExitStack() as stack:

        def take_directory() -> None:
            workdir.prepare(path)
            stack.enter_context(workdir.locked(path))
            workdir.record_config(path, config.to_dict())

        distributed.on_lead(take_directory)
        started = time.perf_counter()
        run, state, step = open_run(config, path, source, net, watch)
        stack.callback(run.close)
        if step < run.intervals.total:
            with StopRequest() as stop:
                state = _loop(run, state, step, stop)
        elif (path / workdir.EVALUATION).exists() or not config.evaluation.num_images:
            run.status.say(f"finished: {path} has trained its {config.train.total_kimg:g} kimg")
            return summary(run, evaluate.read_evaluation(path))
        return finish(run, state, started)


# ---------------------------------------------------------------------------- the loop


def _loop(run: Run, state: TrainState, start: int, stop: StopRequest) -> TrainState:
    """Steps from ``start`` to the end.  The host only ever waits for what is already done."""
    intervals, batch_size = run.intervals, run.batch_size
    batches = pipeline.device_batches(
        pipeline.host_batches(
            run.source,
            batch_size,
            seed=run.config.seed,
            start_step=start,
            mirror=run.config.data.mirror,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_threads=run.config.data.num_threads,
            num_workers=run.config.data.num_workers,
        ),
        sharding.batch_sharding(run.mesh),
    )
    if start == 0:
        save_grid(run, state, 0)
        run.status.say("compiling the training step ...")
    pending: tuple[int, Any] | None = None
    for step in range(start + 1, intervals.total + 1):
        batch = next(batches)
        if step == start + 1:
            run.monitor.flops_per_image = _flops_per_image(run, state, batch)
        run.profiler.before(step, state.step)
        state = run.step_fn(state, batch, run.key)
        written = run.profiler.after(step, state.step)
        if step == start + 1 or written:
            jax.block_until_ready(state.step)  # compiled: rates count from here
            run.status.start(step)
        if pending is not None:
            # The window that ended one step ago: the device is already past it.
            _log(run, *pending)
            pending = None
        if step % intervals.log == 0 or step == intervals.total:
            pending = (step, _start_fetch(state))
        last = step == intervals.total
        if last and pending is not None:
            _log(run, *pending)
        stopping = stop.at(step)
        checkpoint_due = stopping or last or step % intervals.checkpoint == 0
        sample_due = last or (intervals.sample and step % intervals.sample == 0)
        # The end has an evaluation of its own.
        evaluation_due = not last and intervals.evaluation and step % intervals.evaluation == 0
        if checkpoint_due or sample_due or evaluation_due:
            _require_healthy(run, state, step)
        # The checkpoint last: a run killed before it makes the others again.
        if sample_due:
            save_grid(run, state, step)
        if evaluation_due:
            evaluate_now(run, state, step)
        if checkpoint_due:
            paused = run.status.pause()
            run.store.save(state, step, run.description(step))
            run.status.resume(paused)
        if stopping and not last:
            if pending is not None:
                _log(run, *pending)
            run.store.wait()
            raise Preempted(
                f"asked to stop; saved at step {step} (kimg {step * batch_size / 1000:.1f}); "
                "the same command goes on from there"
            )
    return state


def _flops_per_image(run: Run, state: TrainState, batch: Any) -> float:
    """Operations of an image in the step that is about to be compiled."""
    if run.config.model.remat != "none":  # what is computed twice counts once
        shape = costs.DataShape.of(run.source)
        config = ml_collections.ConfigDict(run.config.to_dict())
        config.model.remat = "none"
        net = build.build_network(build.network_arguments(config, shape))
        return costs.training_costs(config, net, shape).flops
    # The call that follows uses this trace.
    return costs.flops(run.step_fn.trace(state, batch, run.key).jaxpr) / run.batch_size


def _start_fetch(state: TrainState) -> Any:
    """Begin copying the metrics to the host; they are read a step later."""
    # A copy: the state itself is donated to the next step.
    values = jax.tree.map(jnp.copy, (state.metrics, state.failed_step))
    jax.tree.map(lambda a: a.copy_to_host_async(), values)
    return values


def _log(run: Run, step: int, values: Any) -> None:
    """Tell of the window of metrics that ended at ``step``."""
    metrics, failed_step = jax.device_get(values)
    run.monitor.log(step, metrics)
    _stop_if_failed(run, int(failed_step))


def _require_healthy(run: Run, state: TrainState, step: int) -> None:
    """Before anything is saved: no failure, and every number of the state is finite."""
    _stop_if_failed(run, int(state.failed_step))
    if not _finite_state((state.params, state.ema, state.opt_state)):
        raise TrainingError(
            f"the weights or the optimizer are not finite at step {step} "
            f"({_kimg(run, step)}); {_what_is_left(run)}"
        )


_finite_state = jax.jit(all_finite)


def _stop_if_failed(run: Run, failed_step: int) -> None:
    """Stop if the loss or gradient was not finite for too many steps in a row."""
    if failed_step < 0:
        return
    limit = run.config.train.max_bad_steps
    row = f" and the {limit - 1} after it (config.train.max_bad_steps)" if limit > 1 else ""
    raise TrainingError(
        f"the loss or its gradient was not finite at step {failed_step} "
        f"({_kimg(run, failed_step)}){row}; {_what_is_left(run)}"
    )


def _kimg(run: Run, step: int) -> str:
    return f"kimg {step * run.batch_size / 1000:.1f}"


def _what_is_left(run: Run) -> str:
    run.store.wait()
    steps = run.store.steps()
    kept = f"the newest checkpoint is step {steps[-1]}" if steps else "there is no checkpoint yet"
    return (
        f"{kept}. Nothing after it is saved. The same command tries again from there; if that "
        "fails too, look at the data, or lower config.train.lr in a new --workdir"
    )
