"""The Inception score against torch-fidelity."""

import numpy as np
import pytest

from edm_jax.metrics.inception_score import inception_score, split_scores


@pytest.mark.parametrize("case", ["c10", "c50_noshuffle", "c1008"])
def test_golden(golden, case):
    g = golden("06_metrics")
    logits, splits = g[f"is/{case}/logits"], int(g[f"is/{case}/splits"])
    seed = None if case.endswith("noshuffle") else 2020
    scores = split_scores(logits, splits, seed)
    np.testing.assert_allclose(scores, g[f"is/{case}/split_scores"], rtol=1e-10)
    mean, std = inception_score(logits, splits, seed)
    np.testing.assert_allclose([mean, std], [g[f"is/{case}/mean"], g[f"is/{case}/std"]], rtol=1e-6)


def test_limits():
    """As many classes as images are sure of; 1 where all are alike; also for huge logits."""
    sure = 1e4 * np.eye(5)[np.arange(50) % 5]
    np.testing.assert_allclose(split_scores(sure, 2, None), 5)
    np.testing.assert_allclose(split_scores(np.ones((50, 5)), 2), 1)


def test_more_splits_than_images():
    with pytest.raises(ValueError, match="splits must be 1 to the number of images, 3, got 4"):
        split_scores(np.zeros((3, 5)), 4)
