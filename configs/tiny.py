r"""The smallest run that goes through everything; for tests and for trying things out.

    python experiments/main.py --config=configs/tiny.py --workdir=runs/tiny

Half a minute on two CPU cores, most of it compilation.  Its images are not worth looking at.
"""

from configs import digits


def get_config():
    """The smallest configuration."""
    config = digits.get_config()
    config.model.SongUNet.update(
        model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=(), dropout=0.1
    )
    config.train.update(
        total_kimg=0.48,
        batch_size=16,
        lr_rampup_kimg=0.1,
        ema_halflife_kimg=(0.1, 0.05),
        ema_rampup_ratio=1.0,
        log_kimg=0.08,
        sample_kimg=0.24,
        checkpoint_kimg=0.08,
    )
    config.sampler.update(num_steps=3, batch_size=32)
    config.evaluation.update(num_images=40, trajectory_seeds=2)
    return config.lock()
