"""The example of docs/guidance.md runs as it stands, and its commands have flags that exist."""

import re

from edm_jax.model import Model
from experiments import guidance_flags
from tests.support.exact_model import exact_model
from tests.support.paths import ROOT

DOCUMENT = ROOT / "docs/guidance.md"


def test_example_of_the_guidance_document():
    examples = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), flags=re.M | re.S)
    made = exact_model(num_classes=2)
    description = made.description
    # As one trained with label dropout says it.
    network = dict(description["network"], label_dropout=0.1)
    model = Model(
        made.net, made.preconditioning, made.variables, dict(description, network=network)
    )
    names = {"model": model}
    for code in examples:
        exec(code, names)
    assert len(examples) == 2 and names["images"].shape[0] == 4
    assert abs(names["images"]).max() <= 1  # of the threshold: the last step returns D


def test_flags_and_configurations_exist():
    text = DOCUMENT.read_text()
    known = {flag.name for flag in guidance_flags.FLAGS}
    named = set(re.findall(r"--(guidance\w*|threshold\w*)", text))
    assert named == known
    files = set(re.findall(r"configs/(\w+\.py)", text))
    assert files and all((ROOT / "configs" / name).exists() for name in files)
