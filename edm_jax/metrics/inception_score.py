"""The Inception score: how sure of a class each image is, and how many classes there are.

Source: Salimans et al. 2016, *Improved Techniques for Training GANs*; order, splits and the
logits without bias as in torch-fidelity.
"""

from __future__ import annotations

import numpy as np

from edm_jax.metrics.reference import Reference
from edm_jax.metrics.result import Accumulated, Result, enough

NUM_SPLITS = 10
SEED = 2020


def split_scores(
    logits: np.ndarray, splits: int = NUM_SPLITS, seed: int | None = SEED
) -> np.ndarray:
    """exp of the mean divergence ``KL(p(y|x) || p(y))`` of every split, float64.

    Args:
      logits: ``(n, classes)``.
      splits: how many; split i has rows ``i n // splits`` up to ``(i + 1) n // splits``.
      seed: of the order the rows are put in first; None leaves them as they are.

    Returns:
      ``(splits,)``, each 1 to the number of classes.

    Raises:
      ValueError: more splits than rows.
    """
    n = len(logits)
    if not 1 <= splits <= n:
        raise ValueError(f"splits must be 1 to the number of images, {n}, got {splits}")
    order = np.arange(n) if seed is None else np.random.RandomState(seed).permutation(n)
    scores = []
    for i in range(splits):
        part = np.asarray(logits[order[i * n // splits : (i + 1) * n // splits]], np.float64)
        part = part - part.max(axis=1, keepdims=True)
        log_p = part - np.log(np.exp(part).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        mean = p.mean(axis=0)
        # Where a class has no probability in the mean, no image gives it any.
        log_mean = np.log(np.maximum(mean, np.finfo(float).tiny))
        scores.append(np.exp(np.sum(p * (log_p - log_mean), axis=1).mean()))
    return np.array(scores)


def inception_score(
    logits: np.ndarray, splits: int = NUM_SPLITS, seed: int | None = SEED
) -> tuple[float, float]:
    """Mean and population standard deviation of `split_scores`."""
    scores = split_scores(logits, splits, seed)
    return float(scores.mean()), float(scores.std())


def measure(accumulated: Accumulated, reference: Reference | None) -> dict[str, Result]:
    """The Inception score of the accumulated logits; there is no reference."""
    del reference
    logits = accumulated["logits"].result()
    n = enough(len(logits), NUM_SPLITS, "the Inception score")
    mean, std = inception_score(logits)
    remarks = [f"the uncertainty is the deviation over {NUM_SPLITS} splits"]
    if n < 50_000:
        remarks.append(f"{n} images: the score is biased downwards against the usual 50000")
    return {"": Result(mean, std, tuple(remarks))}
