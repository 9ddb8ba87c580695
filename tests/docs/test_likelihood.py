"""The examples of docs/likelihood.md run as they stand."""

import re

import jax.numpy as jnp
import numpy as np

from edm_jax import exact
from tests.support.exact_model import exact_model, images
from tests.support.paths import ROOT

DOCUMENT = ROOT / "docs/likelihood.md"


def test_examples_of_the_likelihood_document(tmp_path, monkeypatch):
    """In order and in one namespace, as a reader would type them."""
    examples = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), flags=re.M | re.S)
    names = {
        "model": exact_model(num_classes=2),
        "images": images(2),
        "labels": np.array([0, 1]),
        "denoise": exact.Gaussian(0.0, 0.5).denoise,
        "x": jnp.array([0.3, -0.8]),
    }
    levels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3))
    names["y"] = jnp.asarray(levels / 127.5 - 1, jnp.float32)
    names["network"] = lambda z, label: jnp.zeros((*z.shape[:-1], 6))  # knows nothing
    monkeypatch.chdir(tmp_path)
    for code in examples:
        exec(code, names)
    assert len(examples) == 4 and names["frames"].shape == (1, 9, 2, 2, 1)
    np.testing.assert_allclose(names["again"], names["images"] / 127.5 - 1, atol=1e-3)
    expected = exact.Gaussian(0.0, 0.5).log_density(names["x"], 0.002)
    np.testing.assert_allclose(names["result"].log_density, expected, atol=2e-3)
    np.testing.assert_allclose(names["back"], names["x"], atol=1e-3)
    bits = names["bits"]
    np.testing.assert_allclose(bits.total, bits.prior + bits.terms.sum(1), rtol=1e-5)
    assert bits.total.min() > 8  # uniform levels have 8 bits
    assert (tmp_path / "code_errors.png").exists()


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", DOCUMENT.read_text())
    assert links and all((DOCUMENT.parent / link).exists() for link in links)
