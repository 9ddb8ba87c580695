r"""Make what generated images are compared with, of a data set, as one file.

    python experiments/main.py --mode=reference --config=configs/cifar10.py \
        --inception=pt_inception-2015-12-05-6726825d.pth --dest=fid-refs/cifar10.npz

All images of the training set, without flips: mean and covariance of their features, the
features of up to 50,000 of them (kid and pr need them), and the distance of two halves.
"""

from __future__ import annotations

import types

from experiments import compilation_cache, flags

FLAGS = (
    flags.config("Configuration of the data; or give --images.", required=False),
    flags.path("images", "A folder, a .zip or a .npz of images.", example="pictures.zip"),
    flags.path("dest", "File to write.", example="fid-refs/cifar10.npz", required=True),
    flags.choice(
        "extractor", ("inception", "dinov2", "pixels"), "Of the features.", default="inception"
    ),
    flags.path("inception", "Weights of Inception-v3, or their folder.", example="FILE"),
    flags.path("dinov2", "Weights of DINOv2, or their folder.", example="FILE"),
    flags.switch("statistics_only", "Leave the features out, as the published files do."),
    compilation_cache.FLAG,
)


def run(values: types.SimpleNamespace) -> None:
    """Check, make and write."""
    from edm_jax.evaluation import references
    from edm_jax.evaluation.pictures import open_pictures
    from edm_jax.metrics import extractors
    from edm_jax.metrics.reference import save_reference
    from experiments.config import build
    from experiments.config.flag import UsageError
    from experiments.workdir import prepare

    if (values.config is None) == (values.images is None):
        raise UsageError("say of which images: --config=FILE of a data set, or --images=FOLDER")
    if values.dest.suffix != ".npz":
        raise UsageError(f"--dest={values.dest}: a reference is a file that ends with .npz")
    if values.dest.exists():
        raise UsageError(f"--dest={values.dest} exists; delete it or choose another name")
    prepare(values.dest.parent, "dest")
    name = values.extractor
    extractor = extractors.build(
        name,
        weights=getattr(values, name, None),
        option=f"--{name}",
        sharding=references.default_sharding(),
    )
    if values.images is not None:
        source, told = open_pictures(values.images), str(values.images)
    else:
        source = build.experiment(values.config).data.open()
        told = repr(references.unmirrored(source))
    compilation_cache.enable(values.compilation_cache)
    print(f"{len(references.unmirrored(source))} images with {name}")
    made = references.make_reference(
        source, extractor, features=not values.statistics_only, name=told
    )
    save_reference(values.dest, made)
    if made.floor is not None:
        print(f"two halves of {made.floor_count} images each are {made.floor:.4g} apart")
    print(f"{values.dest}")
