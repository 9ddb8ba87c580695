"""Kinds of models from JSON, and the sizes they ask of a network."""

import pytest

from edm_jax.ardm import outputs, registry, upscale
from edm_jax.ardm.process import Absorbing
from edm_jax.models.ardm_transformer import ArdmTransformer
from edm_jax.models.ardm_unet import ArdmUNet


def test_build():
    assert registry.build("absorbing", num_values=17) == Absorbing(outputs.Softmax(17), 8)
    mixture = registry.build("absorbing", num_values=256, output="discretized_logistic")
    assert mixture.output == outputs.DiscretizedLogistic(256, 30) and mixture.absorbing == 128
    assert registry.build("upscale", num_values=17, base=4) == upscale.Upscale(17, 4)


def test_sizes():
    process = registry.build("upscale", num_values=256, base=4, parameterization="direct")
    net = ArdmUNet(model_channels=16, **registry.network_sizes(process, (8, 8, 3)))
    assert (net.num_stages, net.num_inputs, net.out_channels) == (4, 256, 3 * 16)
    rgb = registry.build("absorbing", num_values=256, output="discretized_logistic_rgb")
    sizes = registry.network_sizes(rgb, (8, 8, 3))
    assert sizes["mask_channels"] == 1 and sizes["out_channels"] == 300
    text = registry.build("absorbing", num_values=27, absorbing=27)
    net = ArdmTransformer(**registry.network_sizes(text, (250,)))
    assert (net.length, net.num_inputs, net.out_channels) == (250, 28, 27)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "absorb", "num_values": 4}, "did you mean 'absorbing'"),
        ({"name": "absorbing", "num_values": 4, "output": "softmx"}, "did you mean 'softmax'"),
        ({"name": "absorbing", "num_values": 1}, "num_values must be an integer of at least 2"),
        ({"name": "upscale", "num_values": 4, "branch": 2}, "process 'upscale'.*branch"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        registry.build(**arguments)


def test_images_must_be_square():
    with pytest.raises(ValueError, match=r"must be square, \(R, R, C\), got \(8, 4, 3\)"):
        registry.network_sizes(registry.build("upscale", num_values=4), (8, 4, 3))
