r"""Class-conditional ImageNet at 64x64 as the paper trained it.

    python experiments/main.py --config=configs/imagenet64.py --workdir=runs/imagenet64

The variant of the paper is ``cond,adm``: the ADM network with EDM preconditioning and loss,
neither augmentation nor flips.

In the paper: 32 A100 GPUs, about 13 days, 2.5 billion images, feature maps in float16 with
the loss multiplied by 100.  FID to expect, 50,000 images against all training images with the
authors' own preprocessing: 1.36 at 256 steps (511 network calls) of the stochastic sampler
with churn 40, 0.05, 50, 1.003, which are the settings below.

On TPUs, and on GPUs that have it, bfloat16 needs no scaling of the loss:

    --config.model.dtype=bfloat16 --config.train.loss_scaling=1

Where 128 images per device do not fit: --config.train.micro_batch=1024 (the update stays
the same), --config.train.sharding=fsdp, --config.model.remat=blocks.

``adm_published`` is the same network as ADM trained it (Dhariwal and Nichol 2021): the hybrid
loss on 1000 levels of the cosine schedule, variance learned, 540,000 steps of 2048 images at a
rate of 3e-4 without a ramp, an average of decay 0.9999; drawn by 250 ancestral steps.  FID to
expect: 2.07.  Feature maps are in bfloat16 here; there in float16 with a scale that adapts.
Its sampler went through all 1000 levels and clipped what the network expects: here the levels
end at sigma = 80, and --threshold=static clips.

    python experiments/main.py --config=configs/imagenet64.py:adm_published --workdir=runs/adm

Data, from the training folder with one sub-folder per class:

    python experiments/main.py --mode=dataset --source=ILSVRC/Data/CLS-LOC/train \
        --dest=datasets/imagenet-64x64.zip --resolution=64x64 --transform=center-crop
"""

import ml_collections

from configs import base


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The published configuration."""
    _, network = base.choose(variant, ("cond",), ("adm", "adm_published"))
    config = base.get_config()
    config.data.update(
        source="images",
        path="datasets/imagenet-64x64.zip",
        conditional=True,
        resolution=64,
    )
    base.use_network(config, "adm", dropout=0.10)
    config.model.dtype = "float16"
    config.augment.probability = 0.0
    config.train.update(
        total_kimg=2_500_000.0,
        batch_size=4096,
        lr=1e-4,
        lr_rampup_kimg=10_000.0,
        ema_halflife_kimg=(50_000.0,),
        loss_scaling=100.0,
        log_kimg=200.0,
        sample_kimg=10_000.0,
        checkpoint_kimg=10_000.0,
        keep_every_kimg=100_000.0,
    )
    config.sampler.update(num_steps=256, s_churn=40.0, s_tmin=0.05, s_tmax=50.0, s_noise=1.003)
    if network == "adm_published":
        _as_adm(config)
    return config.lock()


def _as_adm(config: ml_collections.ConfigDict) -> None:
    """The loss and settings of ADM."""
    config.sampler.update(s_churn=0.0, s_tmin=0.0, s_tmax=float("inf"), s_noise=1.0)
    base.use_ddpm(config, num_steps=250)
    config.model.dtype = "bfloat16"
    config.train.update(
        total_kimg=540_000 * 2.048,
        batch_size=2048,
        lr=3e-4,
        lr_rampup_kimg=0.0,
        ema_halflife_kimg=(14_195.0,),  # ln 2 / -ln 0.9999 steps of 2048 images
        ema_rampup_ratio=0.0,
        loss_scaling=1.0,
    )
