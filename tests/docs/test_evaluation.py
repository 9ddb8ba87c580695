"""docs/evaluation.md names what there is."""

import re

import pytest

from edm_jax.foreign import dinov2, inception
from edm_jax.metrics.registry import METRICS, columns, parse
from experiments import commands
from tests.support.paths import ROOT

TEXT = (ROOT / "docs" / "evaluation.md").read_text()


def test_every_metric_has_a_row():
    rows = re.findall(r"^\| `(\w+)[@\w]*` \|.*\| (the \w+) \|$", TEXT, flags=re.M)
    assert {name for name, _ in rows} == set(METRICS)
    for name, quoted in rows:
        assert quoted == f"the {METRICS[name].over_blocks}"


def test_every_accepted_file_is_named():
    assert all(name in TEXT for name, _ in (*inception.FILES, *dinov2.FILES))


def test_the_example_that_needs_no_files():
    (_, code) = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.M | re.S)
    exec(code, {})


def test_flags_exist():
    known = {f.name for mode in commands.names() for f in commands.load(mode).FLAGS} | {"mode"}
    assert set(re.findall(r"--(\w+)", TEXT)) <= known


def test_names_of_metrics():
    assert parse("kid").extractor == "inception" and parse("kid@inception").text == "kid"
    assert parse("pr@pixels").text == "pr@pixels"
    with pytest.raises(ValueError, match="fid is defined on the extractor 'inception'"):
        parse("fid@pixels")
    keys = [column.key for column in columns(["pr@pixels", "what"])]
    assert len(keys) == len(set(keys)) and "pr@pixels_recall" in keys and "pr_recall" in keys
