"""What is found to be wrong, or doubtful, before a run starts."""

import collections
import itertools
import json
import re
import types

import jax
import numpy as np
import pytest

from configs import afhqv2_64, cifar10, digits, ffhq64, imagenet64, own_images, table2, tiny
from edm_jax.data.sources.base import ArraySource, Mirrored
from edm_jax.data.sources.decode import encode_png
from edm_jax.data.sources.image_files import open_images
from edm_jax.store import checkpoints
from experiments import words, workdir
from experiments.config import build, options
from experiments.config.groups import ConfigError
from experiments.preflight import checks, costs, data_checks, report
from tests.support.preflight_data import Pictures, config_with, run

# ---------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train__batch_size": 18}, "batch size 18 must be .* number of devices .4"),
        ({"train__micro_batch": 6}, "micro batch 6 must divide"),
        ({"evaluation__metrics": ("frechet_pixel",)}, "did you mean 'frechet_pixels'"),
        ({"precond__name": "ve", "sampler__sigma_max": 0.01}, "outside that of the ve network"),
        (
            {"model__SongUNet__channel_mult": (1, 1, 1, 1, 1)},
            "img_resolution must be divisible by 16",
        ),
        ({"model__SongUNet__model_channels": 2}, "config.model.SongUNet: .*a norm of 2 channels"),
        ({"model__SongUNet__dropout": 2.0}, "config.model.SongUNet.dropout: dropout must be"),
    ],
)
def test_settings_that_cannot_work(options, message):
    code, lines = run(config_with(**options), Pictures())
    assert code == 1
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and "\n" not in errors[0]
    assert re.search(message, errors[0])


def test_an_evaluation_without_test_images(tmp_path):
    """Said before the training, not at its end."""
    config = config_with(evaluation__num_images=40, evaluation__metrics=("frechet_pixels",))
    assert run(config, Pictures()) == (0, [])  # the digits have them
    config.data.update(source="images", path=str(tmp_path))
    code, lines = run(config, Pictures())
    assert code == 0
    assert lines == [
        "warning: the data set has no test images: the evaluation is without its floor"
    ]


def test_pixels_of_large_images_are_no_features():
    config = config_with(evaluation__num_images=40)
    config.data.source = "images"
    large = Pictures()
    large.image_shape = (64, 64, 3)
    (line,) = [line for line in run(config, large)[1] if "4096" in line]
    assert line.startswith("warning: config.evaluation.metrics: 'frechet_pixels'")
    assert line.endswith("at most 4096 numbers, got 64x64x3 = 12288; it will be left out")
    config.evaluation.metrics = ("classifier",)
    assert not any("4096" in line for line in run(config, large)[1])


def test_all_that_is_wrong_is_said_at_once():
    config = config_with(
        train__batch_size=18,
        evaluation__metrics=("frechet_pixel",),
        model__SongUNet__model_channels=2,
    )
    assert len([line for line in run(config, Pictures())[1] if line.startswith("error: ")]) == 3


class Damaged(Pictures):
    """Some images are unreadable, or not what was promised."""

    def __init__(self, damage):
        super().__init__()
        self._damage = damage

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return self._damage(index, item) or item


def unreadable(index, item):
    if index % 50 == 0:
        raise ValueError(f"img{index}.png: not an image")


def of_another_shape(index, item):
    if index == 199:
        return {"image": np.zeros((8, 4, 1), np.uint8)}


def of_floats(index, item):
    return {"image": item["image"] / 255}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        # The sample of up to 1024 is all 200; unreadable are 0, 50, 100, 150.
        (unreadable, "4 of 200 images looked at cannot be used; the first: img0.png: not an image"),
        (of_another_shape, "image 199 is uint8 of shape (8, 4, 1), expected uint8 of (8, 8, 1)"),
        (of_floats, "200 of 200 images looked at cannot be used; the first: image 0 is float64"),
    ],
)
def test_bad_images(damage, message):
    code, lines = run(config_with(), Damaged(damage), quick=False, mesh_devices=None)
    assert code == 1 and message in "\n".join(lines)


