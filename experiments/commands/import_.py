r"""Bring published weights into a directory that edm_jax.load reads.

    python experiments/main.py --mode=import --source=FILE.pkl --workdir=runs/imported

Network snapshots and training states of the EDM program, guided-diffusion checkpoints and
files of ours; nothing in them is executed.  What a file does not say is assumed aloud.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
import types
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

from experiments import flags

FLAGS = (
    flags.path(
        "source",
        "The file of weights (.pkl .pt .safetensors).",
        example="edm-cifar10.pkl",
        required=True,
    ),
    flags.path(
        "workdir",
        "Directory to write; must not hold a run.",
        example="runs/imported",
        required=True,
    ),
    flags.choice(
        "attention_order",
        ("new", "legacy"),
        "Row order of attention in guided-diffusion weights, which their file does not say.",
        example="new",
    ),
    flags.text(
        "source_options",
        "What else the file does not say, as JSON or a file of it.",
        example="FILE.json",
    ),
)

Report = Callable[[str], None]


def run(values: types.SimpleNamespace) -> None:
    """Read the file, write the directory."""
    options = parse_options(values.source_options)
    refuse_images(values.source)
    import_model(
        values.source, values.workdir, attention_order=values.attention_order, options=options
    )


def refuse_images(source: pathlib.Path) -> None:
    """Raise ValueError for an archive of images, which is data and no model."""
    if not zipfile.is_zipfile(source):
        return
    try:
        with zipfile.ZipFile(source) as archive:
            listed = [name.lower() for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile, ValueError):
        return  # the reader of models says what is wrong
    if any(name.endswith(("dataset.json", ".png", ".jpg", ".jpeg")) for name in listed):
        raise ValueError(
            f"--source={source} is an archive of images, not of weights; train on it with "
            "--config.data.path, or convert it with --mode=dataset"
        )


def parse_options(text: str | None) -> dict[str, Any] | None:
    """``--source_options``: a JSON object, or the path of a file that holds one.

    Raises:
      ValueError: for anything else.
    """
    if text is None:
        return None
    from edm_jax.store.safetensors import parse_json

    try:
        if not text.lstrip().startswith("{"):
            text = flags.home_expanded(text, "--source_options").read_text()
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
    from edm_jax.foreign import importer
    from edm_jax.loading import warn_unless_finite

    _check_unused(workdir)
    found = importer.read_model_file(source, attention_order=attention_order, config=options)
    for name, variables in found.variables.items():
        warn_unless_finite(variables, name, source)
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
    from experiments.workdir import CONFIG, WorkdirError, has_checkpoint

    if has_checkpoint(workdir) or (workdir / CONFIG).exists():
        raise WorkdirError(f"--workdir={workdir} holds a run already; choose another directory")


def _write_checkpoint(
    workdir: pathlib.Path, variables: Mapping[str, Any], description: dict[str, Any]
) -> None:
    """Write step 0 of a run directory, or nothing."""
    from edm_jax.train.checkpoint import CheckpointStore, SaveError
    from experiments.workdir import locked, prepare

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
