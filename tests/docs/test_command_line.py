"""The page about the command line names what there is; README leads to files that exist."""

import re

from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "command_line.md").read_text()


def test_every_mode_has_a_row():
    files = {path.stem.rstrip("_") for path in (ROOT / "experiments" / "commands").glob("*.py")}
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", PAGE, flags=re.M)
    assert {name.strip("` ") for row in rows for name in row.split(",")} == files - {"__init"}


def test_every_configuration_is_named():
    files = {path.name for path in (ROOT / "configs").glob("*.py")} - {"tiny.py"}  # of the tests
    assert {name for name in re.findall(r"\w+\.py", PAGE)} == files | {"main.py"}


def test_readme_leads_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text())
    assert len(links) > 10 and all((ROOT / link).exists() for link in links)