def test_the_quick_part_reads_few_images():
    source = Pictures(count=100_000)
    assert run(config_with(), source)[0] == 0
    read = sorted(source.images_read)
    assert len(read) == data_checks.QUICK_SAMPLE and read[0] == 0 and read[-1] == 99_999


def labelled(labels, num_classes=3):
    return Pictures(labels=np.asarray(labels), num_classes=num_classes)


def test_all_labels_are_checked():
    config = config_with(data__conditional=True)
    labels = np.arange(3000) % 3
    assert run(config, labelled(labels), quick=False, mesh_devices=None)[0] == 0
    labels[1235] = 3  # one that no sample is likely to meet
    assert 1235 not in np.linspace(0, 2999, data_checks.SAMPLE).round()
    code, lines = run(config, labelled(labels), quick=False, mesh_devices=None)
    assert code == 1
    message = "1 of 3000 labels are not in [0, 3), the first that of image 1235: 3"
    assert f"error: {message}" in lines
    # The quick part does so where they are at hand.
    at_hand = labelled(labels)
    at_hand.labels = labels
    assert run(config, at_hand) == (1, [f"error: {message}"])
    assert run(config, labelled(labels))[0] == 0
    # Where they are not, it looks at those of its sample: the last image is always among it.
    labels[-1] = -1
    code, lines = run(config, labelled(labels))
    assert code == 1 and "image 2999 has label -1, not in [0, 3)" in lines[0]


def test_a_reader_of_labels_alone_is_used():
    source = labelled(np.arange(3000) % 3)
    source.read_label = lambda index: np.int32(index % 3 if index != 77 else -1)
    code, lines = run(config_with(data__conditional=True), source, quick=False, mesh_devices=None)
    assert code == 1 and "the first that of image 77: -1" in "\n".join(lines)
    assert len(source.images_read) <= data_checks.SAMPLE + 1  # and one for the kind of its label


def test_classes_without_images_and_labels_that_are_missing():
    config = config_with(data__conditional=True, train__batch_size=4)
    source = ArraySource(Pictures(3)[0]["image"][None].repeat(6, 0), [0, 1, 1, 3, 3, 0])
    assert run(config, source) == (
        0,
        [
            "warning: 1 of 4 classes have no image, such as class 2; the network will have "
            "inputs that are never trained"
        ],
    )
    unlabelled = Pictures(num_classes=2)
    unlabelled.__class__ = type(
        "Bare", (Pictures,), {"__getitem__": lambda s, i: {"image": Pictures(1)[0]["image"]}}
    )
    code, lines = run(config, unlabelled)
    assert code == 1 and "64 of 64 images looked at cannot be used" in lines[0]
    assert "image 0 has no label" in lines[0]
    code, lines = run(config, Pictures())
    assert code == 0 and "the data have no labels" in lines[0]


def test_vectors_as_labels():
    config = config_with(data__conditional=True, train__batch_size=4)
    images = Pictures()[0]["image"][None].repeat(4, 0)
    vectors = np.ones((4, 5), np.float32)
    assert run(config, ArraySource(images, vectors)) == (0, [])
    findings = checks.Findings()
    vectors[2, 1] = np.nan
    data_checks.check_labels(findings, vectors, types.SimpleNamespace(num_classes=5))
    assert (
        "1 of 4 labels are not vectors of 5 finite numbers, the first that of image 2"
        in (findings.errors[0])
    )


def _images(count, labels=None, **options):
    return ArraySource(Pictures(1)[0]["image"][None].repeat(count, 0), labels, **options)


