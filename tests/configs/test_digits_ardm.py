"""Configurations of autoregressive diffusion against the numbers of the paper and its release."""

import numpy as np
import pytest

from configs import cifar10_ardm, digits_ardm, digits_ardm_upscale, text8_ardm
from edm_jax import models
from edm_jax.ardm.request import Decoding
from edm_jax.data.sources.text import TEXT8
from experiments.config import build
from experiments.config.groups import ConfigError
from experiments.preflight.costs import DataShape


def _network(config, shape, num_classes=0):
    experiment = build.experiment(config)
    return experiment, experiment.build_network(DataShape(shape, num_classes))


@pytest.mark.parametrize(
    "variant, stages, attention",
    [("", 1, "middle"), ("upscale", 4, "middle"), ("all,upscale", 4, "all")],
)
def test_cifar10(variant, stages, attention):
    config = cifar10_ardm.get_config(variant)
    experiment, net = _network(config, (32, 32, 3))
    assert (net.model_channels, net.num_blocks, net.dropout) == (256, 32, 0.0)
    assert (net.num_stages, net.attention, net.out_channels) == (stages, attention, 3 * 256)
    train = config.train
    assert (train.lr, train.adam_b1, train.adam_b2, train.adam_eps) == (1e-4, 0.9, 0.999, 1e-8)
    assert (train.batch_size, train.grad_clip_norm, train.lr_rampup_kimg) == (128, 100, 0)
    assert train.total_kimg * 1000 == 3000 * 50_000
    # EMA 0.9999 a step.
    decay = 0.5 ** (128 / (train.ema_halflife_kimg[0] * 1000))
    assert decay == pytest.approx(0.9999, abs=1e-7)
    chosen = config.objective.order_agnostic
    assert (chosen.ce_weight, chosen.steps, chosen.process.upscale.base) == (0.001, "uniform", 4)
    assert chosen.process.upscale.parameterization == "data"
    assert experiment.sampling == Decoding(50, "optimal")
    assert not experiment.augment and not experiment.data.conditional


def test_text8():
    config = text8_ardm.get_config()
    experiment, net = _network(config, (250,))
    assert isinstance(net, models.ArdmTransformer)
    assert (net.num_blocks, net.model_channels, net.num_heads, net.mlp_channels) == (
        *(12, 768, 12, 3072),
    )
    assert (net.length, net.num_inputs, net.out_channels) == (250, 28, 27)
    assert config.data.text.alphabet == TEXT8 and experiment.process.absorbing == 27
    train = config.train
    assert (train.lr, train.batch_size, train.grad_clip_norm) == (5e-4, 512, 0.25)
    assert train.weight_decay == 0.001
    assert experiment.intervals.total == 3_000_000
    assert train.lr_rampup_kimg * 1000 / 512 == 5000
    assert 0.5 ** (512 / (train.ema_halflife_kimg[0] * 1000)) == pytest.approx(0.995, abs=1e-5)
    assert config.objective.order_agnostic.ce_weight == 1e-4
    _, net = _network(text8_ardm.get_config("bytes"), (250,))
    assert (net.num_inputs, net.out_channels) == (257, 256)


def test_digits():
    experiment, net = _network(digits_ardm.get_config(), (8, 8, 1), 10)
    assert (net.label_dim, net.out_channels, net.num_inputs) == (10, 17, 17)
    assert experiment.kind == "ardm" and experiment.draws_images
    # The grid of steps: a batch holds every one of the 64 equally often.
    assert experiment.training.batch_size % 64 == 0
    raster, _ = _network(digits_ardm.get_config("raster"), (8, 8, 1), 10)
    assert raster.process.order == "raster" and raster.objective["order_agnostic"]["ce_weight"] == 0
    assert raster.sampling.policies(raster.process, (8, 8, 1)).shape == (1, 65)
    for variant, outputs in (("", 17), ("direct", 2 * 5)):
        experiment, net = _network(digits_ardm_upscale.get_config(variant), (8, 8, 1), 10)
        assert (net.num_stages, net.out_channels) == (2, outputs)


def _changed(config, **values):
    with config.unlocked():
        for key, value in values.items():
            config.update_from_flattened_dict({key.replace("__", "."): value})
    return config


def test_a_policy_of_numbers():
    experiment = build.experiment(_changed(digits_ardm.get_config(), sampler__policy="0,8,64"))
    assert experiment.sampling.policy == (0, 8, 64) and experiment.sampling.num_steps == 2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"objective__order_agnostic__process__absorbing__num_values": 1},
         "process.absorbing.num_values: num_values must be an integer of at least 2, got 1"),
        ({"objective__order_agnostic__process__absorbing__order": "spiral"},
         "process.absorbing.order: order must be one of random, raster"),
        ({"objective__order_agnostic__process__name": "absorb"}, "did you mean 'absorbing'"),
        ({"sampler__name": "heun"}, "config.sampler.name: a model of kind 'ardm' is drawn from by"),
        ({"sampler__policy": "best"}, "config.sampler.policy: policy must be one of uniform"),
        ({"sampler__policy": "0,x"}, "config.sampler.policy: policy must be uniform, optimal, or"),
        ({"sampler__num_steps": 0}, "config.sampler.num_steps: num_steps must be an integer of"),
    ],
)  # fmt: skip
def test_refused_values(changes, message):
    with pytest.raises(ConfigError, match=message):
        build.experiment(_changed(digits_ardm.get_config(), **changes))


@pytest.mark.parametrize(
    "config, shape, message",
    [
        (digits_ardm.get_config(), (250,), "ArdmUNet takes images, and the data are sequences of"),
        (text8_ardm.get_config(), (8, 8, 1),
         "ArdmTransformer takes sequences, and the data are images of 8x8x1; choose ArdmUNet"),
        (digits_ardm.get_config(), (8, 6, 1), "ArdmUNet takes square images, got 8x6"),
    ],
)  # fmt: skip
def test_data_of_another_form(config, shape, message):
    with pytest.raises(ConfigError, match=message):
        _network(config, shape)


def test_tokens_of_other_values():
    class Tokens:
        image_shape, num_classes, num_values = (250,), 0, 27

    experiment = build.experiment(text8_ardm.get_config("bytes"))
    with pytest.raises(ConfigError, match="num_values is 256, and the tokens of the data have 27"):
        experiment.build_network(Tokens())
    config = _changed(text8_ardm.get_config(), objective__order_agnostic__levels=True)
    with pytest.raises(ConfigError, match="grey levels are made of pixels"):
        build.experiment(config).build_network(Tokens())


def test_an_objective_without_augmentation():
    config = _changed(digits_ardm.get_config(), augment__probability=0.1)
    experiment, net = _network(config, (8, 8, 1), 10)
    with pytest.raises(ConfigError, match="augmentation makes values between the grey levels"):
        experiment.build_objective(net, DataShape((8, 8, 1), 10))
    assert np.isfinite(experiment.training.lr)
