"""--mode=import and --mode=export: models from and to files of other programs."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

from edm_jax.foreign import importer
from edm_jax.loading import load
from edm_jax.store import single_file
from edm_jax.store.safetensors import parse_json
from edm_jax.typing import PyTree
from experiments.workdir import CONFIG, WorkdirError, has_checkpoint, locked, prepare

Report = Callable[[str], None]


def parse_options(text: str | None) -> dict[str, Any] | None:
    """``--source_options``: a JSON object, or the path of a file that holds one.

    Raises:
      ValueError: for anything else.
    """
    if text is None:
        return None
    try:
        if not text.lstrip().startswith("{"):
            text = pathlib.Path(text).read_text()
        options = parse_json(text)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--source_options must be a JSON object or a file that holds one: {error}"
        ) from error
    if not isinstance(options, dict):
        raise ValueError(f"--source_options must be a JSON object, got {type(options).__name__}")
    return options


def import_model(
    source: pathlib.Path,
    workdir: pathlib.Path,
    *,
    attention_order: str | None = None,
    options: dict[str, Any] | None = None,
    report: Report = print,
) -> None:
    """Read a foreign model file and write it as a checkpoint that describes itself.

    Args:
      source: of any kind that `weights.importer.read_model_file` knows.
      workdir: receives ``checkpoints/00000000/``; must not hold a run.  What a killed
        import left there is removed.
      attention_order, options: what the file does not say (see read_model_file).
      report: gets lines for the user.

    Raises:
      WorkdirError: if the directory is in use or cannot be written.
      WeightsError, FileNotFoundError: for a bad file.
      Whatever is raised, the directory is as it was before.
    """
    _check_unused(workdir)
    found = importer.read_model_file(source, attention_order=attention_order, config=options)
    averages = [name for name in found.variables if name != "raw"]
    variants = averages + [name for name in found.variables if name == "raw"]
    description = found.description | {"variants": variants}
    _write_checkpoint(workdir, found.variables, description)
    network, origin = description["network"], description["source"]
    report(
        f"{origin['file']} ({origin['format']}): {network['name']}, "
        f"{network['img_resolution']}x{network['img_resolution']}, "
        f"{description['num_classes']} classes, {description['precond']['name']} preconditioning, "
        f"weights {', '.join(variants)}"
    )
    report(f"SHA-256 {origin['sha256']}")
    report(f"licence of these weights: {origin['licence']}")
    if found.assumed:
        report(
            f"assumed, as the file does not say: {json.dumps(found.assumed)}; where that is wrong, "
            "import again, into another directory, with the right values as --source_options"
        )
    report(f"written to {workdir}; edm_jax.load({str(workdir)!r}) reads it")


def _check_unused(workdir: pathlib.Path) -> None:
    """Raise WorkdirError if a run is there; what a killed import left is none."""
    if has_checkpoint(workdir) or (workdir / CONFIG).exists():
        raise WorkdirError(f"--workdir={workdir} holds a run already; choose another directory")


def _write_checkpoint(
    workdir: pathlib.Path, variables: dict[str, PyTree], description: dict[str, Any]
) -> None:
    """Write step 0 of a run directory, or nothing."""
    from edm_jax.train.checkpoint import CheckpointStore, SaveError

    new = not workdir.exists()
    prepare(workdir)
    with locked(workdir):
        _check_unused(workdir)  # again: another import may have ended meanwhile
        try:
            with contextlib.closing(CheckpointStore(workdir / "checkpoints")) as store:
                store.save_model(variables, 0, description)
        except BaseException as error:
            shutil.rmtree(workdir if new else workdir / "checkpoints", ignore_errors=True)
            if not isinstance(error, SaveError):
                raise
            raise SaveError(
                f"--workdir={workdir}: the model could not be written ({error.reason}) and nothing "
                "of it is left there; if the disk is full, make room and give the command again",
                error.reason,
            ) from error


def export_model(
    workdir: pathlib.Path, dest: pathlib.Path, *, variant: str | None = None, report: Report = print
) -> None:
    """Write a checkpoint as one self-describing ``.safetensors`` file.

    Args:
      workdir: anything that `edm_jax.load` reads.
      dest: the file to write; must not exist.
      variant: which weights; by default the first average.
      report: gets lines for the user.

    Raises:
      WorkdirError: if the file exists or cannot be written.
      ValueError: if ``dest`` has another ending, or there is no such model or variant.
    """
    if dest.suffix != ".safetensors":
        raise ValueError(f"--dest={dest}: the name must end in .safetensors")
    if dest.exists():
        raise WorkdirError(f"--dest={dest} exists; remove it or choose another name")
    model = load(workdir, variant=variant)
    prepare(dest.parent, "dest")
    description = dict(model.description) | {"variants": [model.variant]}
    try:
        digest = single_file.write_single_file(dest, description, {model.variant: model.variables})
    except OSError as error:
        raise WorkdirError(f"--dest={dest} cannot be written: {error.strerror or error}") from error
    size = dest.stat().st_size / 2**20
    report(f"{dest}: {model.variant}, {size:.1f} MiB, SHA-256 of the contents {digest}")
    report(f"edm_jax.load({str(dest)!r}) reads it")
