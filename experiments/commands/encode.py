r"""Encode images: the latent codes to which a model's probability flow takes them.

    python experiments/main.py --mode=encode --workdir=runs/digits --source=pictures.zip \
        --dest=latents.npz

The file holds the codes ((n, H, W, C), about standard normal), the labels they were made with,
the noise range and the model; --mode=decode makes images of it again.
"""

from __future__ import annotations

import types

from experiments import compilation_cache, flags, flow_flags

FLAGS = (
    *flow_flags.MODEL,
    flags.path(
        "source",
        "Images of the model's shape: a folder, a .zip, a .npz.",
        example="pictures.zip",
        required=True,
    ),
    flags.path("dest", "File to write.", example="latents.npz", required=True),
    flags.integer(
        "num_images", "So many of them, always the same ones; by default all.", least=1,
        example="100",
    ),
    flags.text(
        "labels",
        "A class for all images, or one each, or none for the all-zero label; by default those "
        "of the images.",
        example="3",
    ),
    *flow_flags.SOLVER,
    *flow_flags.REFUSED,
    compilation_cache.FLAG,
)  # fmt: skip


def run(values: types.SimpleNamespace) -> None:
    """Check, encode and write."""
    from experiments.flow_images import check_label_text, images_of

    check_label_text(values.labels)
    flow_flags.check_free(values.dest, "dest", ".npz")
    import numpy as np

    import edm_jax
    from edm_jax.evaluation.pictures import open_pictures
    from edm_jax.figures.files import replacing

    model = flow_flags.load_model(values)
    source = open_pictures(values.source)
    images = images_of(
        model, source, num_images=values.num_images, labels=values.labels, name=str(values.source)
    )
    options = flow_flags.solver_options(values)
    compilation_cache.enable(values.compilation_cache)
    indices, pixels, labels = images.batch(images.indices)
    codes = edm_jax.encode(
        model,
        pixels,
        labels,
        batch_size=flow_flags.batch_size(values, len(indices)),
        sharding=flow_flags.sharding(),
        progress=True,
        **options,
    )
    more = {name: options[name] for name in ("num_steps", "solver") if name in options}
    with replacing(values.dest) as temporary, temporary.open("wb") as out:
        np.savez(out, index=indices, **more, **codes.to_arrays())
    rms = float(np.sqrt(np.mean(np.square(codes.values, dtype=np.float64))))
    print(f"{len(codes)} codes, root mean square {rms:.3f}: {values.dest}")