def test_metrics_that_cannot_be_had_are_known_before():
    options = {"evaluation__num_images": 40, "train__batch_size": 4, "data__conditional": True}
    config = config_with(**options)
    for source, message in (
        (_images(8, np.zeros(8, int), num_classes=2), "'classifier' .* of one class; .*left out"),
        (_images(8, np.ones((8, 2))), "'classifier' .* vectors .*left out"),
    ):
        code, lines = run(config, source)
        assert code == 0 and re.search(message, "\n".join(lines)), lines
    assert run(config, _images(8, np.eye(2)[np.arange(8) % 2])) == (0, [])
    code, lines = run(config, _images(1, [0]))
    assert code == 0 and re.search("'frechet_pixels' .* 2 real images", "\n".join(lines))


def test_one_test_image_makes_no_floor(monkeypatch):
    config = config_with(evaluation__num_images=40, evaluation__metrics=("frechet_pixels",))
    monkeypatch.setattr(options.Data, "open_test", lambda self: _images(1))
    code, lines = run(config, _images(200))
    assert code == 0 and "takes 2 test images, and there is 1" in "\n".join(lines)


@pytest.mark.parametrize(("labels", "error"), [("2", False), ("3", True), ("random", False)])
def test_a_class_that_there_is_not_is_known_before(labels, error):
    config = config_with(
        evaluation__num_images=40, evaluation__labels=labels, data__conditional=True
    )
    code, lines = run(config, Pictures(num_classes=3))
    assert code == error
    told = "error: config.evaluation.labels=3 is out of range: the data have 3 classes"
    assert (told in lines) == error
    if error:
        assert "the data have no classes" in "\n".join(run(config, Pictures())[1])


def test_a_mirrored_image_is_one():
    config = config_with(evaluation__num_images=40, train__batch_size=4)
    code, lines = run(config, Mirrored(_images(1)))
    assert code == 0 and re.search("'frechet_pixels' .* 2 real images", "\n".join(lines))


def test_an_image_of_another_size_is_found(tmp_path):
    """In the quick part too, where the pixels of few are looked at."""
    for i in range(300):
        image = np.zeros((8, 8 + (i == 101), 1), np.uint8)
        (tmp_path / f"{i:03d}.png").write_bytes(encode_png(image))
    source = open_images(tmp_path)
    for quick in (True, False):
        code, lines = run(config_with(), source, quick=quick)
        assert code == 1
        (error,) = [line for line in lines if line.startswith("error")]
        assert "101.png has shape (8, 9, 1)" in error and "--mode=dataset --resolution=8x8" in error


def test_a_batch_of_more_than_all_images_is_told():
    code, lines = run(config_with(train__batch_size=64), _images(8))
    assert code == 0
    assert lines[0].startswith("warning: config.train.batch_size=64 is more than the 8 images")


def test_what_a_data_set_has_to_say_is_told():
    source = _images(200)
    source.notes = ("3 images were left out",)
    assert run(config_with(), source) == (0, ["warning: 3 images were left out"])


def test_an_empty_data_set():
    code, lines = run(config_with(), Pictures(count=0), quick=False, mesh_devices=None)
    assert code == 1 and "error: the data set digits is empty" in lines


# --------------------------------------------------------------------- what looks wrong


PUBLISHED = [
    *(cifar10.get_config(f"{a},{b}") for a in ("cond", "uncond") for b in ("ddpmpp", "ncsnpp")),
    *(f.get_config(b) for f in (ffhq64, afhqv2_64) for b in ("ddpmpp", "ncsnpp")),
    imagenet64.get_config(),
    digits.get_config(),
    tiny.get_config(),
    *(own_images.get_config(size) for size in ("32", "64", "128")),
    *(
        table2.get_config(",".join(cell))
        for cell in itertools.product(
            ("vp", "ve"), "ABCDEF", ("cifar10-cond", "cifar10-uncond", "ffhq", "afhqv2")
        )
    ),
]


