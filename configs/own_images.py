r"""A starting point for images of one's own: the paper's recipe for small sets of images.

    python experiments/main.py --mode=dataset --source=FOLDER --dest=datasets/mine.zip \
        --resolution=64x64 --transform=center-crop
    python experiments/main.py --mode=preflight --config=configs/own_images.py --devices=8
    python experiments/main.py --config=configs/own_images.py --workdir=runs/mine

Variants: ``64`` (default), ``32`` or ``128`` pixels; ``uncond`` (default) or ``cond``, for
classes from sub-folders or dataset.json.  The settings are those of AFHQv2-64, about 15,000
images; the paper's run took 8 V100 GPUs about 4 days.  There is no published FID to expect.
128 is our extrapolation and not from the paper.

What to look at, in this order (every value can be set on the command line):

data.path, data.conditional
    A folder, a .zip file in the EDM format, or a TFDS data set (data.source=tfds).  Folders and
    archives are read as they are if all images have one size: grey ones become colour where
    there is colour.  For all others there is --mode=dataset; with --background=white it takes
    transparent images, with --unlabelled it leaves class folders and dataset.json aside.

precond.edm.sigma_data, weight.edm.sigma_data
    The standard deviation of the pixels in [-1, 1]; --mode=preflight measures it.  Photographs
    have about 0.5.  Drawings, scans and digits can have 0.7: then set both.  The noise levels
    seen in training follow from it too: add ln(sigma_data / 0.5) to noise.lognormal.p_mean.

model.SongUNet.channel_mult
    One entry per resolution, halved each time; the last one should come to 8x8.  Twice the
    resolution is one more entry in front.  Attention is at 16x16 (attn_resolutions).

train.batch_size, train.lr
    Change them together.  The pairs of the paper are 256 with 2e-4 (64x64), 512 with 1e-3
    (32x32).  Smaller batches need a smaller rate: 64 with 1e-4 or less.  A rate that is too
    high shows as a jump of the loss that never comes back; train.grad_clip_norm=1 makes that
    rarer.  Where memory is short, train.micro_batch keeps the batch and the result.

augment.probability, model.SongUNet.dropout
    Against overfitting.  The fewer images the more: 0.15 and 0.25 for 15,000 (AFHQv2), 0.15
    and 0.05 for 70,000 (FFHQ), 0 and 0.10 for a million (ImageNet).  Augmentation does not
    leak into the samples, flips included; leave data.mirror off beside it.

train.total_kimg, train.ema_halflife_kimg
    The learning rate does not decay, so a run may be stopped at any checkpoint.  The average
    spans 0.5 million images; give several, (500.0, 2000.0), and choose afterwards with
    --variant.
"""

import ml_collections

from configs import base

CHANNEL_MULT = {"32": (2, 2, 2), "64": (1, 2, 2, 2), "128": (1, 1, 2, 2, 2)}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The starting point of a variant."""
    size, labels = base.choose(variant, ("64", "32", "128"), ("uncond", "cond"))
    config = base.get_config()
    config.data.update(
        source="images",
        path="datasets/mine.zip",
        conditional=labels == "cond",
        resolution=int(size),
    )
    base.use_network(config, "ddpmpp", channel_mult=CHANNEL_MULT[size], dropout=0.25)
    # The standard deviation of the pixels in [-1, 1].
    config.precond.edm.sigma_data = 0.5
    config.weight.edm.sigma_data = 0.5
    config.augment.probability = 0.15
    config.train.update(
        total_kimg=200_000.0,
        batch_size=256,
        lr=2e-4,
        lr_rampup_kimg=10_000.0,
        ema_halflife_kimg=(500.0,),
        keep_every_kimg=25_000.0,
    )
    config.sampler.num_steps = 18 if size == "32" else 40
    return config.lock()
