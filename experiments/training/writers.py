"""Where the numbers of a run go: metrics.jsonl always, TensorBoard and W&B where they are."""

from __future__ import annotations

import json
import math
import pathlib
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from experiments.workdir import METRICS, write_atomically

Report = Callable[[str], None]
WANDB_ID = ".wandb_id"


class MetricsFile:
    """One JSON object a line, in order of steps."""

    def __init__(self, path: pathlib.Path, resume_step: int, name: str = METRICS):
        """Open for appending; lines after ``resume_step`` will be written again."""
        self._path = path / name
        if self._path.exists():
            kept = []
            for line in self._path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= resume_step:
                        kept.append(line)
                except (ValueError, KeyError, TypeError):
                    break  # the line that a kill cut short
            write_atomically(self._path, "".join(line + "\n" for line in kept))
        self._file = self._path.open("a")

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line; non-finite numbers become null, as JSON has none."""

        def clean(value: Any) -> Any:
            if isinstance(value, float) and not math.isfinite(value):
                return None
            if isinstance(value, list):
                return [clean(v) for v in value]
            return value

        row = {"step": step} | {name: clean(value) for name, value in values.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: pathlib.Path, name: str = METRICS) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl, or of another file that `MetricsFile` wrote."""
    file = path / name
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines()]


class TensorBoard:
    """Scalars as TensorBoard events through clu, where tensorflow is installed."""

    def __init__(self, path: pathlib.Path, report: Report = print):
        self._writer = None
        try:
            # tensorflow takes seconds to import and is an extra.
            from clu.metric_writers import SummaryWriter
        except ImportError:
            report(
                "TensorBoard events are off: tensorflow is not installed "
                "(pip install -e '.[tensorboard]'); metrics.jsonl has everything"
            )
            return
        self._writer = SummaryWriter(str(path / "tensorboard"))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write the numbers among the values."""
        if self._writer is not None:
            scalars = {k: v for k, v in values.items() if isinstance(v, int | float)}
            self._writer.write_scalars(step, scalars)

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """Scalars and sample grids to Weights & Biases.

    It never stops a run: whatever goes wrong is said once, and then it is off.
    """

    def __init__(
        self,
        path: pathlib.Path,
        project: str,
        config: Mapping[str, Any],
        report: Report = print,
    ):
        """Begin, or go on with, the record of a run.

        Args:
          path: the run directory; keeps the name of the record, so that resuming adds to it.
          project: where the record goes; empty for nowhere.
          config: shown beside the record.
          report: told when it does not work.
        """
        self._record, self._report = None, report
        if not project:
            return
        try:
            import wandb  # an optional library, and slow to import

            self._wandb = wandb
            file = path / WANDB_ID
            name = file.read_text().strip() if file.exists() else secrets.token_hex(4)
            self._record = wandb.init(
                project=project,
                id=name,
                resume="allow",
                dir=str(path),
                name=path.name,
                config=dict(config),
            )
            write_atomically(file, name + "\n")
        except ImportError:
            self._off("wandb is not installed (pip install wandb)")
        except Exception as error:  # a service may fail in any way
            self._off(f"{type(error).__name__}: {error}")

    def _off(self, reason: str) -> None:
        self._record = None
        first = (reason.strip().splitlines() or ["no reason given"])[0]
        self._report(f"Weights & Biases is off: {first}; metrics.jsonl has everything")

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Send the numbers among the values."""
        if self._record is not None:
            scalars = {k: v for k, v in values.items() if isinstance(v, int | float)}
            try:
                self._record.log(scalars, step=step)
            except Exception as error:
                self._off(f"{type(error).__name__}: {error}")

    def write_image(self, step: int, name: str, path: pathlib.Path) -> None:
        """Send a picture file."""
        if self._record is not None:
            try:
                self._record.log({name: self._wandb.Image(str(path))}, step=step)
            except Exception as error:
                self._off(f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """Finish the record."""
        if self._record is not None:
            try:
                self._record.finish()
            except Exception as error:
                self._off(f"{type(error).__name__}: {error}")
