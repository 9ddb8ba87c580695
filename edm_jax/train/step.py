"""The training step: loss, gradient, Adam, EMA, running metrics, in one program.

Random numbers follow from (seed, step, position in the global batch) alone, so the
step computes the same thing on any mesh and after any interruption.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from edm_jax import ema, losses
from edm_jax.arguments import check_number
from edm_jax.noise import NoiseDistribution, WeightFn
from edm_jax.precond import Preconditioning, precondition
from edm_jax.train.state import NUM_SIGMA_BINS, SIGMA_BIN_EDGES, Metrics, TrainState, ema_name
from edm_jax.typing import Array, ArrayLike, Key, PyTree

Batch = dict[str, Array]
MAX_GRAD = 1e5  # what an infinite gradient element becomes (EDM training program)


def learning_rate(nimg: ArrayLike, peak: float, rampup_nimg: float) -> ArrayLike:
    """``peak * min(nimg / rampup_nimg, 1)``: linear ramp, then constant.

    The very first step (nimg = 0) has learning rate 0, as in the published training.
    Python numbers give a Python number, with no work for the device.
    """
    share = nimg / max(rampup_nimg, 1e-8)
    return peak * (min(share, 1.0) if isinstance(share, float) else jnp.minimum(share, 1.0))


def sanitize_gradients(grads: PyTree) -> tuple[PyTree, Array]:
    """NaN -> 0, +inf -> 1e5, -inf -> -1e5; also the number of elements replaced.

    The number is float32, exact up to 2^24: an int32 would overflow over a window of
    steps without a single good gradient.
    """
    bad = sum(jnp.sum(~jnp.isfinite(g), dtype=jnp.float32) for g in jax.tree.leaves(grads))
    clean = jax.tree.map(
        lambda g: jnp.nan_to_num(g, nan=0.0, posinf=MAX_GRAD, neginf=-MAX_GRAD), grads
    )
    return clean, bad


def to_unit_range(images: Array) -> Array:
    """uint8 0..255 -> float32 [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def one_hot_labels(labels: Array, num_classes: int) -> Array:
    """``(B,)`` class indices -> ``(B, num_classes)`` float32; vectors pass through."""
    if jnp.issubdtype(labels.dtype, jnp.integer):
        return jax.nn.one_hot(labels, num_classes)
    return labels.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Objective:
    """The choices of EDM Table 1 that make up a training loss.

    Attributes:
      apply: ``apply(variables, x, c_noise, class_labels, augment_labels, train=...,
        image_ids=..., rngs=...)``, the network.
      preconditioning: turns it into a denoiser.
      distribution: p(sigma).
      weight: lambda(sigma).
      num_classes: dimension of the labels, 0 for none.
      augment: None, or ``(keys, images) -> (images, augment_labels)`` on images in
        [-1, 1], with one key per image.
    """

    apply: Callable[..., Array]
    preconditioning: Preconditioning
    distribution: NoiseDistribution
    weight: WeightFn
    num_classes: int = 0
    augment: Callable[[Key, Array], tuple[Array, Array]] | None = None

    def per_image(
        self, params: PyTree, buffers: PyTree, batch: Batch, key: Key, image_ids: Array
    ) -> tuple[Array, Array]:
        """Loss of every image of a batch.

        Args:
          params, buffers: of the network.
          batch: ``image`` uint8 ``(B, H, W, C)`` and, for conditional networks, ``label``.
          key: of this step.
          image_ids: ``(B,)`` positions in the global batch; an image's random numbers
            follow from the key and its position.

        Returns:
          ``(B,)`` sums of the weighted squared error over pixels, and ``(B,)`` sigma.
        """
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 3))(image_ids)
        y = to_unit_range(batch["image"])
        draw = jax.vmap(lambda k: self.distribution.draw(k, ()))(keys[:, 0])
        sigma = self.distribution.sigma(draw)
        augment_labels = None
        if self.augment is not None:
            y, augment_labels = self.augment(keys[:, 1], y)
        noise = jax.vmap(lambda k: jax.random.normal(k, y.shape[1:]))(keys[:, 2])
        labels = one_hot_labels(batch["label"], self.num_classes) if self.num_classes else None
        variables = {"params": params} | ({"buffers": buffers} if buffers else {})

        def net_fn(x: Array, c_noise: Array) -> Array:
            return self.apply(
                variables,
                x,
                c_noise,
                labels,
                augment_labels,
                train=True,
                image_ids=image_ids,
                rngs={"dropout": jax.random.fold_in(key, 2**31)},
            )

        denoise = precondition(net_fn, self.preconditioning)
        loss = losses.denoising_loss(denoise, y, sigma, noise, self.weight)
        return losses.sum_per_image(loss), sigma


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


