"""The documentation site: every page is in it, no link is broken, every module exists."""

import importlib
import re
import subprocess
import sys

import pytest
import yaml

from tests.support.paths import ROOT

DOCS = ROOT / "docs"


def pages():
    """The files that the navigation names."""
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]

    def walk(node):
        if isinstance(node, str):
            return [node]
        children = node.values() if isinstance(node, dict) else node
        return [page for child in children for page in walk(child)]

    return walk(nav)


def test_every_page_is_in_the_navigation():
    written = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    written.add("benchmarks.md")  # benchmarks/README.md, see docs/hooks.py
    assert set(pages()) == written and len(pages()) == len(written)


def test_the_reference_names_what_there_is():
    named = [
        name
        for path in (DOCS / "api").glob("*.md")
        for name in re.findall(r"^::: ([\w.]+)$", path.read_text(), flags=re.M)
    ]
    assert len(named) > 40
    for name in named:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(module), attribute), name


def test_local_links_lead_somewhere():
    for path in DOCS.rglob("*.md"):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    # As a user builds it: with -q warnings would not even be counted.
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for page in pages():
        assert (tmp_path / "site" / page).with_suffix(".html").stat().st_size > 2000
    blocks = sum(path.read_text().count("```math") for path in DOCS.rglob("*.md"))
    typeset = sum(path.read_text().count("<math") for path in (tmp_path / "site").rglob("*.html"))
    assert typeset == blocks > 5
    reference = (tmp_path / "site" / "api" / "samplers.html").read_text()
    assert "sample_heun" in reference and "SamplerInfo" in reference
