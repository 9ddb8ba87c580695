"""Classifier guidance (Dhariwal & Nichol 2021): along the gradient of a noisy classifier.

    D_g = D + gamma sigma^2 g,    g = grad_x log p(c | x; sigma)

For the exact classifier gamma = 1 turns the unconditional D into the conditional one
(Bayes).  ADM's ancestral sampler shifts the mean of its step instead, which is no change
of D: that is ``form="mean"``, for which `ClassifierGuidance.shift` is the argument that
`samplers.ddpm` takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from edm_jax import names
from edm_jax.arguments import check_number, check_protocol
from edm_jax.guidance import base
from edm_jax.pytree import pytree_dataclass
from edm_jax.typing import Array, ArrayLike

FORMS = ("denoiser", "mean")


def log_likelihood(classifier: Any, x: Array, sigma: ArrayLike, rows: Array) -> Array:
    """log p(c | x; sigma) of the classes in ``rows``, ``(B,)``.

    Args:
      classifier: with ``logits(x, sigma)`` of shape ``(B, classes)``.
      x: ``(B, ...)``.
      sigma: a scalar or ``(B,)``.
      rows: ``(B, classes)``, one-hot; a row of zeros gives 0.
    """
    log_p = jax.nn.log_softmax(base.at_least_float32(classifier.logits(x, sigma)))
    if rows.shape != log_p.shape:
        raise ValueError(
            f"the classifier knows {log_p.shape[-1]} classes, the label rows have shape "
            f"{rows.shape}"
        )
    return jnp.sum(rows.astype(log_p.dtype) * log_p, axis=-1)


def classifier_gradient(classifier: Any, x: Array, sigma: ArrayLike, rows: Array) -> Array:
    """g = grad_x log p(c | x; sigma) with respect to x itself, not c_in x; the shape of x."""

    def total(x: Array) -> Array:
        # The sum over the batch: images do not mix, so every image gets its own gradient.
        return jnp.sum(log_likelihood(classifier, x, sigma, rows))

    return jax.grad(total)(base.at_least_float32(x))


@pytree_dataclass
class ClassifierGuidance:
    """Classifier guidance; `classifier_guidance` builds and checks it.

    Attributes:
      classifier: with ``logits(x, sigma)``.
      scale: gamma, a number or ``(B,)``.
      interval: noise levels at which it acts, None for all.
      form: "denoiser" changes D; "mean" leaves it alone and shifts the mean of ADM's ancestral
        steps instead, see `shift`.
    """

    classifier: Any
    scale: ArrayLike = 1.0
    interval: base.Interval | None = None
    form: str = dataclasses.field(default="denoiser", metadata={"static": True})

    def guide(self, denoise: base.LabelledDenoiseFn) -> base.LabelledDenoiseFn:
        """The guided denoiser; D itself is not differentiated, and with form "mean" not changed."""
        if self.form == "mean":
            return denoise
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
        """``total + gamma sigma^2 g``."""
        if self.form == "mean":
            return total

        def direction() -> Array:
            square = base.column(jnp.square(jnp.asarray(sigma, total.dtype)), x)
            return square * self._gradient(x, sigma, rows)

        return base.corrected(total, self.scale, 0, self.interval, sigma, direction)

    def shift(self, rows: Array) -> Callable[[Array, Array], Array]:
        """``(x, sigma) -> gamma(sigma) g``, by which ADM's ancestral step moves its mean.

        `samplers.ddpm` multiplies it by the variance of the step and (s'/s).
        """

        def shift(x: Array, sigma: ArrayLike) -> Array:
            zeros = jnp.zeros_like(base.at_least_float32(x))
            direction = lambda: self._gradient(x, sigma, rows)  # noqa: E731
            return base.corrected(zeros, self.scale, 0, self.interval, sigma, direction)

        return shift

    def check(self, model: Any) -> None:
        """Raise ValueError unless the classifier sees the model's images and labels."""
        labels = bool(model.num_classes)
        base.check_second(model, self.classifier, "classifier", same_labels=labels)

    def evaluations(self, sigma: ArrayLike) -> dict[str, int]:
        """Evaluations per image at a level; one of the classifier is its value and gradient."""
        second = int(base.is_evaluated(self.scale, 0, self.interval, sigma))
        return {"denoiser": 1, "classifier": second}

    def _gradient(self, x: Array, sigma: ArrayLike, rows: Array | None) -> Array:
        if rows is None:
            raise ValueError("classifier guidance needs label rows (B, classes), got None")
        return classifier_gradient(self.classifier, x, sigma, rows)


def classifier_guidance(
    classifier: Any,
    scale: ArrayLike = 1.0,
    interval: base.Interval | tuple[ArrayLike, ArrayLike] | None = None,
    *,
    form: str = "denoiser",
) -> ClassifierGuidance:
    """Guidance towards the label by the gradient of a classifier of noisy images.

    A learned classifier is off by some error e of its gradient, which enters D as gamma
    sigma^2 e: at large sigma end the interval, or clip D afterwards (`limits`).

    Args:
      classifier: a `NoisyClassifier` with its weights, or anything with
        ``logits(x, sigma) -> (B, classes)`` that is differentiable in x.
      scale: gamma; 0 is off.  A number or one per image, ``(B,)``.
      interval: noise levels (low, high] at which it acts; None for all.
      form: "denoiser" changes D, for any sampler.  "mean" shifts the mean of the steps of the
        sampler ``ddpm`` by their variance, as the ancestral sampler of guided-diffusion does:
        equal to first order in the step, and much weaker in the first steps of coarse grids.

    Raises:
      ValueError: for something that is no classifier, a scale that is not finite, an interval
        with low > high, or another form.
    """
    names.lookup(dict.fromkeys(FORMS), form, "form of classifier guidance")
    check_protocol("classifier", classifier, ("logits",), "use load_classifier(path)")
    check_number("scale", scale)
    return ClassifierGuidance(classifier, scale, base.as_interval(interval), form)
