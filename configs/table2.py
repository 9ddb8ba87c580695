r"""The training configurations A to F of EDM Table 2.

    python experiments/main.py --config=configs/table2.py:vp,D --workdir=runs/table2-vp-D
    python experiments/main.py --config=configs/table2.py:ve,B,ffhq --workdir=runs/...

Variants, the first of each being the default: the column ``vp`` (DDPM++ network, VP
preconditioning and loss up to C) or ``ve`` (NCSN++, VE); the row ``F``, ``A`` ... ``E``; the
data ``cifar10-cond``, ``cifar10-uncond``, ``ffhq`` or ``afhqv2``.

    A  score-SDE training: batch 128, lr 2e-4 after a ramp of 0.64 Mimg, gradient norm clipped
       at 1, dropout 0.1, mirrored images, EMA decay 0.9999 (VP) or 0.999 (VE) without ramp,
       channels 128 x [1,2,2,2] at 32x32 and 128 x [1,1,2,2,2] at 64x64
    B  the hyper-parameters of the final models, no clipping
    C  channels 128 x [2,2,2] and 128 x [1,2,2,2]
    D  EDM preconditioning; noise distribution and loss weight are still those of VP or VE
    E  EDM noise distribution and weight
    F  non-leaking augmentation instead of mirroring: configs/cifar10.py and its like

In the paper: 8 V100 GPUs for 200 million images, about 2 days at 32x32 and 4 at 64x64 (given
for F).  FID to expect with the deterministic sampler, 18 steps (35 network calls) at 32x32
and 40 (79) at 64x64, the best of three seed ranges:

        CIFAR-10 cond  CIFAR-10 uncond  FFHQ          AFHQv2
        VP     VE      VP     VE        VP     VE     VP     VE
    A   2.48   3.11    3.01*  3.77*     3.39   25.95  2.58   18.52
    B   2.18   2.48    2.51   2.94      3.13   22.53  2.43   23.12
    C   2.08   2.52    2.31   2.83      2.78   41.62  2.54   15.04
    D   2.09   2.64    2.29   3.10      2.94   3.39   2.79   3.81
    E   1.88   1.86    2.05   1.99      2.60   2.81   2.29   2.28
    F   1.79   1.79    1.97   1.98      2.39   2.53   1.96   2.16

    * weights that the authors of score-SDE published, not trained anew

The paper does not say whether A to E mirrored the images at 64x64 too; here they do, as F is
the step that turns it off.

Data: as in configs/cifar10.py, ffhq64.py and afhqv2_64.py.
"""

import ml_collections

from configs import afhqv2_64, base, cifar10, ffhq64

NETWORKS = {"vp": "ddpmpp", "ve": "ncsnpp"}
NOISE = {"vp": "uniform_time", "ve": "loguniform"}
# 0.9999 and 0.999 per step of 128 images: halflife = 128 ln(1/2) / ln(decay).
EMA_HALFLIFE_KIMG = {"vp": 887.0, "ve": 88.7}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """One cell of the table: the published configuration with its later steps taken back."""
    column, row, data = base.choose(
        variant,
        ("vp", "ve"),
        ("F", "A", "B", "C", "D", "E"),
        ("cifar10-cond", "cifar10-uncond", "ffhq", "afhqv2"),
    )
    config = _published(data, NETWORKS[column])
    small = config.data.resolution == 32
    if row < "F":
        config.augment.probability = 0.0
        config.data.mirror = True
    if row < "E":
        config.noise.name = NOISE[column]
        config.weight.name = "inverse_square"
    if row < "D":
        config.precond.name = column
    if row < "C":
        config.model.SongUNet.channel_mult = (1, 2, 2, 2) if small else (1, 1, 2, 2, 2)
    if row < "B":
        config.model.SongUNet.dropout = 0.1
        config.train.update(
            batch_size=128,
            lr=2e-4,
            lr_rampup_kimg=640.0,
            grad_clip_norm=1.0,
            ema_halflife_kimg=(EMA_HALFLIFE_KIMG[column],),
            ema_rampup_ratio=0.0,
        )
    return config.lock()


def _published(data: str, network: str) -> ml_collections.ConfigDict:
    if data.startswith("cifar10"):
        return cifar10.get_config(f"{data.removeprefix('cifar10-')},{network}")
    return (ffhq64 if data == "ffhq" else afhqv2_64).get_config(network)
