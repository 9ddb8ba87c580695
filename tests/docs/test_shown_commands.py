"""Every command that a document or a docstring shows is one that the command line takes."""

import re
import shlex

import pytest

from experiments import commands, flags
from experiments.config.flag import UsageError
from experiments.main import _mode_of, _owners
from tests.support.paths import ROOT

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "configs").glob("*.py")),
    *sorted((ROOT / "experiments").rglob("*.py")),
]
COMMAND = re.compile(r"(?:python|srun python) (experiments/main\.py(?:[^\n`\\&|]|\\\n)*)")


def commands_of(text):
    """The command lines in a text, continued ones joined, with brackets of options left out."""
    for found in COMMAND.findall(text):
        words = re.split(r"  +[#(]", re.sub(r" *\\\n *", " ", found))[0]
        if not re.search(r"\.\.\.|[\[{<]|--config=runs/", words):  # a sketch, or of a run's own
            yield words.rstrip(" ;.,:)")


SHOWN = sorted({(path.relative_to(ROOT).as_posix(), words)
                for path in PAGES for words in commands_of(path.read_text())})  # fmt: skip


def test_there_are_many():
    assert len(SHOWN) > 80 and len({path for path, _ in SHOWN}) > 30


@pytest.mark.parametrize("path", sorted({path for path, _ in SHOWN}))
def test_commands_are_understood(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for _, words in (one for one in SHOWN if one[0] == path):
        mode, rest = _mode_of(shlex.split(words)[1:])
        if "--help" in rest or not rest:
            continue
        try:
            flags.parse(rest, commands.load(mode or commands.DEFAULT).FLAGS, _owners)
        except UsageError as error:
            pytest.fail(f"{words}: {error}")
