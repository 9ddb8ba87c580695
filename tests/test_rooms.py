"""Imports point down, and the folders of tests mirror those of the code.

The map is that of CONTRIBUTING.md; imports are read from the code.
"""

import ast
import functools
import re

import pytest

from tests.support.paths import ROOT

PACKAGES = ("edm_jax", "experiments")
HERE = ROOT / "tests" / "test_rooms.py"


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


def imports(path, source=None):
    """Modules that a file imports, wherever the statement stands and however it is written."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(source or path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                target = ROOT / module.replace(".", "/") / alias.name
                is_module = target.is_dir() or target.with_suffix(".py").exists()
                yield f"{module}.{alias.name}" if is_module else module
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            yield from (n.value for n in node.args[:1] if isinstance(n, ast.Constant))


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
        wrong += [
            f"{path.relative_to(ROOT)} imports {module}"
            for module in imports(path)
            if points_up(module, parts[0], package, height)
        ]
    assert not wrong


def points_up(module, room, package, height):
    """Whether a room may not import a module of its package; its public face stands above all."""
    if module.split(".")[0] != package:
        return False
    other = room_of(module, package)
    return other is None or (other != room and height[other] >= height[room])


@pytest.mark.parametrize(
    "statement",
    [
        "from edm_jax.generate import batches", "from edm_jax import generate", "import edm_jax",
        "from edm_jax import sample", "from ..generate import batches", "from .. import evaluation",
        "import edm_jax.generate", "importlib.import_module('edm_jax.generate')",
    ],
)  # fmt: skip
def test_an_import_that_points_up_is_seen(statement):
    height = {room: -i for i, row in enumerate(rows("edm_jax")) for room in row}
    path = ROOT / "edm_jax" / "samplers" / "heun.py"
    (module,) = imports(path, f"def late():\n    {statement}")
    assert points_up(module, "samplers", "edm_jax", height)
    (fine,) = imports(path, "from ..grids import make_sigmas")
    assert fine == "edm_jax.grids" and not points_up(fine, "samplers", "edm_jax", height)


def test_configurations_import_nothing_of_the_programs():
    for path in sorted((ROOT / "configs").rglob("*.py")):
        found = {module.split(".")[0] for module in imports(path)}
        assert not found & set(PACKAGES), path


def test_the_library_knows_nothing_of_the_programs():
    for path in sorted((ROOT / "edm_jax").rglob("*.py")):
        for module in imports(path):
            assert module.split(".")[0] not in ("experiments", "configs", "tests"), path


def test_there_is_one_command_line_and_one_place_that_edits_the_path():
    """Of the programs for users; those for developers have flags of their own.

    (A notebook on a rented machine fetches the code in its first cell, and says where it is.)
    """
    edits = re.compile(r"sys\.path(\[.*\] =|\.insert|\.append|\.extend| \+?=)")
    found, parsers = set(), set()
    folders = ("benchmarks", "configs", "edm_jax", "experiments", "tests")
    for path in sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py")):
        inside = str(path.relative_to(ROOT))
        if edits.search(path.read_text()) and not inside.startswith("tests/"):
            found.add(inside)
        if "argparse" in imports(path):
            parsers.add(inside.split("/")[0])
    assert found == {"experiments/main.py", "benchmarks/common.py"}
    assert parsers <= {"benchmarks", "tests"}


# Tests whose path names no module, and why.
TESTS_OF_MORE = {
    "test_import": "what importing each package loads",
    "test_notebooks": "the notebooks",
    "test_own_network": "a network of a user's, through every room",
    "test_rooms": "the folders",
    "ardm/test_training": "from an objective to a model that loads and draws",
    "configs/test_configs": "every configuration, by one table",
    "docs/test_shown_commands": "all pages together",
    "docs/test_site": "all pages together",
    "evaluation/test_end_to_end": "from a model to every number of the paper",
    "experiments/training/test_kinds": "the program, with the objectives that are not EDM's",
    "experiments/training/test_processes": "the program, on other numbers of processes",
    "experiments/training/test_small_sets": "the program, on one image and on one class",
    "experiments/training/test_overheads": "a whole run: what it waits for and compiles",
    "experiments/training/test_survival": "the program, killed and damaged",
    "figures/test_paper": "the paper's figures, of many files",
    "foreign/test_fuzz": "random files, by every reader",
    "foreign/test_hostile": "files made to do harm, by every reader",
    "guidance/test_exact_guidance": "every guidance, where denoisers are exact",
    "guidance/test_formulas": "every guidance, on recorded arrays",
    "guidance/test_models": "every guidance, of networks",
    "guidance/test_off_and_traced": "what holds of every guidance",
    "guidance/test_refusals": "what every guidance refuses",
    "models/test_build": "`models.build`: every network",
    "models/test_networks": "every network, against arrays",
    "models/test_reference": "every network, against published numbers",
    "models/test_training": "every network, as training calls it",
    "reflected/test_model": "from a configuration to images of a box",
    "samplers/test_methods": "samplers against their formulas, by one harness",
    "samplers/test_named": "samplers against released programs, by one harness",
}

# Modules that no test of their folder names, and what holds them.
TESTED_ELSEWHERE = {
    "edm_jax/typing.py": "nothing in it runs",
    "edm_jax/data/sources/stores.py": "data/sources/test_image_files: where its images lie",
    "edm_jax/evaluation/pictures.py": "experiments/test_evaluating",
    "edm_jax/foreign/numpy_pickle.py": "metrics/test_reference: statistics in a pickle",
    "edm_jax/models/unet.py": "models: all networks are made of it",
    "edm_jax/samplers/reflected_steps.py": "reflected/test_sampling",
    "edm_jax/store/binary.py": "foreign/test_hostile, store/test_single_file: the files they read",
    "edm_jax/store/tensors.py": "foreign/test_importer_written, foreign/test_hostile",
    "edm_jax/studies/feasibility.py": "studies/test_tuning: spaces that cannot work",
    "edm_jax/studies/planning.py": "studies/test_running, studies/test_tuning",
    "edm_jax/train/distributed.py": "experiments/training/test_processes",
    "edm_jax/studies/bench.py": "studies/test_tuning",
    "experiments/tuning.py": "experiments/commands/test_tune",
    "experiments/training/preemption.py": "experiments/training/test_survival",
}


def module_of(test):
    """Where the code of a test stands if its path says so, as a folder and a name."""
    folder = test.parent.relative_to(ROOT / "tests")
    of_program = folder.parts[:1] in (("experiments",), ("configs",), ("benchmarks",))
    return (ROOT if of_program else ROOT / "edm_jax") / folder, test.stem.removeprefix("test_")


def is_of(name, module):
    """``test_importer`` and ``test_importer_written`` are of ``importer``.

    And ``test_ardm`` is of ``ardm_unet`` and ``ardm_transformer``.
    """
    return name == module or name.startswith(f"{module}_") or module.startswith(f"{name}_")


def modules(folder):
    return [p for p in folder.glob("*") if p.is_dir() or p.suffix == ".py"]


def public_names(path):
    defined = ast.parse(path.read_text()).body
    names = (n.name for n in defined if isinstance(n, ast.FunctionDef | ast.ClassDef))
    return [name.removeprefix("sample_") for name in names if not name.startswith("_")]


def test_the_path_of_a_test_says_what_it_tests():
    astray = set()
    for test in sorted((ROOT / "tests").rglob("test_*.py")):
        path = str(test.relative_to(ROOT / "tests").with_suffix(""))
        folder, name = module_of(test)
        if path.startswith("docs/"):
            found = (ROOT / "docs" / f"{name}.md").exists()
        else:
            found = any(is_of(name, module.stem) for module in modules(folder))
        if not found:
            astray.add(path)
    assert astray == set(TESTS_OF_MORE)


def test_the_test_of_a_module_is_in_its_folder():
    astray = set()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            inside = path.relative_to(ROOT / "edm_jax" if package == "edm_jax" else ROOT)
            tests = set((ROOT / "tests" / inside.parent).glob("test_*.py")) - {HERE}
            names = re.compile(rf"\b(?:sample_)?({'|'.join([path.stem, *public_names(path)])})\b")
            if path.stem == "__init__" or any(
                is_of(test.stem.removeprefix("test_"), path.stem) or names.search(test.read_text())
                for test in tests
            ):
                continue
            astray.add(str(path.relative_to(ROOT)))
    assert astray == set(TESTED_ELSEWHERE)