def test_nothing_looks_wrong_with_the_configurations():
    for config in PUBLISHED:
        size = config.data.resolution
        shape = costs.DataShape((size, size, 3) if size else (8, 8, 1))
        experiment = build.experiment(config)
        net = experiment.build_network(shape)
        findings = checks.Findings()
        checks.check_settings(findings, experiment, 8)
        findings.warnings += checks.doubtful_network(net)
        assert findings.errors == findings.warnings == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment__probability": 0.1, "data__mirror": True}, "set config.data.mirror=False"),
        ({"model__dtype": "float16"}, "loss_scaling=1: small gradients vanish"),
        ({"train__lr_rampup_kimg": 1.0}, "longer than the whole run (0.48)"),
        (
            {"model__SongUNet__attn_resolutions": (16,)},
            "no level of the network has such a resolution",
        ),
        (
            {
                "model__name": "DhariwalUNet",
                "model__DhariwalUNet": dict(
                    model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=(8,)
                ),
            },
            "dec.8x8_in0, were to have attention but have 8 channels, less than the 64",
        ),
    ],
)
def test_doubtful_settings(options, message):
    code, lines = run(config_with(**options), Pictures())
    assert code == 0, lines
    assert len(lines) == 1 and lines[0].startswith("warning: ")
    if "model__name" in options:
        message = message.removeprefix("dec.8x8_in0")
    assert message in lines[0]


def test_sigma_data_that_differ():
    config = config_with()
    config.weight.edm.sigma_data = 0.7
    assert "the weight is 1 / c_out^2 only if they agree" in run(config, Pictures())[1][0]


@pytest.mark.parametrize(
    ("spread", "said"), [(0.75, False), (0.65, False), (0.9, False), (0.4, True), (0.99, True)]
)
def test_sigma_data_and_the_data(spread, said):
    """0.75 is set; 25 % is borne."""
    source = Pictures(spread=spread)
    spread = float(np.std(source[0]["image"] / 127.5))  # with levels rounded to bytes
    code, lines = run(config_with(), source)
    assert code == 0 and bool(lines) == said
    if said:
        assert f"is {spread:.3f} but config.precond.edm.sigma_data is 0.75" in lines[0]
        keys = "config.precond.edm.sigma_data and config.weight.edm.sigma_data"
        assert f"set {keys} to {spread:.2f}" in lines[0]


def test_images_of_one_grey():
    code, lines = run(config_with(), Pictures(spread=0.0))
    assert code == 0 and "all of one level of grey" in lines[0]
    assert not any("set config.precond" in line for line in lines)


def test_sigma_data_is_nothing_to_other_parameterisations():
    config = config_with(precond__name="vp", weight__name="inverse_square")
    assert run(config, Pictures(spread=0.2)) == (0, [])


def test_a_preset_of_another_resolution():
    config = cifar10.get_config("uncond")
    net = build.experiment(config).build_network(costs.DataShape((64, 64, 3)))
    (line,) = checks.doubtful_network(net)
    assert "the lowest level of the network is 16x16" in line and "(1, 2, 2, 2)" in line


def test_a_rate_too_high_for_the_batch():
    config = cifar10.get_config()
    config.train.update(batch_size=64)
    findings = checks.Findings()
    checks.check_settings(findings, build.experiment(config), 1)
    assert "config.train.lr=0.001 is high for a batch of 64" in findings.warnings[0]


# ------------------------------------------------------------- directory, disk, memory


