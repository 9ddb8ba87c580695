r"""Draw images of given seeds, as PNG files, as one archive, or as one grid.

    python experiments/main.py --mode=sample --workdir=runs/digits --seeds=0-63 --labels=3
    python experiments/main.py --mode=sample --workdir=runs/digits --sampler=dpmpp_2m \
        --discretization=edm --num_steps=20 --outdir=out --grid

The model says all about itself; what no flag says is as the run was configured, else
Heun's method on 18 steps.  Images that are there are not drawn again.  What was asked
stands in settings.json beside them, the class of every seed included.
"""

from __future__ import annotations

import types

from experiments import compilation_cache, flags, guidance_flags, sampling_flags
from experiments.config.flag import UsageError

FLAGS = (
    flags.path(
        "workdir",
        "The model: a run directory, a checkpoint or a file that edm_jax.load reads.",
        example="runs/digits",
        required=True,
    ),
    flags.text("seeds", "Which seeds, such as 0-63 or 1,2,5-10.", "0-63"),
    flags.text(
        "labels",
        "A class, index or name, for all images, or one per seed; by default every seed draws one.",
        example="3",
    ),
    flags.path(
        "outdir",
        "Folder of the images, or one .npz or .zip; by default <workdir>/generated.",
        example="out",
    ),
    flags.switch("subdirs", "A folder for every thousand seeds."),
    flags.switch("grid", "One sheet of all images instead of a file for each."),
    flags.switch(
        "decoding",
        "Of autoregressive models: a sheet of the decoding in progress, a row for each seed.",
    ),
    flags.figure_format("Of the sheet.", ("png", "pdf")),
    flags.text("variant", "Which weights; by default the first average.", example="raw"),
    *sampling_flags.FLAGS,
    *guidance_flags.FLAGS,
    compilation_cache.FLAG,
)
more_help = sampling_flags.more_help
ARCHIVES = (".npz", ".zip")


def _check_form(values: types.SimpleNamespace) -> None:
    """Raise UsageError for flags that say nothing about the files that are asked for."""
    archive = values.outdir is not None and values.outdir.suffix in ARCHIVES
    sheet = "grid" if values.grid else "decoding" if values.decoding else ""
    if sheet and archive:
        raise UsageError(f"--outdir={values.outdir} must be a folder: --{sheet} is one sheet")
    if sheet and values.subdirs:
        raise UsageError(f"--subdirs says nothing with --{sheet}, which is one sheet; leave it out")
    if "figure_format" in values.given and not sheet:
        raise UsageError("--figure_format is of the sheet of --grid; give --grid, or leave it out")


def run(values: types.SimpleNamespace) -> None:
    """Draw and write."""
    from edm_jax import load
    from edm_jax.requests import default_request
    from edm_jax.sampling import Sampling
    from experiments import image_files, text_files
    from experiments.config import build
    from experiments.workdir import CONFIG, read_config

    seeds = image_files.parse_seeds(values.seeds)  # before the model is loaded
    if values.labels is not None and not image_files.are_names(values.labels):
        image_files.parse_ranges(values.labels, "labels")
    _check_form(values)
    guidance_flags.check(values)
    base, batch_size, model = None, 64, None
    if (values.workdir / CONFIG).exists():
        experiment = build.experiment(read_config(values.workdir))
        base, batch_size = experiment.sampling, experiment.sample_batch
    else:  # the model says by which request it is drawn from
        if not values.workdir.exists():  # what is wrong with the flags is said first
            sampling_flags.request(values, Sampling())
        model = load(values.workdir, variant=values.variant)
        base = default_request(model)
    sampling = sampling_flags.request(values, base)
    if values.outdir is None and values.workdir.is_file():
        raise UsageError(
            f"--workdir={values.workdir} is a file: say where images go, for example --outdir=out"
        )
    compilation_cache.enable(values.compilation_cache)
    model = model or load(values.workdir, variant=values.variant)
    if values.decoding and model.kind != "ardm":
        raise UsageError(
            f"--decoding is for autoregressive models, and this one is of kind {model.kind!r}"
        )
    labels = image_files.labels_of(values.labels, model, seeds)
    outdir = values.outdir or values.workdir / "generated"
    if len(model.image_shape) == 1:
        text_files.write(
            model, seeds, sampling, outdir,
            name=image_files.grid_name(values.seeds, "")[:-1].replace("grid", "texts"),
            steps=values.decoding, batch_size=values.batch_size or batch_size,
        )  # fmt: skip
        return
    drawn = image_files.Drawing(
        model,
        seeds,
        labels,
        sampling,
        guidance_flags.build(values, model, sampling),
        guidance_flags.asked(values),
        values.batch_size or batch_size,
    )
    if values.decoding:
        name = image_files.grid_name(values.seeds, values.figure_format)
        image_files.write_decoding(drawn, outdir, name=name.replace("grid", "decoding"))
    elif values.grid:
        name = image_files.grid_name(values.seeds, values.figure_format)
        image_files.write_grid(drawn, outdir, name=name)
    elif outdir.suffix in ARCHIVES:
        image_files.write_archive(drawn, outdir, subdirs=values.subdirs)
    else:
        image_files.write_images(drawn, outdir, subdirs=values.subdirs)
