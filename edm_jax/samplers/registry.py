"""Every sampler by name, collected from the files that hold them."""

from __future__ import annotations

from edm_jax.samplers import (
    adaptive,
    baselines,
    ddpm,
    deis,
    dpm_2,
    dpmpp,
    dpmpp_single,
    er_sde,
    general,
    heun,
    ipndm,
    lcm,
    lms,
    predictor_corrector,
    reflected,
    restart,
    sa_solver,
    seeds_2_3,
    stochastic,
    unipc,
)
from edm_jax.samplers.aliases import resolve
from edm_jax.samplers.info import SAMPLERS, SamplerInfo

_MODULES = (
    heun,
    stochastic,
    general,
    dpm_2,
    dpmpp_single,
    dpmpp,
    unipc,
    deis,
    ipndm,
    lms,
    baselines,
    ddpm,
    seeds_2_3,
    er_sde,
    sa_solver,
    restart,
    lcm,
    adaptive,
    predictor_corrector,
    reflected,
)

SAMPLERS.update({info.name: info for module in _MODULES for info in module.PROMISES})


def get(name: str) -> SamplerInfo:
    """The sampler of a name, ours or one known from elsewhere (`aliases`).

    An alias gives the sampler with the options that make it the same; its ``note`` says so.

    Raises:
      ValueError: for a name that nobody has, with the nearest one; for a sampler that is left
        out, with the reason and what to take instead.
    """
    known = isinstance(name, str) and name in SAMPLERS
    return SAMPLERS[name] if known else resolve(name)
