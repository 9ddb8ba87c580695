"""The notebooks run from top to bottom, and what is stored of them is theirs."""

import base64
import json

import pytest

from notebooks import build
from tests.support.paths import ROOT

NOTEBOOKS = {path.stem: path for path in build.sources()}


@pytest.fixture(scope="module", autouse=True)
def _installed():
    for name in ("jupytext", "nbclient", "ipykernel"):
        pytest.importorskip(name)


@pytest.mark.soak  # minutes in all; a name of a notebook with -m soak runs one
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name, environment, monkeypatch, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", "")  # one device, as a user has
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", environment["JAX_COMPILATION_CACHE_DIR"])
    (tmp_path / "digits.safetensors").symlink_to(ROOT / "notebooks" / "digits.safetensors")
    notebook = build.execute(NOTEBOOKS[name], tmp_path)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_stored_one_is_that_of_the_text_and_has_pictures(name):
    import jupytext

    stored = json.loads(NOTEBOOKS[name].with_suffix(".ipynb").read_text())
    text = jupytext.read(NOTEBOOKS[name])
    assert ["".join(cell["source"]) for cell in stored["cells"]] == [
        cell.source for cell in text.cells
    ]
    outputs = [o for cell in stored["cells"] for o in cell.get("outputs", ())]
    assert not [o for o in outputs if o["output_type"] == "error"]
    pictures = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 2
    for picture in pictures:
        assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert str(ROOT) not in json.dumps(stored)
