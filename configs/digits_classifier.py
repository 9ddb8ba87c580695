r"""A classifier of noisy handwritten digits, which guides other models: minutes on two CPU cores.

    python experiments/main.py --config=configs/digits_classifier.py --workdir=runs/classifier

It makes no images: the evaluation is the accuracy on the test digits at noise levels from
0.002 to 80, a figure and numbers in evaluation.json.  To expect: 99.7 % at sigma = 0.002, 99 %
at 0.1, 55 % at 1.5; above 10 no digit can be told from another, the accuracy is 11 % and the
cross entropy ln 10 = 2.30.  To guide with it:

    python experiments/main.py --mode=sample --workdir=runs/digits --labels=3 --seeds=0-63 \
        --guidance=classifier --guidance_model=runs/classifier --guidance_scale=1
"""

from configs import base, digits


def get_config():
    """The digits configuration, of a classifier."""
    config = digits.get_config().unlock()
    base.use_classifier(
        config,
        model_channels=32,
        channel_mult=(1, 2),
        num_blocks=1,
        attn_resolutions=(4,),
        channels_per_head=32,
    )
    # Every level of the sampler alike: the log-normal law of the models is thin at both ends.
    config.noise.name = "loguniform"
    config.noise.loguniform.update(sigma_min=0.002, sigma_max=80.0)
    config.train.update(lr=1e-3, total_kimg=30.72)
    return config.lock()
