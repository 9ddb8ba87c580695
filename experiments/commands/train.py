r"""Train a model, or resume, then evaluate it (the default mode).

    python experiments/main.py --config=configs/digits.py --workdir=runs/digits

The same command resumes where the run stopped.  Any option of the configuration can be
set: --config.train.lr=1e-3; configs/base.py lists and explains them.  On several hosts
start the same command on each: TPU pods and SLURM are recognised, elsewhere give
--coordinator_address=HOST:PORT --num_processes=2 --process_id=0.
"""

from __future__ import annotations

import types

from experiments import compilation_cache, cores, flags, processes

FLAGS = (
    flags.config(),
    flags.path(
        "workdir",
        "Directory of the run: all results are below it.",
        example="runs/digits",
        required=True,
    ),
    flags.text("profile_steps", "Steps of a jax.profiler trace.", example="100-110"),
    flags.text(
        "wandb",
        "Project of Weights & Biases to report to, if wandb is installed.",
        "",
        example="PROJECT",
    ),
    flags.figure_format(),
    *processes.FLAGS,
    compilation_cache.FLAG,
)


def run(values: types.SimpleNamespace) -> None:
    """Train or resume."""
    from experiments.config import build
    from experiments.training import loop, monitor
    from experiments.training.run import Watch

    watch = Watch(monitor.parse_steps(values.profile_steps), values.wandb, values.figure_format)
    processes.join(values)
    experiment = build.experiment(values.config)
    cores.for_batch(experiment.training.together)
    compilation_cache.enable(values.compilation_cache)
    loop.train(experiment, values.workdir, watch)
