"""Training from start (or wherever it was) to finish."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from edm_jax import models
from edm_jax.data import pipeline
from edm_jax.data.source import ImageSource
from edm_jax.train import sharding
from edm_jax.train.checkpoint import CheckpointStore
from edm_jax.train.state import SIGMA_BIN_EDGES, TrainState
from edm_jax.train.step import init_state, learning_rate
from edm_jax.weights.model import Model, from_description
from experiments import build, evaluate, figures, preflight, workdir
from experiments.preemption import Preempted, StopRequest
from experiments.status import StatusLine, memory_gib

GRID_COLUMNS = 10
GRID_UNLABELLED = 64


class TrainingError(RuntimeError):
    """Training that cannot go on, said in one line."""


@dataclasses.dataclass
class Run:
    """The fixed parts of a training run."""

    config: ml_collections.ConfigDict
    path: pathlib.Path
    source: ImageSource
    net: Any
    intervals: build.Intervals
    mesh: jax.sharding.Mesh
    make_state: Any
    step_fn: Any
    key: jax.Array
    store: CheckpointStore
    status: StatusLine
    metrics_file: workdir.MetricsFile | None
    tensorboard: workdir.TensorBoard | None

    @property
    def batch_size(self) -> int:
        """Global batch size."""
        return self.config.train.batch_size

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks."""
        return jax.process_index() == 0

    def close(self) -> None:
        """Finish what is being written."""
        self.store.close()
        for writer in (self.metrics_file, self.tensorboard):
            if writer is not None:
                writer.close()

    def description(self, step: int) -> dict:
        """What a checkpoint at ``step`` says of itself."""
        nimg = step * self.batch_size
        progress = {"step": step, "nimg": nimg, "kimg": nimg / 1000}
        return build.build_description(self.config, self.source, progress)

    def model(self, state: TrainState, step: int) -> Model:
        """The first average of the weights as a Model on this process's first device.

        Every process must call it: the weights may be split over all of them.
        """
        variant = build.build_averaging(self.config).names()[0]
        variables = {"params": state.ema[variant]}
        if state.buffers:
            variables["buffers"] = state.buffers
        if self.mesh.size > 1:
            gather = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(self.mesh))
            variables = jax.tree.map(lambda a: a.addressable_data(0), gather(variables))
        return from_description(self.description(step), variables, variant)


def check_run(config: ml_collections.ConfigDict) -> tuple[ImageSource, Any]:
    """Everything that can be known to be wrong before any long work; the data and network.

    Raises:
      ConfigError: or another ValueError of one line.
    """
    build.check_config(config)
    source = build.build_source(config)
    say = print if jax.process_index() == 0 else lambda line: None
    preflight.before_training(config, source, report=say)
    net = build.build_network(build.network_arguments(config, source))
    return source, net


def state_maker(config: ml_collections.ConfigDict, net: Any, mesh: jax.sharding.Mesh) -> Any:
    """Makes the state at step 0 in one program, every array where the layout puts it.

    Returns:
      A jitted function without arguments, and the shardings of its result.
    """
    optimizer, averaging = build.build_optimizer(config), build.build_averaging(config)

    def make() -> TrainState:
        key = jax.random.fold_in(run_key(config), 0)
        return init_state(models.init_variables(net, key), optimizer, averaging)

    shardings = sharding.state_shardings(
        jax.eval_shape(make), models.logical_axes(net), mesh, config.train.sharding
    )
    return jax.jit(make, out_shardings=shardings), shardings


def run_key(config: ml_collections.ConfigDict) -> jax.Array:
    """The key that everything random in a run follows from."""
    return jax.random.key(config.seed, impl="threefry2x32")


def train(config: ml_collections.ConfigDict, path: pathlib.Path) -> dict[str, Any] | None:
    """Train, resuming where an earlier run of the same command stopped.

    Args:
      config: resolved and locked.
      path: the run directory; created if need be.

    Returns:
      The evaluation, if config.evaluation asks for one.
    """
    source, net = check_run(config)
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            workdir.prepare(path)
            stack.enter_context(workdir.locked(path))
            workdir.record_config(path, config.to_dict())
        started = time.perf_counter()
        run, state, step = open_run(config, path, source, net)
        stack.callback(run.close)
        if step < run.intervals.total:
            with StopRequest() as stop:
                state = _loop(run, state, step, stop)
        elif (path / workdir.EVALUATION).exists() or not config.evaluation.num_images:
            run.status.say(f"finished: {path} has trained its {config.train.total_kimg:g} kimg")
            return _summary(run, evaluate.read_evaluation(path))
        return _finish(run, state, started)