def make_optimizer(
    *,
    batch_size: int,
    lr: float,
    lr_rampup_kimg: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    grad_clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """Adam with the linear ramp of `learning_rate`, counted in images.

    ``grad_clip_norm`` bounds the global norm of the gradient first; 0 does not.

    Raises:
      ValueError: for a number that no training can have.
    """
    check_number("lr", lr, least=0)
    check_number("lr_rampup_kimg", lr_rampup_kimg, least=0)
    check_number("b1", b1, least=0, below=1)
    check_number("b2", b2, least=0, below=1)
    check_number("eps", eps, above=0)
    check_number("grad_clip_norm", grad_clip_norm, least=0)

    def schedule(count: Array) -> Array:
        return learning_rate(count.astype(jnp.float32) * batch_size, lr, lr_rampup_kimg * 1000)

    adam = optax.adam(schedule, b1=b1, b2=b2, eps=eps)
    if not grad_clip_norm:
        return adam
    return optax.chain(optax.clip_by_global_norm(grad_clip_norm), adam)


def init_state(
    variables: PyTree, optimizer: optax.GradientTransformation, averaging: Averaging
) -> TrainState:
    """Fresh state around initial network variables; every EMA starts as the weights.

    The state holds copies: the training step donates its buffers.
    """
    params = jax.tree.map(jnp.copy, variables["params"])
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        buffers=jax.tree.map(jnp.copy, variables.get("buffers", {})),
        ema={name: jax.tree.map(jnp.copy, params) for name in averaging.names()},
        opt_state=optimizer.init(params),
        metrics=Metrics.zeros(),
        bad_streak=jnp.zeros((), jnp.int32),
        failed_step=jnp.full((), -1, jnp.int32),
    )


def all_finite(tree: PyTree) -> Array:
    """Whether every number of a tree is finite; a () bool."""
    floating = [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in floating]))


def _update_metrics(
    metrics: Metrics,
    loss: Array,
    grad_norm: Array,
    num_bad: Array,
    bad: Array,
    sigma: Array,
    fresh: Array,
) -> Metrics:
    """Add one step; ``fresh`` starts a new window.  loss is ``(B,)`` per element."""
    index = jnp.searchsorted(jnp.asarray(SIGMA_BIN_EDGES, sigma.dtype), sigma)
    finite = jnp.isfinite(loss)  # one NaN would spread over all bins
    member = jax.nn.one_hot(index, NUM_SIGMA_BINS) * finite[:, None]  # a matmul, no scatter
    increment = Metrics(
        num_steps=jnp.ones((), jnp.int32),
        loss=jnp.mean(loss),
        grad_norm=grad_norm,
        num_bad_grads=num_bad,
        num_bad_steps=bad.astype(jnp.int32),
        bin_loss=jnp.where(finite, loss, 0) @ member,
        bin_count=jnp.sum(member, axis=0),
    )
    return jax.tree.map(lambda old, new: jnp.where(fresh, 0, old) + new, metrics, increment)


