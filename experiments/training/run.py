"""One training run: its fixed parts, opened and checked."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from typing import Any

import jax
import ml_collections

from edm_jax import models
from edm_jax.data.sources.base import ImageSource
from edm_jax.model import Model, from_description
from edm_jax.train import distributed, sharding
from edm_jax.train.checkpoint import CheckpointStore
from edm_jax.train.state import TrainState
from edm_jax.train.step import init_state
from experiments.config import build, values
from experiments.preflight import report
from experiments.training.monitor import Monitor, Profiler
from experiments.training.status import StatusLine


@dataclasses.dataclass(frozen=True)
class Watch:
    """What is looked at while a run trains; changes nothing in it.

    Attributes:
      profile_steps: first and last step of a `jax.profiler` trace; None for none.
      wandb_project: of Weights & Biases; empty for none.
    """

    profile_steps: tuple[int, int] | None = None
    wandb_project: str = ""


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
    monitor: Monitor
    profiler: Profiler

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
        with contextlib.ExitStack() as stack:  # each, whatever becomes of the others
            stack.callback(self.monitor.close)
            stack.callback(self.profiler.close)
            stack.callback(self.store.close)

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


def check_run(config: ml_collections.ConfigDict, watch: Watch) -> tuple[ImageSource, Any]:
    """Everything that can be known to be wrong before any long work; the data and network.

    Raises:
      ConfigError: or another ValueError of one line.
    """
    values.check_config(config)
    total = build.build_intervals(config).total
    if watch.profile_steps and watch.profile_steps[1] > total:
        raise ValueError(f"--profile_steps ends at {watch.profile_steps[1]}, the run at {total}")
    source = build.build_source(config)
    say = print if jax.process_index() == 0 else lambda line: None
    report.before_training(config, source, report=say)
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


def open_run(
    config: ml_collections.ConfigDict,
    path: pathlib.Path,
    source: ImageSource,
    net: Any,
    watch: Watch,
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
    distributed.on_lead(lambda: report.require_disk(config, path, jax.eval_shape(make_state)))
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
    if watch.profile_steps and watch.profile_steps[1] <= step < intervals.total:
        first, last = watch.profile_steps
        status.say(
            f"warning: no trace of --profile_steps={first}-{last}: the run goes on after {step}"
        )
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
        monitor=Monitor(config, path, step, status, wandb_project=watch.wandb_project),
        profiler=Profiler(path / "profile", watch.profile_steps, report=status.say),
    )
    return run, state, step
