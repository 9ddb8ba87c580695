r"""scikit-learn's handwritten digits, 8x8, ten classes: the whole system in minutes.

    python experiments/main.py --config=configs/digits.py --workdir=runs/digits

Two CPU cores, about three minutes.  To expect: class accuracy 98 %, Frechet distance 0.23
in pixels (0.56 between the real training and test digits).

``configs/digits.py:cfg`` leaves the label out of one image in ten, so that the model is an
unconditional one too and can be guided without a classifier (docs/guidance.md):

    python experiments/main.py --config=configs/digits.py:cfg --workdir=runs/digits_cfg
    python experiments/main.py --mode=sample --workdir=runs/digits_cfg --labels=3 --seeds=0-63 \
        --guidance=cfg --guidance_scale=2
"""

import ml_collections

from configs import base


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The digits configuration."""
    (labels,) = base.choose(variant, ("labelled", "cfg"))
    config = base.get_config()
    config.data.source = "digits"

    config.model.SongUNet.update(
        model_channels=32,
        channel_mult=(1, 2),
        num_blocks=1,
        attn_resolutions=(4,),
        dropout=0.0,
        label_dropout=0.1 if labels == "cfg" else 0.0,
    )
    # The digits' standard deviation in [-1, 1].
    config.precond.edm.sigma_data = 0.75
    config.weight.edm.sigma_data = 0.75

    # An 8x8 digit keeps its shape under noise that would hide the details of a photograph:
    # what decides its class is learnt at higher noise levels than EDM's p_mean = -1.2.
    config.noise.lognormal.p_mean = 0.4
    config.data.num_threads = 1  # images in memory need no more

    config.train.update(
        total_kimg=61.44,
        batch_size=128,
        lr=3e-3,
        lr_rampup_kimg=10.0,
        ema_halflife_kimg=(5.0,),
        ema_rampup_ratio=0.0,
        max_bad_steps=1,
        log_kimg=2.56,
        sample_kimg=15.36,
        checkpoint_kimg=15.36,
    )
    config.sampler.batch_size = 100
    config.evaluation.num_images = 2000
    return config.lock()
