r"""Interpolate between images of a model, along the circle between their latent codes.

    python experiments/main.py --mode=interpolate --workdir=runs/digits --seeds=1,2 \
        --dest=strip.png --num_frames=9

The images of the seeds are those of --mode=sample without further flags.  More than two seeds
give a row from each to the next; between two classes the labels go along.
"""

from __future__ import annotations

import types

from experiments import compilation_cache, flags, flow_flags
from experiments.config.flag import UsageError

FLAGS = (
    *flow_flags.MODEL,
    flags.text("seeds", "The images, two or more, such as 1,2.", example="1,2", required=True),
    flags.text(
        "labels",
        "A class, index or name, for all images, or one per seed; by default every seed draws one.",
        example="3",
    ),
    flags.path("dest", "The sheet to write.", example="strip.png", required=True),
    flags.integer("num_frames", "Images in a row, both ends included.", least=2, default=9),
    *flow_flags.SOLVER,
    *flow_flags.REFUSED,
    compilation_cache.FLAG,
)


def run(values: types.SimpleNamespace) -> None:
    """Check, draw, encode, decode and write."""
    from experiments import image_files

    seeds = image_files.parse_seeds(values.seeds)
    if len(seeds) < 2:
        raise UsageError(f"--seeds={values.seeds}: two or more, such as --seeds=1,2")
    if values.labels is not None and not image_files.are_names(values.labels):
        image_files.parse_ranges(values.labels, "labels")
    flow_flags.check_free(values.dest, "dest", ".png")
    import edm_jax
    from edm_jax.figures.codes import strip
    from edm_jax.figures.sheets import save_image
    from edm_jax.generate import Sampling, to_uint8
    from experiments.config import build
    from experiments.workdir import CONFIG, read_config

    sampling = Sampling()
    if (values.workdir / CONFIG).exists():
        sampling = build.experiment(read_config(values.workdir)).sampling
    model = flow_flags.load_model(values)
    labels = image_files.labels_of(values.labels, model, seeds)
    options = flow_flags.solver_options(values)
    flow_flags.check_solver(model, options)
    compilation_cache.enable(values.compilation_cache)
    size, sharding = flow_flags.batch_size(values, len(seeds)), flow_flags.sharding()
    images = to_uint8(
        edm_jax.sample(model, seeds, labels, sampling=sampling, batch_size=size, sharding=sharding)
    )
    both = (None, None) if labels is None else (labels[:-1], labels[1:])
    frames = edm_jax.interpolate(
        model, images[:-1], images[1:], *both, num_frames=values.num_frames,
        batch_size=flow_flags.batch_size(values, values.num_frames * (len(seeds) - 1)),
        sharding=sharding, progress=True, **options,
    )  # fmt: skip
    save_image(values.dest, strip(frames))
    print(f"{len(frames)} x {values.num_frames} images: {values.dest}")
