r"""Defaults of every option; other files state their differences.

The result is locked: an option that is misspelt is refused.  A group of your own, such as that
of your own network, is added on purpose:

    with config.unlocked():
        config.model.MyNet = dict(width=64)

    python experiments/main.py --config=configs/<file>.py --workdir=runs/<name> \
        --config.train.lr=1e-4

Values are those of EDM Table 1 and of the published training runs for CIFAR-10.
"""

import difflib
from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
    """The default configuration."""
    d = ml_collections.ConfigDict
    config = d()
    config.seed = 0

    # Where images come from: digits | images (folder or zip) | tfds; sequences: text (a file).  A
    # source that has options of its own has a group of its name here.
    config.data = d(
        dict(
            source="digits",
            path="",  # images: folder or zip; text: file; tfds: "name" or "name:split"
            conditional=True,  # use the labels, if there are any
            resolution=0,  # width and height the images must have; 0: as stored
            max_size=0,  # use a random subset of this many images; 0: all
            mirror=False,  # random left-right flips; not together with augmentation
            num_threads=8,
            num_workers=0,  # reading processes; 0 reads in threads
            text=d(dict(length=250, alphabet="")),  # tokens of a sequence; "" takes bytes
        )
    )

    # Each choice has a name, and a group of constants for every name.

    # The raw network; sizes that follow from the data are filled in.
    config.model = d(
        dict(
            name="SongUNet",
            # how any of them is computed, not what
            dtype="float32",
            remat="none",
            SongUNet=d(  # DDPM++ values
                dict(
                    model_channels=128,
                    channel_mult=(2, 2, 2),
                    channel_mult_emb=4,
                    num_blocks=4,
                    attn_resolutions=(16,),
                    dropout=0.13,
                    label_dropout=0.0,
                    embedding_type="positional",
                    channel_mult_noise=1,
                    encoder_type="standard",
                    decoder_type="standard",
                    resample_filter=(1, 1),
                )
            ),
            DhariwalUNet=d(  # ADM values
                dict(
                    model_channels=192,
                    channel_mult=(1, 2, 3, 4),
                    channel_mult_emb=4,
                    num_blocks=3,
                    attn_resolutions=(32, 16, 8),
                    dropout=0.10,
                    label_dropout=0.0,
                )
            ),
            NoisyClassifier=d(  # ADM values at 64x64; for the objective "classifier"
                dict(
                    model_channels=128,
                    channel_mult=(1, 2, 3, 4),
                    num_blocks=4,
                    attn_resolutions=(32, 16, 8),
                    channels_per_head=64,
                )
            ),
            ArdmUNet=d(  # values of CIFAR-10; for the objective "order_agnostic"
                dict(
                    model_channels=256,
                    num_blocks=32,
                    attention="middle",
                    inputs="embed",
                    position_map=False,
                    dropout=0.0,
                )
            ),
            ArdmTransformer=d(  # values of text8; the same for sequences
                dict(
                    model_channels=768, num_blocks=12, num_heads=12, mlp_channels=3072, dropout=0.0
                )
            ),
        )
    )

    # What is learnt; it uses what it needs of the groups that follow (EDM Table 1).
    # denoising | reflected | classifier | ddpm, which needs the iddpm preconditioning |
    # order_agnostic, of discrete data, which needs none of them
    config.objective = d(
        dict(
            name="denoising",
            reflected=d(dict(weighting="image")),
            ddpm=d(  # DDPM, iDDPM and ADM as published
                dict(
                    loss="hybrid",
                    variance="learned",
                    prediction="eps",
                    bound_factor=placeholder(float),  # None: that of the loss
                    schedule="cosine",
                    num_levels=1000,
                    resample=False,  # draw time steps by their losses
                )
            ),
            order_agnostic=d(  # autoregressive diffusion
                dict(
                    process=d(
                        dict(
                            name="absorbing",
                            absorbing=d(
                                dict(
                                    num_values=256,
                                    output="softmax",  # or discretized_logistic, .._rgb
                                    num_mixtures=30,
                                    absorbing=placeholder(int),  # None: num_values // 2
                                    order="random",  # or raster, one order for all
                                )
                            ),
                            upscale=d(  # from coarse to fine
                                dict(
                                    num_values=256,
                                    base=4,
                                    parameterization="data",  # or direct
                                    augmented=False,
                                    order="random",
                                )
                            ),
                        )
                    ),
                    ce_weight=0.001,
                    steps="uniform",  # or grid: the steps of a batch lie evenly
                    levels=True,  # the nearest of num_values grey levels; text: False
                )
            ),
        )
    )
    config.precond = d(
        dict(
            name="edm",
            edm=d(dict(sigma_data=0.5)),
            vp=d(dict(beta_d=19.9, beta_min=0.1, num_levels=1000, eps_t=1e-5)),
            ve=d(dict(sigma_min=0.02, sigma_max=100.0)),
            # schedule: cosine, or linear as DDPM and ADM from 128x128 on; c_1, c_2: of cosine
            iddpm=d(dict(num_levels=1000, c_1=0.001, c_2=0.008, schedule="cosine")),
            reflected=d(dict(sigma_min=0.02, sigma_max=10.0)),
        )
    )
    config.noise = d(
        dict(
            name="lognormal",
            lognormal=d(dict(p_mean=-1.2, p_std=1.2)),
            uniform_time=d(dict(beta_d=19.9, beta_min=0.1, eps_t=1e-5)),
            loguniform=d(dict(sigma_min=0.02, sigma_max=100.0)),
            discrete=d(dict(schedule="cosine", num_levels=1000)),  # as the network's
        )
    )
    config.weight = d(dict(name="edm", edm=d(dict(sigma_data=0.5)), inverse_square=d(dict())))

    # Non-leaking augmentation (EDM section F.2): probability and multipliers.
    config.augment = d(
        dict(
            probability=0.0,  # 0: no augmentation, and no augmentation labels
            xflip=1e8,
            yflip=1.0,
            scale=1.0,
            rotate_frac=1.0,
            aniso=1.0,
            translate_frac=1.0,
        )
    )

    config.train = d(
        dict(
            total_kimg=200_000.0,
            batch_size=512,  # global
            micro_batch=0,  # global images per round of gradient accumulation; 0: all at once
            sharding="data",  # data: a copy per device; fsdp: parameters split over devices
            lr=1e-3,
            lr_rampup_kimg=10_000.0,
            adam_b1=0.9,
            adam_b2=0.999,
            adam_eps=1e-8,
            weight_decay=0.0,  # of all weights, as in AdamW
            lr_end_kimg=0.0,  # where the rate has fallen to 0 along a straight line; 0: it does not
            ema_halflife_kimg=(500.0,),  # several give several averages; sampling uses the first
            ema_rampup_ratio=0.05,
            grad_clip_norm=0.0,  # 0: none
            loss_scaling=1.0,
            # NaN in a gradient becomes 0, an infinity 1e5, and training goes on; so many such
            # steps in a row, or such a loss, stop it (a resumed run may change this).
            max_bad_steps=100,
            log_kimg=50.0,
            sample_kimg=2_500.0,  # 0: only at the start and at the end
            checkpoint_kimg=2_500.0,
            keep_last=3,
            keep_every_kimg=0.0,  # also keep one checkpoint per this many; 0: none
        )
    )

    # Sampling: EDM Table 1 and Algorithm 2.
    config.sampler = d(
        dict(
            name="heun",  # any of edm_jax.samplers; churn makes "edm" of "heun"
            discretization="edm",  # any of edm_jax.grids
            num_steps=18,
            # None: those of the discretization, for EDM 0.002, 80 and 7
            sigma_min=placeholder(float),
            sigma_max=placeholder(float),
            rho=placeholder(float),
            sigmas=(),  # these noise levels, down to 0, in place of a discretization
            options="",  # further ones of the sampler: "eta=0.5,order=3", or JSON
            policy="uniform",  # of the sampler "ardm": uniform, optimal, or 0,4,..,D
            s_churn=0.0,
            s_tmin=0.0,
            s_tmax=float("inf"),
            s_noise=1.0,
            batch_size=64,
        )
    )

    # What is measured when training ends, and by --mode=evaluate.
    config.evaluation = d(
        dict(
            num_images=0,  # 0: no evaluation
            every_kimg=0.0,  # also evaluate during training; 0: only at the end
            every_num_images=0,  # so many in those during training; 0: as many
            first_seed=100_000_000,  # far from the seeds of the sample grids
            blocks=1,  # of so many images each; the paper quotes the minimum of 3
            labels="balanced",  # every class equally often; random: as in the paper; or one class
            metrics=("frechet_pixels", "classifier"),  # any of edm_jax.metrics.registry
            inception="",  # weights of Inception-v3, for fid, kid, is, pr
            dinov2="",  # weights of DINOv2, for fd_dinov2
            reference="",  # statistics to compare with; by default those of the data
            trajectory_seeds=6,
        )
    )
    return config.lock()


