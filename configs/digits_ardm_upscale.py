r"""Autoregressive diffusion from coarse to fine on handwritten digits: minutes.

    python experiments/main.py --config=configs/digits_ardm_upscale.py \
        --workdir=runs/digits_ardm_upscale

The data and network of configs/digits_ardm.py; 17 grey levels are two digits in base 5, and
all coarse digits come before all fine ones.  ``:direct`` has five logits for the digit of each
stage instead of 17 for the value.
"""

import ml_collections

from configs import base, digits_ardm


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The digits configuration with two stages."""
    (parameterization,) = base.choose(variant, ("data", "direct"))
    config = digits_ardm.get_config().unlock()
    base.use_ardm(
        config,
        num_values=17,
        num_steps=16,
        process="upscale",
        base=5,
        parameterization=parameterization,
    )
    return config.lock()
