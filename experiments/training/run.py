"""One training run: its fixed parts, opened and checked."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from typing import Any

import jax

from edm_jax import models
from edm_jax.data.sources.base import ImageSource
from edm_jax.model import Model, from_description
from edm_jax.models.ops import target
from edm_jax.train import distributed, metrics, sharding
from edm_jax.train.checkpoint import CheckpointStore
from edm_jax.train.state import TrainState
from edm_jax.train.step import init_state
from experiments.config.experiment import Experiment
from experiments.config.options import Intervals
from experiments.preflight import report
from experiments.training.monitor import Monitor, Profiler
from experiments.training.status import StatusLine


@dataclasses.dataclass(frozen=True)
class Watch:
    """What is looked at while a run trains; changes nothing in it.

    Attributes:
      profile_steps: first and last step of a `jax.profiler` trace; None for none.
      wandb_project: of Weights & Biases; empty for none.
      figure_format: of the pictures in figures/; png, pdf or svg.
    """

    profile_steps: tuple[int, int] | None = None
    wandb_project: str = ""
    figure_format: str = "png"


@dataclasses.dataclass
class Run:
    """The fixed parts of a training run."""

    experiment: Experiment
    path: pathlib.Path
    source: ImageSource
    net: Any
    mesh: jax.sharding.Mesh
    make_state: Any
    step_fn: Any
    key: jax.Array
    store: CheckpointStore
    status: StatusLine
    monitor: Monitor
    profiler: Profiler
    figure_format: str = "png"

    @property
    def batch_size(self) -> int:
        """Global batch size."""
        return self.experiment.training.batch_size

    @property
    def intervals(self) -> Intervals:
        """The schedule in steps."""
        return self.experiment.intervals

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

    @functools.cached_property
    def _gather(self) -> Any:
        """Every array on every device; one function, so that a run compiles it once."""
        return jax.jit(lambda tree: tree, out_shardings=sharding.replicated(self.mesh))

    def description(self, state: TrainState, step: int) -> dict:
        """What a checkpoint of a state at ``step`` says of itself."""
        nimg = step * self.batch_size
        progress = {"step": step, "nimg": nimg, "kimg": nimg / 1000}
        objective = self.experiment.build_objective(self.net, self.source)
        told = objective.told(state.objective) if hasattr(objective, "told") else {}
        return self.experiment.description(self.source, progress, told)

    def model(self, state: TrainState, step: int) -> Model:
        """The first average of the weights as a Model on this process's first device.

        Every process must call it: the weights may be split over all of them.
        """
        variant = self.experiment.averaging.names()[0]
        variables = {"params": state.ema[variant]}
        if state.buffers:
            variables["buffers"] = state.buffers
        if self.mesh.size > 1:
            variables = jax.tree.map(lambda a: a.addressable_data(0), self._gather(variables))
        return from_description(self.description(state, step), variables, variant)


def check_run(experiment: Experiment, watch: Watch) -> tuple[ImageSource, Any]:
    """Everything that can be known to be wrong before any long work; the data and network.

    Raises:
      ConfigError: or another ValueError of one line.
    """
    total = experiment.intervals.total
    if watch.profile_steps and watch.profile_steps[1] > total:
        raise ValueError(f"--profile_steps ends at {watch.profile_steps[1]}, the run at {total}")
    source = experiment.data.open()
    say = print if jax.process_index() == 0 else lambda line: None
    report.before_training(experiment, source, report=say)
    return source, experiment.build_network(source)


def state_maker(
    experiment: Experiment, net: Any, source: ImageSource, mesh: jax.sharding.Mesh
) -> Any:
    """Makes the state at step 0 in one program, every array where the layout puts it.

    Returns:
      A jitted function without arguments, and the shardings of its result.
    """

    objective = experiment.build_objective(net, source)

    def make() -> TrainState:
        variables = models.init_variables(net, jax.random.fold_in(experiment.key(), 0))
        return init_state(variables, experiment.optimizer, experiment.averaging, objective)

    shardings = sharding.state_shardings(
        jax.eval_shape(make), models.logical_axes(net), mesh, experiment.training.sharding
    )
    return jax.jit(make, out_shardings=shardings), shardings


def open_run(
    experiment: Experiment,
    path: pathlib.Path,
    source: ImageSource,
    net: Any,
    watch: Watch,
) -> tuple[Run, TrainState, int]:
    """Everything a run needs, its state (fresh or restored), and the steps it has behind it."""
    training, intervals = experiment.training, experiment.intervals
    mesh = sharding.make_mesh()
    leads = jax.process_index() == 0
    make_state, shardings = state_maker(experiment, net, source, mesh)
    step_fn = jax.jit(
        target.over(mesh, experiment.build_train_step(net, source)),
        donate_argnums=0,
        out_shardings=shardings,
    )
    distributed.on_lead(lambda: report.require_disk(experiment, path, jax.eval_shape(make_state)))
    store = CheckpointStore(
        path / "checkpoints",
        keep_last=training.keep_last,
        keep_every=intervals.keep_every or None,
    )
    status = StatusLine(intervals.total, training.batch_size, enabled=leads)
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
        status.say(f"resuming at kimg {step * training.batch_size / 1000:.1f}{done}")
    if watch.profile_steps and watch.profile_steps[1] <= step < intervals.total:
        first, last = watch.profile_steps
        status.say(
            f"warning: no trace of --profile_steps={first}-{last}: the run goes on after {step}"
        )
    status.start(step)
    run = Run(
        experiment=experiment,
        path=path,
        source=source,
        net=net,
        mesh=mesh,
        make_state=make_state,
        step_fn=step_fn,
        key=jax.random.fold_in(experiment.key(), 1),
        store=store,
        status=status,
        monitor=Monitor(
            experiment,
            path,
            step,
            status,
            level_edges=metrics.edges(experiment.build_objective(net, source)),
            wandb_project=watch.wandb_project,
        ),
        profiler=Profiler(path / "profile", watch.profile_steps, report=status.say),
        figure_format=watch.figure_format,
    )
    return run, state, step
