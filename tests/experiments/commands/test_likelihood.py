"""--mode=likelihood: the numbers, where they go, stopping and going on, what is refused."""

import json
import shutil
import sys

import numpy as np
import pytest
import scipy.stats

import edm_jax
from edm_jax.likelihood import record
from experiments import likelihoods
from tests.support.exact_model import STD, exact_model, images
from tests.support.flow_commands import LABELS, exact, one_line  # noqa: F401  (fixture)

SOURCE = "--source=data.npz"
MEANS = np.array([0.25, -0.25])


def result_of(path):
    (file,) = path.glob("*/likelihood.json")
    return json.loads(file.read_text()), file.parent


def test_both_numbers_with_all_they_depend_on(exact):  # noqa: F811
    flags = [SOURCE, "--num_steps=4", "--num_levels=4", "--batch_size=2"]
    said = exact("likelihood", *flags).stdout
    result, directory = result_of(exact.path / "run" / "likelihoods")
    assert result["numbers"] == ["ode", "elbo"] and result["data"]["num_images"] == 5
    settings = {"ode": {"num_steps": 4}, "elbo": {"method": "bound", "num_steps": 4}}
    for name, options in settings.items():
        options |= {"batch_size": 2}  # the same program
        expected = edm_jax.log_likelihood(exact.model, images(5), LABELS, **options).summary()
        one = result[name]
        for key in ("nats", "nats_standard_error", "bits_per_dim", "bits_per_dim_standard_error"):
            assert one[key] == pytest.approx(expected[key], rel=1e-6)
        assert one["step_difference_bits_per_dim"] == pytest.approx(
            expected["step_difference_bits_per_dim"], rel=1e-6
        )
        wanted = {
            "model", "method", "dequantisation", "sigma_min", "sigma_max", "solver", "num_steps",
            "num_probes", "passes",
        }  # fmt: skip
        assert wanted <= set(one) and one["model"]["ema"] == "ema_test"
        assert f"{one['bits_per_dim']:.4f} ± {one['bits_per_dim_standard_error']:.4f}" in said
    # Again: nothing is done, nothing is written.
    before = (directory / "likelihood.json").stat().st_mtime_ns
    again = exact("likelihood", *flags).stdout
    assert "is finished already" in again and "0.002 gaussian" in again
    assert (directory / "likelihood.json").stat().st_mtime_ns == before


def test_the_number_is_the_probability_and_requests_stay_apart(exact):  # noqa: F811
    """Uniform dequantisation, against the probability of each bin."""
    flags = (SOURCE, "--bound=ode", "--dequantisation=uniform", "--sigma_min=0.0005")
    exact("likelihood", *flags, "--name=mine")
    folder = exact.path / "run" / "likelihoods"
    result, directory = result_of(folder)
    assert directory.name == "mine" and not (directory / "elbo.npz").exists()
    x, half = images(5) / 127.5 - 1, 1 / 255
    law = scipy.stats.norm(MEANS[LABELS].reshape(-1, 1, 1, 1), STD)
    log_p = np.log(law.cdf(x + half) - law.cdf(x - half)).sum(axis=(1, 2, 3))
    with np.load(directory / "ode.npz") as values:
        # The solver is right to 6e-3 nats, noise and prior move the density by less than 0.05.
        np.testing.assert_allclose(values["log_likelihood"], log_p, atol=0.05)
    assert result["ode"]["nats"] == pytest.approx(log_p.mean(), abs=0.05)
    refused = one_line(exact("likelihood", *flags, "--labels=1", "--name=mine", code=2))
    assert "another request (data, labels differ); choose another --name" in refused
    other = one_line(exact("likelihood", *flags, "--num_images=3", "--name=mine", code=2))
    assert "(data differ)" in other
    assert json.loads((directory / "likelihood.json").read_text()) == result


def test_stopped_it_goes_on_with_the_same_numbers(exact, monkeypatch):  # noqa: F811
    flags = [SOURCE, "--bound=ode", "--num_steps=4", "--batch_size=2"]
    exact("likelihood", *flags, "--outdir=whole")
    evaluate, calls = record.log_likelihood, []

    def stops(*arguments, **options):
        calls.append(options["image_ids"].tolist())
        if len(calls) == 2:
            raise OSError("the power went")
        return evaluate(*arguments, **options)

    monkeypatch.setattr(record, "log_likelihood", stops)
    exact("likelihood", *flags, "--outdir=parts", code=1)
    assert not list((exact.path / "parts").glob("*/likelihood.json"))
    said = exact("likelihood", *flags, "--outdir=parts").stdout
    assert "ode: 2 of 5 images are there already" in said
    assert calls == [[0, 1], [2, 3], [2, 3], [4, 4]]
    (whole, a), (parts, b) = (result_of(exact.path / name) for name in ("whole", "parts"))
    assert whole == parts and a.name == b.name
    with np.load(a / "ode.npz") as one, np.load(b / "ode.npz") as two:
        np.testing.assert_array_equal(one["log_likelihood"], two["log_likelihood"])
    (b / "likelihood.json").unlink()
    (b / "ode.npz").write_bytes(b"half a file")
    refused = one_line(exact("likelihood", *flags, "--outdir=parts", code=2))
    assert "cannot be read" in refused and "delete it" in refused


