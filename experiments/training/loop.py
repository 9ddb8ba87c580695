"""Training from start (or wherever it was) to finish."""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Generator, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from edm_jax.data import pipeline
from edm_jax.train import distributed, sharding
from edm_jax.train.state import TrainState
from edm_jax.train.step import all_finite
from experiments import evaluations, workdir
from experiments.config.experiment import Experiment
from experiments.preflight import costs
from experiments.training.preemption import Interrupted, Preempted, StopRequest
from experiments.training.results import finish, is_finished, show, summary
from experiments.training.run import Run, Watch, check_run, open_run
from experiments.words import format_duration


class TrainingError(RuntimeError):
    """Training that cannot go on, said in one line."""


def train(
    experiment: Experiment, path: pathlib.Path, watch: Watch | None = None
) -> dict[str, Any] | None:
    """Train, resuming where an earlier run of the same command stopped.

    Args:
      experiment: what to do.
      path: the run directory; created if need be.
      watch: what else to look at.

    Returns:
      The evaluation, if its configuration asks for one.
    """
    watch = watch or Watch()
    experiment, note = experiment.on(jax.default_backend())
    if note and jax.process_index() == 0:
        print(note)
    with StopRequest() as stop, contextlib.ExitStack() as stack:
        source, net = check_run(experiment, watch)

        def take_directory() -> None:
            workdir.prepare(path)
            stack.enter_context(workdir.locked(path))
            workdir.check_same_data(path, source)
            for note in workdir.record_config(path, experiment.config):
                print(note)

        distributed.on_lead(take_directory)
        started = time.perf_counter()
        run, state, step = open_run(experiment, path, source, net, watch)
        stack.callback(run.close)
        try:
            stop.poll()
            show(run, state, step, stop.poll, missing=True)
            if step < run.intervals.total:
                with contextlib.closing(_batches(run, step)) as batches:
                    state = _loop(run, state, step, stop, batches)
            elif distributed.lead_says(lambda: is_finished(run, step)):
                kimg = step * run.batch_size / 1000
                run.status.say(f"finished: {path} has trained its {kimg:g} kimg")
                return summary(run, evaluations.read(path))
            result = finish(run, state, started, stop.poll)
            # The others wait here for process 0, which evaluates alone: a process that ends
            # waits for the rest only for minutes, so that one that failed ends them all.
            distributed.lead_says(lambda: True)
            return result
        except Interrupted:
            raise Preempted(_stopped(run, int(state.step))) from None


# ---------------------------------------------------------------------------- the loop


def _batches(run: Run, start: int) -> Generator[pipeline.Batch, None, None]:
    """Batches on the devices, from the step after ``start`` on."""
    return pipeline.device_batches(
        pipeline.host_batches(
            run.source,
            run.batch_size,
            seed=run.experiment.seed,
            start_step=start,
            mirror=run.experiment.data.mirror,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_threads=run.experiment.data.num_threads,
            num_workers=run.experiment.data.num_workers,
        ),
        sharding.batch_sharding(run.mesh),
    )


def _loop(
    run: Run, state: TrainState, start: int, stop: StopRequest, batches: Iterator[pipeline.Batch]
) -> TrainState:
    """Steps from ``start`` to the end.  The host only ever waits for what is already done."""
    intervals = run.intervals
    if start == 0:
        run.status.say("compiling the training step ...")
    pending: tuple[int, Any] | None = None
    pace = _Pace(run)
    for step in range(start + 1, intervals.total + 1):
        batch = next(batches)
        if step == start + 1:
            run.monitor.flops_per_image = _flops_per_image(run, state, batch)
        run.profiler.before(step, state.step)
        state = run.step_fn(state, batch, run.key)
        if pending is not None:
            # The window that ended one step ago: the device is already past it.
            _log(run, *pending)
            pending = None
        if run.profiler.after(step, state.step) or step == start + 1:
            jax.block_until_ready(state.step)  # compiled: rates count from here
            run.status.start(step)
        pace.after(step - start, state)
        if step % intervals.log == 0 or step == intervals.total:
            pending = (step, _start_fetch(state))
        stopping = stop.asked()
        save_due = stopping or step == intervals.total or step % intervals.checkpoint == 0
        show_due = intervals.grid_due(step) or intervals.evaluation_due(step)
        if save_due or show_due:
            if pending is not None:  # a run killed after the checkpoint has the line already
                _log(run, *pending)
                pending = None
            _require_healthy(run, state, step)
        if save_due:
            _save(run, state, step)
        if show_due and not stopping:  # what is left out here is made on resuming
            try:
                show(run, state, step, stop.poll)
            except Interrupted:
                stopping = True
                if not save_due:
                    _save(run, state, step)
        if stopping:
            run.store.wait()
            raise Preempted(_stopped(run, step))
    return state


class _Pace:
    """Says how long a step takes, once, where it is so long that a request to stop waits."""

    # The first step is compiled as well: a shorter one is no reason to wait for the second.
    SECONDS = 10.0

    def __init__(self, run: Run):
        self._run, self._mark, self._long = run, time.perf_counter(), True

    def after(self, count: int, state: TrainState) -> None:
        """Called after each step; waits for the second if the first took long."""
        if count > 2 or not self._long:
            return
        jax.block_until_ready(state.step)
        seconds = time.perf_counter() - self._mark
        self._mark += seconds
        self._long = seconds > self.SECONDS
        if self._long and count == 2:
            self._run.status.say(
                f"a step takes {format_duration(seconds)}; a request to stop is answered after "
                "the step that is under way"
            )


def _save(run: Run, state: TrainState, step: int) -> None:
    paused = run.status.pause()
    run.store.save(state, step, run.description(state, step))
    run.status.resume(paused)


def _stopped(run: Run, step: int) -> str:
    saved = f"saved at step {step} ({_kimg(run, step)})" if step else "nothing is trained yet"
    return f"asked to stop; {saved}; the same command goes on from there"


def _flops_per_image(run: Run, state: TrainState, batch: Any) -> float:
    """Operations of an image in the step that is about to be compiled."""
    if getattr(run.net, "remat", "none") != "none":  # what is computed twice counts once
        shape = costs.DataShape.of(run.source)
        net = run.experiment.build_network(shape, remat="none")
        return costs.training_costs(run.experiment, net, shape).flops
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
    limit = run.experiment.training.max_bad_steps
    row = f" and the {limit - 1} after it" if limit > 1 else ""
    step = failed_step + 1  # counted as everywhere: by the steps done
    raise TrainingError(
        f"the loss or its gradient was not finite at step {step} ({_kimg(run, step)}){row} "
        f"(--config.train.max_bad_steps={limit} stops there); {_what_is_left(run)}"
    )


def _kimg(run: Run, step: int) -> str:
    return f"kimg {step * run.batch_size / 1000:.1f}"


def _what_is_left(run: Run) -> str:
    run.store.wait()
    steps = run.store.steps()
    kept = f"the newest checkpoint is step {steps[-1]}" if steps else "there is no checkpoint yet"
    return (
        f"{kept}. Nothing after it is saved. The same command tries again from there; if that "
        "fails too, look at the data, allow more bad steps (a NaN in their gradients becomes 0, an "
        "infinity 1e5), or lower config.train.lr in a new --workdir"
    )
