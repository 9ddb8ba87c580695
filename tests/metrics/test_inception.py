"""Inception-v3 against torch-fidelity's, on weights made from their names (golden 07)."""

import ast

import jax
import numpy as np
import pytest

from edm_jax.metrics import extractors, inception, inception_weights
from tests.support import weights_writer
from tests.support.feature_networks import named_inception_weights

SETS = ("noise32", "smooth64")
# The reference is float32 and within 6e-7 of its float64 evaluation; its README recommends
# 1e-4 of the largest value, ten times less leaves room for another order of the sums.
RTOL = 1e-5


@pytest.fixture(scope="module")
def weights():
    return named_inception_weights(inception_weights.published_shapes())


@pytest.fixture(scope="module")
def g(golden):
    return golden("07_inception")


@pytest.fixture(scope="module")
def outputs(weights, g):
    """Features, logits and what the layers gave, of both sets of images."""
    params = inception_weights.params_from(weights)
    names = {str(name) for name in g["act_names"]}

    @jax.jit
    def run(params, x):
        return inception.InceptionV3().apply(
            {"params": params}, x, capture_intermediates=lambda module, _: module.name in names
        )

    return {
        name: jax.tree.map(np.asarray, run(params, inception.preprocess(nhwc(g, name))))
        for name in SETS
    }


def nhwc(g, name):
    return g[f"{name}/images"].transpose(0, 2, 3, 1)


def assert_close(actual, desired, rtol=RTOL):
    np.testing.assert_allclose(actual, desired, rtol=0, atol=rtol * np.abs(desired).max())


def test_names_shapes_and_weights(weights, g):
    shapes = {
        str(n): ast.literal_eval(str(s)) for n, s in zip(g["names"], g["shapes"], strict=True)
    }
    found = {name: tuple(np.atleast_1d(shape)) for name, shape in shapes.items()}
    assert found == inception_weights.published_shapes()
    sums = np.array([weights[str(name)].sum(dtype=np.float64) for name in g["names"]])
    np.testing.assert_allclose(sums, g["param_sum"], rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("name", SETS)
def test_resize(g, name):
    x = np.asarray(inception.preprocess(nhwc(g, name))).transpose(0, 3, 1, 2)
    # Interpolation weights of 32 bits are good to 1e-5 of the range at coordinates up to 64.
    np.testing.assert_allclose(x[..., ::23, ::23], g[f"{name}/resized_sample"], atol=1e-5)
    np.testing.assert_allclose(x.mean((2, 3)), g[f"{name}/resized_mean"], atol=1e-5)
    np.testing.assert_allclose(x.min((2, 3)), g[f"{name}/resized_min"], atol=1e-5)


def test_resize_of_a_larger_image_skips_pixels():
    """Position j reads at j * in / 299: of 598 rows every second one, nothing averaged."""
    ramp = np.arange(598, dtype=np.float32)[None, :, None, None] * np.ones((1, 1, 2, 1), np.float32)
    rows = np.asarray(inception.resize_tf1(ramp))[0, :, 0, 0]
    np.testing.assert_array_equal(rows, 2 * np.arange(299))


@pytest.mark.parametrize("name", SETS)
def test_every_layer(outputs, g, name):
    captured = outputs[name][1]["intermediates"]
    layers = [str(layer) for layer in g["act_names"] if not str(layer).startswith("MaxPool")]
    assert len(layers) == 16
    for layer in layers:
        act = captured[layer]["__call__"][0]
        mean, std = g[f"{name}/act/{layer}/mean_std"]
        np.testing.assert_allclose([act.mean(), act.std()], [mean, std], rtol=RTOL)
        first = act[0].transpose(2, 0, 1).reshape(-1)
        at = np.floor(np.linspace(0, first.size - 1, 32)).astype(int)
        np.testing.assert_allclose(
            first[at], g[f"{name}/act/{layer}/sample"], atol=RTOL * np.abs(act).max()
        )


@pytest.mark.parametrize("name", SETS)
def test_features_and_logits(outputs, weights, g, name):
    features, logits = outputs[name][0]
    assert_close(features, g[f"{name}/feat_2048"])
    assert_close(logits, g[f"{name}/logits_unbiased"])
    assert_close(logits + weights["fc.bias"], g[f"{name}/logits"])
    middle = outputs[name][1]["intermediates"]["Mixed_6e"]["__call__"][0]
    assert_close(middle.mean((1, 2)), g[f"{name}/feat_768"])


@pytest.mark.slow
def test_from_file_to_features(weights, g, tmp_path):
    counters = {"Conv2d_1a_3x3.bn.num_batches_tracked": np.zeros((), np.int64)}
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    path.write_bytes(weights_writer.state_dict_zip(weights | counters))
    extractor = extractors.build("inception", weights=tmp_path, batch_size=2)
    found = extractor(nhwc(g, "noise32")[[0, 1, 0]])
    expected = g["noise32/feat_2048"][[0, 1, 0]]
    assert_close(found.features, expected)
    # The same image gives the same bits, wherever it stands and whatever stands beside it.
    np.testing.assert_array_equal(found.features[0], found.features[2])
    assert found.logits.shape == (3, 1008) and len(extractor.digest) == 64
