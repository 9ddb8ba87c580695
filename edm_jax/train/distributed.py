"""Several processes as one program: who coordinates, and what to say when it fails."""

from __future__ import annotations

import importlib.util
import os
import pathlib
from collections.abc import Callable, Mapping

import jax
import numpy as np


class DistributedError(RuntimeError):
    """The processes of a run did not find each other."""


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether the environment is that of one of several processes.

    True under SLURM and Open MPI with more than one task, on several TPU workers or
    slices, and where JAX_COORDINATOR_ADDRESS is set.
    """

    def number(name: str) -> int:
        text = environment.get(name, "")
        return int(text) if text.isdigit() else 1

    if environment.get("JAX_COORDINATOR_ADDRESS"):
        return True
    if environment.get("SLURM_PROCID") and number("SLURM_NTASKS") > 1:
        return True
    if number("OMPI_COMM_WORLD_SIZE") > 1 or number("MEGASCALE_NUM_SLICES") > 1:
        return True
    return len(environment.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1


def on_tpu_machine(
    environment: Mapping[str, str], devices: pathlib.Path = pathlib.Path("/dev")
) -> bool:
    """Whether this machine has TPU chips that JAX would use.

    Such a machine may be a worker of a pod without its environment saying so: JAX then
    asks the metadata server of the cloud.
    """
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms.split(","):
        return False
    if importlib.util.find_spec("libtpu") is None:
        return False
    return any(devices.glob("accel[0-9]*")) or any(devices.glob("vfio/[0-9]*"))


def from_lead(question: Callable[[], int]) -> int:
    """What process 0 answers, on every process; they wait for one another.

    Raises:
      Exception: what ``question`` raised, on process 0.
      DistributedError: on the others, which would wait for it otherwise.
    """
    problem: BaseException | None = None
    answer = 0
    if jax.process_index() == 0:
        try:
            answer = question()
        except Exception as error:
            problem = error
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        said = np.array([problem is None, answer], np.int32)
        worked, answer = multihost_utils.broadcast_one_to_all(said)
        if not worked and problem is None:
            raise DistributedError("process 0 could not go on; its message says why")
    if problem is not None:
        raise problem
    return int(answer)


def on_lead(action: Callable[[], None]) -> None:
    """Do something on process 0, and go on everywhere only if it worked; see `from_lead`."""
    from_lead(lambda: action() or 0)


def lead_says(question: Callable[[], bool]) -> bool:
    """What process 0 answers, on every process; see `from_lead`."""
    return bool(from_lead(question))


def gather(rows: np.ndarray) -> np.ndarray:
    """The ``(n, ...)`` of every process one after the other, on every process."""
    if jax.process_count() == 1:
        return rows
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(rows, tiled=True))


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout_seconds: int = 300,
) -> None:
    """Join the processes of a run; does nothing for a single process.

    TPU pods, SLURM and Open MPI are recognised; elsewhere the three numbers are given. Must run
    before JAX touches a device.

    Args:
      coordinator: ``host:port`` of process 0.
      num_processes: how many there are.
      process_id: which this is, from 0.
      timeout_seconds: how long to wait for the others.

    Raises:
      ValueError: if only some of the three are given, or they make no sense.
      DistributedError: if the others do not come in time.
    """
    given = [coordinator is not None, num_processes is not None, process_id is not None]
    if any(given) and not all(given):
        raise ValueError(
            "--coordinator_address, --num_processes and --process_id go together: give all three, "
            "or none on TPU pods and under SLURM"
        )
    if all(given) and not 0 <= process_id < num_processes:
        raise ValueError(
            f"--process_id must be in 0..num_processes-1, got {process_id} of {num_processes}"
        )
    certain = any(given) or wanted(os.environ)
    if not certain and not on_tpu_machine(os.environ):
        return
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=timeout_seconds,
        )
    except Exception as error:  # each backend fails in its own way
        if not certain and jax.process_count() == 1:
            return  # chips, but neither a pod nor a cloud
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DistributedError(
            f"the processes of the run did not find each other within {timeout_seconds} s "
            f"({text}); is every process started, and can each reach "
            f"{coordinator or 'the coordinator'}?"
        ) from error
