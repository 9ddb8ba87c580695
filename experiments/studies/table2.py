r"""The paper's Table 2 on the digits: steps A to F of the training, both columns, three seeds.

python experiments/main.py --mode=study --study=table2 --workdir=runs/table2

Trains configs/table2_digits.py:vp,A to :ve,F, one after the other, each evaluated on 1000
images of 35 network calls.  Unattended: stopped at any moment, the same command goes on, and a
run that fails is marked.  Writes ``table2.json``, ``table2.csv``, ``table2.txt`` with means and
standard errors over the seeds of training, which steps show beyond them and which do not, and
``table2.png``.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import pathlib
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edm_jax.figures import ladder
from edm_jax.studies.quality import summary
from experiments import evaluations
from experiments.config import build
from experiments.config.flag import default_config, find_config
from experiments.training import loop
from experiments.training.preemption import Preempted
from experiments.words import format_duration
from experiments.workdir import locked, to_json, write_atomically

FILE = "configs/table2_digits.py"
COLUMNS, ROWS = ("vp", "ve"), ("A", "B", "C", "D", "E", "F")
SEEDS = 3
MEASURES = {
    "frechet_distance": "Frechet distance in pixels",
    "class_accuracy": "class accuracy",
}
WHAT = {
    "B": "hyper-parameters",
    "C": "capacity at high resolution",
    "D": "EDM preconditioning",
    "E": "EDM noise distribution and loss",
    "F": "non-leaking augmentation",
}
Found = dict[tuple[str, str], list[dict[str, Any]]]


def configuration(column: str, row: str, seed: int, options: Mapping[str, Any]) -> Any:
    """The configuration of one run, with some options set otherwise."""
    config = default_config(find_config(f"{FILE}:{column},{row}"))
    config.seed = seed
    config.update_from_flattened_dict(dict(options))
    return config


def one_run(folder: pathlib.Path, name: str, config: Any) -> dict[str, Any]:
    """The result of a run: read if it is there, else trained (or resumed) and kept.

    A training that fails gives a result with ``failed``, which the next call tries again.
    """
    about = hashlib.sha256(config.to_json_best_effort(sort_keys=True).encode()).hexdigest()
    file = folder / "results" / f"{name}.json"
    try:
        there = json.loads(file.read_text())
        if there["about"] == about:
            return there
    except (OSError, ValueError, LookupError):
        pass
    path, started = folder / "runs" / name, time.monotonic()
    print(f"\n{name}", flush=True)
    try:
        loop.train(build.experiment(config), path)
        result = evaluations.read(path)
        if result is None:
            raise ValueError("it left no evaluation")
    except Preempted:
        raise
    except (ValueError, RuntimeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())
        print(f"{name} failed: {reason}", flush=True)
        return {"failed": reason}
    kept = {key: result[key] for key in MEASURES}
    kept |= {"about": about, "seconds": time.monotonic() - started, "nfe": result["nfe"]}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(to_json(kept), indent=2) + "\n")
    # Weights of dozens of runs would stay; what they gave is kept.
    shutil.rmtree(path / "checkpoints", ignore_errors=True)
    return kept


def values_of(found: Found, column: str, row: str, key: str) -> list[float]:
    """A measure of all seeds that have one."""
    return [one[key] for one in found[column, row] if "failed" not in one]


def table(found: Found) -> str:
    """Rows A to F, a column for each measure and network, with standard errors over seeds."""
    head = ["", *(f"{title}, {c.upper()}" for title in MEASURES.values() for c in COLUMNS)]
    lines = [head]
    for row in ROWS:
        cells = [row]
        for key in MEASURES:
            for column in COLUMNS:
                values = values_of(found, column, row, key)
                cells.append(_with_spread(values, key == "class_accuracy"))
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines
    )


def _with_spread(values: Sequence[float], percent: bool) -> str:
    if not values:
        return "failed"
    told, scale, unit = summary(list(values)), (100 if percent else 1), ("%" if percent else "")
    text = f"{scale * told['mean']:.4g}{unit}"
    error = told["standard_error"]
    return text if error is None else f"{text} +- {scale * error:.2g}"


def verdicts(found: Found, key: str = "frechet_distance") -> list[str]:
    """Whether each step of the paper shows here, beyond two standard errors; a line each."""
    lines = []
    for column in COLUMNS:
        for before, after in itertools.pairwise(ROWS):
            old, new = (values_of(found, column, row, key) for row in (before, after))
            step = f"{column.upper()}, {before} to {after} ({WHAT[after]})"
            if len(old) < 2 or len(new) < 2:
                lines.append(f"{step}: not known, for want of runs")
                continue
            gain = float(np.mean(old) - np.mean(new))
            error = float(np.hypot(*(np.std(v, ddof=1) / np.sqrt(len(v)) for v in (old, new))))
            told = "does not show" if abs(gain) <= 2 * error else ("helps" if gain > 0 else "hurts")
            lines.append(f"{step}: {told} ({gain:+.3g} +- {error:.2g})")
    return lines


def write(folder: pathlib.Path, found: Found, figure_format: str = "png") -> None:
    """Table, verdicts, CSV, JSON and the picture."""
    text = "\n".join([table(found), "", *verdicts(found)]) + "\n"
    write_atomically(folder / "table2.txt", text)
    rows = [
        {"column": column, "row": row, "seed": seed, **one}
        for (column, row), runs in found.items()
        for seed, one in enumerate(runs)
    ]
    write_atomically(folder / "table2.json", json.dumps(to_json(rows), indent=2) + "\n")
    file = io.StringIO()
    names = ["column", "row", "seed", *MEASURES, "seconds", "failed"]
    writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "table2.csv", file.getvalue())
    key = "frechet_distance"
    lines = {
        column.upper(): [values_of(found, column, row, key) for row in ROWS] for column in COLUMNS
    }
    ladder.ladder(folder / f"table2.{figure_format}", ROWS, lines, MEASURES[key])


def run(
    workdir: pathlib.Path,
    *,
    seeds: int = SEEDS,
    options: Mapping[str, Any] | None = None,
    figure_format: str = "png",
) -> None:
    """Train every cell of the table with every seed, and write the table.

    Args:
      workdir: of everything; made if it is not there.
      seeds: of training, 0 and those after it.
      options: of the configurations, by their dotted names.
      figure_format: png, pdf or svg.
    """
    started = time.monotonic()
    found: Found = {(column, row): [] for column in COLUMNS for row in ROWS}
    for column, row in found:  # what cannot be trained is said before the first one is
        build.experiment(configuration(column, row, 0, options or {}))
    workdir.mkdir(parents=True, exist_ok=True)
    with locked(workdir):
        # Seeds outermost: a study that is cut short has whole tables of the first ones.
        for seed in range(seeds):
            for column in COLUMNS:
                for row in ROWS:
                    config = configuration(column, row, seed, options or {})
                    name = f"{column}-{row}-{seed}"
                    found[column, row].append(one_run(workdir, name, config))
            write(workdir, found, figure_format)
    print(f"\n{(workdir / 'table2.txt').read_text()}")
    seconds = sum(one.get("seconds", 0.0) for runs in found.values() for one in runs)
    print(f"trained in {format_duration(seconds)}, this call {time.monotonic() - started:.0f}s")
    print(f"  {workdir / f'table2.{figure_format}'}")
