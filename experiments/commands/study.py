r"""Make the numbers and figures of one study, such as those of docs/.

    python experiments/main.py --mode=study --study=sampling_claim --workdir=docs

A study is a file of experiments/studies/ with a docstring and ``run(workdir)``.
"""

from __future__ import annotations

import importlib
import pathlib
import types

from experiments import compilation_cache, flags

STUDIES = pathlib.Path(__file__).parents[1] / "studies"
NAMES = sorted(file.stem for file in STUDIES.glob("[!_]*.py"))

FLAGS = (
    flags.choice("study", NAMES, "Which one.", example="sampling_claim", required=True),
    flags.path("workdir", "Directory to write.", example="docs", required=True),
    compilation_cache.FLAG,
)


def more_help() -> str:
    """The studies there are, a line each."""
    lines = [f"  --study={name}\n      {load(name).__doc__.splitlines()[0]}" for name in NAMES]
    return "\n".join(["Studies:", *lines])


def load(name: str) -> types.ModuleType:
    """The module of a study."""
    return importlib.import_module(f"experiments.studies.{name}")


def run(values: types.SimpleNamespace) -> None:
    """Carry out the study."""
    from experiments.workdir import prepare

    prepare(values.workdir)
    compilation_cache.enable(values.compilation_cache)
    load(values.study).run(values.workdir)
