"""Files of feature networks: names, containers, and what is refused."""

import numpy as np
import pytest

from edm_jax.foreign import dinov2, inception
from edm_jax.metrics import dinov2 as dinov2_network
from edm_jax.metrics import inception_weights
from edm_jax.store.errors import WeightsError
from tests.support import weights_writer as w
from tests.support.feature_networks import named_inception_weights, small

SHAPES = small(inception_weights.published_shapes())


@pytest.fixture(scope="module")
def arrays():
    return named_inception_weights(SHAPES)


def written(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    return path


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_state_dictionary(arrays, tmp_path):
    counters = {"Mixed_5b.branch1x1.bn.num_batches_tracked": np.zeros((), np.int64)}
    for more in ({}, counters):
        path = written(tmp_path, w.state_dict_zip(arrays | more))
        assert_same(inception.read_inception(path, SHAPES), arrays)


def test_graph_names():
    """Every convolution of the state dictionary has one layer of the graph."""
    convolutions = {n.removesuffix(".conv.weight") for n in SHAPES if n.endswith(".conv.weight")}
    names = inception.graph_names()
    assert set(names.values()) == convolutions and len(names) == 94
    # As the table of the 2015 graph has them.
    assert names["conv_4"] == "Conv2d_4a_3x3"
    assert names["mixed_4.tower_1.conv_3"] == "Mixed_6b.branch7x7dbl_4"
    assert names["mixed_10.tower_1_mixed_conv_1"] == "Mixed_7c.branch3x3dbl_3b"


def graph_tensors(arrays):
    """What a module with the names of the graph holds; its norms have no scale."""
    out = {"output.weight": arrays["fc.weight"], "output.bias": arrays["fc.bias"]}
    for graph, ours in inception.graph_names().items():
        out[f"layers.{graph}.weight"] = arrays[f"{ours}.conv.weight"]
        for leaf, name in (("beta", "bias"), ("mean", "running_mean"), ("var", "running_var")):
            out[f"layers.{graph}.{leaf}"] = arrays[f"{ours}.bn.{name}"]
    assert len(out) == 378
    return out


def module(tensors):
    """Self-describing modules, one inside the other."""
    own = {k: w.nested_tensor(v) for k, v in tensors.items() if "." not in k}
    children = {}
    for name, array in tensors.items():
        head, dot, rest = name.partition(".")
        if dot:
            children.setdefault(head, {})[rest] = array
    state = w.module_state({}, own, {k: module(v) for k, v in children.items()})
    return w.persistent("Anything", state)


@pytest.mark.parametrize("prefix", ["", "detector."])
def test_pickled_module(arrays, tmp_path, prefix):
    tensors = {prefix + k: v for k, v in graph_tensors(arrays).items()}
    expected = {
        name: np.ones_like(a) if name.endswith(".bn.weight") else a for name, a in arrays.items()
    }
    path = written(tmp_path, w.dumps(module(tensors)))
    assert_same(inception.read_inception(path, SHAPES), expected)


def changed(arrays, drop=(), **more):
    return {k: v for k, v in arrays.items() if k not in drop} | more


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: changed(a, drop=["fc.bias"]), "'fc.bias' of the Inception-v3 of FID is missing"),
        (lambda a: changed(a, **{"AuxLogits.fc.bias": a["fc.bias"]}), "torchvision's Inception-v3"),
        (lambda a: changed(a, **{"more": a["fc.bias"]}), "'more' is no part of the Inception-v3"),
        (
            lambda a: changed(a, **{"fc.bias": np.zeros(3, np.float32)}),
            r"'fc.bias' has shape \(3\), the Inception-v3 of FID has \(2\)",
        ),
        (
            lambda a: changed(a, **{"fc.bias": np.full(2, np.nan, np.float32)}),
            "'fc.bias' has numbers that are not finite",
        ),
        (
            lambda a: changed(a, **{"fc.bias": np.zeros(2, np.int64)}),
            "'fc.bias' is of int64, expected floating point",
        ),
        (
            lambda a: changed(graph_tensors(a), **{"layers.mixed_11.conv.beta": a["fc.bias"]}),
            "'layers.mixed_11.conv.beta' is not known .* report these names: ",
        ),
        (
            lambda a: changed(graph_tensors(a), drop=["layers.mixed.tower.conv.var"]),
            "'Mixed_5b.branch5x5_1.bn.running_var' .* is missing",
        ),
    ],
)
def test_files_that_do_not_fit(arrays, tmp_path, change, said):
    path = written(tmp_path, w.state_dict_zip(change(arrays)))
    with pytest.raises(WeightsError, match=said) as error:
        inception.read_inception(path, SHAPES)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_damaged_and_foreign_files(arrays, tmp_path):
    whole = w.state_dict_zip(arrays)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    evil = w.dumps(w.Call(w.Global("os", "system"), ("true",)))
    torchscript = w.state_dict_zip(arrays, more=[w.Entry("model/code/net.py", b"def f(): pass")])
    for content, said in (
        (whole[:-50], "zip: "),
        (bytes(flipped), "CRC-32 differs"),
        (evil, "global 'os.system' is refused"),
        (torchscript, "TorchScript archive"),
        (b"\x80\x04K\x05.", "the file holds 5, expected names and tensors"),
        (w.dumps({"epoch": 5}), "1 entries that are no tensors"),
        (b"version https://git-lfs", "not a file of PyTorch weights"),
    ):
        with pytest.raises(WeightsError, match=said):
            inception.read_inception(written(tmp_path, content), SHAPES)
    with pytest.raises(FileNotFoundError):
        inception.read_inception(tmp_path / "nowhere.pth", SHAPES)


def test_dinov2_sizes(tmp_path):
    layout = dinov2_network.Layout(width=8, depth=2, heads=2, patch=2, native=2)
    shapes = dinov2_network.published_shapes(layout)
    arrays = {name: np.full(shape, i, np.float32) for i, (name, shape) in enumerate(shapes.items())}
    legacy = {name: np.array(a) for name, a in arrays.items()}
    path = written(tmp_path, w.state_dict_zip(legacy))
    assert_same(dinov2.read_dinov2(path, shapes), arrays)
    for change, said in (
        ({"cls_token": np.zeros((1, 1, 384), np.float32)}, "a DINOv2 ViT-S/14; FD-DINOv2 is"),
        ({"register_tokens": np.zeros((1, 4, 8), np.float32)}, "register tokens"),
        ({"blocks.2.ls1.gamma": np.zeros(8, np.float32)}, "no part of DINOv2's ViT-L/14"),
    ):
        path = written(tmp_path, w.state_dict_zip(arrays | change))
        with pytest.raises(WeightsError, match=said):
            dinov2.read_dinov2(path, shapes)
