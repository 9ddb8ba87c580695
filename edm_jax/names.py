"""Looking up a choice by its name, with a helpful error."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """``table[name]``; a ValueError that names the nearest known choices otherwise.

    Args:
      table: name -> value.
      name: the choice.
      kind: what is being chosen ("sampler"), for the message.
    """
    if isinstance(name, str) and name in table:
        return table[name]
    raise unknown(kind, name, sorted(table))


def unknown(kind: str, name: Any, known: Sequence[str]) -> ValueError:
    """The error for a name that is not among the known ones, with the nearest of them."""
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? Known" if near else "known"
    return ValueError(f"unknown {kind} {brief(name)}; {hint}: {', '.join(known)}")


def brief(value: Any) -> str:
    """A value in a message: on one line, and no longer than one."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
