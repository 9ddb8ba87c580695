"""Names that k-diffusion, ComfyUI, diffusers and A1111 have for samplers, and ours for them.

A1111's labels are understood as written ("DPM++ 2M SDE Karras"): the suffix Karras names
EDM's grid, Exponential the log-linear one, and _gpu in ComfyUI where noise is drawn, which
changes nothing here.  Of diffusers' classes the ending Scheduler may be left out.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any

from edm_jax import names
from edm_jax.samplers.info import SAMPLERS, SamplerInfo


@dataclasses.dataclass(frozen=True)
class Alias:
    """A name from elsewhere.

    Attributes:
      sampler: ours.
      options: that make it the same.
      stochastic: whether it draws noise; None for what our sampler says of itself.
    """

    sampler: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stochastic: bool | None = None


_ANCESTRAL = Alias("ddim", {"eta": 1.0}, stochastic=True)
_TAYLOR_SDE = Alias("dpmpp_2m_sde", {"variant": "taylor"})
_PNDM = Alias("ipndm", {"start": "heun"})

# k-diffusion and ComfyUI.
ALIASES: dict[str, Alias] = {
    "euler_ancestral": _ANCESTRAL,
    "exp_heun_2_x0": Alias("seeds_2", {"r": 1.0, "eta": 0.0}, stochastic=False),
    "exp_heun_2_x0_sde": Alias("seeds_2", {"r": 1.0, "eta": 1.0}),
    "ipndm_v": Alias("lms_4"),
    "lms": Alias("lms_4"),
    "plms": Alias("ipndm"),
    "res_multistep": Alias("dpmpp_2m", {"variant": "taylor"}),
    "res_multistep_ancestral": _TAYLOR_SDE,
    "dpmpp_2m_sde_heun": _TAYLOR_SDE,
    "sa_solver_pece": Alias("sa_solver", {"pece": True}),
    "uni_pc": Alias("unipc_3", {"variant": "bh1"}),
    "uni_pc_bh2": Alias("unipc_3", {"variant": "bh2"}),
    "unipc": Alias("unipc_3"),
    "dpm_adaptive": Alias("adaptive"),
    # A1111, normalised.
    "euler_a": _ANCESTRAL,
    "dpm2": Alias("dpm_2"),
    "dpm2_a": Alias("dpm_2_ancestral"),
    "dpmpp_2s_a": Alias("dpmpp_2s_ancestral"),
    # diffusers, normalised.
    "eulerancestraldiscrete": _ANCESTRAL,
    "eulerdiscrete": Alias("euler"),
    "edmeuler": Alias("euler"),
    "heundiscrete": Alias("heun"),
    "kdpm2discrete": Alias("dpm_2"),
    "kdpm2ancestraldiscrete": Alias("dpm_2_ancestral"),
    "dpmsolversinglestep": Alias("dpmpp_2s"),
    "dpmsolversde": Alias("dpmpp_sde"),
    "dpmsolvermultistep": Alias("dpmpp_2m"),
    "edmdpmsolvermultistep": Alias("dpmpp_2m"),
    "deismultistep": Alias("deis"),
    "pndm": _PNDM,
    "sasolver": Alias("sa_solver"),
    "lmsdiscrete": Alias("lms_4"),
    "unipcmultistep": Alias("unipc_3"),
}

# Name -> why it is not here.
LEFT_OUT: dict[str, str] = {
    "dpm_fast": "it has second order in effect and ends on sigma_min with that noise left in; "
    "use unipc_3 or dpmpp_2m",
    "heunpp2": "its weights refer to sigma_0, which leaves order 1 at 3 calls a step; use heun or "
    "seeds_3",
    "gradient_estimation": "it has order 1 at its default gamma 2, and gamma 1.5 is ipndm of order "
    "2; use ipndm",
    "deis_rhoab": "it is linear multistep in sigma, misprinted as released; use lms_4",
    "rhoab": "it is linear multistep in sigma, misprinted as released; use lms_4",
}
_LEFT_OUT_ENDINGS = {
    "_cfg_pp": "it needs the output of the network without guidance, which samplers here never see",
    "_rf": "it is made for flow models; adapt the network with adapters.adapt and use the sampler "
    "without the ending",
}
_GRIDS = {"karras": "edm", "exponential": "log_linear"}


def _normalised(name: str) -> tuple[str, str | None]:
    """A name as the tables have it, and the grid that its ending asks for."""
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower().replace("++", "pp")).strip("_")
    plain = re.sub(r"_?scheduler$", "", plain)
    plain = re.sub(r"^dpm_pp", "dpmpp", plain).removesuffix("_gpu")
    for ending, grid in _GRIDS.items():
        if plain.endswith("_" + ending):
            return plain.removesuffix("_" + ending).removesuffix("_gpu"), grid
    return plain, None


def _left_out(name: str) -> str | None:
    for ending, reason in _LEFT_OUT_ENDINGS.items():
        if name.endswith(ending):
            return reason
    return LEFT_OUT.get(name)


def meaning(name: str) -> tuple[str, dict[str, Any], str | None]:
    """What a name from elsewhere, which `resolve` knows, stands for.

    Returns:
      Our sampler, its options, and the grid if the name ends in one.
    """
    plain, grid = _normalised(name)
    alias = ALIASES.get(plain) or Alias(plain)
    return alias.sampler, dict(alias.options), grid


def resolve(name: str) -> SamplerInfo:
    """Our sampler for a name from elsewhere, with the options that make it the same.

    Its name is the given one, and ``note`` says what it stands for.

    Raises:
      ValueError: as `registry.get` says.
    """
    if not isinstance(name, str):
        raise names.unknown("sampler", name, sorted(SAMPLERS))
    plain, grid = _normalised(name)
    reason = _left_out(plain)
    if reason is not None:
        raise ValueError(f"sampler {name!r} is left out: {reason}")
    if plain not in ALIASES and plain not in SAMPLERS:
        near = difflib.get_close_matches(plain, [*SAMPLERS, *ALIASES], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? Ours" if near else "ours"
        raise ValueError(f"unknown sampler {name!r}; {hint}: {', '.join(sorted(SAMPLERS))}")
    alias = ALIASES.get(plain) or Alias(plain)
    info = SAMPLERS[alias.sampler]
    settings = [f"{option}={value!r}" for option, value in alias.options.items()]
    settings += [f"the {grid} grid"] if grid else []
    return dataclasses.replace(
        info,
        name=name,
        presets={**info.presets, **alias.options},
        stochastic=info.stochastic if alias.stochastic is None else alias.stochastic,
        grid=grid or info.grid,
        note=f"{' '.join(name.split())} is {', '.join([alias.sampler, *settings])}",
    )