def _accumulate(
    gradient: Callable[[Batch, Array], tuple[PyTree, tuple[Array, Array]]],
    batch: Batch,
    image_ids: Array,
    rounds: int,
) -> tuple[PyTree, tuple[Array, Array]]:
    """Sum of the gradients of ``rounds`` parts of a batch, and the joined per-image values.

    Round r takes images r, r + rounds, ...: the axis that is split over devices stays the
    leading one, and no image moves between devices.
    """

    def split(a: Array) -> Array:
        return jnp.moveaxis(a.reshape(-1, rounds, *a.shape[1:]), 1, 0)

    def join(a: Array) -> Array:
        return jnp.moveaxis(a, 0, 1).reshape(-1)

    parts = jax.tree.map(split, (batch, image_ids))
    shapes = jax.eval_shape(gradient, *jax.tree.map(lambda a: a[0], parts))[0]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def body(total: PyTree, part: tuple[Batch, Array]) -> tuple[PyTree, tuple[Array, Array]]:
        grads, values = gradient(*part)
        return jax.tree.map(jnp.add, total, grads), values

    grads, values = jax.lax.scan(body, zeros, parts)
    return grads, jax.tree.map(join, values)


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    averaging: Averaging,
    *,
    batch_size: int,
    log_every: int,
    loss_scaling: float = 1.0,
    micro_batch: int = 0,
    max_bad_steps: int = 1,
) -> Callable[[TrainState, Batch, Key], TrainState]:
    """The training step, to be jitted with the state donated.

    The gradient is that of loss_scaling * sum over pixels, mean over the batch.  The
    scaling is not divided out again: Adam does not see it but through its epsilon.  Rounds
    of accumulation see the same noise and dropout as the whole batch would, so the update
    is the same up to the order of sums.

    Args:
      objective: the loss.
      optimizer: as `make_optimizer` makes it.
      averaging: the EMAs.
      batch_size: global batch.
      log_every: steps per window of the running metrics.
      loss_scaling: factor on the loss before differentiation.
      micro_batch: global images per round of accumulation; 0 for all at once.
      max_bad_steps: so many steps in a row whose loss or gradient is not finite are a
        failure, which the state remembers.

    Returns:
      ``step(state, batch, key) -> state``; ``key`` is that of the run.
    """
    rounds = batch_size // (micro_batch or batch_size)

    def train_step(state: TrainState, batch: Batch, key: Key) -> TrainState:
        step_key = jax.random.fold_in(key, state.step)

        def scalar_loss(params: PyTree, part: Batch, image_ids: Array) -> tuple[Array, Any]:
            per_image, sigma = objective.per_image(params, state.buffers, part, step_key, image_ids)
            return jnp.sum(per_image) * (loss_scaling / batch_size), (per_image, sigma)

        gradient = jax.grad(scalar_loss, has_aux=True)
        image_ids = jnp.arange(batch_size)
        if rounds == 1:
            grads, (per_image, sigma) = gradient(state.params, batch, image_ids)
        else:
            grads, (per_image, sigma) = _accumulate(
                lambda part, ids: gradient(state.params, part, ids), batch, image_ids, rounds
            )
        grads, num_bad = sanitize_gradients(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        nimg = state.step.astype(jnp.float32) * batch_size
        per_element = per_image / (batch["image"].size // batch_size)
        bad = (num_bad > 0) | ~jnp.all(jnp.isfinite(per_image))
        bad_streak = jnp.where(bad, state.bad_streak + 1, 0)
        failed = (state.failed_step < 0) & (bad_streak >= max_bad_steps)
        return TrainState(
            step=state.step + 1,
            params=params,
            buffers=state.buffers,
            ema=averaging.update(state.ema, params, nimg, batch_size),
            opt_state=opt_state,
            metrics=_update_metrics(
                state.metrics,
                per_element,
                optax.tree.norm(grads),
                num_bad,
                bad,
                sigma,
                fresh=state.step % log_every == 0,
            ),
            bad_streak=bad_streak,
            failed_step=jnp.where(failed, state.step + 1 - bad_streak, state.failed_step),
        )

    return train_step
