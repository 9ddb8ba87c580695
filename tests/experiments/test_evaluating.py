"""--mode=evaluate and --mode=reference on a model that has not been trained."""

import json
import re
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from edm_jax import models
from edm_jax.data.sources import digits
from edm_jax.evaluation import pictures
from edm_jax.metrics.frechet import frechet_between
from edm_jax.model import describe
from edm_jax.store.single_file import write_single_file
from experiments import evaluations
from tests.support.command_line import start
from tests.support.made_images import encode, noise, write_folder
from tests.support.paths import ROOT

CONFIG = "--config=configs/tiny.py"
RESULT = "evaluation.json"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A file with a network for the digits, its last layer nearly zero."""
    network = dict(
        name="SongUNet", img_resolution=8, in_channels=1, out_channels=1, label_dim=10,
        model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[],
    )  # fmt: skip
    description = describe(
        network=network,
        precond={"name": "edm", "sigma_data": 0.75},
        image_shape=(8, 8, 1),
        num_classes=10,
    )
    net = models.build(network.pop("name"), **network)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    variables = jax.tree.map(np.asarray, models.init_variables(net, jax.random.key(0)))
    write_single_file(path, description, {"ema": variables})
    return path


@pytest.fixture
def evaluate(model, call, tmp_path):
    """Evaluates the model; the result and what was said."""

    def run(*arguments, name="mine", code=0):
        flags = [
            "--mode=evaluate", CONFIG, f"--workdir={model}", f"--outdir={tmp_path}",
            f"--name={name}", "--num_images=20", "--num_steps=2", "--batch_size=8", *arguments,
        ]  # fmt: skip
        done = call(*flags, code=code)
        file = tmp_path / name / RESULT
        return (json.loads(file.read_text()) if file.exists() else None), done

    return run


def features(images):
    return images.reshape(len(images), -1) / 127.5 - 1


def test_the_whole_protocol_in_small(evaluate, tmp_path):
    result, done = evaluate(
        "--metrics=frechet_pixels,classifier,kid@pixels,pr@pixels", "--blocks=3", "--labels=random"
    )
    detail = result["results"]["frechet_pixels"]
    assert len(detail["blocks"]) == 3 and result["frechet_distance"] == min(detail["blocks"])
    assert detail["mean"] == pytest.approx(np.mean(detail["blocks"]))
    # configs/tiny.py says it of the digits: 0.56 between real training and test digits
    assert result["frechet_distance_floor"] == pytest.approx(0.5624, abs=1e-4)
    assert result["class_accuracy_real_test"] == pytest.approx(0.993, abs=1e-3)
    assert result["labels"] == "random" and result["num_blocks"] == 3 and result["nfe"] == 3
    assert result["references"]["pixels"]["floor"] > 0 and result["device"]
    assert (tmp_path / "mine" / "evaluation_samples.png").stat().st_size > 1000
    assert "minimum of" in done.stdout and "biased upwards" in done.stdout
    assert not list((tmp_path / evaluations.UNFINISHED).rglob("*.npz"))
    refused = evaluate("--metrics=frechet_pixels,classifier,kid@pixels,pr@pixels", code=2)[1]
    assert "(num_blocks, labels differ)" in refused.stderr.replace(
        "labels, num_blocks", "num_blocks, labels"
    )


def test_a_folder_an_archive_and_a_stream_give_one_number(evaluate, model, call, tmp_path):
    """8-bit PNG holds the very bytes that the stream measures: no difference is allowed."""
    streamed = evaluate("--metrics=frechet_pixels,classifier", "--labels=random", "--first_seed=0")[
        0
    ]
    reference = tmp_path / "digits.npz"
    call("--mode=reference", CONFIG, "--extractor=pixels", f"--dest={reference}")
    sample = ["--mode=sample", f"--workdir={model}", "--seeds=0-19", "--num_steps=2",
              "--batch_size=8"]  # fmt: skip
    for name, extra in (("folder", ["--subdirs"]), ("images.npz", []), ("images.zip", [])):
        images = tmp_path / "out" / name
        call(*sample, f"--outdir={images}", *extra)
        source = pictures.open_pictures(images)
        assert len(source) == 20 and source.num_classes > 1
        call("--mode=evaluate", f"--images={images}", f"--reference={reference}",
             f"--outdir={tmp_path}", f"--name={name}", "--metrics=frechet_pixels,classifier",
             "--config=configs/tiny.py")  # fmt: skip
        found = json.loads((tmp_path / name / RESULT).read_text())
        # fakes: one device there, eight here; rounding to bytes may fall the other way
        assert found["frechet_distance"] == pytest.approx(streamed["frechet_distance"], rel=1e-4)
        assert found["class_accuracy"] == streamed["class_accuracy"]
        assert found["images"] == str(images)
    assert (tmp_path / "out" / "folder" / "000000" / "000007.png").exists()
    refused = call(*sample, f"--outdir={tmp_path / 'out' / 'images.npz'}", code=2).stderr
    assert "exists; delete it or choose another name" in refused


def test_a_reference_is_that_of_numpy(call, tmp_path):
    dest = tmp_path / "digits.npz"
    said = call("--mode=reference", CONFIG, "--extractor=pixels", f"--dest={dest}").stdout
    source = digits.open_split("", "train")
    real = features(np.stack([source[i]["image"] for i in range(len(source))]))
    with np.load(dest) as archive:
        np.testing.assert_allclose(archive["mu"], real.mean(0), rtol=0, atol=1e-6)  # float32
        np.testing.assert_allclose(archive["sigma"], np.cov(real.T), rtol=0, atol=1e-6)
        assert archive["features"].shape == real.shape
    floor = frechet_between(real[::2], real[1::2])
    assert f"{floor:.4g} apart" in said
    refused = call("--mode=reference", CONFIG, "--extractor=pixels", f"--dest={dest}", code=2)
    assert "exists" in refused.stderr
    bare = tmp_path / "bare.npz"
    call("--mode=reference", CONFIG, "--extractor=pixels", f"--dest={bare}", "--statistics_only")
    with np.load(bare) as archive:
        assert "features" not in archive.files


def wrong_images(path):
    rgba = np.dstack([noise(8, 8), np.full((8, 8), 100, np.uint8)])
    write_folder(path / "sizes", {"a.png": encode(noise(8, 8)), "b.png": encode(noise(9, 8))})
    write_folder(path / "rgba", {"a.png": encode(rgba), "b.png": encode(rgba)})
    png = encode(noise(8, 8))
    write_folder(path / "cut", {"a.png": png, "b.png": png[:60]})
    write_folder(path / "one", {"a.png": png})
    (path / "empty").mkdir()
    (path / "text.npz").write_text("text")
    np.savez(path / "floats.npz", images=np.zeros((4, 8, 8, 3)))
    np.savez(path / "four.npz", images=np.zeros((4, 8, 8, 4), np.uint8))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sizes", r"b.png has shape \(9, 8, 3\), expected \(8, 8, 3\)"),
        ("rgba", "a.png.*transparen"),
        ("cut", "b.png"),
        ("one", "at least 2 images, got 1"),
        ("empty", "no images among 0 files"),
        ("nothing", "no such file or directory"),
        ("text.npz", "no readable .npz"),
        ("floats.npz", r"one array of images, \(n, H, W, C\) uint8, got images float64"),
        ("four.npz", r"C = 1 or 3"),
    ],
)
def test_wrong_pictures_are_one_line(name, message, call, tmp_path):
    wrong_images(tmp_path)
    real = write_folder(tmp_path / "real", {f"{i}.png": encode(noise(8, 8)) for i in range(4)})
    reference = tmp_path / "r.npz"
    call("--mode=reference", f"--images={real}", "--extractor=pixels", f"--dest={reference}")
    done = call(
        "--mode=evaluate", f"--images={tmp_path / name}", f"--reference={reference}",
        "--metrics=frechet_pixels", f"--outdir={tmp_path / 'results'}", code=2,
    )  # fmt: skip
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and re.search(message, line)


def test_what_does_not_fit_is_refused_before_work(evaluate, call, tmp_path):
    real = write_folder(tmp_path / "real", {f"{i}.png": encode(noise(8, 8, 1)) for i in range(4)})
    large = write_folder(tmp_path / "large", {f"{i}.png": encode(noise(9, 9)) for i in range(4)})
    for images, name in ((real, "real.npz"), (large, "large.npz")):
        flags = [f"--images={images}", "--extractor=pixels", f"--dest={tmp_path / name}"]
        call("--mode=reference", *flags)
    np.savez(tmp_path / "published.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    (tmp_path / "truncated.pth").write_bytes(b"PK\3\4 and no more")
    pixels = ["--metrics=frechet_pixels"]
    for extra, message in (
        (["--metrics=fid"], "weights of Inception-v3 are not given; set --inception to one of"),
        (["--metrics=fid"], "pt_inception-2015-12-05-6726825d.pth (a state dictionary, about 96"),
        (["--metrics=fid", f"--inception={tmp_path / 'none'}"], "there is no such file or folder"),
        (["--metrics=fid", f"--inception={tmp_path / 'truncated.pth'}"], "truncated.pth"),
        (["--metrics=fidd"], "unknown metric 'fidd'; did you mean 'fid'"),
        ([*pixels, f"--reference={tmp_path / 'no.npz'}"], "there is no such file"),
        ([*pixels, f"--reference={tmp_path / 'published.npz'}"], "is of another extractor than"),
        ([*pixels, f"--reference={tmp_path / 'large.npz'}"], "gives 64; make the reference with"),
        ([*pixels, "--labels=eleven"], "labels must be balanced, random or a class index"),
        ([*pixels, "--labels=11"], "label 11 is out of range"),
        (["--checkpoints=all"], "has no checkpoints"),
        (["--variant=all"], "--variant=all is for a run directory"),
    ):
        result, done = evaluate(*extra, code=2)
        assert result is None and message in done.stderr, done.stderr
        assert "drawing" not in done.stdout and len(done.stderr.splitlines()) == 1


def test_single_features_that_a_reference_has_not(evaluate, call, tmp_path):
    bare = tmp_path / "bare.npz"
    call("--mode=reference", CONFIG, "--extractor=pixels", f"--dest={bare}", "--statistics_only")
    result, done = evaluate("--metrics=frechet_pixels,kid@pixels", f"--reference={bare}")
    assert "frechet_distance" in result and "kid@pixels" not in result
    assert "statistics only" in result["left_out"]["kid@pixels"]
    assert done.stdout.index("kid@pixels is left out") < done.stdout.index("drawing")


KILLED = """
import os, sys
sys.path.insert(0, {root!r})
from edm_jax.evaluation import measuring
from experiments import main
save, results, add = (
    measuring.StateFile.save, measuring.Measurement.results, measuring.Progress.add
)
batches = []
def kill():
    sys.stdout.flush()
    os.kill(os.getpid(), 9)
