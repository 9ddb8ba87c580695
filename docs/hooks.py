"""Hooks of mkdocs.yml: typeset formulas, and the page of the benchmarks."""

from __future__ import annotations

import pathlib
from typing import Any

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks" / "README.md"


def on_config(config: Any) -> Any:
    """Typeset the blocks that begin with ```math, as repository pages do.

    On the site they become MathML, which browsers draw by themselves: nothing is loaded from
    elsewhere, and formulas read without JavaScript.
    """
    fences = config["mdx_configs"].setdefault("pymdownx.superfences", {})
    fences["custom_fences"] = [{"name": "math", "class": "math", "format": _formula}]
    return config


def on_files(files: Any, config: Any) -> Any:
    """What the benchmarks measured, which stands beside them, is a page of the site."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "benchmarks.md", abs_src_path=str(BENCHMARKS)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead links to that file, and from it, to pages."""
    return markdown.replace("(../benchmarks/README.md", "(benchmarks.md").replace("(../docs/", "(")


def _formula(source: str, *_: Any, **__: Any) -> str:
    """HTML of one block of TeX."""
    from latex2mathml.converter import convert

    return f'<p class="formula">{convert(source.strip(), display="block")}</p>'
