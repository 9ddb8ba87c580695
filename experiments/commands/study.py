r"""Compare settings of sampling on the same seeds, or make the figures of docs/.

    python experiments/main.py --mode=study --models=runs/digits --workdir=studies/solvers \
        --grid='sampler=euler,heun,dpmpp_2m;num_steps=6,9,18,36'
    python experiments/main.py --mode=study --study=studies/churn.py --workdir=studies/churn
    python experiments/main.py --mode=study --study=sampling_claim --workdir=docs

A grid is all combinations of the values of its settings, each measured on the same blocks of
seeds.  Without features (--quality=distance, the default) a cell is compared with an accurate
solution of the same latents; truncation shows the error of every single step; and any metric
of --mode=evaluate will do: --quality=frechet_pixels,classifier.  A study file is JSON, or
Python with get_config(), and says the same:

    {"models": ["runs/digits", "runs/digits:raw"], "quality": ["frechet_pixels"],
     "grid": {"s_churn": [0, 10, 40], "num_steps": [18]}, "num_images": 500, "blocks": 3}

Flags win over the file; their defaults are for what neither says.

Results go to results.csv, results.json, table.txt and figures.  Stopped at any moment, the
same command goes on.  A cell that cannot work is named before the first one runs, one that
fails is marked; the rest goes on, and the exit code is 1.

A directory holds one study: other measures, images or models are refused there.  Another grid
or number of blocks takes the place of the one before in the results; what was measured of it
is kept.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pathlib
import types
from typing import Any

from experiments import compilation_cache, flags
from experiments.config.flag import UsageError, home_expanded

STUDIES = pathlib.Path(__file__).parents[1] / "studies"
NAMES = sorted(file.stem for file in STUDIES.glob("[!_]*.py"))


def _grid(text: str) -> dict[str, Any]:
    from experiments.studying import parse_grid

    return parse_grid(text)


def _labels(text: str) -> str | int:
    from experiments.config.options import label_choice

    return label_choice(text)


FLAGS = (
    flags.text("study", "File of a study, or one of those below.", example="sampling_claim"),
    flags.path("workdir", "Directory to write.", example="studies/solvers", required=True),
    flags.Flag("grid", "Settings and their values.", convert=_grid,
               example="'sampler=heun,euler;num_steps=9,18'"),
    flags.text("models", "Models, each PATH or PATH:VARIANT.", example="runs/digits,runs/b:raw"),
    flags.text("quality", "What is measured: distance, truncation, or metrics. Default: distance.",
               example="frechet_pixels,classifier"),
    flags.integer("num_images", "Of a block of seeds. Default: 64.", least=1, example="500"),
    flags.integer("blocks", "Blocks of seeds; their spread gives error bars. Default: 4.", least=1,
                  example="3"),
    flags.integer("first_seed", "The seeds are this and those after it. Default: 100000000.",
                  least=0, example="0"),
    flags.Flag("labels", "balanced, random (as each seed draws), or one class. Default: balanced.",
               convert=_labels, example="random"),
    flags.integer("batch_size", "Images of one program, over all cells that run together. "
                  "Default: 256.", least=1, example="1024"),
    flags.config("Configuration with the data of metrics; by default the run's.", required=False),
    flags.text("reference", "Files of statistics, for metrics.", example="cifar10-32x32.npz"),
    flags.path("inception", "Weights of Inception-v3, or their folder.", example="FILE"),
    flags.path("dinov2", "Weights of DINOv2, or their folder.", example="FILE"),
    flags.path("reference_cache", "Where references of data sets are kept.", example="DIR"),
    flags.figure_format(),
    compilation_cache.FLAG,
)  # fmt: skip
# What a study of this repository, which has no grid, does not read.
_OF_GRIDS = tuple(
    flag.name
    for flag in FLAGS
    if flag.name not in ("study", "workdir", "compilation_cache", "figure_format")
)


def more_help() -> str:
    """The studies there are, a line each."""
    lines = [f"  --study={name}\n      {load(name).__doc__.splitlines()[0]}" for name in NAMES]
    return "\n".join(["Studies of this repository:", *lines])


def load(name: str) -> types.ModuleType:
    """The module of a study."""
    return importlib.import_module(f"experiments.studies.{name}")


def _file(values: types.SimpleNamespace) -> pathlib.Path | None:
    """The file of a study; None for the grid of a flag."""
    if values.study is None:
        if values.grid is None:
            raise UsageError("--study is missing, a file or a name; or --grid, with --models")
        return None
    path = home_expanded(values.study, "--study")
    if path.suffix not in (".json", ".py"):
        near = difflib.get_close_matches(values.study, NAMES, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(NAMES)}"
        raise UsageError(f"--study={values.study}: no study of this name{hint}, or a .json or .py")
    if not path.is_file():
        raise UsageError(f"--study={path}: no such file")
    return path


def run(values: types.SimpleNamespace) -> int | None:
    """Carry out the study."""
    if values.study in NAMES:
        from experiments.workdir import prepare

        for name in _OF_GRIDS:
            if name in values.given:
                raise UsageError(f"--{name} is about a grid, and --study={values.study} has none")
        study, options = load(values.study), {}
        if "figure_format" in inspect.signature(study.run).parameters:
            options["figure_format"] = values.figure_format
        elif "figure_format" in values.given:
            raise UsageError(f"--figure_format: the study {values.study} draws nothing")
        prepare(values.workdir)
        compilation_cache.enable(values.compilation_cache)
        study.run(values.workdir, **options)
        return None
    file = _file(values)
    from experiments import studying

    return studying.carry_out(values, file)