def add_or_die(self, count):
    add(self, count)
    if self.name == "evaluation":
        batches.append(count)
        if {where!r} == "drawing" and len(batches) == 2:
            kill()
def measure_or_die(self, references):
    if {where!r} == "measuring" and batches:
        kill()
    return results(self, references)
# A state after every batch.
measuring.StateFile.save = lambda self, measurement, now=False: save(self, measurement, now=True)
measuring.Progress.add, measuring.Measurement.results = add_or_die, measure_or_die
sys.exit(main.main(["main.py", *{words!r}]))
"""


@pytest.mark.slow
def test_killed_and_gone_on_with(model, environment, command, tmp_path):
    """kill -9 after the second batch, and when all images are there; then the same command."""

    def words(name):
        return [
            "--mode=evaluate", CONFIG, f"--workdir={model}", f"--outdir={tmp_path / name}",
            "--name=x", "--num_images=20", "--num_steps=2", "--batch_size=8",
            "--metrics=frechet_pixels,pr@pixels,classifier",
        ]  # fmt: skip

    for where in ("drawing", "measuring"):
        program = KILLED.format(root=str(ROOT), where=where, words=words("killed"))
        killed = subprocess.run(
            [sys.executable, "-c", program], env=environment, cwd=ROOT, stdout=-1, text=True
        )
        assert killed.returncode == -signal.SIGKILL
        assert ("going on after 16 of 20" in killed.stdout) == (where == "measuring")
        assert list((tmp_path / "killed" / evaluations.UNFINISHED).rglob("*.npz"))
    assert "going on after 20 of 20" in command(*words("killed"), cwd=ROOT).stdout
    command(*words("whole"), cwd=ROOT)
    results = [json.loads((tmp_path / n / "x" / RESULT).read_text()) for n in ("killed", "whole")]
    assert results[0] == results[1]


@pytest.mark.slow
def test_two_processes_and_eight_devices_measure_as_one(
    model, environment, command, evaluate, tmp_path, free_port
):
    words = [
        "--mode=evaluate", CONFIG, f"--workdir={model}", "--num_images=20", "--num_steps=2",
        "--name=x", "--metrics=frechet_pixels,pr@pixels,classifier",
    ]  # fmt: skip
    both = [
        start(
            environment, *words, "--batch_size=4", f"--outdir={tmp_path / 'two'}",
            f"--coordinator_address=localhost:{free_port}", "--num_processes=2",
            f"--process_id={i}", stdout=-1, stderr=-1,
        )
        for i in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "class accuracy" in said[0][0] and "class accuracy" not in said[1][0]
    command(*words, "--batch_size=8", f"--outdir={tmp_path / 'one'}", cwd=ROOT)
    eight = evaluate("--metrics=frechet_pixels,pr@pixels,classifier")[0]
    two, one = (json.loads((tmp_path / n / "x" / RESULT).read_text()) for n in ("two", "one"))
    assert (eight["device"], one["device"], two["device"]) == ("8 x cpu", "1 x cpu", "2 x cpu")
    for other in (two, eight):
        # arrays of other sizes: a byte in some thousands is rounded the other way
        assert other["frechet_distance"] == pytest.approx(one["frechet_distance"], rel=1e-4)
        assert other["class_accuracy"] == one["class_accuracy"]
        assert other["results"]["pr@pixels/recall"] == one["results"]["pr@pixels/recall"]


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
