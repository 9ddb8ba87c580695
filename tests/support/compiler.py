"""Flags of XLA that make it compile quickly; tests run a tiny program once or twice."""

import os
import subprocess
import sys

# The older of two code generators for CPUs takes less than half as long.
_QUICK = "--xla_cpu_use_fusion_emitters=false"


def quick_flags():
    """The flag where XLA knows it: one that it does not know ends the process."""
    done = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=os.environ | {"XLA_FLAGS": _QUICK, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
    )
    return _QUICK if done.returncode == 0 else ""


def with_devices(count):
    """XLA_FLAGS of the tests for a process of its own, with so many devices of the CPU."""
    flags = os.environ["XLA_FLAGS"].split()
    rest = [flag for flag in flags if "device_count" not in flag]
    return " ".join([*rest, f"--xla_force_host_platform_device_count={count}"])
