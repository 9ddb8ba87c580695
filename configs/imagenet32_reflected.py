r"""Likelihood of ImageNet at 32x32 with reflected diffusion (Lou and Ermon 2023).

    python experiments/main.py --config=configs/imagenet32_reflected.py --workdir=runs/...

Published: batch 512, 2 million updates, Adam with 2e-4 after 5000 updates, gradient norm at most
1, EMA 0.9999, no flips, noise 1e-4 to 5 on [0, 1], which is 2e-4 to 10 here, and the likelihood
weighting; 3.74 bits per dimension.  Their network is that of variational diffusion models, 30.6
million parameters, which this program does not have; the nearest is below: 32 blocks of 128
channels each way at full resolution, attention in the middle, without their Fourier features of
the input.  The number is therefore not one to expect to the last digit.

The mean training loss is the diffusion term of the bound, in nats of an image.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """The published configuration, on the nearest network."""
    config = base.get_config()
    config.data.update(
        source="images",
        path="datasets/imagenet-32x32.zip",
        conditional=False,
        resolution=32,
    )
    base.use_network(
        config, "ddpmpp", channel_mult=(1,), num_blocks=32, attn_resolutions=(), dropout=0.1
    )
    base.use_reflected(config, sigma_min=2e-4, weighting="likelihood")
    config.train.update(
        total_kimg=1_024_000.0,
        batch_size=512,
        lr=2e-4,
        lr_rampup_kimg=2_560.0,
        ema_halflife_kimg=(3_549.0,),  # ln 2 / -ln 0.9999 updates
        grad_clip_norm=1.0,
        keep_every_kimg=100_000.0,
    )
    config.sampler.num_steps = 50
    return config.lock()
