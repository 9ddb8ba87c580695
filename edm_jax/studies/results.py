"""The results of a study: a table, a CSV file, and pictures."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from edm_jax.store.atomic import write_atomically
from edm_jax.studies import quality
from edm_jax.studies.declaration import TRUNCATION, Study
from edm_jax.studies.files import write_json
from edm_jax.studies.grid import label

CSV, JSON, TABLE = "results.csv", "results.json", "table.txt"
# What sets the cost of a cell, and so the places along a line.
_COST = ("num_steps", "nfe", "sigmas")
# Names of choices: what else varies is the axis of a line.
_NAMES = ("model", "sampler", "discretization", "guidance", "schedule", "scaling", "solver")


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
    """What a study found.

    Attributes:
      study: the study.
      rows: a dict of JSON values for each cell, in order; ``status`` is done, failed or
        impossible.
      shown: the settings that differ between cells.
    """

    study: Study
    rows: list[dict[str, Any]]
    shown: list[str]

    @property
    def done(self) -> list[dict[str, Any]]:
        """The rows that have numbers."""
        return [row for row in self.rows if row["status"] == "done"]

    @property
    def measures(self) -> list[quality.Measure]:
        """The numbers of a row."""
        return quality.measures(self.study.quality)

    def count(self, status: str) -> int:
        """Cells of a status."""
        return sum(row["status"] == status for row in self.rows)

    def best(self, key: str | None = None) -> dict[str, Any]:
        """The row with the best mean of a measure, by default the first."""
        measure = next(m for m in self.measures if key in (None, m.key))
        if not self.done:
            raise ValueError("no cell of the study has a result")
        sign = 1 if measure.lower_is_better else -1
        return min(self.done, key=lambda row: sign * row["values"][measure.key]["mean"])

    def table(self) -> str:
        """A line for each cell: network calls, means and their standard errors."""
        head = ["", "calls", *(f"[{i}]" for i in range(1, len(self.measures) + 1))]
        cells = [head]
        for row in self.rows:
            if row["status"] != "done":
                cells.append([row["cell"], "-", *[row["status"]] * len(self.measures)])
                continue
            values = [_with_spread(m, row["values"][m.key]) for m in self.measures]
            cells.append([row["cell"], f"{row['network_calls']:g}", *values])
        widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
        lines = [
            "  ".join(
                c.rjust(w) if i else c.ljust(w)
                for i, (c, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in cells
        ]
        legend = [f"[{i}] {m.title}" for i, m in enumerate(self.measures, 1)]
        told = f"means over {self.study.blocks} blocks of {self.study.num_images} images"
        told += " +- standard error" if self.study.blocks > 1 else ""
        without = [
            (row["cell"], f"{row['status']}: {row['reason']}")
            for row in self.rows
            if row["status"] != "done"
        ]
        return "\n".join([*lines, *legend, told, *by_reason(without)])

    def csv(self) -> str:
        """All of it as comma-separated values, a line for each cell."""
        settings = list(dict.fromkeys(key for row in self.rows for key in row["settings"]))
        spread = ("mean", "standard_error", "minimum", "maximum")
        columns = [f"{m.key}_{part}" for m in self.measures for part in spread]
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["cell", *settings, "nfe", "network_calls", *columns, "status", "reason"])
        for row in self.rows:
            values = [
                row.get("values", {}).get(m.key, {}).get(part, "")
                for m in self.measures
                for part in spread
            ]
            told = [_plain(row["settings"].get(key)) for key in settings]
            rest = [row["status"], row.get("reason", "")]
            calls = [row.get("nfe", ""), row.get("network_calls", "")]
            writer.writerow([row["cell"], *told, *calls, *map(_plain, values), *rest])
        return file.getvalue()

    def lines(self, key: str) -> tuple[str, dict[str, list[tuple[float, float, float]]]]:
        """The curves of a measure: name of the axis, and label -> (x, mean, standard error).

        The axis is that of network calls where some line then has two points, else the first
        number that differs between cells.
        """
        lines = self._lines(key, "")
        if not _are_curves(lines):
            for axis in self.shown:
                if axis not in (*_NAMES, *_COST) and self._is_number(axis):
                    return axis, self._lines(key, axis)
        return "", lines

    def _lines(self, key: str, axis: str) -> dict[str, list[tuple[float, float, float]]]:
        """The curves over a setting, or over network calls for empty text."""
        apart = [k for k in self.shown if k not in (*_COST, axis)]
        lines: dict[str, list[tuple[float, float, float]]] = {}
        for row in self.done:
            value = row["values"][key]
            x = row["settings"].get(axis) if axis else row["network_calls"]
            if x is None:
                continue
            points = lines.setdefault(label(row["settings"], apart), [])
            points.append((x, value["mean"], value["standard_error"] or 0.0))
        return {name: sorted(points) for name, points in lines.items()}

    def _is_number(self, key: str) -> bool:
        values = [row["settings"].get(key) for row in self.done]
        return all(
            v is None or (isinstance(v, int | float) and not isinstance(v, bool)) for v in values
        )

    def write(self, directory: str | os.PathLike[str], *, figure_format: str = "png") -> list[Any]:
        """Write CSV, JSON, the table and figures.

        Returns:
          Their paths.
        """
        directory = pathlib.Path(directory).expanduser()
        write_json(directory / JSON, self.rows)
        for name, text in {CSV: self.csv(), TABLE: self.table() + "\n"}.items():
            write_atomically(directory / name, text)
        written = [directory / name for name in (CSV, JSON, TABLE)]
        return [*written, *self.draw(directory, figure_format)]

    def draw(
        self, directory: str | os.PathLike[str], figure_format: str = "png"
    ) -> list[pathlib.Path]:
        """A figure for each measure; of truncation one over the noise levels too."""
        from edm_jax.figures import nfe

        directory, written = pathlib.Path(directory).expanduser(), []
        if not self.done:
            return written
        for measure in self.measures:
            axis, lines = self.lines(measure.key)
            path = directory / f"{measure.key.replace('@', '_')}.{figure_format}"
            bars = "bars: standard error over seed blocks" if self.study.blocks > 1 else ""
            nfe.quality_curves(
                path, lines, measure.title, axis or nfe.CALLS, title=self.study.title, note=bars
            )
            written.append(path)
        if TRUNCATION in self.study.quality:
            path = directory / f"truncation_per_step.{figure_format}"
            curves = {row["cell"]: row["steps"] for row in self.done}
            nfe.step_error_curves(path, curves, title=self.study.title)
            written.append(path)
        return written

    def __repr__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        """The table, in a notebook."""
        import html

        return f"<pre>{html.escape(self.table())}</pre>"


def by_reason(told: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each reason, with the cell or the number of cells that share it.

    Args:
      told: of each cell what it is called, and why it has no numbers.
    """
    found: dict[str, list[str]] = {}
    for cell, reason in told:
        found.setdefault(reason, []).append(cell)
    return [
        f"{cells[0]}: {reason}"
        if len(cells) == 1
        else f"{len(cells)} cells, the first {cells[0]}: {reason}"
        for reason, cells in found.items()
    ]


def _are_curves(lines: dict[str, list[tuple[float, float, float]]]) -> bool:
    """Whether any line has two places."""
    return any(len({x for x, _, _ in points}) > 1 for points in lines.values())


def _with_spread(measure: quality.Measure, value: dict[str, Any]) -> str:
    mean = measure.form.format(value["mean"])
    if value["standard_error"] is None:
        return mean
    spread = value["standard_error"]
    scaled = f"{100 * spread:.2g}%" if measure.form.endswith("%}") else f"{spread:.2g}"
    return f"{mean} +- {scaled}"


def _plain(value: Any) -> Any:
    """A value as a field of CSV: nothing for None, JSON for lists."""
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value
