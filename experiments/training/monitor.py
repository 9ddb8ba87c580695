"""What one sees of a run: the status line, metrics.jsonl, TensorBoard, W&B, a profile."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from edm_jax.train import metrics as metrics_lib
from edm_jax.train.metrics import Metrics
from edm_jax.train.optimizer import learning_rate
from experiments import workdir
from experiments.config.experiment import Experiment
from experiments.config.groups import flatten
from experiments.training import writers
from experiments.training.status import StatusLine, memory_gib

# Peak rate of one JAX device in dense bfloat16 matrix products (float16 on V100), in
# TFLOP/s, from the vendors' data sheets; the first name that begins the device's counts.
PEAK_TFLOPS = {
    "TPU v2": 22.5,  # of one core, which is one device
    "TPU v3": 61.5,
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5": 459.0,
    "TPU v6": 918.0,
    "Tesla V100": 125.0,
    "NVIDIA A100": 312.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100": 989.0,
    "NVIDIA H200": 989.0,
}


def peak_tflops(device_kind: str) -> float | None:
    """Peak rate of a device by its name (`jax.Device.device_kind`); None if not known."""
    for name, peak in PEAK_TFLOPS.items():
        if device_kind.startswith(name):
            return peak
    return None


class Monitor:
    """Turns the running metrics of a run into lines, files and records.

    Attributes:
      flops_per_image: operations of one image in a training step; set once it is known.
    """

    def __init__(
        self,
        experiment: Experiment,
        path: pathlib.Path,
        step: int,
        status: StatusLine,
        *,
        level_edges: Sequence[float] = metrics_lib.SIGMA_BIN_EDGES,
        wandb_project: str = "",
    ):
        """Open the files and records of a run that has ``step`` steps behind it.

        Only the process that leads opens any; ``log`` and the others do nothing elsewhere.
        """
        self._train, self._path, self._status = experiment.training, path, status
        self._edges = list(level_edges)
        self._level = "step" if experiment.kind == "ardm" else "sigma"
        self.flops_per_image = 0
        self._files: list[Any] = []
        self._pictures: writers.WeightsAndBiases | None = None
        if jax.process_index() != 0:
            return
        self._metrics = writers.MetricsFile(path, step)
        self._tensorboard = writers.TensorBoard(path, report=status.say)
        values = flatten(workdir.to_json(experiment.config))
        self._pictures = writers.WeightsAndBiases(path, wandb_project, values, report=status.say)
        self._files = [self._metrics, self._tensorboard, self._pictures]
        self._evaluations: writers.MetricsFile | None = None
        if experiment.intervals.evaluation:
            self._evaluations = writers.MetricsFile(path, step, workdir.EVALUATIONS)
            self._files.append(self._evaluations)

    def log(self, step: int, metrics: Metrics) -> None:
        """Tell of the window of metrics, on the host, that ended at ``step``."""
        rate = self._status.rate(step)
        if not self._files:
            return
        batch_size = self._train.batch_size
        means = metrics_lib.means(metrics)
        num_steps = max(int(metrics["loss"]["count"]), 1)
        # The rate of the last step taken, whose count of images seen was one batch less.
        lr = learning_rate(
            (step - 1) * batch_size,
            self._train.lr,
            self._train.lr_rampup_kimg * 1000,
            self._train.lr_end_kimg * 1000,
        )
        scalars = {
            "kimg": step * batch_size / 1000,
            "loss": float(means["loss"]),
            "lr": lr,
            "grad_norm": float(means["grad_norm"]),
            "num_bad_grads": int(metrics["bad_grads"]["sum"]),
            "num_bad_steps": int(metrics["bad_steps"]["sum"]),
            "images_per_second": rate,
            "memory_gib": memory_gib(),
            **self._arithmetic(rate),
        }
        per_level = {
            f"{self._level}_bin_edges": self._edges,
            f"loss_per_{self._level}_bin": means["loss_per_level"].tolist(),
            f"images_per_{self._level}_bin": np.asarray(
                metrics["loss_per_level"]["count"]
            ).tolist(),
        }
        told = {*scalars, "bad_grads", "bad_steps", "loss_per_level"}
        scalars |= {
            name: float(value)
            for name, value in means.items()
            if name not in told and np.ndim(value) == 0
        }
        self._metrics.write(step, scalars | per_level)
        self._tensorboard.write(step, scalars)
        self._pictures.write(step, scalars)
        self._status.show(step, rate=rate, loss=scalars["loss"], lr=lr, utilisation=scalars["mfu"])
        if scalars["num_bad_steps"]:
            self._status.say(
                f"warning: {scalars['num_bad_steps']} of the last {num_steps} steps had a loss or "
                "gradient that was not finite "
                f"({scalars['num_bad_grads']} elements: NaN became 0, an infinity 1e5)"
            )

    def _arithmetic(self, rate: float | None) -> dict[str, float | None]:
        """Rate of arithmetic of a device, and its share of the peak (MFU), where known."""
        if rate is None:
            return {"tflops_per_device": None, "mfu": None}
        tflops = rate * self.flops_per_image / jax.device_count() / 1e12
        peak = peak_tflops(jax.devices()[0].device_kind)
        return {"tflops_per_device": tflops, "mfu": tflops / peak if peak else None}

    def evaluation(self, step: int, result: Mapping[str, Any]) -> None:
        """Tell of an evaluation during training."""
        if self._files:
            row = {"kimg": step * self._train.batch_size / 1000} | dict(result)
            self._evaluations.write(step, row)
            named = {f"evaluation/{key}": value for key, value in result.items()}
            self._tensorboard.write(step, named)
            self._pictures.write(step, named)

    def picture(self, step: int, name: str, path: pathlib.Path) -> None:
        """Tell of a picture file."""
        if self._pictures is not None:
            self._pictures.write_image(step, name, path)

    def close(self) -> None:
        """Finish what is being written."""
        for file in self._files:
            file.close()


class Profiler:
    """A trace of some training steps, by `jax.profiler`, of the process that leads."""

    def __init__(
        self,
        directory: pathlib.Path,
        steps: tuple[int, int] | None,
        report: Callable[[str], None] = print,
    ):
        """Prepare.

        Args:
          directory: where the trace goes.
          steps: first and last step of it; None for no trace.
          report: told where the trace is.
        """
        self._directory, self._report, self._running = directory, report, False
        self._steps = steps if jax.process_index() == 0 else None

    def before(self, step: int, ready: Any) -> None:
        """Begin if ``step`` is in the range; ``ready`` is waited for first."""
        if self._steps and not self._running and self._steps[0] <= step <= self._steps[1]:
            jax.block_until_ready(ready)
            jax.profiler.start_trace(self._directory, create_perfetto_trace=True)
            self._running = True

    def after(self, step: int, ready: Any) -> bool:
        """End with the last step of the range; ``ready`` is waited for first.

        Returns:
          Whether a trace was written, which takes a while.
        """
        if not self._running or step < self._steps[1]:
            return False
        jax.block_until_ready(ready)
        self.close()
        return True

    def close(self) -> None:
        """Write what there is."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            self._report(
                f"profile: {self._directory} (TensorBoard reads it; perfetto_trace.json.gz opens "
                "in ui.perfetto.dev)"
            )


def parse_steps(text: str | None) -> tuple[int, int] | None:
    """``100-110`` or ``100`` as the first and last step; None for None.

    Raises:
      ValueError: for anything else.
    """
    if text is None:
        return None
    first, dash, last = text.partition("-")
    last = last if dash else first
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ValueError(
            f"--profile_steps={text} must be a step or a range of steps from 1, such as 100-110"
        )
    return int(first), int(last)
