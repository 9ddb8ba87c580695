r"""The noisy classifier of ADM on ImageNet at 64x64, as published (Dhariwal and Nichol 2021).

    python experiments/main.py --config=configs/imagenet64_classifier.py \
        --workdir=runs/imagenet64_classifier

65,438,568 parameters.  The classifier sees z = x / sqrt(1 + sigma^2) and the time step of the
cosine schedule of 1000 levels, drawn uniformly; it is the pair of the model that
configs/imagenet64.py:adm_published trains, and guides any other model as well.

300,000 steps of 1024 images, flipped at random, at a rate that falls from 6e-4 to 0 along a
straight line; weights decay by 0.2.  (These are the paper's as far as they could be told; the
released program's README has 256 images, 3e-4 and 0.05, for 128x128.)  What is not as published:
images are cropped at the centre when the data set is made, not at random.  The published program
kept no average of the weights:
--variant=raw are the weights themselves.  Feature maps are in bfloat16; there in float16 with a
scale that adapts.

Data as for configs/imagenet64.py.  The accuracy per noise level that training ends with is
that of images the classifier has been trained on, as the folder has no others.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """The published configuration."""
    config = base.get_config()
    config.data.update(
        source="images",
        path="datasets/imagenet-64x64.zip",
        conditional=True,
        resolution=64,
        mirror=True,
    )
    base.use_classifier(config)
    config.model.dtype = "bfloat16"
    base.use_discrete(config)
    config.train.update(
        total_kimg=300_000 * 1.024,
        batch_size=1024,
        lr=6e-4,
        lr_rampup_kimg=0.0,
        lr_end_kimg=300_000 * 1.024,
        weight_decay=0.2,
        ema_halflife_kimg=(10_000.0,),
        log_kimg=100.0,
        sample_kimg=0.0,
        checkpoint_kimg=5_000.0,
        keep_every_kimg=50_000.0,
    )
    config.evaluation.num_images = 10_000
    return config.lock()
