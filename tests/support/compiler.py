"""Flags of XLA that make it compile quickly; tests run a tiny program once or twice."""

import os
import subprocess
import sys

# The older of two code generators for CPUs takes less than half as long.
_QUICK = "--xla_cpu_use_fusion_emitters=false"
_EIGHT = "--xla_force_host_platform_device_count=8"


def flags():
    """XLA_FLAGS of the tests and of their workers, which inherit them and do not ask again."""
    given = os.environ.get("XLA_FLAGS", "")
    if _EIGHT in given:
        return given
    quick = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and _is_known(_QUICK)
    return " ".join([_QUICK if quick else "", given, _EIGHT]).strip()


def _is_known(flag):
    """Whether this XLA knows a flag: one that it does not know ends the process."""
    done = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=os.environ | {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
    )
    return done.returncode == 0


def as_users_compile():
    """``compiler_options`` of programs that are compared bit by bit, to compile as users do.

    The older code generator fuses two ways to write the same in two ways.
    """
    quick = _QUICK in os.environ["XLA_FLAGS"]
    return {"xla_cpu_use_fusion_emitters": True} if quick else None


def with_devices(count):
    """XLA_FLAGS of the tests for a process of its own, with so many devices of the CPU."""
    flags = os.environ["XLA_FLAGS"].split()
    rest = [flag for flag in flags if "device_count" not in flag]
    return " ".join([*rest, f"--xla_force_host_platform_device_count={count}"])
