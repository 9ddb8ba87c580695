r"""Autoregressive diffusion on scikit-learn's handwritten digits, 17 grey levels: minutes.

    python experiments/main.py --config=configs/digits_ardm.py --workdir=runs/digits_ardm
    python experiments/main.py --mode=sample --workdir=runs/digits_ardm --labels=3 \
        --num_steps=10 --policy=optimal --decoding --seeds=0-7

Pixels in any order, several at once (Hoogeboom et al. 2022): a network of 64 variables of 17
values, told the class.  docs/ardm.md shows what it learns.  ``:raster`` is the ordinary
autoregressive model of one order.
"""

import ml_collections

from configs import base


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The digits configuration."""
    (order,) = base.choose(variant, ("random", "raster"))
    config = base.get_config()
    config.data.source = "digits"
    config.data.num_threads = 1  # images in memory need no more
    # One order goes with one pixel at a time.
    base.use_ardm(config, num_values=17, num_steps=64 if order == "raster" else 16, order=order)
    # Published baselines of a single order have no auxiliary cross entropy.
    config.objective.order_agnostic.update(
        steps="grid", ce_weight=0.0 if order == "raster" else 1e-3
    )
    use_small_network(config)
    return config.lock()


def use_small_network(config: ml_collections.ConfigDict) -> None:
    """The network and training of all digits."""
    config.model.ArdmUNet.update(
        model_channels=32, num_blocks=1, inputs="one_hot", position_map=True, dropout=0.1
    )
    config.train.update(
        total_kimg=128.0,
        batch_size=128,
        lr=2e-3,
        lr_rampup_kimg=6.4,
        lr_end_kimg=128.0,
        adam_b2=0.99,
        grad_clip_norm=100.0,
        ema_halflife_kimg=(10.0,),
        ema_rampup_ratio=0.1,
        max_bad_steps=1,
        log_kimg=3.2,
        sample_kimg=32.0,
        checkpoint_kimg=32.0,
    )
    config.sampler.batch_size = 100
    config.evaluation.num_images = 1000
