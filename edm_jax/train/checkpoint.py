"""Writing and resuming checkpoints: atomic, checksummed, asynchronous (Orbax)."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from edm_jax.store import checkpoints
from edm_jax.store.checkpoints import CheckpointError
from edm_jax.train import distributed, metrics
from edm_jax.train.state import TrainState
from edm_jax.typing import PyTree

# An item of its own: what it holds may differ between versions.  (Orbax itself has "metrics".)
METRICS = "running_metrics"


class SaveError(RuntimeError):
    """A checkpoint that could not be written; the ones before it are as they were.

    Attributes:
      reason: what went wrong, without what to do about it.
    """

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


def _items(state: TrainState) -> dict[str, PyTree]:
    """The state as the separately readable trees of a checkpoint."""
    return _without_empty(
        {
            "params": {"params": state.params, "buffers": state.buffers},
            "ema": state.ema,
            "train": {
                "step": state.step,
                "opt_state": state.opt_state,
                "bad_streak": state.bad_streak,
                "failed_step": state.failed_step,
                **({"objective": state.objective} if jax.tree.leaves(state.objective) else {}),
            },
            METRICS: state.metrics,
        }
    )


def _without_empty(items: dict[str, PyTree]) -> dict[str, PyTree]:
    """Orbax writes no empty tree: without averages there is no item ``ema``."""
    return {name: tree for name, tree in items.items() if tree}


def _from_items(items: Mapping[str, PyTree]) -> TrainState:
    return TrainState(
        **items["params"], ema=items.get("ema", {}), **items["train"], metrics=items[METRICS]
    )


def _place(values: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    """An array of the host, the same on every process, where ``like`` says."""
    where = like.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.make_array_from_callback(values.shape, where, lambda index: values[index])


class _Manager(ocp.CheckpointManager):
    """Does not ask whether the machine wants to stop; training does.

    JAX's service answers one sequence of numbers: steps asked about in between would be
    taken for numbers of that sequence, and the answer never come.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class CheckpointStore:
    """The checkpoints of one run.

    A step appears under its name only when all its files and their checksums are on
    disk.  Saving copies the state to the host and returns; writing goes on behind it.
    """

    def __init__(
        self, directory: pathlib.Path, *, keep_last: int = 3, keep_every: int | None = None
    ):
        """Open or create.

        Args:
          directory: holds one sub-directory per step.
          keep_last: how many of the newest to keep, at least 2: one may be damaged.
          keep_every: also keep steps that are a multiple of this.
        """
        if keep_last < 2:
            raise ValueError(f"keep_last must be at least 2, got {keep_last}")
        self.directory = directory.resolve()
        self._failed, self._last = False, -1
        if jax.process_index() == 0:
            self._remove_unfinished()
        self._manager = _Manager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep_last,
                keep_period=keep_every,
                step_format_fixed_length=8,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            ),
        )

    def _remove_unfinished(self) -> None:
        """Delete what a killed run was writing."""
        for path in self.directory.glob("*orbax-checkpoint-tmp*"):
            shutil.rmtree(path, ignore_errors=True)

    def _seal(self) -> None:
        """Write the checksums of the step that was just written, before it gets its name."""
        if jax.process_index() != 0:
            return
        # No other step: one that lost its checksums is damaged, and must stay so.
        for path in self.directory.glob(f"{self._last:08d}*"):
            if (path / "description").is_dir():
                checkpoints.write_checksums(path)

    def save(self, state: TrainState, step: int, description: Mapping[str, Any]) -> None:
        """Start saving; waits only for the copy to the host and an unfinished earlier save."""
        self._save(_items(state), step, description)

    def save_model(
        self, variables: Mapping[str, PyTree], step: int, description: Mapping[str, Any]
    ) -> None:
        """Save a model without a training state, such as an imported one.

        Args:
          variables: ``{"params": ..., "buffers": ...}`` for each variant of
            ``description["variants"]``; all have the same buffers.
          step: its number.
          description: see `weights.description`.
        """
        raw = variables.get("raw", {}).get("params", {})
        buffers = next(iter(variables.values())).get("buffers", {})
        averages = {name: tree["params"] for name, tree in variables.items() if name != "raw"}
        items = _without_empty({"params": {"params": raw, "buffers": buffers}, "ema": averages})
        self._save(items, step, description)
        self.wait()

    def _save(self, items: Mapping[str, PyTree], step: int, description: Mapping[str, Any]) -> None:
        args: dict[str, Any] = {n: ocp.args.StandardSave(tree) for n, tree in items.items()}
        args["description"] = ocp.args.JsonSave(dict(description))
        self.wait()  # one at a time, so that a failure is named after its own step
        self._last = step
        self._require_space(items)
        with self._writing():
            self._manager.save(step, args=ocp.args.Composite(**args), force=True)

    def _require_space(self, items: Mapping[str, PyTree]) -> None:
        """Stop before a save that cannot fit, while nothing is written yet."""
        if jax.process_index() != 0:
            return
        need = sum(a.nbytes for a in jax.tree.leaves(items))
        free = shutil.disk_usage(self.directory).free
        if free < need:
            raise self._failure(f"it needs {need / 2**30:.2f} GiB, {free / 2**30:.2f} are free")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn whatever goes wrong with writing into one error of one line."""
        try:
            yield
        except Exception as error:  # Orbax, TensorStore and the system raise many kinds
            text = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise self._failure(text) from error

    def _failure(self, reason: str) -> SaveError:
        self._failed = True
        return SaveError(
            f"{self.directory}: the checkpoint of step {self._last} could not be written "
            f"({reason}); is the disk full? The checkpoints before it are intact: make room, "
            "and the same command goes on from the newest",
            reason,
        )

    def wait(self) -> None:
        """Block until the last save is on disk.

        Raises:
          SaveError: if it could not be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait and release.

        Raises:
          SaveError: if the last save could not be written and nothing has said so yet.
        """
        try:
            if not self._failed:
                self.wait()
        finally:
            with contextlib.suppress(Exception):
                self._manager.close()

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        return [int(path.name) for path in checkpoints.checkpoint_steps(self.directory)]

    def restore_latest(
        self, abstract: TrainState, report: Callable[[str], None] = warnings.warn
    ) -> TrainState | None:
        """The newest undamaged state, or None if there is no checkpoint.

        Damaged steps are reported, renamed to ``damaged-<step>`` and passed over.  Process 0
        judges for all, so that every process restores the same step.

        Args:
          abstract: the state as ShapeDtypeStructs with shardings.
          report: called with one line for each damaged step.

        Raises:
          CheckpointError: if there are checkpoints but none is whole, or one that is whole
            cannot be restored; nothing is changed then.
          NewerFormatError: if a newer version wrote one; nothing is changed then.
        """
        damaged: list[pathlib.Path] = []
        step = distributed.from_lead(lambda: self._newest_whole(damaged, report))
        if step < 0:
            return None
        state = self._restore(step, abstract)
        if distributed.from_lead(lambda: self._set_aside(damaged)):
            self._manager.reload()
        return state

    def _newest_whole(self, damaged: list[pathlib.Path], report: Callable[[str], None]) -> int:
        """The newest step that is as it was written, or -1; those passed over go to ``damaged``."""
        steps = checkpoints.checkpoint_steps(self.directory)
        for step_dir in reversed(steps):
            try:
                checkpoints.read_description(step_dir)
                checkpoints.verify_checksums(step_dir)
            except CheckpointError as error:
                report(f"damaged checkpoint passed over: {error}")
                damaged.append(step_dir)
            else:
                return int(step_dir.name)
        if steps:
            raise CheckpointError(
                f"{self.directory}: none of its {len(steps)} checkpoints can be restored; "
                "nothing was changed there"
            )
        return -1

    def _set_aside(self, damaged: list[pathlib.Path]) -> int:
        """Rename damaged steps, so that training may write them anew; how many they are."""
        for path in damaged:
            target = path.with_name(f"damaged-{path.name}")
            if target.exists():
                shutil.rmtree(target)
            path.rename(target)
        return len(damaged)

    def _restore(self, step: int, abstract: TrainState) -> TrainState:
        items = _items(abstract)
        items.pop(METRICS)
        step_dir = self.directory / f"{step:08d}"
        first_format = not (step_dir / METRICS).exists()
        if first_format:  # they were part of the training state
            items["train"] = items["train"] | {
                "metrics": {
                    name: jax.ShapeDtypeStruct(shape, dtype, sharding=abstract.step.sharding)
                    for name, (shape, dtype) in metrics.FIRST_FORMAT_SHAPES.items()
                }
            }
        args = {name: ocp.args.StandardRestore(tree) for name, tree in items.items()}
        try:
            restored = dict(self._manager.restore(step, args=ocp.args.Composite(**args)))
            if first_format:
                stored = jax.device_get(restored["train"].pop("metrics"))
            else:
                stored = checkpoints.read_arrays(step_dir, METRICS)
        except Exception as error:  # Orbax raises many kinds
            text = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            # Not damage: memory that ran out, say, or another version of a library.
            raise CheckpointError(
                f"{self.directory}: step {step} is whole but could not be restored ({text}); "
                "nothing was changed there"
            ) from error
        values = metrics.from_stored(stored, abstract.metrics)
        restored[METRICS] = jax.tree.map(_place, values, abstract.metrics)
        return _from_items(restored)
