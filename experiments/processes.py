"""The flags of a command that several processes carry out together."""

from __future__ import annotations

import types

from experiments import cores, flags

FLAGS = (
    flags.text(
        "coordinator_address",
        "host:port of process 0, for several processes.",
        example="HOST:PORT",
    ),
    flags.integer("num_processes", "How many processes there are.", least=1, example="2"),
    flags.integer("process_id", "Which process this is, from 0.", least=0, example="0"),
)


def join(values: types.SimpleNamespace) -> None:
    """Find the others, before JAX touches a device; nothing for a single process."""
    from edm_jax.train import distributed

    distributed.initialize(values.coordinator_address, values.num_processes, values.process_id)
    cores.among_processes()
