r"""CIFAR-10 with reflected diffusion, unconditional (Lou and Ermon 2023).

    python experiments/main.py --config=configs/cifar10_reflected.py --workdir=runs/...

Published: batch 128, 1.3 million updates, Adam with 2e-4 after 5000 updates, gradient norm at
most 1, EMA 0.9999, noise 0.01 to 5 on [0, 1], which is 0.02 to 10 here.  To expect: inception
score 10.42; FID 2.72 as others list it.  Their network is DDPM++ (deep) of the NCSN++ program,
107.6 million parameters; the nearest of this one is below: the same widths, depths and residual
input branch, EDM's blocks.

Images are drawn as published, by Euler and Maruyama with reflection in 1000 steps; its last
step also removes the noise of sigma_min, which the published program leaves in.  The
probability flow takes about 20:

    --config.sampler.name=dpmpp_2m --config.sampler.discretization=edm --config.sampler.num_steps=20

Data as for configs/cifar10.py.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """The published configuration, on the nearest network."""
    config = base.get_config()
    config.data.update(
        source="images",
        path="datasets/cifar10-32x32.zip",
        conditional=False,
        resolution=32,
        mirror=True,
    )
    base.use_network(config, "ncsnpp", channel_mult=(1, 2, 2, 2), num_blocks=8, dropout=0.1)
    config.model.SongUNet.resample_filter = (1, 1)
    base.use_reflected(config)
    config.train.update(
        total_kimg=166_400.0,
        batch_size=128,
        lr=2e-4,
        lr_rampup_kimg=640.0,
        ema_halflife_kimg=(887.0,),  # ln 2 / -ln 0.9999 updates
        grad_clip_norm=1.0,
        keep_every_kimg=25_000.0,
    )
    config.sampler.update(name="reflected", discretization="ve", num_steps=1000)
    return config.lock()
