"""The examples of docs/ardm.md run as they stand."""

import re

import numpy as np

from tests.support.ardm import tiny_model
from tests.support.paths import ROOT

DOCUMENT = ROOT / "docs/ardm.md"


def test_examples_of_the_document():
    """In order and in one namespace, as a reader would type them."""
    examples = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), flags=re.M | re.S)
    process = {"name": "absorbing", "num_values": 17}
    profile = [1 / (t + 1) for t in range(64)]
    names = {
        "model": tiny_model(process, (8, 8, 1), 10, levels=True, loss_per_step=profile),
        "test_images": np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1)).astype(np.uint8),
    }
    for code in examples:
        exec(code, names)
    assert len(examples) == 2 and names["images"].shape == (4, 8, 8, 1)
    assert names["path"].x.shape == (11, 4, 8, 8, 1)
    filled = np.asarray(names["filled"])
    assert np.all(filled[:, :4] == 8) and len(np.unique(filled[:, 4:])) > 2
    # Both are bits of the same images; of one random step the deviation is a few bits.
    assert abs(names["logp"].bits_per_dim.mean() - names["exact"].mean()) < 3


def test_the_configurations_it_names():
    names = re.findall(r"`(\w+\.py)`", DOCUMENT.read_text())
    assert len(names) == 4 and all((ROOT / "configs" / name).exists() for name in names)
