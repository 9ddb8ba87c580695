r"""Check a run before it starts: what is wrong with it, and what it costs.

    python experiments/main.py --mode=preflight --config=configs/imagenet64.py --devices=8

Needs no accelerator: parameters, arithmetic, memory and disk of the run, its data and its
directory.  Exit code 2 if the run would not work.
"""

from __future__ import annotations

import types

from experiments import compilation_cache, flags

FLAGS = (
    flags.config(),
    flags.path("workdir", "Directory of the run; nothing is written.", example="runs/digits"),
    flags.integer(
        "devices",
        "Devices of the run; its memory is found by compiling for them.",
        least=1,
        example="8",
    ),
    flags.number("images_per_second", "Rate of training, to tell its time.", example="900"),
    flags.number("device_gib", "Memory of one device, in GiB.", example="80"),
    compilation_cache.FLAG,
)


def run(values: types.SimpleNamespace) -> int:
    """Check and report."""
    from experiments.config import build
    from experiments.config.flag import default_config
    from experiments.preflight import report

    compilation_cache.enable(values.compilation_cache)
    return report.preflight(
        build.experiment(values.config),
        values.workdir,
        mesh_devices=values.devices,
        quick=False,
        preset=default_config(values.config_file).to_dict(),
        images_per_second=values.images_per_second,
        device_gib=values.device_gib,
    )
