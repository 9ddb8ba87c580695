"""Autoguidance (Karras et al. 2024): away from a weaker version of the model.

D_w = D + (w - 1) (D - D_weaker)
"""

from __future__ import annotations

from typing import Any

from edm_jax.arguments import check_number
from edm_jax.guidance import base
from edm_jax.pytree import pytree_dataclass
from edm_jax.typing import Array, ArrayLike


@pytree_dataclass
class Autoguidance:
    """Autoguidance; `autoguidance` builds and checks it.

    Attributes:
      weaker: the model to move away from.
      scale: w, a number or ``(B,)``.
      interval: noise levels at which it acts, None for all.
    """

    weaker: Any
    scale: ArrayLike = 1.0
    interval: base.Interval | None = None

    def guide(self, denoise: base.LabelledDenoiseFn) -> base.LabelledDenoiseFn:
        """The guided denoiser."""
        return base.by_correction(self, denoise)

    def correct(
        self,
        total: Array,
        denoised: Array,
        denoise: base.LabelledDenoiseFn,
        x: Array,
        sigma: ArrayLike,
        rows: Array | None,
    ) -> Array:
        """``total + (w - 1) (denoised - D_weaker)``."""

        def direction() -> Array:
            return denoised - base.denoise_with(self.weaker, x, sigma, rows)

        return base.corrected(total, self.scale, 1, self.interval, sigma, direction)

    def check(self, model: Any) -> None:
        """Raise ValueError unless both models are for the same images and labels."""
        base.check_second(model, self.weaker, "weaker", same_labels=True)

    def evaluations(self, sigma: ArrayLike) -> dict[str, int]:
        """Evaluations per image at a level."""
        second = int(base.is_evaluated(self.scale, 1, self.interval, sigma))
        return {"denoiser": 1, "weaker": second}


def autoguidance(
    weaker: Any,
    scale: ArrayLike = 1.0,
    interval: base.Interval | tuple[ArrayLike, ArrayLike] | None = None,
) -> Autoguidance:
    """Guidance away from a weaker model of the same images and labels.

    Args:
      weaker: smaller or trained for less time; a Model, or a function of (x, sigma, rows).
      scale: w; 1 is off.  A number or one per image, ``(B,)``.
      interval: noise levels (low, high] at which it acts; None for all.

    Raises:
      ValueError: for something that is no model, a scale that is not finite, or an interval
        with low > high.
    """
    check_number("scale", scale)
    return Autoguidance(base.as_second(weaker), scale, base.as_interval(interval))
