"""Every configuration, against the numbers of the paper's tables and published runs.

All expected values are literals typed from the specification of the published training
program, its architecture tables, and EDM Tables 1 and 2.
"""

import ast
import functools
import itertools
import json
import math
import pathlib
import re
import types

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from configs import base, table2, table2_digits
from edm_jax import ema, models
from edm_jax.augment.drawing import EDM_AUGMENT
from edm_jax.schedules import karras_sigmas
from experiments.config import build

CONFIGS = pathlib.Path(base.__file__).parent


def load(file, *overrides):
    """A configuration as the command line reads it, on flags of its own."""
    argv = ["main", f"--config={CONFIGS / file}", *overrides]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, flag_values=values, lock_config=True, sys_argv=argv
    )
    values(argv)
    return values["config"].value


class StandIn:
    """What `build` needs to know of a data set."""

    label_names = None

    def __init__(self, config, num_classes):
        self.image_shape = (config.data.resolution, config.data.resolution, 3)
        self.num_classes = num_classes if config.data.conditional else 0


@functools.cache
def _shapes(arguments):
    arguments = json.loads(arguments)
    net = models.build(arguments.pop("name"), **arguments)
    leaves = jax.tree.leaves(models.variables.abstract_variables(net)["params"])
    return sum(math.prod(leaf.shape) for leaf in leaves), len(leaves)


def parameters(config, num_classes=0):
    """Number of parameters and of parameter tensors of the network a configuration builds."""
    arguments = build.experiment(config).network_arguments(StandIn(config, num_classes))
    arguments["dropout"] = 0.0  # has no parameters; more configurations share a network
    return _shapes(json.dumps(arguments, sort_keys=True))


# Counted from the constructors of the published programs, typed from the specification.
def test_published_classifier_of_imagenet():
    config = load("imagenet64_classifier.py")
    experiment = build.experiment(config)
    assert experiment.kind == "classifier" and not experiment.draws_images
    arguments = experiment.network_arguments(StandIn(config, 1000))
    assert arguments["num_classes"] == 1000 and "label_dim" not in arguments
    assert _shapes(json.dumps(arguments, sort_keys=True)) == (65_438_568, 307)
    # 300,000 steps of 1024 images; uniform over the 1000 levels of the cosine schedule.
    assert experiment.intervals.total == 300_000 and config.train.batch_size == 1024
    assert config.train.lr == 6e-4 and config.data.mirror
    # The rate reaches 0 where the run ends; weights decay.
    assert config.train.lr_end_kimg == config.train.total_kimg and config.train.weight_decay == 0.2
    assert experiment.distribution.levels.shape == (1001,)
    with pytest.raises(ValueError, match="at least 2 classes, got 0"):
        experiment.network_arguments(StandIn(config, 0))


def test_published_adm_of_imagenet():
    config = load("imagenet64.py:adm_published")
    experiment = build.experiment(config)
    assert experiment.kind == "denoiser" and config.objective.name == "ddpm"
    assert parameters(config, 1000) == (295_904_454, 541)
    train = config.train
    assert (train.batch_size, train.lr, train.lr_rampup_kimg) == (2048, 3e-4, 0)
    assert experiment.intervals.total == 540_000
    # The decay of a step of 2048 images, to the digits of the half-life.
    halflife = train.ema_halflife_kimg[0] * 1000
    assert 0.5 ** (2048 / halflife) == pytest.approx(0.9999, abs=5e-9)
    assert experiment.sampling.sampler == "ddpm" and experiment.sampling.num_steps == 250
    assert experiment.sampling.options == {"variance": "learned"}
    objective = experiment.build_objective(
        types.SimpleNamespace(apply=None), StandIn(config, 1000)
    )  # refuses a preconditioning of other levels
    assert objective.process.num_steps == 1000 and objective.num_classes == 1000


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_digits_on_either_published_table(schedule):
    config = load(f"digits_ddpm.py:{schedule}")
    experiment = build.experiment(config)
    objective = experiment.build_objective(types.SimpleNamespace(apply=None), StandIn(config, 10))
    # The top of the published tables (original_samplers, spec 6): 20291 and 157.4.
    top = {"cosine": 20291, "linear": 157.4}[schedule]
    assert objective.process.levels[0] == pytest.approx(top, rel=1e-3)
    assert experiment.preconditioning.sigma_max == pytest.approx(top, rel=1e-3)
    assert float(experiment.distribution.levels[0]) == pytest.approx(top, rel=1e-3)


