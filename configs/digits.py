r"""scikit-learn's handwritten digits, 8x8, ten classes: the whole system in minutes.

    python experiments/main.py --config=configs/digits.py --workdir=runs/digits

Two CPU cores, about three minutes.  To expect: class accuracy >= 97 %, Frechet distance
in pixels below that between the real training and test digits (0.56).
"""

from configs import base


def get_config():
    """The digits configuration."""
    config = base.get_config()
    config.data.source = "digits"

    config.model.update(
        model_channels=32,
        channel_mult=(1, 2),
        num_blocks=2,
        attn_resolutions=(4,),
        dropout=0.0,
    )
    # The digits' standard deviation in [-1, 1].
    config.precond.edm.sigma_data = 0.75
    config.weight.edm.sigma_data = 0.75

    config.train.update(
        total_kimg=200.0,
        batch_size=128,
        lr=2e-3,
        lr_rampup_kimg=10.0,
        ema_halflife_kimg=(10.0,),
        log_kimg=5.0,
        sample_kimg=50.0,
        checkpoint_kimg=50.0,
    )
    config.sampler.batch_size = 100
    config.evaluation.num_images = 2000
    return config.lock()
