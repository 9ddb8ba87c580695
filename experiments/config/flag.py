"""The configuration file of a command line: found, completed, and what it does not know."""

from __future__ import annotations

import difflib
import pathlib
import re
import runpy

ROOT = pathlib.Path(__file__).resolve().parents[2]


class UsageError(ValueError):
    """A command line that cannot be carried out, said in one line."""


def find_config(value: str) -> str:
    """``file.py[:variant]`` with the file found here or in the repository."""
    name, separator, variant = value.partition(":")
    for base in (pathlib.Path.cwd(), ROOT):
        if (base / name).is_file():
            return f"{base / name}{separator}{variant}"
    known = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "configs").glob("*.py"))
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
    raise UsageError(f"--config={name}: no such file{hint}")


def complete(argv: list[str]) -> list[str]:
    """The command line with the configuration's path resolved."""
    result, expect = [], False
    for argument in argv:
        if expect:
            argument, expect = find_config(argument), False
        elif argument in ("--config", "-config"):
            expect = True
        elif argument.startswith(("--config=", "-config=")):
            head, _, value = argument.partition("=")
            argument = f"{head}={find_config(value)}"
        result.append(argument)
    return result


def unknown_option(argv: list[str]) -> str | None:
    """The first override of an option that the configuration lacks, and the nearest it has."""
    from experiments.workdir import flatten

    # The flag itself is of no use any more: it keeps the override that it failed at.
    words = " ".join(argv[1:]).replace("--config ", "--config=").split()
    file = next((word.partition("=")[2] for word in words if word.startswith("--config=")), "")
    path, _, variant = find_config(file).partition(":")
    make = runpy.run_path(path)["get_config"]
    known = list(flatten((make(variant) if variant else make()).to_dict()))
    for argument in argv[1:]:
        match = re.match(r"--?(?:no)?config\.([\w.]+)", argument)
        if not match or match[1] in known:
            continue
        last = [name.rsplit(".", 1)[-1] for name in known]
        wanted = match[1].rsplit(".", 1)[-1]
        near = [name for name, end in zip(known, last, strict=True) if end == wanted]
        near = near or difflib.get_close_matches(match[1], known, n=1)
        ends = difflib.get_close_matches(wanted, last, n=1)
        near = near or [name for name, end in zip(known, last, strict=True) if end in ends]
        hint = f"did you mean config.{' or config.'.join(near)}?"
        if not near:
            hint = f"there are {', '.join(sorted({name.split('.')[0] for name in known}))}"
        return f"unknown configuration option config.{match[1]}; {hint}"
    return None
