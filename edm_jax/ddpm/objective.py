"""The training objective of DDPM, iDDPM and ADM, as `train.step` takes objectives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from edm_jax.ddpm.losses import LossKind, per_image_losses
from edm_jax.ddpm.process import Process
from edm_jax.ddpm.resampling import LossHistory, LossSecondMoment
from edm_jax.train.step import Batch, one_hot_labels, to_unit_range
from edm_jax.typing import Array, Key, PyTree


@dataclasses.dataclass(frozen=True)
class DDPMObjective:
    """Simple, hybrid or variational loss of a network that sees z and a time label.

    With a resampler the objective has a memory, a `LossHistory`, that belongs into the
    training state.  What a training step does with an objective that has `init_history`:

        history = objective.init_history()                          # once; replicated
        loss, sigma = objective.per_image(params, buffers, batch, key, ids, history=history)
        history = objective.update_history(history, loss, sigma)    # (B,) of the global batch

    Attributes:
      apply: the network, as in `train.step.Objective`.
      process: its time steps.
      kind: which loss.
      num_classes: dimension of the labels, 0 for none.
      augment: as in `train.step.Objective`; the bound is then that of augmented images, whose
        values are no 8-bit levels.
      resampler: None for uniform time steps.
    """

    apply: Callable[..., Array]
    process: Process
    kind: LossKind = LossKind()
    num_classes: int = 0
    augment: Callable[[Key, Array], tuple[Array, Array]] | None = None
    resampler: LossSecondMoment | None = None

    def __post_init__(self) -> None:
        wanted = self.process.num_steps
        if self.resampler is not None and self.resampler.num_steps != wanted:
            raise ValueError(
                f"the resampler must have the {wanted} time steps of the process, got "
                f"{self.resampler.num_steps}"
            )

    def init_history(self) -> LossHistory | None:
        """What the resampler starts from; None without one."""
        return None if self.resampler is None else self.resampler.init()

    def update_history(self, history: LossHistory, loss: Array, sigma: Array) -> LossHistory:
        """The memory after a step, from what `per_image` returned for its whole batch.

        The importance weights are divided out again: the history holds plain losses.
        """
        t = self.process.time_step(sigma)
        return self.resampler.update(history, t, loss / self.resampler.importance(history, t))

    def per_image(
        self,
        params: PyTree,
        buffers: PyTree,
        batch: Batch,
        key: Key,
        image_ids: Array,
        history: LossHistory | None = None,
    ) -> tuple[Array, Array]:
        """Loss of every image of a batch, arguments as in `train.step.Objective.per_image`.

        Args:
          history: of the resampler, if there is one.

        Returns:
          ``(B,)`` losses, means over elements (times the importance weight), and ``(B,)``
          sigma.
        """
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 3))(image_ids)
        y = to_unit_range(batch["image"])
        t, weight = self._draw(keys[:, 0], history)
        augment_labels = None
        if self.augment is not None:
            y, augment_labels = self.augment(keys[:, 1], y)
        noise = jax.vmap(lambda k: jax.random.normal(k, y.shape[1:]))(keys[:, 2])
        labels = one_hot_labels(batch["label"], self.num_classes) if self.num_classes else None
        variables = {"params": params} | ({"buffers": buffers} if buffers else {})

        def network(z: Array, label: Array) -> Array:
            return self.apply(
                variables,
                z,
                label,
                labels,
                augment_labels,
                train=True,
                image_ids=image_ids,
                rngs={"dropout": jax.random.fold_in(key, 2**31)},
            )

        loss = self.losses(network, y, noise, t)
        return weight * loss, self.process.at(t).sigma

    def losses(
        self, network: Callable[[Array, Array], Array], y: Array, noise: Array, t: Array
    ) -> Array:
        """``(B,)`` losses of given draws, one call of ``network(z, label)``."""
        sigma = self.process.at(t, y.dtype).sigma.reshape((-1,) + (1,) * (y.ndim - 1))
        z = (y + sigma * noise) / jnp.hypot(jnp.ones_like(sigma), sigma)
        output = network(z, self.process.label(t, y.dtype))
        return per_image_losses(self.kind, self.process, output, y, noise, t).loss

    def _draw(self, keys: Key, history: LossHistory | None) -> tuple[Array, Array]:
        """Time steps and importance weights, ``(B,)``, from a key per image."""
        num_steps = self.process.num_steps
        if self.resampler is None:
            t = jax.vmap(lambda k: jax.random.randint(k, (), 0, num_steps))(keys)
            return t, jnp.ones(t.shape)
        if history is None:
            raise ValueError("an objective with a resampler needs history=init_history()")
        t = self.resampler.draw(history, self.resampler.uniform_draws(keys))
        return t, self.resampler.importance(history, t)
