"""Data sets of one image or one class, from the command line to the evaluation."""

import json

import numpy as np
import pytest

from edm_jax.data.sources.decode import encode_png
from tests.support.made_images import noise, write_folder

RUN = (
    "--config.data.source=images", "--config.train.batch_size=8", "--config.train.total_kimg=0.016",
    "--config.train.sample_kimg=0", "--config.evaluation.num_images=4",
    "--config.evaluation.trajectory_seeds=0", "--config.sampler.num_steps=1",
)  # fmt: skip


def _folder(path, count, labels):
    """Images of 8x8, and the class 0 for each if ``labels``."""
    files = {f"{i}.png": encode_png(noise(8, 8, 1)) for i in range(count)}
    if labels:
        told = {"labels": [[name, 0] for name in files]}
        files["dataset.json"] = json.dumps(told).encode()
    return write_folder(path, files)


@pytest.mark.slow  # two runs: what is left out at the end must be known at the start
@pytest.mark.parametrize(
    ("count", "labels", "left_out"),
    [
        pytest.param(1, False, ("frechet_pixels", "classifier"), marks=pytest.mark.soak),
        (6, True, ("classifier",)),
    ],
)
def test_what_can_be_given_is_given(count, labels, left_out, one_device, call, tmp_path):
    path = _folder(tmp_path / "images", count, labels)
    words = ["--config=configs/tiny.py", *RUN, f"--config.data.path={path}",
             f"--config.data.conditional={labels}"]  # fmt: skip
    told = call("--mode=preflight", *words).stdout
    call(*words, f"--workdir={tmp_path / 'run'}")
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert set(result["left_out"]) == set(left_out)
    for metric in left_out:
        assert f"'{metric}'" in told and "it will be left out" in told
    if "frechet_pixels" not in left_out:
        assert np.isfinite(result["frechet_distance"])