@pytest.mark.parametrize("variant", ["", ":cfg"])
def test_labels_left_out_of_the_digits(variant):
    name = f"digits.py{variant}"
    assert load(name).model.SongUNet.label_dropout == (0.1 if variant else 0.0)


def numbers(config):
    """What the published option tables list, as they list it."""
    train, model = config.train, config.model[config.model.name]
    return dict(
        total_mimg=train.total_kimg / 1000,
        batch=train.batch_size,
        lr=train.lr,
        rampup_mimg=train.lr_rampup_kimg / 1000,
        halflife_mimg=tuple(h / 1000 for h in train.ema_halflife_kimg),
        ema_ratio=train.ema_rampup_ratio,
        betas=(train.adam_b1, train.adam_b2),
        eps=train.adam_eps,
        clip=train.grad_clip_norm,
        loss_scaling=train.loss_scaling,
        dropout=model.dropout,
        label_dropout=model.label_dropout,
        augment=config.augment.probability,
        mirror=config.data.mirror,
        dtype=config.model.dtype,
        channels=(model.model_channels, model.channel_mult),
        blocks=model.num_blocks,
        attention=model.attn_resolutions,
        embedding=model.channel_mult_emb,
    )


CIFAR10 = dict(
    total_mimg=200, batch=512, lr=1e-3, rampup_mimg=10, halflife_mimg=(0.5,), ema_ratio=0.05,
    betas=(0.9, 0.999), eps=1e-8, clip=0, loss_scaling=1, dropout=0.13, label_dropout=0,
    augment=0.12, mirror=False, dtype="float32", channels=(128, (2, 2, 2)), blocks=4,
    attention=(16,), embedding=4,
)  # fmt: skip
FFHQ = CIFAR10 | dict(batch=256, lr=2e-4, dropout=0.05, augment=0.15, channels=(128, (1, 2, 2, 2)))
AFHQV2 = FFHQ | dict(dropout=0.25)
IMAGENET = CIFAR10 | dict(
    total_mimg=2500, batch=4096, lr=1e-4, halflife_mimg=(50,), loss_scaling=100, dropout=0.10,
    augment=0, dtype="float16", channels=(192, (1, 2, 3, 4)), blocks=3, attention=(32, 16, 8),
)  # fmt: skip

# file, published numbers, classes, labels used, parameters, tensors, steps of the sampler, FID
PUBLISHED = {
    "cifar10.py": (CIFAR10, 10, True, 55_735_299, 419, 18, "1.79"),
    "cifar10.py:cond,ddpmpp": (CIFAR10, 10, True, 55_735_299, 419, 18, "1.79"),
    "cifar10.py:uncond,ddpmpp": (CIFAR10, 10, False, 55_733_891, 417, 18, "1.97"),
    "cifar10.py:cond,ncsnpp": (CIFAR10, 10, True, 56_400_643, 423, 18, "1.79"),
    "cifar10.py:uncond,ncsnpp": (CIFAR10, 10, False, 56_397_827, 421, 18, "1.98"),
    "ffhq64.py": (FFHQ, 0, False, 61_805_571, 541, 40, "2.39"),
    "ffhq64.py:uncond,ncsnpp": (FFHQ, 0, False, 62_761_091, 547, 40, "2.53"),
    "afhqv2_64.py": (AFHQV2, 3, False, 61_805_571, 541, 40, "1.96"),
    "afhqv2_64.py:uncond,ncsnpp": (AFHQV2, 3, False, 62_761_091, 547, 40, "2.16"),
    "imagenet64.py": (IMAGENET, 1000, True, 295_899_267, 541, 256, "1.36"),
    "imagenet64.py:cond,adm": (IMAGENET, 1000, True, 295_899_267, 541, 256, "1.36"),
}
# embedding, encoder, decoder, noise multiplier, filter
ARCHITECTURE = {
    "ddpmpp": ("positional", "standard", "standard", 1, (1, 1)),
    "ncsnpp": ("fourier", "residual", "standard", 2, (1, 3, 3, 1)),
}


