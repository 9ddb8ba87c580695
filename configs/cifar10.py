r"""CIFAR-10 at 32x32 as the paper trained it (EDM Table 2, configuration F).

    python experiments/main.py --config=configs/cifar10.py --workdir=runs/cifar10
    python experiments/main.py --config=configs/cifar10.py:uncond,ncsnpp --workdir=runs/...

Variants: ``cond`` (default) or ``uncond``; ``ddpmpp`` (default, the paper's "VP" column) or
``ncsnpp`` ("VE").  Both have EDM preconditioning and loss.

In the paper: 8 V100 GPUs, about 2 days, 200 million images in float32.  FID to expect, 50,000
images against the 50,000 training images, 18 steps (35 network calls), the best of three seed
ranges:

              cond    uncond
    ddpmpp    1.79    1.97
    ncsnpp    1.79    1.98

Data, either of:

    python experiments/main.py --mode=dataset --source=cifar-10-python.tar.gz \
        --dest=datasets/cifar10-32x32.zip
    tfds build cifar10 --file_format=array_record     (and the options
        --config.data.source=tfds --config.data.path=cifar10)
"""

import ml_collections

from configs import base


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The published configuration of a variant."""
    labels, network = base.choose(variant, ("cond", "uncond"), ("ddpmpp", "ncsnpp"))
    config = base.get_config()
    config.data.update(
        source="images",
        path="datasets/cifar10-32x32.zip",
        conditional=labels == "cond",
        resolution=32,
    )
    base.use_network(config, network, dropout=0.13)
    config.augment.probability = 0.12
    config.train.update(
        total_kimg=200_000.0,
        batch_size=512,
        lr=1e-3,
        lr_rampup_kimg=10_000.0,
        ema_halflife_kimg=(500.0,),
        keep_every_kimg=25_000.0,
    )
    config.sampler.num_steps = 18
    return config.lock()