# The networks of the paper (EDM Table 2); channel_mult of the first two is that of
# 32x32 images, at 64x64 it is (1, 2, 2, 2).
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "ddpmpp": dict(
        name="SongUNet",
        model_channels=128,
        channel_mult=(2, 2, 2),
        num_blocks=4,
        attn_resolutions=(16,),
        embedding_type="positional",
        channel_mult_noise=1,
        encoder_type="standard",
        decoder_type="standard",
        resample_filter=(1, 1),
    ),
    "ncsnpp": dict(
        name="SongUNet",
        model_channels=128,
        channel_mult=(2, 2, 2),
        num_blocks=4,
        attn_resolutions=(16,),
        embedding_type="fourier",
        channel_mult_noise=2,
        encoder_type="residual",
        decoder_type="standard",
        resample_filter=(1, 3, 3, 1),
    ),
    "adm": dict(
        name="DhariwalUNet",
        model_channels=192,
        channel_mult=(1, 2, 3, 4),
        num_blocks=3,
        attn_resolutions=(32, 16, 8),
    ),
}


def use_network(config: ml_collections.ConfigDict, architecture: str, **options: Any) -> None:
    """Choose the network of ARCHITECTURES, with some of its options set otherwise."""
    arguments = dict(ARCHITECTURES[architecture])
    config.model.name = arguments.pop("name")
    config.model[config.model.name].update(arguments | options)