def architecture(config):
    model = config.model.SongUNet
    names = "embedding_type encoder_type decoder_type channel_mult_noise resample_filter".split()
    return tuple(model[name] for name in names)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configuration(name):
    expected, classes, labels, count, tensors, num_steps, _ = PUBLISHED[name]
    config = load(name)
    assert config.is_locked
    experiment = build.experiment(config)
    assert numbers(config) == expected
    assert config.data.conditional == labels
    assert config.data.resolution == (32 if name.startswith("cifar10") else 64)
    assert config.data.max_size == 0 and config.train.micro_batch == 0
    assert (config.precond.name, config.noise.name, config.weight.name) == (
        "edm", "lognormal", "edm",
    )  # fmt: skip
    assert config.precond.edm.sigma_data == config.weight.edm.sigma_data == 0.5
    assert (config.noise.lognormal.p_mean, config.noise.lognormal.p_std) == (-1.2, 1.2)
    if not name.startswith("imagenet"):
        wanted = ARCHITECTURE["ncsnpp" if "ncsnpp" in name else "ddpmpp"]
        assert config.model.name == "SongUNet" and architecture(config) == wanted
    else:
        assert config.model.name == "DhariwalUNet"
    assert parameters(config, classes) == (count, tensors)
    sampling = experiment.sampling
    assert sampling.num_steps == num_steps
    np.testing.assert_array_equal(
        sampling.grid(),
        karras_sigmas(num_steps, sigma_min=0.002, sigma_max=80.0, rho=7.0),
    )
    if num_steps == 256:
        assert sampling.sampler == "edm" and sampling.options == dict(
            s_churn=40, s_tmin=0.05, s_tmax=50, s_noise=1.003
        )
    else:
        assert sampling.sampler == "heun" and not sampling.options


# Iterations are the published "about" figures; decay 8 digits; Mimg where the EMA ramp ends.
@pytest.mark.parametrize(
    ("name", "iterations", "decay", "ramp_end_mimg"),
    [
        ("cifar10.py", 390_625, 0.99929047, 10),
        ("ffhq64.py", 781_250, 0.99964517, 10),
        ("afhqv2_64.py", 781_250, 0.99964517, 10),
        ("imagenet64.py", 610_352, 0.99994322, 1000),
    ],
)
def test_what_follows_from_the_published_numbers(name, iterations, decay, ramp_end_mimg):
    config = load(name)
    train = config.train
    assert build.experiment(config).intervals.total == iterations
    halflife = train.ema_halflife_kimg[0] * 1000
    ramped = ema.ema_beta(2 * ramp_end_mimg * 1e6, train.batch_size, halflife, 0.05)
    assert float(ramped) == pytest.approx(decay, abs=5e-8)  # float32 near 1, printed to 8 digits
    assert halflife / train.ema_rampup_ratio == ramp_end_mimg * 1e6


# The published intervals: a tick of 50 (ImageNet 200) kimg, a snapshot every 50 ticks and a
# training state every 500.
@pytest.mark.parametrize("name", PUBLISHED)
def test_intervals(name):
    train = load(name).train
    tick = 200 if name.startswith("imagenet") else 50
    assert train.log_kimg == tick
    assert train.sample_kimg == train.checkpoint_kimg == 50 * tick
    assert train.keep_every_kimg == 500 * tick


