"""The examples of docs/sampling.md run as they stand."""

import re

from edm_jax import exact
from tests.support.paths import ROOT

DOCUMENT = ROOT / "docs/sampling.md"


def test_examples_of_the_sampling_document():
    """In order and in one namespace, as a reader would type them."""
    text = DOCUMENT.read_text()
    examples = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    names = {"denoise": exact.Gaussian(0.1, 0.5).denoise}
    for code in examples:
        exec(code, names)
    assert len(examples) == 8 and names["report"].passed


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", DOCUMENT.read_text())
    assert links and all((DOCUMENT.parent / link).exists() for link in links)
