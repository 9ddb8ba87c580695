"""DDPM, iDDPM and ADM trained as published: learned variance, bound, resampled time steps.

Their networks sample like any other (`samplers.ddpm`, or any sampler through the iDDPM
preconditioning); here is what trains them and what their likelihood is.
"""

from edm_jax.ddpm.bound import bound_term, decoder_log_likelihood, kl_term, prior_term
from edm_jax.ddpm.chain import ChainBound, chain_bound
from edm_jax.ddpm.losses import Losses, LossKind, per_image_losses
from edm_jax.ddpm.process import Process, ddpm_process
from edm_jax.ddpm.resampling import LossHistory, LossSecondMoment

__all__ = [
    "ChainBound",
    "LossHistory",
    "LossKind",
    "LossSecondMoment",
    "Losses",
    "Process",
    "bound_term",
    "chain_bound",
    "ddpm_process",
    "decoder_log_likelihood",
    "kl_term",
    "per_image_losses",
    "prior_term",
]
