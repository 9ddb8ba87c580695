"""A configuration read once: what comes out, and what each bad value is answered."""

import dataclasses
import json
import math

import flax.linen as nn
import numpy as np
import pytest

from configs import cifar10, digits, tiny
from edm_jax import models
from edm_jax.augment.drawing import EDM_AUGMENT
from edm_jax.data.sources.base import ArraySource
from edm_jax.noise import EdmWeight, LogNormal
from edm_jax.train import objectives
from experiments.config import build
from experiments.config.groups import ConfigError
from experiments.preflight.costs import DataShape


def configured(**options):
    """The tiny configuration with options such as ``model__SongUNet__dropout=0.5``."""
    config = tiny.get_config()
    for key, value in options.items():
        *groups, name = key.split("__")
        group = config
        for part in groups:
            group = group[part]
        group[name] = value
    return config


def test_what_an_experiment_has():
    experiment = build.experiment(digits.get_config())
    assert experiment.distribution == LogNormal(0.4, 1.2)
    assert experiment.weight == EdmWeight(0.75)
    assert experiment.precond == {"name": "edm", "sigma_data": 0.75}
    # c_skip = sd^2 / (sigma^2 + sd^2) at sigma = sd.
    assert float(experiment.preconditioning(0.75).c_skip) == pytest.approx(0.5, rel=1e-6)
    assert experiment.averaging.names() == ["ema_5kimg"]
    assert experiment.averaging.rampup_ratio is None  # a ratio of 0 is no ramp
    # 61,440 images in batches of 128; a line every 2,560.
    assert (experiment.intervals.total, experiment.intervals.log) == (480, 20)
    assert experiment.training.together == 128
    assert experiment.augment is None and experiment.sample_batch == 100
    assert len(experiment.data.open()) == 1500 and len(experiment.data.open_test()) == 297
    assert build.experiment(cifar10.get_config()).augment == EDM_AUGMENT


@pytest.mark.parametrize(("num_steps", "ends"), [(7, (0.01, 50.0)), (1, (0.002, 80.0))])
def test_levels_at_which_losses_are_shown(num_steps, ends):
    """One step has one level, which spans nothing: then those of EDM (Table 1)."""
    config = tiny.get_config()
    config.sampler.update(num_steps=num_steps, sigma_min=0.01, sigma_max=50.0)
    experiment = build.experiment(config)
    levels = experiment.shown_levels(5, experiment.preconditioning)
    np.testing.assert_allclose(levels[[0, -1]], ends, rtol=1e-12)
    # Evenly spaced in ln sigma.
    np.testing.assert_allclose(np.ptp(np.diff(np.log(levels))), 0, atol=1e-12)


def test_half_precision_on_tpus():
    config = configured(model__dtype="float16", train__loss_scaling=100.0)
    experiment = build.experiment(config)
    for platform in ("cpu", "gpu"):
        same, note = experiment.on(platform)
        assert same is experiment and note == ""
    other, note = experiment.on("tpu")
    assert "bfloat16 on TPUs" in note and "\n" not in note
    assert other.build_network(DataShape((8, 8, 3), 4)).dtype == "bfloat16"
    # The record is of what was asked for, and the next start reads it so.
    assert other.config == experiment.config
    assert other.on("tpu") == (other, "")
    exact = build.experiment(configured())
    assert exact.on("tpu") == (exact, "")


def test_it_survives_the_record():
    """The values it was read from, written as JSON, make the same experiment."""
    first = build.experiment(tiny.get_config())
    again = build.experiment(json.loads(json.dumps(first.config)))
    assert again.config == first.config
    assert again.sampling == first.sampling and again.training == first.training
    assert again.network == first.network and again.intervals == first.intervals


def test_the_sizes_of_a_network_are_those_of_the_data():
    experiment = build.experiment(configured(augment__probability=0.1, precond__name="iddpm"))
    net = experiment.build_network(DataShape((8, 8, 3), 5))
    assert type(net) is models.SongUNet and net.img_resolution == 8 and net.label_dim == 5
    assert (net.in_channels, net.out_channels, net.augment_dim) == (3, 6, 9)
    assert experiment.build_network(DataShape((8, 8, 3), 5), remat="blocks").remat == "blocks"
    description = experiment.description(_Described(DataShape((8, 8, 3), 5)))
    assert description["network"]["name"] == "SongUNet" and description["num_classes"] == 5
    assert description["precond"]["name"] == "iddpm" and "label_vectors" not in description["data"]
    vectors = np.float32([[0.5, 0, 0, 0, 2], [1, 2, 3, 4, 5]])
    source = ArraySource(np.zeros((2, 8, 8, 3), np.uint8), vectors)
    assert experiment.description(source)["data"]["label_vectors"] == vectors.tolist()


class _Described:
    """A data set of some shape, a hundred images long."""

    def __init__(self, shape):
        self.image_shape, self.num_classes = shape.image_shape, shape.num_classes
        self.label_names = None

    def __len__(self):
        return 100


