"""The cores and the memory of a computer without accelerators.

XLA's CPU backend spreads single operations over the cores, and a small network has many that
are too small for that: the same batch on two devices takes 0.6 of the time (benchmarks/README.md).
It also takes the memory of intermediate arrays anew for every call of a program and returns it
afterwards, so that the system fills hundreds of MB with zeros in every training step.
Of GPUs and TPUs nothing changes.
"""

from __future__ import annotations

import ctypes
import glob
import os
import sys

_COUNT = "--xla_force_host_platform_device_count"
MOST = 8  # each holds the whole network
# Of malloc.h: no allocation by mmap, memory is never given back, one arena for all threads.
_MMAP_MAX, _TRIM_THRESHOLD, _ARENA_MAX = -4, -1, -8
_KEEP = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1))
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")
# What the environment was before this module changed it; None if it did not.
_before: str | None = None


def as_devices() -> None:
    """A device for each core, as a power of two; before JAX starts its backend.

    Whoever sets the number in XLA_FLAGS or JAX_NUM_CPU_DEVICES has decided.
    """
    global _before
    given = os.environ.get("XLA_FLAGS", "")
    if _COUNT in given or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    _before = given
    _set(_power_of_two(min(_cores(), MOST)))


def for_batch(images: int) -> None:
    """So many that they divide a batch; before JAX starts its backend.

    Args:
      images: that the devices compute together.
    """
    if _before is not None and not _several_processes():
        count = _power_of_two(min(_cores(), MOST))
        while images % count:
            count //= 2
        _set(count)


def among_processes() -> None:
    """One device each where several processes have shared out the cores already."""
    if _before is not None and _several_processes():
        _set(1)


def keep_memory() -> bool:
    """Keep freed memory for the next array; before JAX starts its threads.

    A training step of a small network takes 0.8 of the time (benchmarks/README.md).  The process
    stays as large as it once was, as a training run does anyway.  For glibc; nothing changes
    where there is a GPU or TPU, or where the environment says how to allocate.

    Returns:
      Whether it does so from now on.
    """
    decided = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if decided or any(glob.glob(path) for path in _ACCELERATORS) or not _is_glibc():
        return False
    libc = ctypes.CDLL(None)
    return all([libc.mallopt(name, value) for name, value in _KEEP])


def _is_glibc() -> bool:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") is not None
    except (AttributeError, OSError, ValueError):  # no glibc, no POSIX, another C library
        return False


def _several_processes() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _set(count: int) -> None:
    os.environ["XLA_FLAGS"] = f"{_before} {_COUNT}={count}".strip() if count > 1 else _before


def _cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _power_of_two(most: int) -> int:
    return 1 << (max(most, 1).bit_length() - 1)
