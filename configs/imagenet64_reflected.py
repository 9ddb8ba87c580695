r"""Class-conditional ImageNet at 64x64 with reflected diffusion (Lou and Ermon 2023).

    python experiments/main.py --config=configs/imagenet64_reflected.py --workdir=runs/...

Published: the ADM network, batch 2048, 400,000 updates, Adam with 1e-4 after 5000 updates,
gradient norm at most 1, EMA 0.9999, labels left out of a fifth of the images, no flips, noise
0.01 to 5 on [0, 1], which is 0.02 to 10 here.  No score is reported; what it shows is that
guidance of any strength (w' = 1.5 with the ODE, 15 with the SDE) needs no thresholding.  The
published run is in float16 with a scaled loss; bfloat16, which is set here, needs no scaling.

About 100 network calls suffice for the probability flow, of which Heun's 50 steps are 99.
Data as for configs/imagenet64.py.
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
    )
    base.use_network(config, "adm", dropout=0.10, label_dropout=0.2)
    config.model.dtype = "bfloat16"
    base.use_reflected(config)
    config.train.update(
        total_kimg=819_200.0,
        batch_size=2048,
        lr=1e-4,
        lr_rampup_kimg=10_240.0,
        ema_halflife_kimg=(14_195.0,),  # ln 2 / -ln 0.9999 updates
        grad_clip_norm=1.0,
        log_kimg=200.0,
        sample_kimg=10_000.0,
        checkpoint_kimg=10_000.0,
        keep_every_kimg=100_000.0,
    )
    config.sampler.num_steps = 50
    return config.lock()
