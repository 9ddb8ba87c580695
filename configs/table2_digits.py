r"""The training steps A to F of EDM Table 2 on the 8x8 digits: minutes instead of days.

    python experiments/main.py --config=configs/table2_digits.py:vp,A --workdir=runs/digits_vp_A
    python experiments/main.py --mode=study --study=table2 --workdir=runs/table2      (all of it)

Variants as of configs/table2.py: a column, ``vp`` (default) or ``ve``, and a row ``A`` to ``F``
(default F).  Each step changes what it changes in the paper, at the size of an 8x8 image:

    A  the original training: VP or VE preconditioning, noise distribution and loss; small
       batches and learning rate, gradient clipping, dropout; three levels of 16 channels
    B  hyper-parameters: larger batch and learning rate, no clipping, no dropout
    C  capacity moved to high resolution: the lowest level removed, the highest doubled
    D  EDM preconditioning; noise distribution and loss weight still those of VP or VE
    E  EDM noise distribution and weight
    F  non-leaking augmentation; a mirrored digit is another sign, so it has no flips, and A
       to E do not mirror

An 8x8 image, a thousand times less training and a distance in
pixels are another world than the paper's; not every step need show.
"""

import ml_collections

from configs import base, digits

NETWORKS = {"vp": "ddpmpp", "ve": "ncsnpp"}
NOISE = {"vp": "uniform_time", "ve": "loguniform"}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """One cell of the table: F with its later steps taken back."""
    column, row = base.choose(variant, ("vp", "ve"), ("F", "A", "B", "C", "D", "E"))
    config = digits.get_config()
    base.use_network(
        config, NETWORKS[column], model_channels=16, channel_mult=(2, 2), num_blocks=1,
        attn_resolutions=(4,), dropout=0.0,
    )  # fmt: skip
    config.augment.update(probability=0.12, xflip=0.0, yflip=0.0)
    config.train.update(
        total_kimg=16.384,
        lr_rampup_kimg=2.56,
        ema_halflife_kimg=(2.0,),
        log_kimg=2.048,
        sample_kimg=0.0,
        checkpoint_kimg=8.192,
        keep_last=2,
        max_bad_steps=100,
    )
    config.evaluation.update(num_images=1000, trajectory_seeds=2)
    if row < "F":
        config.augment.probability = 0.0
    if row < "E":
        config.noise.name = NOISE[column]
        config.weight.name = "inverse_square"
    if row < "D":
        config.precond.name = column
    if row < "C":
        config.model.SongUNet.channel_mult = (1, 2, 2)
    if row < "B":
        config.model.SongUNet.dropout = 0.1
        # The paper's ratios: a quarter of the batch, a fifth of the rate.
        config.train.update(
            batch_size=32,
            lr=6e-4,
            lr_rampup_kimg=0.16,
            grad_clip_norm=1.0,
            ema_halflife_kimg=(3.5 if column == "vp" else 0.35,),
            ema_rampup_ratio=0.0,
        )
    return config.lock()
