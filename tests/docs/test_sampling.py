"""The examples of docs/sampling.md run as they stand."""

import re

import pytest

from edm_jax import Sampling, exact, samplers
from tests.support.paths import ROOT

DOCUMENT = ROOT / "docs/sampling.md"


def test_examples_of_the_sampling_document():
    """In order and in one namespace, as a reader would type them."""
    text = DOCUMENT.read_text()
    examples = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    names = {"denoise": exact.Gaussian(0.1, 0.5).denoise}
    for code in examples:
        exec(code, names)
    assert len(examples) == 10 and names["report"].passed


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", DOCUMENT.read_text())
    assert links and all((DOCUMENT.parent / link).exists() for link in links)


def _table_of_names():
    """``(names, target)`` of every row under "Names from elsewhere"; names in parentheses go."""
    text = DOCUMENT.read_text().split("### Names from elsewhere")[1].split("###")[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")][2:]
    for row in rows:
        *cells, target = (cell.strip() for cell in row)
        cells = [re.sub(r"\(.*?\)", "", cell).replace("\\*", "euler") for cell in cells]
        names = [name.strip() for cell in cells for name in re.split("[,;]", cell)]
        yield [name for name in names if name not in ("-", "...", "same")], cells[0], target


def test_every_name_of_the_table_is_what_the_table_says():
    count = 0
    for names, first, target in _table_of_names():
        for name in names:
            count += 1
            if target == "left out":
                with pytest.raises(ValueError, match="is left out: "):
                    samplers.get(name)
                continue
            ours = re.findall("`([a-z0-9_]+)`", target)[:1] or first.split(", ")
            if name == "DPMSolverSinglestep":  # as the row says
                ours = ["dpmpp_2s"]
            assert samplers.get(name).fn is samplers.SAMPLERS[samplers.meaning(name)[0]].fn
            assert samplers.meaning(name)[0] in ours, name
            assert Sampling(sampler=name).sampler in ours
    assert count > 60
