"""Which exponential moving averages of the weights training keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edm_jax import ema
from edm_jax.arguments import check_number
from edm_jax.typing import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Averaging:
    """Which EMAs of the weights are kept.

    Attributes:
      halflives_kimg: one EMA for each half-life, in thousands of images.
      rampup_ratio: see `ema.ema_beta`; None for no ramp.
    """

    halflives_kimg: Sequence[float]
    rampup_ratio: float | None = 0.05

    def __post_init__(self) -> None:
        object.__setattr__(self, "halflives_kimg", tuple(self.halflives_kimg))
        check_number("halflives_kimg", self.halflives_kimg, least=0)
        if not self.halflives_kimg or len(set(self.names())) < len(self.halflives_kimg):
            raise ValueError(
                f"halflives_kimg must be one or more different numbers, got {self.halflives_kimg}"
            )
        if self.rampup_ratio is not None:
            check_number("rampup_ratio", self.rampup_ratio, above=0)

    def names(self) -> list[str]:
        """Variant names, first the one that sampling uses by default."""
        return [ema_name(h) for h in self.halflives_kimg]

    def update(self, averages: dict, params: PyTree, nimg: Array, batch_size: int) -> dict:
        """All averages after a step that ended in ``params``."""
        result = {}
        for halflife in self.halflives_kimg:
            beta = ema.ema_beta(nimg, batch_size, halflife * 1000, self.rampup_ratio)
            name = ema_name(halflife)
            result[name] = ema.ema_update(averages[name], params, beta)
        return result


def ema_name(halflife_kimg: float) -> str:
    """Name of an EMA variant, for example ``ema_500kimg``."""
    return f"ema_{halflife_kimg:g}kimg"
