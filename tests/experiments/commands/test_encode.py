"""--mode=encode and --mode=decode: codes of known images, and the way back."""

import json

import numpy as np
import pytest

import edm_jax
from edm_jax.evaluation.pictures import open_pictures
from tests.support.exact_model import STD, exact_model, images
from tests.support.flow_commands import LABELS, exact, one_line  # noqa: F401  (fixture)

ENCODE = ("encode", "--source=data.npz", "--dest=codes.npz")


def test_codes_are_those_of_gaussian_data_and_lead_back(exact):  # noqa: F811
    said = exact(*ENCODE, "--num_steps=32").stdout
    assert "5 codes" in said
    with np.load(exact.path / "codes.npz") as codes:
        values = codes["values"]
        assert codes["num_steps"] == 32 and codes["sigma_max"] == 80
    # The flow of N(m, STD^2) scales what is left of the mean by the ratio of deviations.
    mean = np.array([0.25, -0.25])[LABELS].reshape(-1, 1, 1, 1)
    ratio = np.hypot(STD, 80) / np.hypot(STD, 0.002)
    expected = (mean + (images(5) / 127.5 - 1 - mean) * ratio) / 80
    # 32 steps of rk4: 4e-4 for one element of the test bed (docs/likelihood.md), times its size.
    np.testing.assert_allclose(values, expected, atol=3e-3)

    exact("decode", "--source=codes.npz", "--outdir=again")
    found = open_pictures(exact.path / "again")
    again = np.stack([found[i]["image"] for i in range(5)])
    # Right to far less than a level, so that bytes differ by rounding at most.
    assert np.abs(again.astype(int) - images(5)).max() <= 1
    assert [int(found[i]["label"]) for i in range(5)] == LABELS.tolist()

    exact("decode", "--source=codes.npz", "--outdir=other", "--labels=0")
    told = json.loads((exact.path / "other" / "dataset.json").read_text())
    assert [label for _, label in told["labels"]] == [0] * 5
    other = open_pictures(exact.path / "other")
    # The code of an image of class 1 is half a unit brighter as one of class 0.
    change = other[1]["image"].astype(int) - again[1]
    assert np.all(np.abs(change[again[1] < 180] - 0.5 * 127.5) <= 2)


BAD = {
    "guidance": (["--guidance_scale=2"], "--guidance_scale: a guided"),
    "churn": (["--s_churn=3"], "--s_churn: the flow has no noise"),
    "adaptive": (["--solver=adaptive"], "adaptive"),
    "noise": (["--sigma_max=0.001"], "sigma_max"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, exact):  # noqa: F811
    arguments, message = BAD[case]
    assert message in one_line(exact(*ENCODE, *arguments, code=2))
    assert not (exact.path / "codes.npz").exists()


def test_what_is_there_stays(exact, monkeypatch):  # noqa: F811
    (exact.path / "codes.npz").write_text("mine")
    assert "exists; delete it" in one_line(exact(*ENCODE, code=2))
    refused = one_line(exact("encode", "--source=data.npz", "--dest=codes.txt", code=2))
    assert "must be a file that ends with .npz" in refused
    refused = one_line(exact("encode", "--source=data.npz", "--dest=data.npz/c.npz", code=2))
    assert "cannot be written" in refused
    np.savez(exact.path / "large.npz", images=np.zeros((2, 4, 4, 1), np.uint8))
    refused = one_line(exact("encode", "--source=large.npz", "--dest=new.npz", code=2))
    assert "images of 4x4x1, the model is one of 2x2x1" in refused

    decode = ("decode", "--source=codes.npz")
    assert "no readable file of codes" in one_line(exact(*decode, "--outdir=new", code=2))
    refused = one_line(exact("decode", "--source=data.npz", "--outdir=new", code=2))
    assert "no file of codes: model, sigma_max, sigma_min, values missing" in refused
    refused = one_line(exact("decode", "--source=none.npz", "--outdir=new", code=2))
    assert "--source=none.npz: there is no such file" in refused
    (exact.path / "full").mkdir()
    (exact.path / "full" / "a.txt").write_text("mine")
    assert "is not empty" in one_line(exact(*decode, "--outdir=full", code=2))

    model = exact.model
    codes = edm_jax.encode(model, images(2), [0, 1], num_steps=32)
    np.savez(exact.path / "theirs.npz", **codes.to_arrays())
    theirs = ("decode", "--source=theirs.npz", "--outdir=new")
    for flag, message in (("--solver=rk5", "did you mean"), ("--sigma_min=90", "sigma_min")):
        assert message in one_line(exact(*theirs, flag, code=2))
    broken = codes.to_arrays() | {"values": np.full_like(codes.values, np.nan)}
    np.savez(exact.path / "broken.npz", **broken)
    refused = one_line(exact("decode", "--source=broken.npz", "--outdir=new", code=2))
    assert "--source=broken.npz: codes must be finite" in refused
    other = exact_model(num_classes=2, scale=0.5)
    monkeypatch.setattr(edm_jax, "load", lambda path, variant=None: other)
    refused = one_line(exact(*theirs, code=2))
    assert "made by another model or other weights" in refused
    assert not (exact.path / "new").exists()
