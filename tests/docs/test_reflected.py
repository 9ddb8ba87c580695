"""The example of docs/reflected.md runs as it stands; what the document names exists."""

import re

import numpy as np

from edm_jax import samplers
from tests.support.paths import ROOT
from tests.support.reflected import random_model

DOCUMENT = ROOT / "docs/reflected.md"


def test_examples_of_the_document():
    codes = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), flags=re.M | re.S)
    names = {"model": random_model()}
    for code in codes:
        exec(code, names)
    assert len(codes) == 2
    in_a_cell = np.asarray(names["samples"]) % 0.5 <= 0.25 + 3 * 0.01  # noise at the last level
    assert np.all(in_a_cell) and np.all((0 <= names["state"]) & (names["state"] <= 1))
    assert names["images"].shape == (4, 8, 8, 1) and np.all(np.abs(names["images"]) <= 1)
    assert np.all(np.isfinite(names["nats"].log_likelihood))


def test_what_it_names_exists():
    text = DOCUMENT.read_text()
    named = set(re.findall(r"^\| `(reflected\w*)`", text, flags=re.M))
    assert named == {n for n, info in samplers.SAMPLERS.items() if info.domain == "box"}
    files = set(re.findall(r"`(\w+_reflected\.py)`", text))
    assert files == {path.name for path in (ROOT / "configs").glob("*_reflected.py")}
    assert all((ROOT / "docs" / name).exists() for name in re.findall(r"\]\((\w+\.png)\)", text))