class Pixelwise(nn.Module):
    """A network with sizes of its own liking, any shape of image, and no choice of dtype."""

    width: int
    image_shape: tuple[int, int, int]
    depth: int = 1

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"width must be at least 1, got {self.width}")
        super().__post_init__()


@pytest.fixture
def pixelwise(monkeypatch):
    """A network of one's own: its line in the registry, and its group."""
    monkeypatch.setitem(models.NETWORKS, "Pixelwise", Pixelwise)

    def made(**options):
        config = tiny.get_config()
        with config.unlocked():
            config.model.Pixelwise = options
        config.model.name = "Pixelwise"
        return config

    return made


def test_a_network_of_ones_own_needs_only_its_group(pixelwise):
    experiment = build.experiment(pixelwise(width=16, depth=3))
    arguments = experiment.network_arguments(DataShape((8, 4, 3), 10))
    assert arguments == dict(name="Pixelwise", width=16, depth=3, image_shape=(8, 4, 3))
    with pytest.raises(ConfigError, match=r"^SongUNet takes square images, got 8x4$"):
        build.experiment(tiny.get_config()).network_arguments(DataShape((8, 4, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, r"^config.model.Pixelwise.width: width must be at least 1, got 0$"),
        ({"width": 1, "with": 2}, r"^config.model.Pixelwise: unknown argument .* mean 'width'"),
        ({}, r"^config.model.Pixelwise: Pixelwise needs the argument width$"),
    ],
)
def test_a_network_of_ones_own_is_answered_by_its_constructor(pixelwise, options, message):
    experiment = build.experiment(pixelwise(**options))
    with pytest.raises(ConfigError, match=message):
        experiment.network.build(experiment.network_arguments(DataShape((8, 8, 1))))


def test_a_choice_that_the_network_has_not(pixelwise):
    config = pixelwise(width=1)
    config.model.dtype = "bfloat16"
    with pytest.raises(ConfigError, match=r"model.dtype=bfloat16: Pixelwise has no dtype"):
        build.experiment(config).network_arguments(DataShape((8, 8, 1)))


