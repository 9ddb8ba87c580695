"""The modes of the command line: a file each.

A command is a module with a docstring (its first line is what ``--help`` lists), FLAGS (the
flags it reads, see `experiments.flags`) and ``run(flags)``, which returns an exit code or
None.  What it needs of the library it imports in ``run``, so that its flags are known at
once.  The file's name is that of the mode (``import_.py``: a word that Python has taken).
"""

from __future__ import annotations

import importlib
import pathlib
from types import ModuleType

# The one that does something without --mode.
DEFAULT = "train"


def names() -> list[str]:
    """The modes, the default first."""
    files = pathlib.Path(__file__).parent.glob("[!_]*.py")
    return sorted((file.stem.rstrip("_") for file in files), key=lambda n: (n != DEFAULT, n))


def load(name: str) -> ModuleType:
    """The module of a mode."""
    file = name if (pathlib.Path(__file__).parent / f"{name}.py").exists() else f"{name}_"
    return importlib.import_module(f"{__name__}.{file}")
