"""Typesets the blocks of the pages that begin with ```math; a hook of mkdocs.yml.

Repository pages know these blocks.  On the site they become MathML, which browsers draw by
themselves: nothing is loaded from elsewhere, and formulas read without JavaScript.
"""

from __future__ import annotations

from typing import Any


def _formula(source: str, *_: Any, **__: Any) -> str:
    """HTML of one block of TeX."""
    from latex2mathml.converter import convert

    return f'<p class="formula">{convert(source.strip(), display="block")}</p>'


def on_config(config: Any) -> Any:
    """Add the fence to those that the site has."""
    fences = config["mdx_configs"].setdefault("pymdownx.superfences", {})
    fences["custom_fences"] = [{"name": "math", "class": "math", "format": _formula}]
    return config