def test_killed_at_any_moment_it_gives_the_same_result(exact, monkeypatch):  # noqa: F811
    """Every state of its folder that a killed process can leave leads to the same files."""
    flags = [SOURCE, "--num_steps=4", "--num_levels=4", "--batch_size=2"]
    monkeypatch.setattr(likelihoods, "SAVE_SECONDS", 0.0)
    evaluate, left = record.log_likelihood, []

    def copies(*arguments, **options):
        left.append(exact.path / f"left{len(left)}")
        shutil.copytree(exact.path / "whole", left[-1])
        return evaluate(*arguments, **options)

    monkeypatch.setattr(record, "log_likelihood", copies)
    exact("likelihood", *flags, "--outdir=whole")
    whole, directory = result_of(exact.path / "whole")
    monkeypatch.setattr(record, "log_likelihood", evaluate)
    assert len(left) == 6  # before each of three batches, twice
    for number, folder in enumerate(left):
        (half,) = folder.iterdir()
        (half / ".elbo.npz").write_bytes(b"killed while writing")
        said = exact("likelihood", *flags, f"--outdir={folder.name}").stdout
        assert ("of 5 images are there already" in said) == (number > 0)
        assert result_of(folder)[0] == whole
        for name in ("ode", "elbo"):
            with np.load(half / f"{name}.npz") as a, np.load(directory / f"{name}.npz") as b:
                assert set(a) == set(b)
                for key in a:
                    np.testing.assert_array_equal(a[key], b[key])


def test_progress_has_rate_and_time_left():
    line = likelihoods._progress("ode", 640, 10_000, 320, 32.0)
    assert line == "ode: 640 of 10000 images, 10 a second, 15m36s left"


BAD = {
    "guidance": (["--guidance=cfg"], "--guidance: a guided, thresholded or clipped denoiser"),
    "churn": (["--s_churn=3"], "--s_churn: the flow has no noise"),
    "another bound": (["--bound=ode", "--num_levels=8"], "--num_levels belongs to --bound=elbo"),
    "levels of the ode": (["--bound=elbo", "--num_steps=8"], "--num_steps belongs to --bound=ode"),
    "uniform bound": (["--dequantisation=uniform"], "give --bound=ode too"),
    "tolerance": (["--tolerance=1e-3"], "--tolerance belongs to --solver=adaptive"),
    "solver": (["--solver=rk5"], "did you mean"),
    "noise": (["--sigma_min=90"], "sigma_min"),
    "odd levels": (["--num_levels=7"], "even number"),
    "two data sets": (["--split=train"], "--split and --source name two data sets"),
    "too many": (["--num_images=6"], "--num_images=6: data.npz has 5"),
    "label": (["--labels=7"], "label 7 is out of range"),
    "label text": (["--labels=3-x,1"], "labels"),
    "name": (["--name=a/b"], "--name=a/b: letters"),
    "no workdir": (["--outdir=data.npz"], "cannot be written"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, exact):  # noqa: F811
    arguments, message = BAD[case]
    assert message in one_line(exact("likelihood", SOURCE, *arguments, code=2))


def test_nothing_is_left_of_what_is_refused(exact, monkeypatch):  # noqa: F811
    """A missing package, and pixels of another range."""
    monkeypatch.setitem(sys.modules, "diffrax", None)  # as if it were not installed
    refused = one_line(exact("likelihood", SOURCE, "--bound=ode", "--solver=adaptive", code=2))
    assert "adaptive steps need diffrax: pip install" in refused
    np.savez(exact.path / "floats.npz", images=images(2) / 127.5 - 1)
    refused = one_line(exact("likelihood", "--source=floats.npz", code=2))
    assert "expected one array of images, (n, H, W, C) uint8, got images float64" in refused
    assert not list((exact.path / "run").iterdir())


def test_other_images_and_models_are_one_line(exact, monkeypatch):  # noqa: F811
    refused = one_line(exact("likelihood", code=2))
    assert "give --source=FOLDER" in refused
    np.savez(exact.path / "large.npz", images=np.zeros((2, 4, 4, 1), np.uint8))
    refused = one_line(exact("likelihood", "--source=large.npz", code=2))
    assert "large.npz has images of 4x4x1, the model is one of 2x2x1" in refused
    np.savez(exact.path / "bare.npz", images=images(2))
    refused = one_line(exact("likelihood", "--source=bare.npz", code=2))
    assert "bare.npz has no labels; give --labels=3" in refused
    np.savez(exact.path / "more.npz", images=images(2), labels=np.array([0, 4]))
    refused = one_line(exact("likelihood", "--source=more.npz", code=2))
    assert "more.npz has 5 classes, the model 2" in refused
    monkeypatch.setattr(edm_jax, "load", lambda path, variant=None: exact_model())
    refused = one_line(exact("likelihood", SOURCE, "--labels=none", code=2))
    assert "the model is unconditional; leave --labels out" in refused


@pytest.mark.slow
def test_a_run_and_its_own_test_images(run_dir, call, tmp_path):
    """Everything a user does with a run, through files."""
    outdir, steps = f"--outdir={tmp_path / 'out'}", ["--num_steps=2", "--batch_size=8"]
    flags = ["--mode=likelihood", f"--workdir={run_dir}", outdir, *steps, "--num_levels=2"]
    said = call(*flags, "--num_images=4").stdout
    assert "4 images of the test images of digits" in said
    result, _ = result_of(tmp_path / "out")
    assert result["data"]["split"] == "test" and result["data"]["of"] == 297
    assert result["ode"]["model"]["image_shape"] == [8, 8, 1]
    strip = tmp_path / "strip.png"
    call("--mode=interpolate", f"--workdir={run_dir}", "--seeds=1,2", "--num_frames=3",
         f"--dest={strip}", *steps)  # fmt: skip
    assert strip.stat().st_size > 200
