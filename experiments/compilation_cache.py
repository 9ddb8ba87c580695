"""Compiled programs kept on disk, so that the second start of a run compiles nothing twice."""

from __future__ import annotations

import os
import pathlib
import sys

from experiments import flags
from experiments.config.flag import home_expanded

FLAG = flags.text(
    "compilation_cache",
    "Directory that keeps compiled programs for the next start, or off. Default: "
    "$JAX_COMPILATION_CACHE_DIR, else edm_jax/compiled in the user's cache (~/.cache).",
    example="DIR",
)


def default_directory() -> pathlib.Path:
    """Of this user: ``$JAX_COMPILATION_CACHE_DIR``, else below ``$XDG_CACHE_HOME``."""
    if given := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return pathlib.Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(base).expanduser() / "edm_jax" / "compiled"


def enable(value: str | None) -> pathlib.Path | None:
    """Let JAX keep what it compiles, and say where in one line.

    Before anything is compiled; of several processes each calls it, after they have found
    each other.  Any number of processes may share a directory: an entry is named by a hash
    of all that it depends on, and one that cannot be read is compiled again.

    Args:
      value: a directory, ``off``, or None for that of the user.

    Returns:
      The directory, or None if nothing is kept: a directory that cannot be written costs
      time, not the run.
    """
    import jax

    if value == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    directory = home_expanded(value, "--compilation_cache") if value else default_directory()
    speaks = not jax.distributed.is_initialized() or jax.process_index() == 0
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        if speaks:
            print(
                f"warning: --compilation_cache={directory} cannot be written ({reason}): compiled "
                "programs are not kept",
                file=sys.stderr,
            )
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    # Small programs too: a start consists of hundreds of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if speaks:
        print(f"compiled programs are kept in {directory} (--compilation_cache=off keeps none)")
    return directory
