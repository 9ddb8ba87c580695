"""Classifier-free guidance (Ho & Salimans 2022): away from the model without a label.

    D_w = D_c + (w - 1) (D_c - D_0)

w = 1 does nothing, 0 is the unconditional model.  (The paper's weight is w - 1.)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from edm_jax.arguments import check_number
from edm_jax.guidance import base
from edm_jax.pytree import pytree_dataclass
from edm_jax.typing import Array, ArrayLike


@pytree_dataclass
class ClassifierFree:
    """Classifier-free guidance; `classifier_free` builds and checks it.

    Attributes:
      scale: w, a number or ``(B,)``.
      interval: noise levels at which it acts, None for all.
      unconditional: another model for D_0; None: the guided one without its label.
      null_row: ``(classes,)`` label that stands for none; None: zeros.
      together: one call of the network with both halves, 2B images, instead of two with B.
    """

    scale: ArrayLike = 1.0
    interval: base.Interval | None = None
    unconditional: Any = None
    null_row: ArrayLike | None = None
    together: bool = dataclasses.field(default=False, metadata={"static": True})

    def guide(self, denoise: base.LabelledDenoiseFn) -> base.LabelledDenoiseFn:
        """The guided denoiser."""

        def guided(x: Array, sigma: ArrayLike, rows: Array | None = None) -> Array:
            first_is_known = isinstance(denoise, base.Evaluated)
            if base.is_off(self.scale, 1) or self.unconditional is not None or first_is_known:
                denoised = base.at_least_float32(denoise(x, sigma, rows))
                return self.correct(denoised, denoised, denoise, x, sigma, rows)
            if self.together:
                return self._together(denoise, x, sigma, rows)
            return self._apart(denoise, x, sigma, rows)

        return guided

    def correct(
        self,
        total: Array,
        denoised: Array,
        denoise: base.LabelledDenoiseFn,
        x: Array,
        sigma: ArrayLike,
        rows: Array | None,
    ) -> Array:
        """``total + (w - 1) (denoised - D_0)``, with a call of its own for D_0."""

        def direction() -> Array:
            if self.unconditional is not None:
                null = base.denoise_with(self.unconditional, x, sigma, None)
            else:
                null = denoise(x, sigma, self._null(rows))
            return denoised - null

        return base.corrected(total, self.scale, 1, self.interval, sigma, direction)

    def check(self, model: Any) -> None:
        """Raise ValueError unless the model has labels, and was trained without them too."""
        if not model.num_classes:
            raise ValueError(
                "classifier-free guidance needs a conditional model, this one has no labels; "
                "autoguidance guides unconditional models"
            )
        if self.unconditional is not None:
            base.check_second(model, self.unconditional, "unconditional", same_labels=False)
            if getattr(self.unconditional, "num_classes", 0):
                raise ValueError(
                    f"unconditional must be a model without labels, got one of "
                    f"{self.unconditional.num_classes} classes"
                )
        elif self.null_row is not None:
            if jnp.shape(self.null_row) != (model.num_classes,):
                raise ValueError(
                    f"null_row must have shape ({model.num_classes},), got "
                    f"{jnp.shape(self.null_row)}"
                )
        elif not _label_dropout(model):
            raise ValueError(
                "classifier-free guidance needs a model trained with label dropout, this one has "
                "label_dropout 0; give a model without labels as unconditional (--guidance_model "
                "on the command line), or use autoguidance"
            )

    def evaluations(self, sigma: ArrayLike) -> dict[str, int]:
        """Evaluations per image at a level."""
        second = int(base.is_evaluated(self.scale, 1, self.interval, sigma))
        if self.unconditional is not None:
            return {"denoiser": 1, "unconditional": second}
        return {"denoiser": 1 + second}

    def _null(self, rows: Array | None) -> Array:
        if rows is None:
            raise ValueError(
                "classifier-free guidance needs label rows (B, classes), got None; an "
                "unconditional model has no label to drop"
            )
        if self.null_row is None:
            return jnp.zeros_like(rows)
        return jnp.broadcast_to(jnp.asarray(self.null_row, rows.dtype)[None], rows.shape)

    def _apart(
        self, denoise: base.LabelledDenoiseFn, x: Array, sigma: ArrayLike, rows: Array | None
    ) -> Array:
        """Two calls, by a loop over one copy of the network in the program."""
        null = self._null(rows)
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        now = base.effective(self.scale, 1, self.interval, sigma)
        on = now != 1
        always = base.is_always_on(self.scale, 1, self.interval)

        def call(_: None, half: tuple[Array, Array]) -> tuple[None, Array]:
            labels, needed = half
            if always:
                return None, denoise(x, sigma, labels).astype(dtype)
            return None, jax.lax.cond(
                needed,
                lambda: denoise(x, sigma, labels).astype(dtype),
                lambda: jnp.zeros(x.shape, dtype),
            )

        needed = jnp.stack([jnp.array(True), jnp.any(on)])
        _, (cond, uncond) = jax.lax.scan(call, None, (jnp.stack([rows, null]), needed))
        guided = _extrapolated(cond, uncond, now)
        return guided if always else jnp.where(base.column(on, cond), guided, cond)

    def _together(
        self, denoise: base.LabelledDenoiseFn, x: Array, sigma: ArrayLike, rows: Array | None
    ) -> Array:
        """One call of twice the batch; the halves of an image lie side by side.

        With the batch split over devices each then holds both halves of its images, and
        taking them apart moves nothing.
        """
        null, now = self._null(rows), base.effective(self.scale, 1, self.interval, sigma)

        def twice(value: Array) -> Array:
            return jnp.repeat(value, 2, axis=0)

        def pair() -> Array:
            levels = sigma if jnp.ndim(sigma) == 0 else twice(jnp.asarray(sigma))
            both = jnp.stack([rows, null], axis=1).reshape(-1, *rows.shape[1:])
            result = base.at_least_float32(denoise(twice(x), levels, both))
            result = result.reshape(x.shape[0], 2, *x.shape[1:])
            cond, uncond = result[:, 0], result[:, 1]
            on = base.column(now != 1, cond)
            return jnp.where(on, _extrapolated(cond, uncond, now), cond)

        if base.is_always_on(self.scale, 1, self.interval):
            return pair()
        return jax.lax.cond(
            jnp.any(now != 1), pair, lambda: base.at_least_float32(denoise(x, sigma, rows))
        )


def _extrapolated(cond: Array, uncond: Array, w: Array) -> Array:
    return cond + base.column((w - 1).astype(cond.dtype), cond) * (cond - uncond)


def _label_dropout(model: Any) -> float:
    description = getattr(model, "description", None) or {}
    return description.get("network", {}).get("label_dropout", 0) or 0


def classifier_free(
    scale: ArrayLike = 1.0,
    interval: base.Interval | tuple[ArrayLike, ArrayLike] | None = None,
    *,
    unconditional: Any = None,
    null_row: ArrayLike | None = None,
    together: bool = False,
) -> ClassifierFree:
    """Guidance away from the unconditional denoiser.

    Args:
      scale: w; 1 is off, below 1 interpolates towards the unconditional model.  A number
        or one per image, ``(B,)``.
      interval: noise levels (low, high] at which it acts; None for all.  Outside D_0 is
        not evaluated.
      unconditional: a model without labels that gives D_0; by default the guided model
        itself with the null label, which it must have been trained with (label_dropout).
      null_row: ``(classes,)`` label that stands for none, for models with a class of its
        own for it; zeros by default.
      together: evaluate both halves in one call with 2B images.  Equal within rounding to
        two calls, which need half the memory, and one copy of the network in the program
        where w or the interval are traced (this needs two: of B and of 2B images).

    Raises:
      ValueError: for a scale that is not finite, or an interval with low > high.
    """
    check_number("scale", scale)
    if unconditional is not None:
        unconditional = base.as_second(unconditional)
        if null_row is not None or together:
            raise ValueError(
                "unconditional is another network: it has no null_row and no call together"
            )
    return ClassifierFree(scale, base.as_interval(interval), unconditional, null_row, together)
