r"""Check a run before it starts: what is wrong with it, and what it costs.

    python experiments/main.py --mode=preflight --config=configs/imagenet64.py --devices=8

Needs no accelerator: parameters, arithmetic, memory and disk of the run, its data and its
directory.  Exit code 1 if the run would not work, 2 if the request was wrong.

With --topology the training step and the sampler are compiled for TPUs, which need not be there
either (python -m pip install -e '.[tpu]'): memory against that of the chips, the compiler's
estimate of the rate, collectives, and what to change where it does not fit:

    python experiments/main.py --mode=preflight --config=configs/cifar10.py --topology=v5e:4x4
"""

from __future__ import annotations

import types

from experiments import compilation_cache, cores, flags
from experiments.preflight import topologies

FLAGS = (
    flags.config(),
    flags.path("workdir", "Directory of the run; nothing is written.", example="runs/digits"),
    flags.integer(
        "devices",
        "Devices of the run; its memory is found by compiling for them.",
        least=1,
        example="8",
    ),
    flags.text("topology", f"TPUs to compile for: {topologies.EXAMPLES}.", example="v5e:4x4"),
    flags.integer("slices", "How many slices of that topology.", default=1, least=1, example="2"),
    flags.number("images_per_second", "Rate of training, to tell its time.", example="900"),
    flags.number("device_gib", "Memory of one device, in GiB.", example="80"),
    compilation_cache.FLAG,
)


def run(values: types.SimpleNamespace) -> int:
    """Check and report."""
    from experiments.config import build
    from experiments.config.flag import UsageError, default_config
    from experiments.preflight import report

    topology = None
    if values.topology is not None:
        if both := values.given & {"devices", "device_gib"}:
            raise UsageError(f"--topology says what --{min(both)} would; leave one of them out")
        try:
            topology = topologies.parse(values.topology, values.slices)
            topologies.require_compiler()
        except ValueError as error:
            raise UsageError(f"--topology={values.topology}: {error}") from None
        topologies.leave_chips_alone()
    elif "slices" in values.given:
        raise UsageError("--slices is of a --topology; give that too")

    experiment = build.experiment(values.config)
    cores.for_batch(experiment.training.together)
    compilation_cache.enable(values.compilation_cache)
    return report.preflight(
        experiment,
        values.workdir,
        mesh_devices=values.devices,
        quick=False,
        preset=default_config(values.config_file).to_dict(),
        images_per_second=values.images_per_second,
        device_gib=values.device_gib,
        topology=topology,
    )
