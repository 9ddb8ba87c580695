"""Samplers: one algorithm a file, each a public step function and a scan of it."""

from edm_jax.samplers.heun import euler_step, heun_step, sample_heun
from edm_jax.samplers.loop import Trajectory
from edm_jax.samplers.stochastic import Churn, sample_stochastic, stochastic_step

__all__ = [
    "Churn",
    "Trajectory",
    "euler_step",
    "heun_step",
    "sample_heun",
    "sample_stochastic",
    "stochastic_step",
]
