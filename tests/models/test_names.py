"""Published names and layouts, both directions."""

import json

import jax
import numpy as np
import pytest

from edm_jax import models
from edm_jax.models import names
from tests.support.models_golden import GOLDEN, load_network, parameter_names

NETWORKS = ["ddpmpp_cond", "ddpmpp_uncond", "ncsnpp_cond", "adm_cond"]


@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip_is_exact_and_in_the_published_order(name):
    archive, net, _ = load_network(name)
    published = {k[7:]: archive[k] for k in archive.files if k.startswith("params/")}
    variables = names.from_state_dict(published, net)
    abstract = models.abstract_variables(net)
    assert jax.tree.structure(variables) == jax.tree.structure(abstract)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, abstract)
    back = names.to_state_dict(variables, net)
    assert list(back) == list(published)
    for key, value in published.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key, strict=True)
    without_filters = names.to_state_dict(variables)
    assert set(back) - set(without_filters) == set(names.resample_filters(net))


def test_layouts_of_each_kind():
    kernel = np.arange(2 * 3 * 5 * 5).reshape(2, 3, 5, 5)
    variables = names.from_state_dict(
        {
            "enc.8x8_block0.conv0.weight": kernel,
            "map_layer0.weight": kernel[:, :, 0, 0],
            "enc.8x8_block0.norm0.weight": kernel[0, 0, 0],
            "out_conv.bias": kernel[0, 0, 0],
            "map_noise.freqs": kernel[0, 0, 0],
            "enc.8x8_down.conv0.resample_filter": kernel,
        }
    )
    params = variables["params"]
    assert params["enc_8x8_block0"]["conv0"]["kernel"][4, 1, 2, 1] == kernel[1, 2, 4, 1]
    assert params["map_layer0"]["kernel"][2, 1] == kernel[1, 2, 0, 0]
    assert set(params["enc_8x8_block0"]["norm0"]) == {"scale"}
    assert set(params["out_conv"]) == {"bias"}
    assert set(variables["buffers"]["map_noise"]) == {"freqs"}
    assert "enc_8x8_down" not in params


# The 09_import files hold the order of real state dictionaries and of an optimizer.
@pytest.mark.parametrize("name", ["ve_skip_cond", "training_state"])
def test_order_of_published_files(name):
    archive = np.load(GOLDEN / "09_import" / f"{name}.npz")
    config = json.loads(str(archive["config"]))["kwargs"]
    channels = config.pop("img_channels")
    for key in ("use_fp16", "sigma_data"):
        config.pop(key, None)
    net = models.build(
        config.pop("model_type"), in_channels=channels, out_channels=channels, **config
    )
    shapes = names.state_dict_shapes(net)
    assert [f"model.{key}" for key in shapes] == list(archive["names"])
    for key, shape in shapes.items():
        assert archive[f"params/model.{key}"].shape == shape
    if name == "training_state":
        order = [f"model.{key}" for key in parameter_names(net)]
        assert order == list(archive["optimizer/param_names"])


def test_a_dictionary_of_another_network_is_refused():
    _, net, variables = load_network("ncsnpp_cond")
    state_dict = names.to_state_dict(variables, net)
    del state_dict["enc.16x16_conv.bias"]
    with pytest.raises(ValueError, match=r"missing enc.16x16_conv.bias; unexpected nothing"):
        names.from_state_dict(state_dict, net)
    state_dict["enc.16x16_conv.bias"] = np.zeros(5, np.float32)
    with pytest.raises(ValueError, match=r"enc.16x16_conv.bias must have shape \(16,\)"):
        names.from_state_dict(state_dict, net)
    other = net.clone(resample_filter=(1, 2, 2, 1))
    with pytest.raises(ValueError, match="filter"):
        names.from_state_dict(names.to_state_dict(variables, net), other)
    prefixed = {f"model.{k}": v for k, v in names.to_state_dict(variables, net).items()}
    with pytest.raises(ValueError, match="unexpected model"):
        names.from_state_dict(prefixed, net)
    with pytest.raises(ValueError, match="missing"):
        names.to_state_dict({"params": {}}, net)
