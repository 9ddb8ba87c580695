"""The examples of docs/studies.md run as they stand, and its file of a study is one."""

import contextlib
import json
import re

import numpy as np
import pytest

from edm_jax.data.sources.base import ArraySource
from edm_jax.studies import Study
from tests.support.paths import ROOT
from tests.support.small_model import small_model

TEXT = (ROOT / "docs/studies.md").read_text()


@pytest.mark.slow
def test_examples(tmp_path, capsys):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8, 1), np.uint8)
    names = {"model": small_model(), "source": ArraySource(images, np.arange(40) % 10)}
    examples = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.M | re.S)
    with contextlib.chdir(tmp_path):
        for code in examples:
            exec(code, names)
    assert len(examples) == 3 and names["best"]["num_steps"] in (3, 6)
    assert (tmp_path / "diagnosis.html").exists()
    assert "on fresh seeds" in capsys.readouterr().out


def test_the_file_is_a_study():
    (text,) = re.findall(r"^```json\n(.*?)^```", TEXT, flags=re.M | re.S)
    study = Study.from_json(json.loads(text))
    assert len(study.cells) == 2 * (6 + 2) and not [c.reason for c in study.cells if c.reason]
