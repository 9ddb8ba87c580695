r"""Autoregressive diffusion on CIFAR-10 as published (Hoogeboom et al. 2022).

    python experiments/main.py --config=configs/cifar10_ardm.py --workdir=runs/cifar10_ardm \
        --config.data.path=datasets/cifar10-32x32.zip
    python experiments/main.py --config=configs/cifar10_ardm.py:upscale ...

Published, bits per dimension: 2.69 +- 0.005 in any order (3072 calls; 2.74 in 50 by the
optimal policy), 2.64 +- 0.002 from coarse to fine in base 4 (4 x 3072; 2.68 in 4 x 50), after
3000 epochs: about two weeks on 8 TPU v4; 2.8 after a couple of days.

The text of the paper has one attention layer, in the middle, and its numbers; ``:all`` has one
after every block, as the released configuration.  That of 2.64 is with augmentation, about 2.71
without (Figure 8); the released default is off, and so is it here.
"""

import ml_collections

from configs import base

EPOCHS, NUM_IMAGES = 3000, 50_000


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The CIFAR-10 configuration."""
    process, attention = base.choose(variant, ("absorbing", "upscale"), ("middle", "all"))
    config = base.get_config()
    config.data.update(source="images", conditional=False, resolution=32)
    base.use_ardm(config, num_values=256, num_steps=50, process=process)
    config.model.ArdmUNet.attention = attention
    config.train.update(
        total_kimg=EPOCHS * NUM_IMAGES / 1000,
        batch_size=128,
        lr=1e-4,
        lr_rampup_kimg=0.0,
        adam_b1=0.9,
        adam_b2=0.999,
        grad_clip_norm=100.0,
        # 0.9999 a step: half of it after ln 2 / -ln 0.9999 steps of 128 images.
        ema_halflife_kimg=(887.0,),
        ema_rampup_ratio=0.0,
    )
    config.evaluation.update(num_images=10_000, metrics=("frechet_pixels",))
    return config.lock()
