"""Files of guided-diffusion's classifiers: every tensor in its place, the rest refused."""

import json

import numpy as np
import pytest

from edm_jax import classifier, models
from edm_jax.foreign import guided_classifier, importer
from edm_jax.store.errors import WeightsError
from tests.support import guided_classifier as gc
from tests.support import weights_writer as ww
from tests.support.weights_guided_shapes import hollow


@pytest.fixture(scope="module")
def arrays():
    return gc.arrays()


@pytest.fixture(scope="module")
def path(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier") / "model010000.pt"
    path.write_bytes(ww.state_dict_zip(gc.tensors(arrays)))
    return path


def test_file(arrays, path):
    found = guided_classifier.read_classifier_file(path, gc.CONFIG)
    d = found.description
    assert d["kind"] == "classifier" and d["network"] == gc.network(arrays)
    assert d["image_shape"] == [8, 8, 3] and d["num_classes"] == 7
    assert d["precond"] == {"name": "iddpm", "num_levels": 1000}
    assert "MIT" in d["source"]["licence"] and d["source"]["assumed"] == ["diffusion_steps"]
    json.dumps(d, allow_nan=False)
    net = models.build(**d["network"])
    logits = net.apply(
        found.variables["raw"], arrays["x"].transpose(0, 2, 3, 1), arrays["timesteps"]
    )
    np.testing.assert_allclose(logits, arrays["logits"], atol=2e-5)  # suggested with it


def test_row_orders_matter(arrays):
    """Body in the other order: wrong by what the golden arrays say, 0.34."""
    tensors = gc.tensors(arrays)
    for name in tensors:
        if ".1.qkv." in name:
            # What the reader takes for legacy rows was new.
            order = np.arange(192).reshape(3, 2, 32).transpose(1, 0, 2).reshape(-1)
            tensors[name] = tensors[name][order]
    variables = guided_classifier.to_variables(tensors, gc.network(arrays), 1 << 30)
    net = models.build(**gc.network(arrays))
    logits = net.apply(variables, arrays["x"].transpose(0, 2, 3, 1), arrays["timesteps"])
    assert abs(np.abs(logits - arrays["logits"]).max() - 0.34) < 0.01


def test_load(arrays, path):
    loaded = classifier.load_classifier(path, gc.CONFIG)
    assert loaded.image_shape == (8, 8, 3) and loaded.num_classes == 7


PUBLISHED = {
    "64": ((64, 4, [1, 2, 3, 4], [2, 4, 8]), 307, "cosine"),
    "128": ((128, 2, [1, 1, 2, 3, 4], [4, 8, 16]), 221, "linear"),
    "256": ((256, 2, [1, 1, 2, 2, 4, 4], [8, 16, 32]), 249, "linear"),
    "512": ((512, 2, [0.5, 1, 1, 2, 2, 4, 4], [16, 32, 64]), 281, "linear"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_need_nothing_but_the_file(name):
    """Everything is read from names and shapes; the schedule is known for these."""
    arguments, count, schedule = PUBLISHED[name]
    tensors = hollow(gc.published_shapes(*arguments))
    assert len(tensors) == count
    description, assumed = guided_classifier._describe(tensors, {})
    network = description["network"]
    assert (network["img_resolution"], network["num_blocks"]) == arguments[:2]
    assert network["channel_mult"] == arguments[2]
    assert network["attn_resolutions"] == [arguments[0] // rate for rate in arguments[3]]
    assert assumed == {
        "num_head_channels": 64, "noise_schedule": schedule, "diffusion_steps": 1000,
    }  # fmt: skip
    assert ("levels" in description["precond"]) == (schedule == "linear")
    triples = list(guided_classifier.name_map(tensors, network))
    assert sorted(t[0] for t in triples) == sorted(tensors)
    assert len({t[1] for t in triples}) == len(triples)


def broken(arrays, change):
    tensors = gc.tensors(arrays)
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("out.2.positional_embedding"), "no classifier with attention pooling"),
        (lambda t: t.pop("middle_block.1.norm.bias"), "'middle_block.1.norm.bias' is missing"),
        (lambda t: t.update(extra=np.zeros(3, np.float32)), "'extra' has no place"),
        (
            lambda t: t.update({"out.2.c_proj.bias": np.zeros(8, np.float32)}),
            "'out.2.c_proj.bias' has shape (8), expected that of pool.proj.bias, (7)",
        ),
        (
            lambda t: t.update({"out.2.positional_embedding": np.zeros((64, 18), np.float32)}),
            "18 pooling tokens",
        ),
        (lambda t: t.pop("input_blocks.1.0.in_layers.0.weight"), "is missing"),
        (lambda t: [t.pop(n) for n in list(t) if n.startswith("input_blocks.1.")], "without gaps"),
        (lambda t: [t.pop(n) for n in list(t) if ".3.1." in n], "depth is not in the file"),
        (
            lambda t: t.update({"out.0.bias": np.full(64, 0.1)}),
            "float64 and not exact",
        ),
    ],
)
def test_damaged(arrays, tmp_path, change, message):
    path = tmp_path / "damaged.pt"
    tensors = broken(arrays, change)
    wide = {k: v for k, v in tensors.items() if v.dtype == np.float64}
    if wide:  # the writer knows one dtype per file
        with pytest.raises(WeightsError) as error:
            guided_classifier.to_variables(tensors, gc.network(arrays), 1 << 30)
        assert message in str(error.value)
        return
    path.write_bytes(ww.state_dict_zip(tensors))
    with pytest.raises(WeightsError) as error:
        guided_classifier.read_classifier_file(path, gc.CONFIG)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "config, message",
    [
        ({}, "not one of the published classifiers"),
        ({"noise_schedule": "cosine"}, "num_head_channels"),
        ({"size": 8}, "config has no entry 'size'"),
        ({"image_size": "8"}, "image_size must be a positive integer"),
        (gc.CONFIG | {"image_size": 32}, "image_size 32 does not fit"),
        (gc.CONFIG | {"noise_schedule": "quadratic"}, "noise_schedule"),
        (gc.CONFIG | {"num_head_channels": 48}, "no classifier can be built"),
    ],
)
def test_config(path, config, message):
    with pytest.raises(ValueError) as error:
        guided_classifier.read_classifier_file(path, config)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_importer_of_denoisers_says_where_to_go(path):
    with pytest.raises(WeightsError, match="load_classifier"):
        importer.read_model_file(path, config={"image_size": 8})
