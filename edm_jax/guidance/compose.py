"""Several guidances at once, and a model with its guidance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edm_jax.arguments import check_protocol
from edm_jax.guidance import base
from edm_jax.pytree import pytree_dataclass
from edm_jax.typing import Array, ArrayLike


@pytree_dataclass
class Chain:
    """Guidances one after the other, the first next to the network; `chain` builds it."""

    parts: tuple[base.Guidance, ...] = ()

    def guide(self, denoise: base.LabelledDenoiseFn) -> base.LabelledDenoiseFn:
        """The guided denoiser."""
        for part in self.parts:
            denoise = part.guide(denoise)
        return denoise

    def check(self, model: Any) -> None:
        """Raise ValueError unless every part fits the model."""
        for part in self.parts:
            part.check(model)

    def evaluations(self, sigma: ArrayLike) -> dict[str, int]:
        """Evaluations per image at a level; those of a part count for each call of it."""
        total = {"denoiser": 1}
        for part in self.parts:
            own = part.evaluations(sigma)
            calls = own.pop("denoiser")
            total = {name: calls * count for name, count in total.items()}
            for name, count in own.items():
                total[name] = total.get(name, 0) + count
        return total


@pytree_dataclass
class Sum:
    """The corrections of several guidances added on one D; `added` builds it."""

    parts: tuple[Any, ...] = ()

    def guide(self, denoise: base.LabelledDenoiseFn) -> base.LabelledDenoiseFn:
        """The guided denoiser."""

        def guided(x: Array, sigma: ArrayLike, rows: Array | None = None) -> Array:
            denoised = base.at_least_float32(denoise(x, sigma, rows))
            total = denoised
            for part in self.parts:
                total = part.correct(total, denoised, denoise, x, sigma, rows)
            return total

        return guided

    def check(self, model: Any) -> None:
        """Raise ValueError unless every part fits the model."""
        for part in self.parts:
            part.check(model)

    def evaluations(self, sigma: ArrayLike) -> dict[str, int]:
        """Evaluations per image at a level; D itself is evaluated once for all parts."""
        total = {"denoiser": 1}
        for part in self.parts:
            own = part.evaluations(sigma)
            own["denoiser"] -= 1
            for name, count in own.items():
                total[name] = total.get(name, 0) + count
        return total


def chain(*parts: base.Guidance) -> Chain:
    """Guidances in order: ``chain(classifier_free(2.0), dynamic_threshold())`` thresholds the
    guided D, as the papers do; ``chain(static_threshold(), classifier_guidance(c))`` guides the
    clipped D, as ADM does.
    """
    for part in parts:
        check_protocol("a part of chain", part, ("guide",), "use classifier_free(2.0), ...")
    return Chain(parts)


def added(*parts: Any) -> Sum:
    """D plus all corrections, each a difference from the same D:

        D + (w_a - 1) (D - D_weaker) + (w_c - 1) (D - D_0) + gamma sigma^2 g

    Raises:
      ValueError: for a part that is no correction, such as a threshold; chain it after.
    """
    for part in parts:
        check_protocol("a part of added", part, ("correct",), "thresholds go into chain(...)")
    return Sum(parts)


def shifts_mean(guidance: Any) -> bool:
    """Whether a guidance, or a part of it, acts on the mean of ancestral steps, not on D."""
    parts = getattr(guidance, "parts", ())
    return getattr(guidance, "form", "") == "mean" or any(shifts_mean(part) for part in parts)


def mean_shift(guidance: Any, rows: Array) -> Callable[[Array, Array], Array] | None:
    """The ``shift`` that `samplers.ddpm` takes for a guidance; None if it acts on D alone.

    Args:
      guidance: of one part or several; None for none.
      rows: ``(B, classes)`` labels.
    """
    if not shifts_mean(guidance):
        return None
    parts = getattr(guidance, "parts", None)
    if parts is None:
        return guidance.shift(rows)
    shifts = [mean_shift(part, rows) for part in parts if shifts_mean(part)]
    return lambda x, sigma: sum(shift(x, sigma) for shift in shifts)


def label_dim(model: Any, guidance: Any = None) -> int:
    """Classes that labels are drawn from: those of the model, or else of its classifier."""
    if model.num_classes or guidance is None:
        return model.num_classes
    found = [label_dim(model, part) for part in getattr(guidance, "parts", ())]
    classifier = getattr(guidance, "classifier", None)
    return max([getattr(classifier, "num_classes", 0), *found])


def guided_denoiser(model: Any, guidance: base.Guidance | None = None) -> base.LabelledDenoiseFn:
    """``denoise(x, sigma, rows)`` of a model under a guidance, checked before any work.

    Rows go to the classifier alone where the model itself has no labels.
    """

    def denoise(x: Array, sigma: ArrayLike, rows: Array | None = None) -> Array:
        return model.denoise(x, sigma, rows if model.num_classes else None)

    if guidance is None:
        return denoise
    if shifts_mean(guidance):
        raise ValueError(
            "classifier guidance with form='mean' is no change of D: give mean_shift(guidance, "
            "rows) to samplers.ddpm as its shift, or use form='denoiser'"
        )
    guidance.check(model)
    return guidance.guide(denoise)
