"""Restart sampling (Xu et al. 2023): Heun's method that jumps back up in noise a few times."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Unpack

import jax.numpy as jnp
import numpy as np

from edm_jax import names
from edm_jax.arguments import check_number, is_known
from edm_jax.pytree import pytree_dataclass
from edm_jax.samplers import heun, loop, path
from edm_jax.samplers import rows as rows_lib
from edm_jax.samplers.info import SamplerInfo
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key

RHO = 7.0  # of the grid inside a segment, as published


@pytree_dataclass
class Segment:
    """A stretch of noise levels that is travelled several times.

    Attributes:
      levels: n, number of its levels, both ends included; part of the program.
      repeats: K, how often; part of the program.
      sigma_lo: lower end; it moves to the nearest level of the main grid.
      sigma_hi: upper end.

    Raises:
      ValueError: for counts below 2 and 1, or ends that are not 0 < sigma_lo < sigma_hi.
    """

    levels: int = dataclasses.field(metadata={"static": True})
    repeats: int = dataclasses.field(metadata={"static": True})
    sigma_lo: ArrayLike
    sigma_hi: ArrayLike

    def __post_init__(self) -> None:
        for name, least in (("levels", 2), ("repeats", 1)):
            value = getattr(self, name)
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if not whole or value < least:
                raise ValueError(f"{name} of a segment must be an integer >= {least}, got {value}")
        check_number("sigma_lo", self.sigma_lo, above=0)
        check_number("sigma_hi", self.sigma_hi, above=0)
        if is_known(self.sigma_lo, self.sigma_hi) and not self.sigma_lo < self.sigma_hi:
            raise ValueError(
                f"a segment needs sigma_lo < sigma_hi, got {self.sigma_lo} and {self.sigma_hi}"
            )

    @property
    def calls(self) -> int:
        """Network calls that it adds."""
        return 2 * self.repeats * (self.levels - 1)


# Published for CIFAR-10 (EDM) at N = 18.
CIFAR10 = (Segment(3, 2, 0.14, 0.30),)
# For ImageNet-64 at N = 36, with s_noise 1.003.
IMAGENET64 = (
    Segment(4, 1, 19.35, 40.79),
    Segment(4, 1, 1.09, 1.92),
    Segment(4, 5, 0.59, 1.09),
    Segment(4, 5, 0.30, 0.59),
    Segment(6, 6, 0.06, 0.30),
)


def _inner(xp: ModuleType, segment: Segment, low: ArrayLike, high: ArrayLike) -> ArrayLike:
    """The rho = 7 levels of a segment, from its upper end to the level of the main grid."""
    ramp = np.linspace(0, 1, segment.levels)
    inner = (high ** (1 / RHO) + ramp * (low ** (1 / RHO) - high ** (1 / RHO))) ** RHO
    # The ends are exact.
    return xp.concatenate([xp.reshape(high, (1,)), inner[1:-1], xp.reshape(low, (1,))])


def plan(sigmas: ArrayLike, segments: Sequence[Segment]) -> tuple[ArrayLike, ArrayLike, ArrayLike]:
    """The steps in the order in which they are taken.

    Args:
      sigmas: ``(N+1,)`` main grid.
      segments: where to go back.

    Returns:
      Deviation of the noise added before each step, the level it then starts from, and the
      level it goes to; ``(T,)`` each, T = N + sum of repeats (levels - 1).

    Raises:
      ValueError: if two segments end on one level of the grid, or one ends below or at the
        level that it starts from; known values only.
    """
    ends = [(segment.sigma_lo, segment.sigma_hi) for segment in segments]
    xp, (sigmas, *flat) = rows_lib.concrete(sigmas, *(value for pair in ends for value in pair))
    num_steps = sigmas.shape[0] - 1
    zeros = xp.zeros_like(sigmas[:-1])
    parts, taken = [(zeros, sigmas[:-1], sigmas[1:], xp.arange(num_steps) * 1.0)], {}
    for segment, low, high in zip(segments, flat[::2], flat[1::2], strict=True):
        nearest = xp.argmin(xp.abs(sigmas[:-1] - low))
        low = sigmas[:-1][nearest]
        if xp is np:
            if nearest in taken:
                raise ValueError(
                    f"two segments end on the level {low:.4g} of the grid, got sigma_lo="
                    f"{taken[nearest]} and {segment.sigma_lo}; move one or use more steps"
                )
            if not low < high:
                raise ValueError(
                    f"a segment must end above the level of the grid that it starts from, "
                    f"{low:.4g}, got sigma_hi={high:.4g}; use more steps or a higher end"
                )
            taken[nearest] = segment.sigma_lo
        inner = _inner(xp, segment, low, high)
        steps = segment.levels - 1
        jump = xp.sqrt((high - low) * (high + low))
        jumps = xp.where(np.arange(steps) == 0, jump, 0.0)
        once = (jumps, inner[:-1], inner[1:], xp.full((steps,), 1.0) * nearest - 0.5)
        parts += [once] * segment.repeats
    columns = [xp.concatenate(column) for column in zip(*parts, strict=True)]
    place = columns.pop()
    order = np.argsort(place, kind="stable") if xp is np else jnp.argsort(place, stable=True)
    return tuple(column[order] for column in columns)


def sample_restart(
    denoise: DenoiseFn,
    x: Array,
    sigmas: ArrayLike,
    key: Key | None = None,
    *,
    segments: tuple[Segment, ...] = CIFAR10,
    s_noise: ArrayLike = 1.0,
    noise: str = "step",
    noise_fn: loop.NoiseFn | None = None,
    **options: Unpack[loop.LoopOptions],
) -> Array | loop.Trajectory:
    """Restart around Heun's method; 2N - 1 + sum 2 K (n - 1) network calls.

    When the main loop arrives at the lower end of a segment, K times: noise is added up to
    its upper end, and Heun's method leads back over n levels.

    Args:
      denoise: D(x; sigma).
      x: state at noise level sigmas[0], any shape.
      sigmas: ``(N+1,)`` strictly decreasing levels ending in 0; may be traced.
      key: ``(B,)`` keys, one per image, or one key.
      segments: where to go back; counts are part of the program, levels are traced.
      s_noise: scale of the added noise.
      noise: "step" or "tree", which are the same here: there is one noise for each jump, at
        any number of steps, so that more steps settle on the same image as they are.
      noise_fn: index of the jump -> standard normal noise, to replay recorded draws.
      **options: of the loop, `loop.LoopOptions`.

    Returns:
      The sample, of the shape of x, or a Trajectory over all steps, those within segments
      included.

    Raises:
      ValueError: as `plan` does.
    """
    segments = tuple(segments)
    if not all(isinstance(segment, Segment) for segment in segments):
        raise ValueError(f"segments must be Segment(levels, repeats, sigma_lo, sigma_hi), got "
                         f"{segments!r}")  # fmt: skip
    check_number("s_noise", s_noise, least=0)
    names.lookup(path.NOISES, noise, "noise")
    loop.check_sigmas(sigmas)
    x = jnp.asarray(x, loop.state_dtype(x))
    draw = loop.noise_source(key, noise_fn, x)
    jumps, now, after = plan(sigmas, segments)
    xp, (jumps, now, after, s_noise) = rows_lib.concrete(jumps, now, after, s_noise)
    rows = rows_lib.raised(heun.heun_rows(xp, now, after), s_noise * jumps)
    # One noise for each jump: its index is the number of jumps before.
    count = jnp.maximum(jnp.cumsum(jnp.asarray(jumps) > 0) - 1, 0)
    return rows_lib.sample_rows(
        denoise, x, sigmas, rows, draw=lambda step: draw(count[step]), **options
    )


def _calls(num_steps: int, options: Mapping[str, Any]) -> int:
    segments = options.get("segments", CIFAR10)
    made = [s if isinstance(s, Segment) else Segment(*s) for s in segments]
    return 2 * num_steps - 1 + sum(segment.calls for segment in made)


# The coarse steps inside a segment leave an error that more steps outside do not lower.
PROMISES = (
    SamplerInfo(
        "restart", sample_restart, order=0, stochastic=True, bias=0.002, nfe_fn=_calls, min_steps=2
    ),
)
