"""Every sampler by name, with what it promises, behind one calling convention."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from edm_jax import grids, names
from edm_jax.arguments import check_number, is_known
from edm_jax.precond import Preconditioning, check_preconditioning
from edm_jax.samplers import (
    adaptive,
    baselines,
    ddpm,
    dpmpp,
    general,
    heun,
    lms,
    stochastic,
    unipc,
)
from edm_jax.samplers import predictor_corrector as pc
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key


def _nfe_one(num_steps: int, options: Mapping[str, Any]) -> int:
    return num_steps


def _nfe_two(num_steps: int, options: Mapping[str, Any]) -> int:
    return num_steps if options.get("solver") == "euler" else 2 * num_steps - 1


def _nfe_corrected(num_steps: int, options: Mapping[str, Any]) -> int:
    return num_steps * (1 + options.get("corrector_steps", 1))


@dataclasses.dataclass(frozen=True)
class SamplerInfo:
    """A sampler and its promises.

    Attributes:
      name: its key in SAMPLERS.
      fn: the sampler function.
      order: promised order of convergence on a refined grid; for stochastic samplers
        of the distribution (weak), as measured on Gaussian data; 0 promises none (the
        error stays, or a tolerance decides it).
      stochastic: whether it draws noise by default.
      bias: Wasserstein-2 distance to the data, in data units of standard deviation
        0.5, that may stay at any number of steps; 0 where it vanishes.
      linear: whether the result is an affine function of the noise for a linear D.
      grid: name of the time steps it was published with (`grids.GRIDS`).
      min_steps: least N.
      presets: options that set it apart from other entries of the same fn.
      nfe_fn: (N, options) -> network calls; None if the data decide.
    """

    name: str
    fn: Callable[..., Any]
    order: float
    stochastic: bool = False
    bias: float = 0.0
    linear: bool = True
    grid: str = "edm"
    min_steps: int = 1
    presets: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    nfe_fn: Callable[[int, Mapping[str, Any]], int] | None = _nfe_one

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the arguments beyond (denoise, x, sigmas, key)."""
        common = ("denoise", "x", "sigmas", "key")
        return tuple(p for p in inspect.signature(self.fn).parameters if p not in common)

    def nfe(self, num_steps: int, **options: Any) -> int | None:
        """Network calls for N steps; None if the sampler is adaptive (ask for stats)."""
        if self.nfe_fn is None:
            return None
        check_number("num_steps", num_steps, least=1)
        return self.nfe_fn(num_steps, {**self.presets, **options})

    def steps_within(self, nfe: int, **options: Any) -> int:
        """The largest N whose cost is at most ``nfe`` network calls."""
        if self.nfe_fn is None:
            raise ValueError(f"{self.name} is adaptive: its tolerances decide the cost")
        steps = max(nfe, 1)
        while steps > 1 and self.nfe(steps, **options) > nfe:
            steps -= 1
        if self.nfe(steps, **options) > nfe:
            raise ValueError(f"one step of {self.name!r} takes more than nfe={nfe} network calls")
        return steps

    def check(self, **options: Any) -> None:
        """Raise ValueError if the sampler does not take one of the options."""
        for option in options:
            if option in self.options:
                continue
            others = [name for name, info in SAMPLERS.items() if option in info.options]
            near = difflib.get_close_matches(option, self.options, n=1)
            cure = (
                f"did you mean {near[0]!r}?"
                if near
                else f"samplers with it: {', '.join(others)}"
                if others
                else f"it has {', '.join(self.options)}"
            )
            raise ValueError(f"sampler {self.name!r} has no option {option!r}; {cure}")

    def __call__(
        self,
        denoise: DenoiseFn,
        x: Array,
        sigmas: ArrayLike,
        key: Key | None = None,
        *,
        preconditioning: Preconditioning | None = None,
        **options: Any,
    ) -> Any:
        """Run the sampler, after checking that the combination can work.

        Args:
          denoise: D(x; sigma).
          x: ``(B, ...)`` state at noise level sigmas[0].
          sigmas: ``(N+1,)`` grid.
          key: ``(B,)`` keys, one per image, or one key; ignored by deterministic ones.
          preconditioning: of the network; its range is checked and every level of the
            grid rounded to one it knows.  Repeated levels are dropped unless the
            sampler takes them; of a traced grid they cannot be, so give one without.  Its
            levels outside the range are moved to the ends.
            Evaluations between the levels (dpmpp_2s, alpha below 1, adaptive) stay
            where they are; the network's own coefficients see the nearest level.
          **options: of the sampler.

        Returns:
          What the sampler returns.
        """
        self.check(**options)
        options = {**self.presets, **options}
        if preconditioning is not None:
            sigmas, extra = self._respect(preconditioning, sigmas)
            options = {**extra, **options}
        num_steps = (*np.shape(sigmas), 0)[0] - 1
        if num_steps < self.min_steps:
            raise ValueError(
                f"sampler {self.name!r} needs at least {self.min_steps} steps, got {num_steps}"
            )
        if "noise_fn" in self.options:
            return self.fn(denoise, x, sigmas, key, **options)
        return self.fn(denoise, x, sigmas, **options)

    def _respect(
        self, preconditioning: Preconditioning, sigmas: ArrayLike
    ) -> tuple[ArrayLike, dict[str, Any]]:
        """The grid within the range and on the levels of a network, and options for it."""
        check_preconditioning(preconditioning)
        repeats = "round_sigma" in self.options
        extra = {"round_sigma": preconditioning.round_sigma} if repeats else {}
        if is_known(sigmas):
            grid = grids.round_grid(sigmas, preconditioning, merge=not repeats)
            return grid, (extra if preconditioning.rounds else {})
        if not preconditioning.rounds:
            return sigmas, {}
        levels = jnp.asarray(sigmas)
        # The range cannot be checked, and below it the nearest entry would be 0.
        inside = jnp.clip(levels[:-1], preconditioning.sigma_min, preconditioning.sigma_max)
        return levels.at[:-1].set(preconditioning.round_sigma(inside)), extra