@pytest.mark.parametrize("name", PUBLISHED)
def test_augmentation_is_the_published_preset(name):
    config = load(name)
    group = config.augment.to_dict()
    probability = group.pop("probability")
    assert group == dict(
        xflip=1e8, yflip=1, scale=1, rotate_frac=1, aniso=1, translate_frac=1
    )  # fmt: skip
    pipe = build.experiment(config).augment
    if not probability:
        assert pipe is None
        return
    assert pipe.label_dim == 9
    assert {k: getattr(pipe, k) for k in group} == {k: getattr(EDM_AUGMENT, k) for k in group}


# ------------------------------------------------------------------------------ Table 2

DATA = ("cifar10-cond", "cifar10-uncond", "ffhq", "afhqv2")
TABLE_2 = """
A 2.48 3.11 3.01 3.77 3.39 25.95 2.58 18.52
B 2.18 2.48 2.51 2.94 3.13 22.53 2.43 23.12
C 2.08 2.52 2.31 2.83 2.78 41.62 2.54 15.04
D 2.09 2.64 2.29 3.10 2.94 3.39 2.79 3.81
E 1.88 1.86 2.05 1.99 2.60 2.81 2.29 2.28
F 1.79 1.79 1.97 1.98 2.39 2.53 1.96 2.16
"""
# precond, noise, weight of each row and column (Table 1)
LOSS = {
    ("vp", "ABC"): ("vp", "uniform_time", "inverse_square"),
    ("ve", "ABC"): ("ve", "loguniform", "inverse_square"),
    ("vp", "D"): ("edm", "uniform_time", "inverse_square"),
    ("ve", "D"): ("edm", "loguniform", "inverse_square"),
    ("vp", "EF"): ("edm", "lognormal", "edm"),
    ("ve", "EF"): ("edm", "lognormal", "edm"),
}
# Parameters and tensors without labels by resolution, column and rows.
COUNTS = {
    (32, "vp", "AB"): (61_804_419, 540),
    (32, "ve", "AB"): (62_758_787, 546),
    (32, "vp", "CDE"): (55_732_739, 416),
    (32, "ve", "CDE"): (56_395_523, 420),
    (32, "vp", "F"): (55_733_891, 417),
    (32, "ve", "F"): (56_397_827, 421),
    (64, "vp", "AB"): (66_715_267, 664),
    (64, "ve", "AB"): (67_817_219, 672),
    # Sizes do not depend on the resolution: the networks of the rows A and B at 32x32.
    (64, "vp", "CDE"): (61_804_419, 540),
    (64, "ve", "CDE"): (62_758_787, 546),
    (64, "vp", "F"): (61_805_571, 541),
    (64, "ve", "F"): (62_761_091, 547),
}


def of_row(table, row, *key):
    return next(value for k, value in table.items() if k[:-1] == key and row in k[-1])


@pytest.mark.parametrize(
    ("column", "row", "data"), list(itertools.product(("vp", "ve"), "ABCDEF", DATA))
)
def test_table_2(column, row, data):
    config = load(f"table2.py:{column},{row},{data}")
    assert config.is_locked
    size = 32 if data.startswith("cifar10") else 64
    expected = {32: CIFAR10, 64: AFHQV2 if data == "afhqv2" else FFHQ}[size]
    if row != "F":
        expected = expected | dict(augment=0, mirror=True)
    if row in "AB":
        channels = (1, 2, 2, 2) if size == 32 else (1, 1, 2, 2, 2)
        expected = expected | dict(channels=(128, channels))
    if row == "A":
        expected = expected | dict(
            batch=128, lr=2e-4, rampup_mimg=0.64, clip=1, dropout=0.1, ema_ratio=0,
            halflife_mimg=(0.887 if column == "vp" else 0.0887,),
        )  # fmt: skip
    assert numbers(config) == expected
    names = (config.precond.name, config.noise.name, config.weight.name)
    assert names == of_row(LOSS, row, column)
    assert architecture(config) == ARCHITECTURE["ddpmpp" if column == "vp" else "ncsnpp"]
    assert config.sampler.num_steps == (18 if size == 32 else 40)
    assert config.sampler.s_churn == 0
    assert config.data.conditional == (data == "cifar10-cond")
    count, tensors = of_row(COUNTS, row, size, column)
    if data == "cifar10-cond":
        # The linear map of ten labels, with bias, to the noise embedding.
        count, tensors = count + 11 * (128 if column == "vp" else 256), tensors + 2
    assert parameters(config, 10) == (count, tensors)


