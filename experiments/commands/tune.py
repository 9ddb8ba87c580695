r"""Find better settings of sampling for a model within a budget.

    python experiments/main.py --mode=tune --workdir=runs/digits --budget=50 \
        --tune=s_churn,s_tmin,s_tmax,s_noise,rho --quality=frechet_pixels
    python experiments/main.py --mode=tune --workdir=runs/digits_cfg --budget=30 --guidance=cfg \
        --guidance_scale=1 --tune=guidance_scale=1..3,guidance_low,guidance_high

Starts from the settings of the run (or of the flags), tries others, gives up early what falls
behind, and compares the best with the start on seeds that no trial has seen; where nothing
is better there, the start stays.  Ends with the flags to paste.  Stopped at any moment, the
same command goes on.

A setting alone is searched over its usual range; name=low..high is another, name=low..high:log
one of factors, name=a|b|c some values, variant the averages of the run (variant=all) or some.
"""

from __future__ import annotations

import types
from typing import Any

from experiments import compilation_cache, flags, guidance_flags, sampling_flags


def _space(text: str) -> dict[str, Any]:
    from experiments.tuning import parse_space

    return parse_space(text)


def _labels(text: str) -> str | int:
    from experiments.config.options import label_choice

    return label_choice(text)


FLAGS = (
    flags.path("workdir", "The model: a run directory, a checkpoint or a file that edm_jax.load "
               "reads.", example="runs/digits", required=True),
    flags.Flag("tune", "What is searched, and its ranges.", convert=_space, required=True,
               example="s_churn,s_noise,rho=3..12"),
    flags.integer("budget", "How many settings are tried.", default=40, example="40"),
    flags.path("outdir", "Folder of the trials; by default <workdir>/tuning.", example="tuning"),
    flags.text("variant", "Which weights; by default the first average.", example="raw"),
    flags.text("quality", "What is made better: a metric, or distance.", "frechet_pixels"),
    flags.integer("num_images", "Of a block of seeds.", least=2, default=500, example="500"),
    flags.integer("blocks", "Blocks of a trial; after each it may be given up.", least=1,
                  default=4, example="4"),
    flags.integer("fresh_blocks", "Of the comparisons at the end; by default as many, at least 4.",
                  least=1, example="8"),
    flags.integer("first_seed", "The seeds are this and those after it.", least=0,
                  default=100_000_000, example="0"),
    flags.integer("search_seed", "Of the search itself.", least=0, default=0, example="1"),
    flags.Flag("labels", "balanced, random (as each seed draws), or one class.",
               convert=_labels, default="balanced", example="random"),
    flags.config("Configuration with the data of metrics; by default the run's.", required=False),
    flags.text("reference", "Files of statistics.", example="cifar10-32x32.npz"),
    flags.path("inception", "Weights of Inception-v3, or their folder.", example="FILE"),
    flags.path("dinov2", "Weights of DINOv2, or their folder.", example="FILE"),
    flags.path("reference_cache", "Where references of data sets are kept.", example="DIR"),
    *sampling_flags.FLAGS,
    *guidance_flags.FLAGS,
    compilation_cache.FLAG,
)  # fmt: skip


def more_help() -> str:
    """The ranges, then the samplers."""
    from edm_jax.studies.space import USUAL

    lines = ["Usual ranges:"]
    for name, one in USUAL.items():
        lines.append(f"  {name:<16}{one.low:g}..{one.high:g}{':log' if one.log else ''}")
    return "\n".join([*lines, "", sampling_flags.more_help()])


def run(values: types.SimpleNamespace) -> None:
    """Search, compare, and say the flags."""
    from experiments.config.flag import UsageError

    if values.budget < 1:
        raise UsageError(f"--budget={values.budget}: the budget must be at least 1 setting")
    guidance_flags.check(values)
    from experiments import tuning

    tuning.carry_out(values)
