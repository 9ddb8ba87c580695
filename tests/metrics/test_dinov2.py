"""DINOv2 against the published program, on tiny and small networks (golden 16)."""

import json

import jax
import numpy as np
import pytest

from edm_jax.metrics import dinov2, extractors
from tests.support import weights_writer
from tests.support.feature_networks import named_dinov2_weights

TINY = dinov2.Layout(width=32, depth=3, heads=4, patch=4, native=9)
SMALL = dinov2.Layout(width=384, depth=12, heads=6)
# The reference is float32, and an independent float64 evaluation agrees to 2e-6.
ATOL = 1e-5


@pytest.fixture(scope="module")
def g(golden):
    return golden("16_dinov2_tiny")


@pytest.fixture(scope="module")
def params(g):
    stored = {k.removeprefix("tiny/params/"): g[k] for k in g.files if k.startswith("tiny/params/")}
    assert {name: a.shape for name, a in stored.items()} == dinov2.published_shapes(TINY)
    return dinov2.params_from(stored, TINY)


def test_layout_of_the_golden_file(g):
    config = json.loads(str(g["tiny/config"]))
    assert (config["embed_dim"], config["depth"], config["num_heads"]) == (32, 3, 4)
    large = dinov2.published_shapes()
    assert {str(name) for name in g["vitl14/names"]} == set(large)
    assert sum(int(np.prod(shape)) for shape in large.values()) == 304_368_640


@pytest.mark.parametrize("case", ["native", "small", "wide"])
def test_every_block(g, params, case):
    x = g[f"tiny/{case}/x"].transpose(0, 2, 3, 1)
    net = dinov2.VisionTransformer(TINY)
    tokens, seen = jax.jit(lambda p, x: net.apply({"params": p}, x, mutable="intermediates"))(
        params, x
    )
    for i, block in enumerate(seen["intermediates"]["after_blocks"][0]):
        np.testing.assert_allclose(block, g[f"tiny/{case}/block{i}"], atol=ATOL)
    np.testing.assert_allclose(tokens[:, 1:], g[f"tiny/{case}/norm_patch_tokens"], atol=ATOL)
    np.testing.assert_allclose(tokens[:, 0], g[f"tiny/{case}/features_f64"], atol=ATOL)
    rows, columns = x.shape[1] // 4, x.shape[2] // 4
    positions = dinov2.position_embedding(params["pos_embed"], rows, columns)
    np.testing.assert_allclose(positions, g[f"tiny/{case}/pos_embed"], atol=ATOL)


@pytest.mark.parametrize("i", [0, 1, 2])
def test_preprocessing(g, i):
    image = g[f"preprocess/{i}/image"]
    if not image.size:
        height, width = g[f"preprocess/{i}/size"]
        c, y, x = np.ogrid[:3, :height, :width]
        image = np.uint8((3 * x + 5 * y + 40 * c) ** 2 // 7 % 256)
    image = image.transpose(1, 2, 0)[None]
    resized = np.asarray(dinov2.resize_bicubic(np.float32(image)))[0].transpose(2, 0, 1)
    # The taps of the reference are float32: good to 5e-3 of 255.
    np.testing.assert_allclose(resized[:, ::9, ::9], g[f"preprocess/{i}/resized_sample"], atol=5e-3)
    np.testing.assert_allclose(resized.mean((1, 2)), g[f"preprocess/{i}/resized_mean"], atol=5e-3)
    # Neither rounded nor clipped: it overshoots as the reference does.
    np.testing.assert_allclose(resized.max((1, 2)), g[f"preprocess/{i}/resized_max"], atol=5e-3)
    normalised = np.asarray(dinov2.preprocess(image))[0].transpose(2, 0, 1)
    np.testing.assert_allclose(
        normalised[:, ::9, ::9], g[f"preprocess/{i}/normalised_sample"], atol=1e-4
    )


@pytest.mark.slow
def test_from_file_to_features(g, tmp_path):
    """The whole way on ViT-S/14, whose layout is that of the large one."""
    weights = named_dinov2_weights(dinov2.published_shapes(SMALL), str(g["vits14/salt"]))
    sums = np.array([weights[str(name)].sum(dtype=np.float64) for name in g["vits14/names"]])
    np.testing.assert_allclose(sums, g["vits14/param_sum"], rtol=1e-9, atol=1e-6)
    path = tmp_path / "small.pth"
    path.write_bytes(weights_writer.state_dict_zip(weights))
    extractor = extractors.build("dinov2", weights=path, batch_size=2, layout=SMALL)
    found = extractor(g["vits14/images"].transpose(0, 2, 3, 1))
    np.testing.assert_allclose(found.features, g["vits14/features_f64"], atol=ATOL)
    assert found.logits is None and extractor.name == "dinov2"
