r"""Decode latent codes: the images from which --mode=encode made them.

    python experiments/main.py --mode=decode --workdir=runs/digits --source=latents.npz \
        --outdir=decoded

Other --labels draw the codes as images of another class.  Noise range, steps and solver are
those the codes were made with, unless they are given.
"""

from __future__ import annotations

import pathlib
import types
from typing import TYPE_CHECKING, Any

from experiments import compilation_cache, flags, flow_flags
from experiments.config.flag import UsageError

if TYPE_CHECKING:
    from edm_jax.likelihood import Codes

FLAGS = (
    *flow_flags.MODEL,
    flags.path("source", "A file that --mode=encode wrote.", example="latents.npz", required=True),
    flags.path("outdir", "Folder of the images, new or empty.", example="decoded", required=True),
    flags.text(
        "labels",
        "Another class for all codes, or one each, or none; by default those they were made with.",
        example="3",
    ),
    flags.switch("final_denoise", "End on D(x; s0), as samplers do, instead of at s0."),
    *flow_flags.SOLVER,
    *flow_flags.REFUSED,
    compilation_cache.FLAG,
)


def run(values: types.SimpleNamespace) -> None:
    """Check, decode and write."""
    from experiments.flow_images import check_label_text
    from experiments.workdir import prepare

    check_label_text(values.labels)
    outdir = values.outdir
    if outdir.is_file() or (outdir.is_dir() and any(outdir.iterdir())):
        raise UsageError(f"--outdir={outdir} exists and is not empty; choose another name")
    codes, more = read_codes(values.source)
    model = flow_flags.load_model(values)
    from edm_jax import decode
    from edm_jax.evaluation.drawing import progress_bar
    from edm_jax.figures.sheets import save_image
    from edm_jax.generate import to_uint8
    from edm_jax.likelihood.codes import check_codes
    from edm_jax.likelihood.model_codes import fingerprint
    from experiments.image_files import image_name

    if codes.model != fingerprint(model):
        raise ValueError(
            f"--source={values.source}: its codes were made by another model or other weights than "
            f"--workdir={values.workdir}; name those"
        )
    labels = _labels(values.labels, model, len(codes))
    try:
        check_codes(codes.values, model.image_shape)
    except ValueError as error:
        raise ValueError(f"--source={values.source}: {error}") from None
    ends = {"sigma_min": codes.sigma_min, "sigma_max": codes.sigma_max}
    options = {**ends, **more, **flow_flags.solver_options(values)}
    flow_flags.check_solver(model, options)
    prepare(outdir, "outdir")
    compilation_cache.enable(values.compilation_cache)
    images = decode(
        model,
        codes,
        labels,
        final_denoise=values.final_denoise,
        batch_size=flow_flags.batch_size(values, len(codes)),
        sharding=flow_flags.sharding(),
        progress=True,
        **options,
    )
    with progress_bar(len(images), "files") as bar:
        for i, image in enumerate(to_uint8(images)):
            save_image(outdir / image_name(i), image)
            bar.update(1)
    _write_classes(outdir, model.label_rows(labels, len(codes)), codes, model.label_names)
    print(f"{len(images)} images: {outdir}/<number>.png")


def read_codes(file: pathlib.Path) -> tuple[Codes, dict[str, Any]]:
    """What --mode=encode wrote: the codes, and steps and solver where they were given.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is another one, or damaged.
    """
    import zipfile

    import numpy as np

    from edm_jax.likelihood import Codes

    if not file.is_file():
        raise FileNotFoundError(f"--source={file}: there is no such file")
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, LookupError, AttributeError, zipfile.BadZipFile):
        raise ValueError(
            f"--source={file}: no readable file of codes; --mode=encode makes them"
        ) from None
    try:
        codes = Codes.from_arrays(arrays)
        more: dict[str, Any] = {}
        if "num_steps" in arrays:
            more["num_steps"] = int(arrays["num_steps"])
        if "solver" in arrays:
            more["solver"] = str(arrays["solver"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"--source={file}: {error}") from None
    return codes, more


def _labels(text: str | None, model: Any, count: int) -> Any:
    import numpy as np

    from experiments.flow_images import NO_LABEL
    from experiments.image_files import labels_of

    if text is None:
        return None
    if text == NO_LABEL and model.num_classes:
        return np.zeros((count, model.num_classes), np.float32)
    return labels_of(text, model, range(count))


def _write_classes(outdir: pathlib.Path, rows: Any, codes: Codes, label_names: Any) -> None:
    """dataset.json: the classes of the images, so that they are a data set."""
    import numpy as np

    from edm_jax.data.sources.labels import METADATA
    from experiments.flow_images import one_class_each
    from experiments.image_files import image_name
    from experiments.sample_folders import metadata
    from experiments.workdir import write_atomically

    classes = one_class_each(codes.rows if rows is None else np.asarray(rows))
    if classes is not None:
        pairs = [[image_name(i), int(label)] for i, label in enumerate(classes)]
        write_atomically(outdir / METADATA, metadata(pairs, label_names))
