"""Guidance on the command line."""

import json

import numpy as np
import pytest
from PIL import Image


def images_of(folder):
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("0*.png"))]


@pytest.mark.slow
def test_a_model_guided_away_from_itself_is_itself(call, run_dir, tmp_path):
    common = ("--mode=sample", f"--workdir={run_dir}", "--seeds=0-3", "--labels=3")
    call(*common, f"--outdir={tmp_path / 'plain'}")
    guided = ("--guidance=autoguidance", f"--guidance_model={run_dir}", "--guidance_scale=3")
    call(*common, *guided, f"--outdir={tmp_path / 'guided'}")
    for a, b in zip(images_of(tmp_path / "plain"), images_of(tmp_path / "guided"), strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1  # rounding of two programs
    settings = json.loads((tmp_path / "guided" / "settings.json").read_text())
    assert settings["guidance"] == {
        "name": "autoguidance", "scale": 3.0, "model": str(run_dir),
    }  # fmt: skip
    refused = call(*common, f"--outdir={tmp_path / 'guided'}", code=2)
    assert "guidance differ" in refused.stderr
    refused = call(*common, "--guidance=cfg", "--guidance_scale=2", code=2)
    assert "trained with label dropout" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sample", "evaluate"])
def test_what_is_refused_leaves_nothing(mode, call, run_dir, tmp_path):
    common = (f"--mode={mode}", f"--workdir={run_dir}", f"--outdir={tmp_path / 'out'}")
    for words, message in (
        (("--guidance=cfg", "--guidance_scale=2"), "trained with label dropout"),
        (("--threshold=dynamic", "--threshold_percentile=99.5"), "0.995 for 99.5 percent"),
        (
            ("--guidance=autoguidance", f"--guidance_model={tmp_path}", "--guidance_scale=2"),
            str(tmp_path),
        ),
        (
            ("--guidance=autoguidance", f"--guidance_model={run_dir}", "--guidance_scale=2",
             "--guidance_interval=3,1"),
            "low <= high, got (3.0, 1.0)",
        ),
    ):  # fmt: skip
        done = call(*common, *words, code=2)
        assert message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--guidance_scale=2"], "--guidance_scale says nothing without --guidance"),
        (["--guidance=cfg"], "--guidance=cfg needs a strength, --guidance_scale=2"),
        (["--guidance=cgf"], "did you mean cfg"),
        (["--guidance=autoguidance", "--guidance_scale=2"], "needs the weaker model"),
        (["--guidance=classifier", "--guidance_scale=2"], "needs the classifier"),
        (["--guidance=cfg", "--guidance_form=mean"], "belongs to --guidance=classifier"),
        (
            ["--guidance=autoguidance", "--guidance_scale=2", "--guidance_model=runs/of/nobody"],
            "--guidance_model=runs/of/nobody: there is nothing",
        ),
        (["--guidance_interval=3"], "must be two noise levels, low and high"),
        (["--threshold_percentile=0.9"], "belongs to --threshold=dynamic"),
    ],
)
def test_what_says_nothing_is_one_line(words, message, call, tmp_path):
    done = call("--mode=sample", f"--workdir={tmp_path}", *words, code=2)
    assert message in done.stderr and done.stderr.count("\n") == 1
