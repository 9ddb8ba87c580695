r"""Autoregressive diffusion on text8 as published (Hoogeboom et al. 2022): characters.

    python experiments/main.py --config=configs/text8_ardm.py --workdir=runs/text8_ardm \
        --config.data.path=text8

Any other text as bytes (256 values and one for what is unknown):

    --config=configs/text8_ardm.py:bytes --config.data.path=book.txt

Published, bits per character of the test part (the last 5 of 100 million): 1.43 +- 0.001 in
250 calls, 1.51 +- 0.007 in 20, after 3 million steps.  Chunks of 250 characters of the
alphabet's 27, without context; a Transformer encoder of 12 layers.
"""

import ml_collections

from configs import base

TEXT8 = " abcdefghijklmnopqrstuvwxyz"
BATCH = 512


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The text8 configuration."""
    (tokens,) = base.choose(variant, ("text8", "bytes"))
    num_values = 27 if tokens == "text8" else 256
    config = base.get_config()
    config.data.source = "text"
    config.data.text.update(length=250, alphabet=TEXT8 if tokens == "text8" else "")
    base.use_ardm(
        config,
        num_values=num_values,
        num_steps=250,
        network="ArdmTransformer",
        absorbing=num_values,  # a class of its own: no character stands for what is unknown
    )
    config.objective.order_agnostic.update(ce_weight=1e-4, levels=False)
    config.train.update(
        total_kimg=3e6 * BATCH / 1000,
        batch_size=BATCH,
        lr=5e-4,
        lr_rampup_kimg=5000 * BATCH / 1000,
        grad_clip_norm=0.25,
        weight_decay=0.001,
        # 0.995 a step: half of it after ln 2 / -ln 0.995 steps.
        ema_halflife_kimg=(70.8,),
        ema_rampup_ratio=0.0,
    )
    config.evaluation.num_images = 10_000
    return config.lock()