def use_reflected(
    config: ml_collections.ConfigDict,
    *,
    sigma_min: float = 0.02,
    sigma_max: float = 10.0,
    weighting: str = "image",
) -> None:
    """Choose reflected diffusion on [-1, 1], with levels uniform in ln sigma."""
    config.objective.name = "reflected"
    config.objective.reflected.weighting = weighting
    # What its figures are drawn for: the image weighting.
    config.weight.name = "inverse_square"
    for group, name in ((config.precond, "reflected"), (config.noise, "loguniform")):
        group.name = name
        group[name].update(sigma_min=sigma_min, sigma_max=sigma_max)


def use_ardm(
    config: ml_collections.ConfigDict,
    *,
    num_values: int,
    num_steps: int,
    process: str = "absorbing",
    network: str = "ArdmUNet",
    **options: Any,
) -> None:
    """Choose autoregressive diffusion, with some options of its process set otherwise.

    Args:
      config: to be changed.
      num_values: K.
      num_steps: network calls of a stage when sampling, by the optimal policy.
      process: absorbing or upscale.
      network: ArdmUNet or ArdmTransformer.
      **options: of the process.
    """
    config.objective.name = "order_agnostic"
    config.objective.order_agnostic.process.name = process
    config.objective.order_agnostic.process[process].update(num_values=num_values, **options)
    config.model.name = network
    config.sampler.update(name="ardm", num_steps=num_steps, policy="optimal")


def use_classifier(config: ml_collections.ConfigDict, **options: Any) -> None:
    """Choose a classifier of noisy images, with some of its options set otherwise."""
    config.objective.name = "classifier"
    config.model.name = "NoisyClassifier"
    config.model.NoisyClassifier.update(options)


def use_discrete(config: ml_collections.ConfigDict, schedule: str = "cosine") -> None:
    """Choose the 1000 levels of iDDPM and ADM (cosine), or of DDPM (linear), drawn uniformly."""
    config.precond.name = "iddpm"
    config.noise.name = "discrete"
    config.precond.iddpm.schedule = schedule
    config.noise.discrete.schedule = schedule


def use_ddpm(
    config: ml_collections.ConfigDict, *, num_steps: int, schedule: str = "cosine"
) -> None:
    """Choose the hybrid loss of iDDPM and ADM with its learned variance, which sampling uses.

    Args:
      config: to be changed.
      num_steps: of the ancestral sampler, which runs on the network's own levels.
      schedule: of the levels, "cosine" or "linear".
    """
    config.objective.name = "ddpm"
    config.objective.ddpm.schedule = schedule
    # The noise is what figures are drawn for: that loss without the variance, divided by the
    # elements.
    use_discrete(config, schedule)
    config.weight.name = "inverse_square"
    config.sampler.update(
        name="ddpm", discretization="iddpm", num_steps=num_steps, options="variance=learned"
    )


def choose(variant: str, *groups: tuple[str, ...]) -> tuple[str, ...]:
    """The variant of a configuration: one word of each group, in the order of the groups.

    Args:
      variant: words with commas between, in any order, such as "uncond,ncsnpp".
      *groups: the words of each choice; the first one is the default.

    Raises:
      ValueError: for a word in none of the groups, or two of one group.
    """
    known = {word.lower(): (i, word) for i, group in enumerate(groups) for word in group}
    chosen: dict[int, str] = {}
    for given in filter(None, (word.strip() for word in variant.split(","))):
        if given.lower() not in known:
            near = difflib.get_close_matches(given.lower(), known, n=1, cutoff=0.3)
            hint = f"; did you mean {known[near[0]][1]!r}?" if near else ""
            names = ", ".join(" or ".join(group) for group in groups)
            raise ValueError(f"variant {given!r} is not known (there are {names}){hint}")
        index, word = known[given.lower()]
        if chosen.setdefault(index, word) != word:
            raise ValueError(
                f"variant {variant!r} names both {chosen[index]!r} and {word!r}; choose one"
            )
    return tuple(chosen.get(i, group[0]) for i, group in enumerate(groups))
