r"""Write a model as one self-describing .safetensors file.

    python experiments/main.py --mode=export --workdir=runs/digits --dest=digits.safetensors

edm_jax.load reads the file, with no configuration.  With --naming=published the arrays have the
names and layouts of the EDM program's state dictionaries, for programs in PyTorch.
"""

from __future__ import annotations

import pathlib
import types
from collections.abc import Callable

from experiments import flags

FLAGS = (
    flags.path(
        "workdir",
        "The model: a run directory, a checkpoint or a file that edm_jax.load reads.",
        example="runs/digits",
        required=True,
    ),
    flags.path("dest", "File to write.", example="digits.safetensors", required=True),
    flags.text("variant", "Which weights; by default the first average.", example="raw"),
    flags.choice(
        "naming",
        ("own", "published"),
        "Names and layouts of the arrays: ours, or those of the EDM program.",
        default="own",
    ),
)


def run(values: types.SimpleNamespace) -> None:
    """Write the file."""
    export_model(values.workdir, values.dest, variant=values.variant, naming=values.naming)


def export_model(
    workdir: pathlib.Path,
    dest: pathlib.Path,
    *,
    variant: str | None = None,
    naming: str = "own",
    report: Callable[[str], None] = print,
) -> None:
    """Write a checkpoint as one self-describing ``.safetensors`` file.

    Args:
      workdir: anything that `edm_jax.load` reads.
      dest: the file to write; must not exist.
      variant: which weights; by default the first average.
      naming: "own", or "published": names and layouts of the EDM program.
      report: gets lines for the user.

    Raises:
      WorkdirError: if the file exists or cannot be written.
      ValueError: if ``dest`` has another ending, there is no such model or variant, or the
        published names have none for its network.
    """
    from edm_jax import load
    from edm_jax.foreign import published
    from edm_jax.store import single_file
    from experiments.workdir import WorkdirError, prepare

    if dest.suffix != ".safetensors":
        raise ValueError(f"--dest={dest}: the name must end in .safetensors")
    if dest.exists():
        raise WorkdirError(f"--dest={dest} exists; remove it or choose another name")
    model = load(workdir, variant=variant)
    if naming == "published":
        published.check_network(model.net, model.kind)
    prepare(dest.parent, "dest")
    description = dict(model.description) | {"variants": [model.variant]}
    try:
        if naming == "published":
            digest = published.write_state_dict(dest, description, model.variables)
        else:
            variables = {model.variant: model.variables}
            digest = single_file.write_single_file(dest, description, variables)
    except OSError as error:
        raise WorkdirError(f"--dest={dest} cannot be written: {error.strerror or error}") from error
    size = dest.stat().st_size / 2**20
    report(f"{dest}: {model.variant}, {size:.1f} MiB, SHA-256 of the contents {digest}")
    report(f"edm_jax.load({str(dest)!r}) reads it")