def test_an_objective_of_ones_own(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Plain:
        parts: objectives.Parts
        scale: float = 1.0

        def __post_init__(self):
            if self.scale <= 0:
                raise ValueError(f"scale must be positive, got {self.scale}")

    monkeypatch.setitem(objectives.OBJECTIVES, "plain", Plain)
    shape = DataShape((8, 8, 1), 10)
    for scale in (2.0, -1.0):
        config = tiny.get_config()
        with config.unlocked():
            config.objective = dict(name="plain", plain=dict(scale=scale))
        experiment = build.experiment(config)
        net = experiment.build_network(shape)
        if scale > 0:
            made = experiment.build_objective(net, shape)
            assert made.scale == scale and made.parts.num_classes == 10
            assert made.parts.apply == net.apply and made.parts.weight == EdmWeight(0.75)
            continue
        with pytest.raises(ConfigError, match=r"^config.objective.plain.scale: scale must be pos"):
            experiment.build_objective(net, shape)


NAN = math.nan


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("seed", -1, "config.seed: seed must be at least 0"),
        ("data__source", "image", "config.data.source: unknown source 'image'; did you mean"),
        ("data__num_threads", 0, "config.data.num_threads: num_threads must be at least 1"),
        ("data__max_size", -1, "config.data.max_size: max_size must be at least 0"),
        ("model__name", "SongNet", "config.model.name: unknown model 'SongNet'; did you mean"),
        ("objective__name", "denoise", "config.objective.name: unknown objective 'denoise'; did"),
        ("precond__name", "edn", "config.precond.name: unknown precond 'edn'; did you mean 'edm'"),
        ("precond__edm__sigma_data", 0.0, "config.precond.edm.sigma_data: sigma_data must be pos"),
        ("noise__name", "normal", "config.noise.name: unknown noise 'normal'; did you mean 'log"),
        ("noise__lognormal__p_std", -1.0, "config.noise.lognormal.p_std: p_std must be positive"),
        ("noise__lognormal__p_mean", NAN, "config.noise.lognormal.p_mean: p_mean must be finite"),
        ("weight__edm__sigma_data", -1.0, "config.weight.edm.sigma_data: sigma_data must be pos"),
        ("augment__probability", 2.0, "config.augment.probability: p must be in [0, 1], got 2.0"),
        ("augment__scale", -1.0, "config.augment.scale: scale must be finite and not negative"),
        ("train__lr", NAN, "config.train.lr: lr must be positive and finite, got nan"),
        ("train__lr", -1.0, "config.train.lr: lr must be positive and finite, got -1.0"),
        ("train__lr_rampup_kimg", -1.0, "config.train.lr_rampup_kimg: lr_rampup_kimg must be at"),
        ("train__adam_b1", 1.0, "config.train.adam_b1: b1 must be at least 0 and below 1"),
        ("train__adam_b2", -1.0, "config.train.adam_b2: b2 must be at least 0 and below 1"),
        ("train__adam_eps", 0.0, "config.train.adam_eps: eps must be positive"),
        ("train__grad_clip_norm", -1.0, "config.train.grad_clip_norm: grad_clip_norm must be at"),
        ("train__batch_size", 0, "config.train.batch_size: batch_size must be at least 1"),
        ("train__batch_size", 10**11, "batch_size must be at least 1 and at most 1.04858e+06"),
        ("train__micro_batch", -1, "config.train.micro_batch: micro_batch must be at least 0"),
        ("train__sharding", "fdsp", "config.train.sharding: sharding must be data or fsdp"),
        ("train__keep_last", 1, "config.train.keep_last: keep_last must be at least 2"),
        ("train__max_bad_steps", 0, "config.train.max_bad_steps: max_bad_steps must be at least"),
        ("train__loss_scaling", 0.0, "config.train.loss_scaling: loss_scaling must be positive"),
        ("train__ema_halflife_kimg", (), "config.train.ema_halflife_kimg: halflives_kimg must be"),
        ("train__ema_halflife_kimg", (1.0, 1.0), "must be one or more different numbers"),
        ("train__ema_halflife_kimg", (-1.0,), "halflives_kimg must be at least 0"),
        ("train__ema_rampup_ratio", -1.0, "config.train.ema_rampup_ratio: rampup_ratio must be"),
        ("train__total_kimg", 1e308, "config.train.total_kimg: total_kimg must be at most 3.43597"),
        ("train__log_kimg", 0.0, "config.train.log_kimg: log_kimg must be positive"),
        ("train__sample_kimg", -1.0, "config.train.sample_kimg: sample_kimg must be at least 0"),
        ("evaluation__every_kimg", 1e300, "config.evaluation.every_kimg: every_kimg must be at m"),
        ("evaluation__num_images", 1, "config.evaluation.num_images: num_images must be 0, or at"),
        ("evaluation__first_seed", -5, "config.evaluation.first_seed: first_seed must be at least"),
        ("sampler__batch_size", 0, "config.sampler.batch_size: batch_size must be at least 1"),
        ("sampler__num_steps", 0, "config.sampler.num_steps: num_steps must be an integer >= 1"),
        ("sampler__sigma_min", 90.0, "config.sampler: need 0 < sigma_min < sigma_max"),
        ("sampler__s_tmin", -1.0, "config.sampler.s_tmin: s_tmin must be at least 0"),
    ],
)  # fmt: skip
def test_a_bad_value_is_answered_by_its_object(option, value, message):
    with pytest.raises(ConfigError) as caught:
        build.experiment(configured(**{option: value}))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("model__SongUNet__dropout", 2.0, "config.model.SongUNet.dropout: dropout must be a"),
        ("model__dtype", "float61", "config.model.dtype: dtype must be one of float32"),
        ("model__SongUNet__channel_mult", (1, 1, 1, 1, 1), "config.model.SongUNet: img_resol"),
        ("data__resolution", 9, "config.data.resolution: resolution is 9, but the images of"),
        ("data__source", "images", "config.data.path: path is missing: the folder or .zip"),
        ("data__source", "tfds", "config.data.path: path is missing: the name of the TFDS"),
    ],
)
def test_a_value_that_the_data_decide_on(option, value, message):
    experiment = build.experiment(configured(**{option: value}))
    with pytest.raises(ConfigError) as caught:
        experiment.build_network(experiment.data.open())
    assert str(caught.value).startswith(message)


def test_a_configuration_without_an_option():
    values = tiny.get_config().to_dict()
    del values["train"]["lr"]
    with pytest.raises(ConfigError, match="the configuration has no 'lr'; start from configs/base"):
        build.experiment(values)


def test_an_option_that_the_choice_has_not():
    values = tiny.get_config().to_dict()
    values["noise"]["lognormal"]["p_sdt"] = 1.0
    with pytest.raises(ConfigError, match=r"noise.lognormal: unknown option .* mean 'p_std'"):
        build.experiment(values)


def test_part_of_the_data_without_labels():
    experiment = build.experiment(configured(data__max_size=20, data__conditional=False))
    source = experiment.data.open()
    assert len(source) == 20 and source.num_classes == 0 and list(source[0]) == ["image"]
    assert len(experiment.data.open_test()) == 297  # all of them
    labelled = build.experiment(configured(data__max_size=20)).data.open()
    np.testing.assert_array_equal(labelled[3]["image"], source[3]["image"])


def test_discrete_levels_must_be_those_of_the_network():
    same = {"precond__name": "iddpm", "noise__name": "discrete"}
    build.experiment(configured(**same))
    linear = {"precond__iddpm__schedule": "linear", "noise__discrete__schedule": "linear"}
    read = build.experiment(configured(**same, **linear))
    # The largest level of DDPM's table (Ho et al. 2020).
    assert float(read.distribution.levels[0]) == pytest.approx(157.4, rel=1e-3)
    with pytest.raises(ConfigError, match=r"not the levels of config\.precond\.iddpm"):
        build.experiment(configured(**same, precond__iddpm__schedule="linear"))
    with pytest.raises(ConfigError, match=r"iddpm.*'lineer'"):
        build.experiment(configured(**same, precond__iddpm__schedule="lineer"))
