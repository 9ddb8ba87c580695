"""Samplers: one algorithm a file, each a public step function and a scan of it."""

from edm_jax.samplers.general import (
    Setting,
    general_euler_step,
    general_step,
    sample_general,
    table1,
)
from edm_jax.samplers.heun import euler_step, heun_step, sample_heun
from edm_jax.samplers.loop import Trajectory
from edm_jax.samplers.stochastic import Churn, sample_stochastic, stochastic_step

__all__ = [
    "Churn",
    "Setting",
    "Trajectory",
    "euler_step",
    "general_euler_step",
    "general_step",
    "heun_step",
    "sample_general",
    "sample_heun",
    "sample_stochastic",
    "stochastic_step",
    "table1",
]