def open_run(
    config: ml_collections.ConfigDict, path: pathlib.Path, source: ImageSource, net: Any
) -> tuple[Run, TrainState, int]:
    """Everything a run needs, its state (fresh or restored), and the steps it has behind it."""
    intervals = build.build_intervals(config)
    mesh = sharding.make_mesh()
    leads = jax.process_index() == 0
    make_state, shardings = state_maker(config, net, mesh)
    step_fn = jax.jit(
        build.build_train_step(config, net, source),
        donate_argnums=0,
        out_shardings=shardings,
    )
    if leads:
        preflight.require_disk(config, path, jax.eval_shape(make_state))
    store = CheckpointStore(
        path / "checkpoints",
        keep_last=config.train.keep_last,
        keep_every=intervals.keep_every or None,
    )
    status = StatusLine(intervals.total, config.train.batch_size, enabled=leads)
    status.say(models.parameter_table(models.abstract_variables(net)))
    status.say(
        f"{models.param_count(net):,} parameters, {len(source):,} images of "
        f"{'x'.join(map(str, source.image_shape))}, {source.num_classes} classes, "
        f"{mesh.size} {jax.devices()[0].platform} device(s), {path}"
    )
    abstract = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        jax.eval_shape(make_state),
        shardings,
    )
    state, step = store.restore_latest(abstract, report=status.say), 0
    if state is None:
        state = make_state()
    else:
        step = int(state.step)
        done = " (finished)" if step >= intervals.total else ""
        status.say(f"resuming at kimg {step * config.train.batch_size / 1000:.1f}{done}")
    status.start(step)
    run = Run(
        config=config,
        path=path,
        source=source,
        net=net,
        intervals=intervals,
        mesh=mesh,
        make_state=make_state,
        step_fn=step_fn,
        key=jax.random.fold_in(run_key(config), 1),
        store=store,
        status=status,
        metrics_file=workdir.MetricsFile(path, step) if leads else None,
        tensorboard=workdir.TensorBoard(path, report=status.say) if leads else None,
    )
    return run, state, step


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
        _save_grid(run, state, 0)
        run.status.say("compiling the training step ...")
    pending: tuple[int, Any] | None = None
    for step in range(start + 1, intervals.total + 1):
        state = run.step_fn(state, next(batches), run.key)
        if step == start + 1:
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
        if checkpoint_due or sample_due:
            _check_finite(run, int(state.bad_step))
        # The grid first: a run killed between the two makes it again.
        if sample_due:
            _save_grid(run, state, step)
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


def _start_fetch(state: TrainState) -> Any:
    """Begin copying the metrics to the host; they are read a step later."""
    # A copy: the state itself is donated to the next step.
    values = jax.tree.map(jnp.copy, (state.metrics, state.bad_step))
    jax.tree.map(lambda a: a.copy_to_host_async(), values)
    return values


def _log(run: Run, step: int, values: Any) -> None:
    """Write the window of metrics that ended at ``step``."""
    metrics, bad_step = jax.device_get(values)
    if not run.leads:
        _check_finite(run, int(bad_step))
        return
    nimg = step * run.batch_size
    train = run.config.train
    rate = run.status.rate(step)
    # The rate of the last step taken, whose count of images seen was one batch less.
    lr = learning_rate(nimg - run.batch_size, train.lr, train.lr_rampup_kimg * 1000)
    num_steps = max(int(metrics.num_steps), 1)
    loss = float(metrics.loss) / num_steps
    scalars = {
        "kimg": nimg / 1000,
        "loss": loss,
        "lr": lr,
        "grad_norm": float(metrics.grad_norm) / num_steps,
        "num_bad_grads": int(metrics.num_bad_grads),
        "images_per_second": rate,
        "memory_gib": memory_gib(),
    }
    counts = np.maximum(metrics.bin_count, 1)
    per_level = {
        "sigma_bin_edges": list(SIGMA_BIN_EDGES),
        "loss_per_sigma_bin": (metrics.bin_loss / counts).tolist(),
        "images_per_sigma_bin": metrics.bin_count.tolist(),
    }
    run.metrics_file.write(step, scalars | per_level)
    run.tensorboard.write(step, scalars)
    run.status.show(step, rate=rate, loss=loss, lr=lr)
    _check_finite(run, int(bad_step))


def _check_finite(run: Run, bad_step: int) -> None:
    """Stop if some step had a loss that is not finite; nothing after it is saved."""
    if bad_step < 0:
        return
    run.store.wait()
    steps = run.store.steps()
    kept = f"the newest checkpoint is step {steps[-1]}" if steps else "there is no checkpoint yet"
    raise TrainingError(
        f"the loss was not finite at step {bad_step} (kimg "
        f"{bad_step * run.batch_size / 1000:.1f}); {kept}. "
        "Nothing after it is saved. The same command tries again from there; if that fails too, "
        "look at the data, or lower config.train.lr in a new --workdir"
    )


# ------------------------------------------------------------------------- pictures, end


def _save_grid(run: Run, state: TrainState, step: int) -> None:
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
    figures.sample_grid(
        run.path / "samples" / f"kimg-{kimg:08.1f}.png",
        samples,
        columns,
        row_names=names,
        title=f"{kimg:g} kimg, {evaluate.nfe(arguments['num_steps'])} network calls",
    )
    run.status.resume(paused)


def _finish(run: Run, state: TrainState, started: float) -> dict[str, Any] | None:
    """Figures, evaluation and the closing table."""
    step = int(state.step)
    model, initial = run.model(state, step), run.model(run.make_state(), 0)
    run.store.wait()
    if not run.leads:
        return None
    run.status.say("drawing figures ...")
    evaluate.draw_figures(run.path / "figures", initial, model, run.config, run.source)
    rows = workdir.read_metrics(run.path)
    figures.training_curve(
        run.path / "figures" / "loss.png", [r["kimg"] for r in rows], [r["loss"] for r in rows]
    )
    result = None
    if run.config.evaluation.num_images:
        result = evaluate.evaluate(model, run.config, report=run.status.say)
        result["seconds"] = round(time.perf_counter() - started, 1)
        evaluate.write_evaluation(run.path, result)
    return _summary(run, result)


def _summary(run: Run, result: dict[str, Any] | None) -> dict[str, Any] | None:
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
        (workdir.EVALUATION, "the numbers above"),
    ):
        if (run.path / name).exists():
            print(f"  {run.path / name}  ({what})")
    return result
