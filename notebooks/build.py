r"""Run the notebooks and store their pictures: a .py file in, the .ipynb beside it out.

python notebooks/build.py [1 2 ...]
"""

from __future__ import annotations

import os
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
SECONDS = 600  # for one cell, on a busy machine


def sources() -> list[pathlib.Path]:
    """The notebooks as text, in order."""
    return sorted(HERE.glob("[0-9]_*.py"))


def execute(source: pathlib.Path, where: pathlib.Path = HERE) -> dict:
    """The notebook of a text, run from top to bottom.

    Args:
      source: a file in jupytext's percent format.
      where: its working directory.

    Returns:
      The notebook with all outputs, as `nbformat.write` takes it.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed.
    """
    import jupytext
    import nbclient

    notebook = jupytext.read(source)
    client = nbclient.NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": where}}
    )
    # The library beside the notebooks, not another one that is installed.
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    for cell in notebook.cells:
        # What depends on the clock would make every run a change.
        cell.get("metadata", {}).pop("execution", None)
        cell["outputs"] = (
            [
                output
                for output in cell.get("outputs", [])
                if output.get("name") != "stderr"  # progress bars
            ]
            if cell.cell_type == "code"
            else []
        )
        if cell.cell_type != "code":
            del cell["outputs"]
    return notebook


def write(notebook: dict, path: pathlib.Path) -> None:
    """Write it, whole or not at all, with cells numbered by their place."""
    import nbformat

    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"
    temporary = path.with_name(f".{path.name}")
    nbformat.write(notebook, temporary)
    temporary.replace(path)


def main(names: list[str]) -> None:
    """Run all, or those whose names begin so."""
    for source in sources():
        if names and not any(source.name.startswith(name) for name in names):
            continue
        started = time.monotonic()
        write(execute(source), source.with_suffix(".ipynb"))
        print(f"{source.stem}: {time.monotonic() - started:.0f}s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
