"""What a sampler promises, beside the function that keeps it."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from edm_jax import grids
from edm_jax.arguments import check_number, is_known
from edm_jax.precond import Preconditioning, check_preconditioning
from edm_jax.samplers.loop import LoopOptions
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key

NfeFn = Callable[[int, Mapping[str, Any]], int]

# Every sampler by name; `registry` fills it.
SAMPLERS: dict[str, SamplerInfo] = {}


def stages(count: int) -> NfeFn:
    """Network calls of a method that takes ``count`` of them a step and one in the last."""
    return lambda num_steps, options: count * (num_steps - 1) + 1


one_call, two_calls, three_calls = stages(1), stages(2), stages(3)


@dataclasses.dataclass(frozen=True)
class Measured:
    """A setting in which `--mode=validate` measures a sampler.

    Attributes:
      label: what sets it apart, for the table; empty for the defaults.
      options: of the sampler.
      order: promised with them; None for that of the SamplerInfo.
      stochastic: whether it draws noise with them; None for what the SamplerInfo says.
      tight: whether a higher order would show a mistake; False where the leading error
        happens to vanish on the data that it is measured on.
    """

    label: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    order: float | None = None
    stochastic: bool | None = None
    tight: bool = True


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
      ends: "denoised" if its last step returns D at the last positive level, "flow" if it
        integrates the step to 0 like any other.
      grid: name of the time steps it was published with (`grids.GRIDS`).
      min_steps: least N.
      presets: options that set it apart from other entries of the same fn.
      nfe_fn: (N, options) -> network calls; None if the data decide.
      measured: the settings in which its promises are measured.
      draws: noises that a step draws; noise_fn gets their running index.
      note: for an alias, what it stands for.
      lacks: options of other samplers that it cannot have -> why.
      domain: "box" if it takes reflected models only, whose data live in one; "any" else.
      off_box: why it cannot take reflected models, and what can; empty where it can.
    """

    name: str
    fn: Callable[..., Any]
    order: float
    stochastic: bool = False
    bias: float = 0.0
    linear: bool = True
    ends: str = "denoised"
    grid: str = "edm"
    min_steps: int = 1
    presets: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    nfe_fn: NfeFn | None = one_call
    measured: tuple[Measured, ...] = (Measured(),)
    draws: int = 1
    note: str = ""
    lacks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    domain: str = "any"
    off_box: str = ""

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the arguments beyond (denoise, x, sigmas, key), those of the loop last."""
        parameters = inspect.signature(self.fn).parameters.values()
        own = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
        common = ("denoise", "x", "sigmas", "key")
        return (*(name for name in own if name not in common), *LoopOptions.__annotations__)

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
            if option not in self.options:
                raise ValueError(self._no_option(option))

    def _no_option(self, option: str) -> str:
        others = [name for name, info in SAMPLERS.items() if option in info.options]
        return self.no_option(option, self.options, others)

    def no_option(self, option: str, known: Collection[str], others: Collection[str]) -> str:
        """The line for an option that it has not, of those known and samplers that have it."""
        near = difflib.get_close_matches(option, known, n=1)
        if option in self.lacks:
            cure = self.lacks[option]
        elif near:
            cure = f"did you mean {near[0]!r}?"
        elif others:
            cure = f"samplers with it: {', '.join(others)}"
        else:
            cure = f"it has {', '.join(known)}" if known else "it has none"
        return f"sampler {self.name!r} has no option {option!r}; {cure}"

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
            Evaluations between the levels (of dpm_2, dpmpp_2s, dpmpp_sde, seeds, restart,
            alpha below 1, adaptive) stay where they are; the network's own coefficients
            see the nearest level.
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
