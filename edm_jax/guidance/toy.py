"""A two-dimensional example of guidance with exact scores (after Karras et al. 2024, Figure 1).

Two classes are branching trees of narrow Gaussians that cross each other.  A network that fits
them imperfectly sees them blurred; a weaker network sees them blurred more.  All three are
mixtures, so densities, scores and denoisers are exact and what guidance does can be seen
without training anything.

    toy = branching_toy()
    run = trajectories(toy, jax.random.key(0), guidance="autoguidance", scale=3.0)

`edm_jax.figures.guided_toy` draws it.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import names
from edm_jax.arguments import check_number
from edm_jax.exact import GaussianMixture
from edm_jax.guidance.autoguidance import autoguidance
from edm_jax.guidance.classifier_free import classifier_free
from edm_jax.pytree import pytree_dataclass
from edm_jax.samplers import Trajectory, sample_heun
from edm_jax.schedules import karras_sigmas
from edm_jax.typing import Array, ArrayLike, Key

NUM_CLASSES = 2
GUIDANCES = ("none", "classifier_free", "autoguidance")


@pytree_dataclass
class ToyModel:
    """``denoise(x, sigma, rows)`` of labelled points in the plane, and their density.

    Attributes:
      classes: mixture of each class, equally probable.
      union: mixture of all, what an unlabelled denoiser knows.
    """

    classes: tuple[GaussianMixture, ...]
    union: GaussianMixture

    def denoise(self, x: Array, sigma: ArrayLike, rows: Array | None = None) -> Array:
        """D(x; sigma, c), ``(B, 2)``; rows of zeros or None: without label."""
        unlabelled = self.union.denoise(x, sigma)
        if rows is None:
            return unlabelled
        each = jnp.stack([mixture.denoise(x, sigma) for mixture in self.classes], axis=1)
        labelled = jnp.sum(rows[:, :, None] * each, axis=1)
        return jnp.where(jnp.any(rows != 0, axis=1, keepdims=True), labelled, unlabelled)

    def log_density(self, x: Array, sigma: ArrayLike = 0.0, label: int | None = None) -> Array:
        """log p(x | label; sigma), ``(B,)``; of the union without a label."""
        mixture = self.union if label is None else self.classes[label]
        return mixture.log_density(x, sigma)


@pytree_dataclass
class Toy:
    """The data, and two networks that fit them imperfectly.

    Attributes:
      data: as it is.
      model: as the guided network sees it, blurred.
      weaker: as a weaker network sees it, blurred more.
    """

    data: ToyModel
    model: ToyModel
    weaker: ToyModel


def _branches(
    rng: np.random.Generator, start: np.ndarray, angle: float, length: float, depth: int
) -> list[tuple[np.ndarray, float]]:
    """Centres and widths along a branch and everything that grows out of it."""
    count, width = 8, 0.06 * length
    direction = np.array([math.cos(angle), math.sin(angle)])
    centres = [(start + direction * length * k / (count - 1), width) for k in range(count)]
    if depth > 1:
        for side in (-1, 1):
            turn = side * (0.35 + 0.25 * rng.uniform())
            end = start + direction * length
            centres += _branches(rng, end, angle + turn, 0.62 * length, depth - 1)
    return centres


def branching_toy(
    seed: int = 0, *, depth: int = 5, blurs: tuple[float, float] = (0.03, 0.1)
) -> Toy:
    """Two crossing trees.

    Args:
      seed: of the bends; the picture is the same for the same seed.
      depth: generations of branches, at least 1.
      blurs: standard deviations that model and weaker model add to the data, in units of a
        picture about 2 wide; the first smaller.
    """
    check_number("depth", depth, least=1, most=8)
    check_number("blurs", blurs, least=0)
    if not blurs[0] < blurs[1]:
        raise ValueError(f"the weaker model must be blurred more, got blurs={blurs}")
    rng = np.random.default_rng(seed)
    starts = ((np.array([-0.9, -0.25]), 0.15), (np.array([-0.2, -0.9]), math.pi / 2 - 0.15))
    trees = [_branches(rng, start, angle, 0.8, depth) for start, angle in starts]

    def model(blur: float) -> ToyModel:
        means = [np.array([centre for centre, _ in tree], np.float32) for tree in trees]
        stds = [np.hypot([width for _, width in tree], blur).astype(np.float32) for tree in trees]
        classes = tuple(GaussianMixture(m, s) for m, s in zip(means, stds, strict=True))
        return ToyModel(classes, GaussianMixture(np.concatenate(means), np.concatenate(stds)))

    return Toy(model(0.0), *(model(blur) for blur in blurs))


def guided_log_density(
    toy: Toy, x: Array, sigma: ArrayLike, label: int, guidance: str, scale: ArrayLike
) -> Array:
    """log of the density whose score a guided denoiser has at one noise level, ``(B,)``.

        log p + (w - 1) (log p - log p_ref)        not normalised

    p is that of the model under the label; p_ref without label (classifier-free), or that of
    the weaker model (autoguidance).  At different levels these are not noised versions of one
    density: what samplers reach is not the one at level 0.

    Args:
      x: ``(B, 2)``.
      sigma: scalar or ``(B,)``.
      label: 0 or 1.
      guidance: one of GUIDANCES.
      scale: w.
    """
    names.lookup(dict.fromkeys(GUIDANCES), guidance, "guidance")
    own = toy.model.log_density(x, sigma, label)
    if guidance == "none":
        return own
    weaker = guidance == "autoguidance"
    reference = (
        toy.weaker.log_density(x, sigma, label) if weaker else toy.model.log_density(x, sigma)
    )
    return own + (scale - 1) * (own - reference)


def guidance_of(toy: Toy, guidance: str, scale: ArrayLike) -> Any:
    """The guidance of that name on the toy; None for "none"."""
    names.lookup(dict.fromkeys(GUIDANCES), guidance, "guidance")
    if guidance == "none":
        return None
    return (
        classifier_free(scale) if guidance == "classifier_free" else autoguidance(toy.weaker, scale)
    )


def trajectories(
    toy: Toy,
    key: Key,
    *,
    label: int = 0,
    guidance: str = "none",
    scale: ArrayLike = 2.0,
    count: int = 256,
    num_steps: int = 32,
    sigma_max: float = 5.0,
) -> Trajectory:
    """Heun's method from noise to points under a guidance.

    Args:
      toy: whose ``model`` is guided.
      key: one key.
      label: 0 or 1.
      guidance: one of GUIDANCES.
      scale: w.
      count: points.
      num_steps: N.
      sigma_max: where it starts; the data are about 1 wide.

    Returns:
      Trajectory of ``(N+1, count, 2)`` states.
    """
    chosen = guidance_of(toy, guidance, scale)
    denoise = toy.model.denoise if chosen is None else chosen.guide(toy.model.denoise)
    rows = jnp.broadcast_to(jax.nn.one_hot(label, NUM_CLASSES)[None], (count, NUM_CLASSES))
    sigmas = karras_sigmas(num_steps, sigma_min=0.002, sigma_max=sigma_max)
    x = sigma_max * jax.random.normal(key, (count, 2))
    return sample_heun(lambda x, sigma: denoise(x, sigma, rows), x, sigmas, trajectory=True)
