r"""FFHQ at 64x64 as the paper trained it (EDM Table 2, configuration F).

    python experiments/main.py --config=configs/ffhq64.py --workdir=runs/ffhq64
    python experiments/main.py --config=configs/ffhq64.py:ncsnpp --workdir=runs/...

Variants: ``ddpmpp`` (default, the paper's "VP" column) or ``ncsnpp`` ("VE"); ``uncond`` is
the only choice of labels.  Both have EDM preconditioning and loss.

In the paper: 8 V100 GPUs, about 4 days, 200 million images in float32.  FID to expect, 50,000
images against all 70,000, 40 steps (79 network calls), the best of three seed ranges:
ddpmpp 2.39, ncsnpp 2.53.

Data, from the folder of 1024x1024 images:

    python experiments/main.py --mode=dataset --source=ffhq/images1024x1024 \
        --dest=datasets/ffhq-64x64.zip --resolution=64x64
"""

import ml_collections

from configs import base


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The published configuration of a variant."""
    _, network = base.choose(variant, ("uncond",), ("ddpmpp", "ncsnpp"))
    config = base.get_config()
    config.data.update(
        source="images",
        path="datasets/ffhq-64x64.zip",
        conditional=False,
        resolution=64,
    )
    base.use_network(config, network, channel_mult=(1, 2, 2, 2), dropout=0.05)
    config.augment.probability = 0.15
    config.train.update(
        total_kimg=200_000.0,
        batch_size=256,
        lr=2e-4,
        lr_rampup_kimg=10_000.0,
        ema_halflife_kimg=(500.0,),
        keep_every_kimg=25_000.0,
    )
    config.sampler.num_steps = 40
    return config.lock()