def test_constants_of_the_vp_and_ve_columns():
    config = load("table2.py:vp,A")
    assert config.precond.vp.to_dict() == dict(
        beta_d=19.9, beta_min=0.1, num_levels=1000, eps_t=1e-5
    )
    assert config.noise.uniform_time.to_dict() == dict(beta_d=19.9, beta_min=0.1, eps_t=1e-5)
    assert config.precond.ve.to_dict() == dict(sigma_min=0.02, sigma_max=100)
    assert config.noise.loguniform.to_dict() == dict(sigma_min=0.02, sigma_max=100)
    # The published decays per step of 128 images, to the digits of the half-lives.
    for column, decay in (("vp", 0.9999), ("ve", 0.999)):
        halflife = load(f"table2.py:{column},A").train.ema_halflife_kimg[0] * 1000
        assert 0.5 ** (128 / halflife) == pytest.approx(decay, abs=5e-7)


def test_row_f_is_the_published_configuration():
    files = ("cifar10.py:cond", "cifar10.py:uncond", "ffhq64.py", "afhqv2_64.py")
    for data, file in zip(DATA, files, strict=True):
        assert load(f"table2.py:{data}").to_dict() == load(file).to_dict()
    assert load("table2.py").to_dict() == load("cifar10.py").to_dict()


def test_table_2_in_the_docstring():
    said = [
        [row, *(value.rstrip("*") for value in values)]
        for row, *values in (line.split() for line in table2.__doc__.splitlines() if line.strip())
        if row in "ABCDEF" and len(values) == 8 and "." in values[0]
    ]
    assert said == [line.split() for line in TABLE_2.strip().splitlines()]


# -------------------------------------------------------------------- files and variants

FILES = sorted(path.name for path in CONFIGS.glob("*.py"))


@pytest.mark.parametrize("name", FILES)
def test_every_file_loads_and_takes_overrides(name):
    config = load(name, "--config.train.lr=0.5", "--config.model.SongUNet.channel_mult=(1, 3)",
                  "--config.data.path=a.zip", "--config.train.ema_halflife_kimg=(1.0, 2.0)",
                  "--config.augment.probability=1", "--config.data.mirror")  # fmt: skip
    assert config.train.lr == 0.5 and config.model.SongUNet.channel_mult == (1, 3)
    assert config.data.path == "a.zip" and config.data.mirror is True
    assert config.train.ema_halflife_kimg == (1.0, 2.0)
    assert config.augment.probability == 1.0
    with pytest.raises(AttributeError, match="bach_size"):
        load(name, "--config.train.bach_size=1")
    build.experiment(load(name))


@pytest.mark.parametrize("name", FILES)
def test_every_file_states_its_command(name):
    text = ast.get_docstring(ast.parse((CONFIGS / name).read_text()))
    stated = "configs/<file>.py" if name == "base.py" else f"configs/{name}"
    assert f"experiments/main.py --config={stated}" in text


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_state_hardware_time_and_fid(name):
    text = ast.get_docstring(ast.parse((CONFIGS / name.split(":")[0]).read_text()))
    hardware, days = {
        "cifar10.py": ("8 V100", "2 days"),
        "ffhq64.py": ("8 V100", "4 days"),
        "afhqv2_64.py": ("8 V100", "4 days"),
        "imagenet64.py": ("32 A100", "13 days"),
    }[name.split(":")[0]]
    assert hardware in text and days in text
    assert PUBLISHED[name][-1] in re.findall(r"\d\.\d\d", text)


def test_architectures_are_those_of_the_library():
    """The configurations spell them out, as they read no library; they must agree."""
    for name, preset in models.PRESETS.items():
        mine = base.ARCHITECTURES[name]
        assert mine["name"] == models.PRESET_NETWORKS[name]
        assert {key: mine[key] for key in preset} == preset


