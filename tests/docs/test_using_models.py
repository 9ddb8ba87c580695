"""The examples of the documents run as they stand."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import edm_jax
from edm_jax import models
from edm_jax.store import single_file
from tests.support.paths import ROOT
from tests.test_generate import tiny_model


def blocks(path):
    """Python examples of a document by the heading above them."""
    text = (ROOT / path).read_text()
    found = {}
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        for code in re.findall(r"^```python\n(.*?)^```", section, flags=re.M | re.S):
            found.setdefault(section.splitlines()[0], []).append(code)
    return found


USING = blocks("docs/using_models.md")


@pytest.mark.parametrize("embedding", ["positional", "fourier"])  # the latter has buffers
@pytest.mark.parametrize("heading", USING)
def test_using_models(heading, embedding, tmp_path):
    if "Equinox" in heading:
        pytest.importorskip("equinox")
    made = tiny_model(embedding_type=embedding)
    variables = {"params": made.params, "buffers": made.variables.get("buffers", {})}
    path = tmp_path / "model.safetensors"  # as a user has it: read from a file
    single_file.write_single_file(
        path, made.description | {"variants": ["ema"]}, {"ema": variables}
    )
    model = edm_jax.load(path)
    names = {
        "model": model,
        "jax": jax,
        "x": jax.random.normal(jax.random.key(0), (2, *model.image_shape)),
        "sigma": jnp.float32(0.7),
        "labels": 1,
        "rows": model.label_rows(1, 2),
    }
    for code in USING[heading]:
        exec(code, names)
    assert names["result"].shape == (2, *model.image_shape)
    if "NNX" in heading:  # what an optimizer gets to see: the weights
        state = nnx.state(names["module"], nnx.Param)
        assert sum(a.size for a in jax.tree.leaves(state)) == models.param_count(model.net)
    if "Equinox" in heading:
        args = (names["x"], names["sigma"], names["rows"])
        gradient = jax.grad(lambda module: jnp.sum(module(*args)))(names["module"])
        assert all(not a.any() for a in jax.tree.leaves(gradient.fixed))
        assert any(a.any() for a in jax.tree.leaves(gradient.params))


def test_every_way_has_an_example():
    assert len(USING) == 6 and all(len(codes) == 1 for codes in USING.values())


def test_readme_example():
    """The functions beneath, as README.md shows them, on a stand-in network."""
    (_, functions) = blocks("README.md")["In your own project"]

    def net_fn(x, c_noise):
        return 0.1 * x + 0.1 * c_noise.reshape(-1, 1, 1, 1)

    names = {"net_fn": net_fn}
    exec(functions, names)
    assert names["images"].shape == (16, 32, 32, 3)
