r"""The published configurations compiled for TPU topologies: memory, rate, days.

    python experiments/main.py --mode=study --study=topologies --workdir=docs

Needs the compiler for TPUs (python -m pip install -e '.[tpu]'), no TPU; a program takes minutes,
all of them hours of two cores.  What is in ``topologies.json`` of the directory already is not
compiled again, so that the study can be stopped, and one row redone by deleting it there.
Writes ``topologies.json`` and the page ``topologies.md``.

ADM's 4096 images do not fit on so few chips at once: they are added up in rounds
(``config.train.micro_batch``), which changes no update but for rounding.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.config import build
from experiments.config.experiment import Experiment
from experiments.preflight import costs, pods, tpu
from experiments.preflight.topologies import leave_chips_alone, parse, require_compiler
from experiments.words import size
from experiments.workdir import write_atomically

# Configuration and what its programs are made for of the data.  Conditional and unconditional
# networks differ by one small layer.
CONFIGS = {
    "cifar10": costs.DataShape((32, 32, 3), 10),
    "cifar10:ncsnpp": costs.DataShape((32, 32, 3), 10),
    "ffhq64": costs.DataShape((64, 64, 3)),
    "ffhq64:ncsnpp": costs.DataShape((64, 64, 3)),
    "afhqv2_64": costs.DataShape((64, 64, 3)),
    "imagenet64": costs.DataShape((64, 64, 3), 1000),
    "imagenet64:adm_published": costs.DataShape((64, 64, 3), 1000),
}
TOPOLOGIES = ("v5e-16", "v5p-8", "v6e-16")
# Configurations whose program is another one's but for a constant (the rate of the dropout).
SAME_PROGRAM = {"afhqv2_64": "ffhq64"}
# Images of a device and round, where a device does not take its part of the batch at once.
PER_ROUND = {"imagenet64": 16, "imagenet64:adm_published": 16}
# Memory on so many GPUs is that of XLA for CPU, which fuses in its own way.
GPUS = 8


def devices(where: str) -> int:
    """How many devices the step of a row is compiled for."""
    return GPUS if where == "gpu" else parse(where).devices


def experiment_of(name: str, where: str) -> Experiment:
    """A published configuration in bfloat16, as TPUs compute it, in rounds where it needs them."""
    file, _, variant = name.partition(":")
    config = importlib.import_module(f"configs.{file}").get_config(variant)
    with config.unlocked():
        config.model.dtype = "bfloat16"
        config.train.micro_batch = PER_ROUND.get(name, 0) * devices(where)
    return build.experiment(config)


def rows() -> Iterator[tuple[str, str]]:
    """``(configuration, topology or "gpu")`` in the order in which they are compiled."""
    for topology in (*TOPOLOGIES, "gpu"):
        for name in CONFIGS:
            yield name, topology


def key_of(name: str, where: str) -> str:
    """Under which a row's program stands in the record."""
    return f"{SAME_PROGRAM.get(name, name)} {where}"


def measure(name: str, where: str) -> dict[str, Any]:
    """What is kept of a row."""
    experiment, shape = experiment_of(name, where), CONFIGS[name]
    if where == "gpu":
        memory = costs.compiled_memory(experiment, shape, GPUS)
        return {"arguments": memory.state, "temporary": memory.temporary}
    topology = parse(where)
    step = tpu.compiled(experiment, shape, topology)
    net = experiment.build_network(shape)
    flops = costs.training_costs(experiment, net, shape).flops
    return dataclasses.asdict(step) | {"flops_per_image": flops}


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows that there are as a table for docs/."""
    lines = [
        "| configuration | topology | images a round | GiB per device | ms a step | img/s per chip "
        "| MFU | days |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, where in rows():
        values = found.get(key_of(name, where))
        if values is not None:
            lines.append(_line(name, where, values))
    return "\n".join(lines) + "\n"


def _line(name: str, where: str, values: Mapping[str, Any]) -> str:
    experiment = experiment_of(name, where)
    together = experiment.training.together
    place = f"{GPUS} GPUs (memory as for CPUs)" if where == "gpu" else where
    mark = " *" if _is_earlier(where, values) else ""
    begin = f"| {name}{mark} | {place} | {together} |"
    if where == "gpu":
        total = values["arguments"] + values["temporary"]
        return f"{begin} {total / 2**30:.1f} | | | | |"
    topology = parse(where)
    flops = values["flops_per_image"]
    step = tpu.Program(**{key: values[key] for key in values if key != "flops_per_image"})
    if not step.fits:
        return f"{begin} does not fit: {size(step.temporary)} | | | | |"
    once = pods.seconds(step, topology)
    rate = experiment.training.batch_size / once
    mfu = rate * flops / (topology.chips * topology.chip.tflops * 1e12)
    images = experiment.intervals.total * experiment.training.batch_size
    return (
        f"{begin} {step.total_bytes / 2**30:.1f} | {1e3 * once:.1f} | "
        f"{rate / topology.chips:,.0f} | {100 * mfu:.0f} % | {images / rate / 86400:.2f} |"
    )


PAGE = """# Published configurations on TPUs

What the compiler for TPUs makes of the training step of each published configuration, in
bfloat16, without a TPU ([performance](performance.md) says how). A round is the global batch, or
the part of it that is added up at a time (`config.train.micro_batch`). Memory is that of a device.
The time of a step is an *estimate*, the compiler's count and all collectives in full, and so are
the rate, the share of the peak (MFU, without what is recomputed) and the days to the published
length. Of GPUs there is only the memory, as XLA's compiler for CPUs allocates it.

    python experiments/main.py --mode=study --study=topologies --workdir=docs

makes this page, a program at a time.

"""


EARLIER = """
`*`: compiled before attention became one kernel and biases were left to the norms, which is
faster. A row that is taken out of `topologies.json` is compiled again.
"""


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The table as a page of the documentation, with what is missing in it."""
    missing = [f"{name} on {where}" for name, where in rows() if key_of(name, where) not in found]
    note = f"\nNot compiled yet: {', '.join(missing)}.\n" if missing else ""
    earlier = any(_is_earlier(where, found.get(key_of(name, where), {})) for name, where in rows())
    return PAGE + table(found) + (EARLIER if earlier else "") + note


def _is_earlier(where: str, values: Mapping[str, Any]) -> bool:
    """Whether a row is of the time before kernels were counted, and attention was one."""
    return where != "gpu" and bool(values) and "uncounted" not in values


def _read(record: pathlib.Path) -> dict[str, Any]:
    """What an earlier call found."""
    if not record.exists():
        return {}
    try:
        found = json.loads(record.read_text())
        table(found)  # every row that it has can be written
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{record} is not what this study writes ({type(error).__name__}: {error}); "
            "delete it, or name another --workdir"
        ) from error
    return found


def run(workdir: pathlib.Path) -> None:
    """Compile what is missing, and write the page, after each program anew."""
    require_compiler()
    leave_chips_alone()
    record, to = workdir / "topologies.json", workdir / "topologies.md"
    found = _read(record)
    if found:  # rates follow from what is kept by formulas that may have changed
        write_atomically(to, page(found))
    for name, where in rows():
        key = key_of(name, where)
        if key in found:
            continue
        print(f"compiling {name} for {where} ...", flush=True)
        found[key] = measure(name, where)
        write_atomically(record, json.dumps(found, indent=1) + "\n")
        write_atomically(to, page(found))
        print(*table({key: found[key]}).splitlines()[2:], sep="\n", flush=True)
    print(f"  {to}")
