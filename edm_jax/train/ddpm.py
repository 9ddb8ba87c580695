"""The training objectives of DDPM, iDDPM and ADM (`train.objective.Objective`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from edm_jax.ddpm.losses import LossKind, per_image_losses
from edm_jax.ddpm.process import Process
from edm_jax.ddpm.resampling import LossHistory, LossSecondMoment
from edm_jax.pytree import short_repr
from edm_jax.train.objective import Batch, examples, training_network
from edm_jax.typing import Array, Key, PyTree


@short_repr
@dataclasses.dataclass(frozen=True)
class DDPMObjective:
    """Simple, hybrid or variational loss of a network that sees z and a time label.

    Attributes:
      apply: the network, as in `train.objective.DenoisingObjective`.
      process: its time steps, drawn uniformly.
      kind: which loss.
      num_classes: dimension of the labels, 0 for none.
      augment: as in `train.objective.DenoisingObjective`; the bound is then that of augmented
        images, whose values are no 8-bit levels.
    """

    is_mean: ClassVar[bool] = True  # over the elements of an image, or no sum of them

    apply: Callable[..., Array]
    process: Process
    kind: LossKind = LossKind()
    num_classes: int = 0
    augment: Callable[[Key, Array], tuple[Array, Array]] | None = None

    def per_image(
        self, params: PyTree, buffers: PyTree, batch: Batch, key: Key, image_ids: Array
    ) -> tuple[Array, Array]:
        """See `train.objective.Objective`.

        Returns:
          ``(B,)`` losses, means over elements (times the importance weight of the time
          step), and ``(B,)`` sigma.
        """
        drawn = examples(batch, key, image_ids, self.num_classes, self.augment)
        t, weight = self.draw(drawn.level_keys)
        network = training_network(self.apply, params, buffers, drawn, key, image_ids)
        loss = self.losses(network, drawn.images, drawn.noise, t)
        return weight * loss, self.process.at(t).sigma

    def losses(
        self, network: Callable[[Array, Array], Array], y: Array, noise: Array, t: Array
    ) -> Array:
        """``(B,)`` losses of given draws, one call of ``network(z, label)``."""
        sigma = self.process.at(t, y.dtype).sigma.reshape((-1,) + (1,) * (y.ndim - 1))
        z = (y + sigma * noise) / jnp.hypot(jnp.ones_like(sigma), sigma)
        output = network(z, self.process.label(t, y.dtype))
        return per_image_losses(self.kind, self.process, output, y, noise, t).loss

    def draw(self, keys: Key) -> tuple[Array, Array]:
        """Time steps and importance weights, ``(B,)``, from a key per image."""
        t = jax.vmap(lambda k: jax.random.randint(k, (), 0, self.process.num_steps))(keys)
        return t, jnp.ones(t.shape)


@dataclasses.dataclass(frozen=True)
class ResampledDDPMObjective(DDPMObjective):
    """The same with time steps drawn by their losses; a `train.objective.StatefulObjective`.

    The history is entered once a step, for the whole batch in its order: it is the same on
    any mesh and for any number of rounds of accumulation.  (The released program enters that
    of every round on its own, and forgets it when a run is resumed.)

    Attributes:
      resampler: None for the published one, `LossSecondMoment(T)`.
      history: what has been seen; the training step fills it in.
    """

    resampler: LossSecondMoment | None = None
    history: LossHistory | None = None

    def __post_init__(self) -> None:
        wanted = self.process.num_steps
        if self.resampler is None:
            object.__setattr__(self, "resampler", LossSecondMoment(wanted))
        if self.resampler.num_steps != wanted:
            raise ValueError(
                f"the resampler must have the {wanted} time steps of the process, got "
                f"{self.resampler.num_steps}"
            )

    def initial_state(self) -> LossHistory:
        """No losses yet."""
        return self.resampler.init()

    def with_state(self, state: LossHistory) -> ResampledDDPMObjective:
        """The objective that draws by a history."""
        return dataclasses.replace(self, history=state)

    def update(self, state: LossHistory, loss: Array, level: Array) -> LossHistory:
        """The history after a step, from what `per_image` returned for its whole batch.

        The importance weights are divided out again: the history holds plain losses.
        """
        t = self.process.time_step(level)
        return self.resampler.update(state, t, loss / self.resampler.importance(state, t))

    def draw(self, keys: Key) -> tuple[Array, Array]:
        """Time steps and importance weights, ``(B,)``, from a key per image."""
        if self.history is None:
            raise ValueError("the objective has no history yet; use with_state(initial_state())")
        t = self.resampler.draw(self.history, self.resampler.uniform_draws(keys))
        return t, self.resampler.importance(self.history, t)
