"""A reflected model under any sampler: where it starts, what it runs on, how it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edm_jax.arguments import is_known
from edm_jax.domains.box import Box, Domain
from edm_jax.samplers import SamplerInfo, loop
from edm_jax.typing import Array, ArrayLike, DenoiseFn, Key


def run(
    sampler: Callable[..., Any],
    denoise: DenoiseFn,
    noise: Array,
    sigmas: ArrayLike,
    key: Key | None = None,
    *,
    domain: Domain = Box(),
    **options: Any,
) -> Any:
    """Sample a reflected model with any sampler: start, lift, and fold at the end.

    Args:
      sampler: ``(denoise, x, sigmas, key, **options)``, such as a `SamplerInfo`.
      denoise: D(x; sigma), called inside the domain only; guidance wraps it before.
      noise: ``(B, ...)`` standard normal latents, as for a model on the whole space.
      sigmas: ``(N+1,)`` levels ending in 0, the first of them at which the law is uniform.
      key: as for the sampler.
      domain: where the data live.
      **options: of the sampler.

    Returns:
      Samples inside the domain, or a Trajectory whose x are (its denoised images are those
      of the lift).

    Raises:
      ValueError: for a sampler that cannot take reflected models.
    """
    info = getattr(sampler, "info", sampler)
    check_on_box(info)
    if getattr(info, "domain", "any") == "box":
        options = {"box": domain, **options}
    result = sampler(domain.lift(denoise), domain.prior(noise), sigmas, key, **options)
    if isinstance(result, loop.Trajectory):
        return result._replace(x=domain.fold(result.x))
    return domain.fold(result)


def check_on_box(info: Any) -> None:
    """Raise ValueError for a sampler whose promises say that it cannot take a box."""
    if why := getattr(info, "off_box", ""):
        raise ValueError(f"sampler {info.name!r} cannot take a reflected model: {why}")


def check_sampler(info: SamplerInfo, kind: str, sigmas: ArrayLike, domain: Box = Box()) -> None:
    """Raise ValueError unless a sampler and its noise levels fit the kind of a model.

    Args:
      info: the sampler.
      kind: of the model, "reflected" or another.
      sigmas: ``(N+1,)`` levels ending in 0.
      domain: of reflected models.
    """
    if kind != "reflected":
        if info.domain == "box":
            raise ValueError(
                f"sampler {info.name!r} keeps its states in a box, which only reflected models "
                f"know; this model is a {kind}: use heun, edm or another"
            )
        return
    check_on_box(info)
    if is_known(sigmas):
        if len(sigmas) < 3:
            raise ValueError(
                f"a reflected model needs at least 2 steps, got {len(sigmas) - 1}: at its first "
                "level the law is uniform, and D is the noise itself"
            )
        domain.check_levels(float(sigmas[-2]), float(sigmas[0]))