def test_imagenet_network_with_iddpm_preconditioning():
    config = load("imagenet64.py", "--config.precond.name=iddpm")
    assert parameters(config, 1000) == (295_904_454, 541)


@pytest.mark.parametrize(
    ("variant", "mult", "labels", "num_steps"),
    [
        ("", (1, 2, 2, 2), False, 40),
        ("32,cond", (2, 2, 2), True, 18),
        ("cond,64", (1, 2, 2, 2), True, 40),
        ("128", (1, 1, 2, 2, 2), False, 40),
    ],
)
def test_own_images(variant, mult, labels, num_steps):
    config = load(f"own_images.py:{variant}" if variant else "own_images.py")
    assert config.model.SongUNet.channel_mult == mult and config.data.conditional == labels
    # The levels end at 8x8, as those of every published network of the rows C to F do.
    assert config.data.resolution >> (len(mult) - 1) == 8
    assert config.sampler.num_steps == num_steps
    # The settings of AFHQv2-64 whatever the size.
    assert numbers(config) == AFHQV2 | dict(channels=(128, mult))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10.py:uncod", "variant 'uncod' is not known .*did you mean 'uncond'"),
        ("cifar10.py:adm", "variant 'adm' is not known .*cond or uncond, ddpmpp or ncsnpp"),
        ("ffhq64.py:cond", "did you mean 'uncond'"),
        ("afhqv2_64.py:ncsn", "did you mean 'ncsnpp'"),
        ("imagenet64.py:uncond", "did you mean 'cond'"),
        ("table2.py:vp,G", "variant 'G' is not known .*A or B or C or D or E"),
        ("table2.py:vp,D,cifar", "did you mean 'cifar10-"),
        ("table2.py:vp,ve", "names both 'vp' and 've'"),
        ("own_images.py:256", "variant '256' is not known"),
    ],
)
def test_bad_variants(name, message):
    # The flag parser wraps the error; its last line is ours.
    with pytest.raises((ValueError, flags.Error)) as caught:
        load(name)
    assert re.search(message, str(caught.value).strip().splitlines()[-1])


def test_variants_in_any_order_and_case():
    assert load("table2.py:FFHQ,d,VE").to_dict() == load("table2.py:ve,D,ffhq").to_dict()
    assert base.choose(" b , ", ("a", "b"), ("c",)) == ("b", "c")


def test_each_step_of_the_digits_table_changes_what_it_changes_in_the_paper():
    def groups(column, row):
        config = table2_digits.get_config(f"{column},{row}")
        build.experiment(config)
        return config

    for column, network in (("vp", "standard"), ("ve", "residual")):
        a, b, c, d, e, f = (groups(column, row) for row in "ABCDEF")
        assert {one.model.SongUNet.encoder_type for one in (a, b, c, d, e, f)} == {network}
        assert [one.precond.name for one in (a, b, c, d, e, f)] == [column] * 3 + ["edm"] * 3
        noise = {"vp": "uniform_time", "ve": "loguniform"}[column]
        assert [one.noise.name for one in (a, b, c, d, e, f)] == [noise] * 4 + ["lognormal"] * 2
        assert [one.weight.name for one in (d, e)] == ["inverse_square", "edm"]
        assert [bool(one.augment.probability) for one in (d, e, f)] == [False, False, True]
        assert not any(one.data.mirror for one in (a, b, c, d, e, f))
        assert (a.train.grad_clip_norm, b.train.grad_clip_norm) == (1.0, 0.0)
        assert a.train.batch_size < b.train.batch_size and a.train.lr < b.train.lr
        levels = [one.model.SongUNet.channel_mult for one in (a, b, c, d)]
        assert levels == [(1, 2, 2), (1, 2, 2), (2, 2), (2, 2)]
        assert {one.train.total_kimg for one in (a, b, c, d, e, f)} == {16.384}
        assert len({one.sampler.num_steps for one in (a, b, c, d, e, f)}) == 1
