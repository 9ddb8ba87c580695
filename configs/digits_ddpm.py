r"""DDPM with the hybrid loss and learned variance of iDDPM on handwritten digits: minutes.

    python experiments/main.py --config=configs/digits_ddpm.py --workdir=runs/digits_ddpm

The data and network of configs/digits.py; the network predicts the noise and where the variance
of a step lies between its two limits, on the 1000 levels of the cosine schedule, and images are
drawn by 100 steps of the ancestral sampler with that variance.  Two CPU cores, some minutes.
The same weights on the probability flow, with 18 steps of Heun's method:

    --mode=sample --sampler=heun --discretization=edm --num_steps=18
"""

from configs import base, digits


def get_config():
    """The digits configuration with the loss of iDDPM."""
    config = digits.get_config().unlock()
    base.use_ddpm(config, num_steps=100)
    return config.lock()