def _entries() -> list[SamplerInfo]:
    info = SamplerInfo
    two = {"nfe_fn": _nfe_two}
    entries = [
        info("euler", general.sample_general, 1, presets={"solver": "euler"}, **two),
        info("heun", heun.sample_heun, 2, **two),
        info("general", general.sample_general, 2, **two),
        info("midpoint", general.sample_general, 2, presets={"alpha": 0.5}, **two),
        info("ralston", general.sample_general, 2, presets={"alpha": 2 / 3}, **two),
        info("edm", stochastic.sample_stochastic, 2, stochastic=True, **two),
        info("ddim", baselines.sample_ddim, 1),
        info("ddpm", ddpm.sample_ddpm, 1, stochastic=True, grid="iddpm"),
        info("dpmpp_2s", dpmpp.sample_dpmpp_2s, 2, **two),
        info("dpmpp_2m", dpmpp.sample_dpmpp_2m, 2, min_steps=2),
        info("dpmpp_3m", dpmpp.sample_dpmpp_3m, 2, min_steps=3),
        info("dpmpp_2m_sde", dpmpp.sample_dpmpp_2m_sde, 2, stochastic=True, min_steps=2),
        info("dpmpp_3m_sde", dpmpp.sample_dpmpp_3m_sde, 2, stochastic=True, min_steps=3),
        info("adaptive", adaptive.sample_adaptive, 0, nfe_fn=None),
        info("ve_reverse_diffusion", baselines.sample_ve, 1, stochastic=True, grid="ve"),
        info("ve_ode", baselines.sample_ve, 1, grid="ve", presets={"ode": True}),
        info(
            "ve_predictor_corrector",
            pc.sample_predictor_corrector,
            0,
            stochastic=True,
            bias=0.02,
            linear=False,
            grid="ve",
            nfe_fn=_nfe_corrected,
        ),
    ]
    for p in (1, 2, 3):
        entries.append(
            info(f"unipc_{p}", unipc.sample_unipc, p + 1, min_steps=p, presets={"order": p})
        )
    for p in (2, 3, 4):
        entries.append(info(f"lms_{p}", lms.sample_lms, p, min_steps=p, presets={"order": p}))
    for method in baselines.VP_METHODS:
        least = 1 if method == "euler_maruyama" else 21
        entries.append(
            info(
                f"vp_{method}", baselines.sample_vp, 1, stochastic=True, grid="vp",
                bias=0.015, min_steps=least, presets={"method": method},
            )
        )  # fmt: skip
    entries.append(info("vp_ode", baselines.sample_vp, 1, grid="vp", presets={"ode": True}))
    return entries


SAMPLERS: dict[str, SamplerInfo] = {entry.name: entry for entry in _entries()}


def get(name: str) -> SamplerInfo:
    """The sampler of a name; ValueError with the nearest known name otherwise."""
    return names.lookup(SAMPLERS, name, "sampler")
