"""Imports point down: the map of CONTRIBUTING.md, read from the code's own imports."""

import ast
import functools
import re

import pytest

from tests.support.paths import ROOT

PACKAGES = ("edm_jax", "experiments")


@functools.cache
def rows(package):
    """Rooms of a package from the top of the map down; those on one row are strangers."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (block,) = re.findall(rf"^    {package}/\n((?:        .*\n)+)", text, flags=re.M)
    return [line.split("|")[0].split() for line in block.splitlines()]


def room_of(module, package):
    """``edm_jax.samplers.heun`` -> ``samplers``; the package itself is its public face."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == package else None


def imports(path):
    """Modules that a file imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                target = ROOT / node.module.replace(".", "/") / alias.name
                is_module = target.is_dir() or target.with_suffix(".py").exists()
                yield f"{node.module}.{alias.name}" if is_module else node.module


@pytest.mark.parametrize("package", PACKAGES)
def test_the_map_has_every_room_and_no_other(package):
    found = {p.stem for p in (ROOT / package).iterdir() if p.suffix == ".py" or p.is_dir()}
    listed = [room for row in rows(package) for room in row]
    assert len(listed) == len(set(listed))
    assert set(listed) == found - {"__init__", "__pycache__"}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_down(package):
    height = {room: -i for i, row in enumerate(rows(package)) for room in row}
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT / package).with_suffix("").parts
        if parts[0] == "__init__":
            continue  # the public face sees everything
        for module in imports(path):
            room = room_of(module, package)
            if room not in (None, parts[0]) and height[room] >= height[parts[0]]:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


def test_the_library_knows_nothing_of_the_programs():
    for path in sorted((ROOT / "edm_jax").rglob("*.py")):
        for module in imports(path):
            assert module.split(".")[0] not in ("experiments", "configs", "tests"), path
