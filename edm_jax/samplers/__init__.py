"""Samplers: one algorithm a file, with its steps or coefficients and its promises."""

from edm_jax.samplers.adaptive import AdaptiveStats, sample_adaptive
from edm_jax.samplers.aliases import ALIASES, LEFT_OUT, meaning
from edm_jax.samplers.baselines import sample_ddim, sample_ve, sample_vp
from edm_jax.samplers.ddpm import ddpm_step, sample_ddpm
from edm_jax.samplers.deis import sample_deis
from edm_jax.samplers.dpm_2 import sample_dpm_2, sample_dpm_2_ancestral
from edm_jax.samplers.dpmpp import (
    sample_dpmpp_2m,
    sample_dpmpp_2m_sde,
    sample_dpmpp_3m,
    sample_dpmpp_3m_sde,
)
from edm_jax.samplers.dpmpp_single import (
    dpmpp_2s_step,
    sample_dpmpp_2s,
    sample_dpmpp_2s_ancestral,
    sample_dpmpp_sde,
)
from edm_jax.samplers.er_sde import sample_er_sde
from edm_jax.samplers.general import (
    Setting,
    general_euler_step,
    general_step,
    sample_general,
    table1,
)
from edm_jax.samplers.heun import euler_step, heun_step, sample_heun
from edm_jax.samplers.info import SAMPLERS, Measured, SamplerInfo
from edm_jax.samplers.ipndm import sample_ipndm
from edm_jax.samplers.lcm import sample_lcm
from edm_jax.samplers.lms import sample_lms
from edm_jax.samplers.loop import LoopOptions, Trajectory
from edm_jax.samplers.predictor_corrector import langevin_step, sample_predictor_corrector
from edm_jax.samplers.registry import get
from edm_jax.samplers.request import Request, accepted, request
from edm_jax.samplers.restart import Segment, sample_restart
from edm_jax.samplers.sa_solver import sample_sa_solver
from edm_jax.samplers.seeds_2_3 import sample_seeds_2, sample_seeds_3
from edm_jax.samplers.stochastic import Churn, sample_stochastic, stochastic_step
from edm_jax.samplers.unipc import sample_unipc

__all__ = [
    "ALIASES",
    "LEFT_OUT",
    "SAMPLERS",
    "AdaptiveStats",
    "Churn",
    "LoopOptions",
    "Measured",
    "Request",
    "SamplerInfo",
    "Segment",
    "Setting",
    "Trajectory",
    "accepted",
    "ddpm_step",
    "dpmpp_2s_step",
    "euler_step",
    "general_euler_step",
    "general_step",
    "get",
    "heun_step",
    "langevin_step",
    "meaning",
    "request",
    "sample_adaptive",
    "sample_ddim",
    "sample_ddpm",
    "sample_deis",
    "sample_dpm_2",
    "sample_dpm_2_ancestral",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_sde",
    "sample_dpmpp_2s",
    "sample_dpmpp_2s_ancestral",
    "sample_dpmpp_3m",
    "sample_dpmpp_3m_sde",
    "sample_dpmpp_sde",
    "sample_er_sde",
    "sample_general",
    "sample_heun",
    "sample_ipndm",
    "sample_lcm",
    "sample_lms",
    "sample_predictor_corrector",
    "sample_restart",
    "sample_sa_solver",
    "sample_seeds_2",
    "sample_seeds_3",
    "sample_stochastic",
    "sample_unipc",
    "sample_ve",
    "sample_vp",
    "stochastic_step",
    "table1",
]