def test_directory_of_another_configuration(tmp_path):
    workdir.record_config(tmp_path, config_with().to_dict())
    # As long as the run has left nothing, there is nothing to mix up with another.
    assert run(config_with(train__lr=0.5), Pictures(), tmp_path)[0] == 0
    (tmp_path / "samples").mkdir()
    before = sorted(tmp_path.iterdir())
    assert run(config_with(), Pictures(), tmp_path) == (0, [])
    code, lines = run(config_with(train__lr=0.5), Pictures(), tmp_path)
    assert code == 1 and "train.lr: 0.002 there, 0.5 now" in lines[0]
    assert sorted(tmp_path.iterdir()) == before
    code, lines = run(config_with(), Pictures(), tmp_path, quick=False, mesh_devices=None)
    assert any("holds this run, which starts anew" in line for line in lines)


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ({"image_shape": [4, 4, 1]}, r"a run on images of shape \[4, 4, 1\], the data set of this"),
        ({"num_classes": 3}, "a run on classes: 3, the data set of this"),
        ({"data": {"num_images": 99}}, "a run on 99 images, the data set of this .* has 200"),
        ({"data": {"num_images": 200}}, None),
        ({}, None),
    ],
)
def test_directory_of_other_images(tmp_path, there, message):
    """Said before the configuration is written there, not when the weights do not fit."""
    source = Pictures()
    workdir.check_same_data(tmp_path, source)  # nothing is there yet
    description = {"image_shape": list(source.image_shape), "num_classes": source.num_classes}
    for step, changes in (("00000001", there), ("00000002", {"num_classes": 99})):
        metadata = tmp_path / "checkpoints" / step / "description" / "metadata"
        metadata.parent.mkdir(parents=True)
        metadata.write_text(json.dumps({"format_version": 1} | description | changes))
        checkpoints.write_checksums(metadata.parent.parent)
    metadata.write_text(metadata.read_text().replace("99", "98"))  # damaged, so not believed
    workdir.write_atomically(tmp_path / "config.json", json.dumps(config_with().to_dict()))
    code, lines = run(config_with(), source, tmp_path)
    assert code == (1 if message else 0)
    assert not message or re.search(message, lines[0])


def test_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    code, lines = run(config_with(), Pictures(), tmp_path / "file" / "runs" / "a")
    assert code == 1 and f"cannot be written below {tmp_path / 'file'}" in lines[0]


@pytest.mark.parametrize(
    ("total", "interval", "keep_every", "keep_last"),
    [(30, 5, 0, 3), (30, 5, 10, 3), (31, 5, 10, 2), (7, 10, 0, 3), (10, 10, 10, 2), (99, 3, 9, 4)],
)
def test_checkpoints_at_once(total, interval, keep_every, keep_last):
    """Against saving them one after another."""
    there, most = [], 0
    for step in range(1, total + 1):
        if step % interval and step != total:
            continue
        there.append(step)  # written before an older one goes
        most = max(most, len(there))
        there = [
            s for i, s in enumerate(there)
            if i >= len(there) - keep_last or (keep_every and s % keep_every == 0)
        ]  # fmt: skip
    intervals = options.Intervals(total, 1, 0, interval, 0, keep_every)
    count = checks.checkpoints_at_once(intervals, keep_last)
    assert most <= count <= most + 1  # the one being written may be one to keep


def test_a_disk_that_is_too_small(tmp_path, monkeypatch):
    Usage = collections.namedtuple("Usage", "total used free")
    free = 3 * 2**20
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: Usage(0, 0, free))
    config = config_with()
    state = jax.ShapeDtypeStruct((2**18,), np.float32)  # 1 MiB
    # 30 steps, a checkpoint every 5, three are kept and one is being written.
    with pytest.raises(ConfigError, match="has 3 MiB free, but 4 checkpoints need 4 MiB"):
        report.require_disk(build.experiment(config), tmp_path / "new", state)
    # What lies there already counts as room.
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "data").write_bytes(bytes(2**20))
    report.require_disk(build.experiment(config), tmp_path, state)
    free = 2**10
    code, lines = run(config, Pictures(), tmp_path / "a", quick=False, mesh_devices=None)
    assert code == 1 and "has 1 KiB free" in "\n".join(lines)


def test_devices_that_are_too_small():
    code, lines = run(
        config_with(), Pictures(), quick=False, mesh_devices=None, device_gib=1e-4
    )  # fmt: skip
    assert code == 1
    assert any(
        "error: weights, optimizer and averages need" in line and "has 105 KiB" in line
        for line in lines
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [(5, "5 bytes"), (1536, "1.5 KiB"), (3.21 * 2**30, "3.21 GiB"), (2**42, "4 TiB")],
)
def test_sizes(count, text):
    assert words.size(count) == text
