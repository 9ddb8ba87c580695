r"""Measure the images of a model, or pictures made elsewhere, against real ones.

    python experiments/main.py --mode=evaluate --workdir=runs/digits
    python experiments/main.py --mode=evaluate --workdir=runs/cifar10 --blocks=3 \
        --num_images=50000 --metrics=fid,kid,is,pr --inception=FILE
    python experiments/main.py --mode=evaluate --images=pictures.zip --metrics=fid \
        --reference=cifar10-32x32.npz --inception=FILE

As the run was configured, the numbers go to <workdir>/evaluation.json.  Asked otherwise,
they go to <workdir>/evaluations/<name>/ and the former stay as they are; a table shows
them together.  Stopped at any moment, the same command goes on.  A model without a run (a
file, an import) needs the --config of its data, or a --reference.  docs/evaluation.md tells
how to reproduce a published number.
"""

from __future__ import annotations

import types

from experiments import compilation_cache, flags, guidance_flags, processes, sampling_flags
from experiments.config.flag import UsageError


def _labels(text: str) -> str | int:
    return int(text) if text.isdecimal() else text  # names are those of the model


FLAGS = (
    flags.path(
        "workdir",
        "The model: a run directory, a checkpoint or a file that edm_jax.load reads.",
        example="runs/digits",
    ),
    flags.path("images", "Pictures instead: a folder, a .zip, a .npz.", example="pictures.zip"),
    flags.config("Configuration with the data and the metrics; by default the run's.",
                 required=False),
    flags.text(
        "variant", "Which weights; by default the first average. Several, or all.", example="raw"
    ),
    flags.text(
        "checkpoints", "Several checkpoints of the run, and a curve.", example="last:5"
    ),
    flags.figure_format("Of that curve."),
    flags.text("name", "Of this evaluation, by default made of what was asked.", example="dpmpp"),
    flags.path(
        "outdir",
        "Folder of the evaluations; by default <workdir>/evaluations.",
        example="evaluations",
    ),
    flags.integer("num_images", "How many images are drawn, or taken of the pictures.", least=2,
                  example="50000"),
    flags.integer("first_seed", "The seeds are this and those after it.", least=0, example="0"),
    flags.integer("blocks", "Blocks of so many images each; the paper has 3.", least=1,
                  example="3"),
    flags.Flag("labels", "balanced, random (as each seed draws), or one class, index or name.",
               convert=_labels, example="random"),
    flags.text("metrics", "Which metrics.", example="fid,kid,is,pr"),
    flags.text("reference", "Files of statistics; by default those of the data are made.",
               example="cifar10-32x32.npz"),
    flags.path("inception", "Weights of Inception-v3, or their folder.", example="FILE"),
    flags.path("dinov2", "Weights of DINOv2, or their folder.", example="FILE"),
    flags.path("reference_cache", "Where references of data sets are kept; by default in the "
               "user's cache (~/.cache/edm_jax/references).", example="DIR"),
    *sampling_flags.FLAGS,
    *guidance_flags.FLAGS,
    *processes.FLAGS,
    compilation_cache.FLAG,
)  # fmt: skip


def more_help() -> str:
    """The metrics, then the samplers."""
    from edm_jax.metrics.registry import METRICS

    lines = ["Metrics (kid@dinov2 is one on other features than its usual ones):"]
    for name, metric in METRICS.items():
        on = f"on {metric.usual}" if metric.usual else "on any features: frechet@pixels"
        lines.append(f"  {name:<16}{metric.title} ({on})")
    return "\n".join([*lines, "", sampling_flags.more_help()])


def run(values: types.SimpleNamespace) -> None:
    """Evaluate, write and show."""
    if (values.workdir is None) == (values.images is None):
        raise UsageError(
            "say what is evaluated: --workdir=runs/digits for a model, or --images=FOLDER"
        )
    guidance_flags.check(values)
    processes.join(values)
    from experiments import evaluating

    if values.images is not None:
        evaluating.pictures(values)
    else:
        evaluating.models(values)
