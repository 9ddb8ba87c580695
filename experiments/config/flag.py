"""The configuration file of a command line: found, completed, and what it does not know."""

from __future__ import annotations

import difflib
import inspect
import pathlib
import re
import runpy
import traceback

import ml_collections

from experiments.config.groups import flatten

ROOT = pathlib.Path(__file__).resolve().parents[2]
STORED = pathlib.Path(__file__).resolve().with_name("stored.py")


class UsageError(ValueError):
    """A command line that cannot be carried out, said in one line."""


def find_config(value: str) -> str:
    """``file.py[:variant]`` with the file found here or in the repository.

    A ``config.json``, which every run directory has, becomes the file that reads one.
    """
    name, separator, variant = value.partition(":")
    for base in (pathlib.Path.cwd(), ROOT):
        if (base / name).is_file():
            if name.endswith(".json"):
                return f"{STORED}:{base / name}"
            return f"{base / name}{separator}{variant}"
    known = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "configs").glob("*.py"))
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
    raise UsageError(f"--config={name}: no such file{hint}")


def default_config(file: str) -> ml_collections.ConfigDict:
    """The configuration of a file that `find_config` found, as it is without any override.

    Raises:
      UsageError: for a file that cannot be read, makes none, or sets an option that there is
        not.
    """
    path, separator, variant = file.partition(":")
    shown = variant if path == str(STORED) else file
    try:
        make = runpy.run_path(path).get("get_config")
        if not callable(make):
            raise UsageError("it has no get_config(), which returns the configuration")
        arguments = inspect.signature(make).parameters.values()
        if separator and not arguments:
            raise UsageError(f"its get_config() takes no variant; leave out {':' + variant!r}")
        if not separator and any(a.default is a.empty for a in arguments):
            raise UsageError(f"its get_config() needs a variant: --config={path}:VARIANT")
        config = make(variant) if separator else make()
        if not isinstance(config, ml_collections.ConfigDict):
            raise UsageError(f"its get_config() returns {config!r}, no ConfigDict")
    except UsageError as error:
        raise UsageError(f"--config={shown}: {error}") from None
    except Exception as error:  # whatever a file of the user's raises is said in one line
        raise UsageError(f"--config={shown}: {_explained(error, path)}") from error
    return config


def _explained(error: Exception, path: str) -> str:
    """What an error of a configuration file says, with its line there."""
    # The text of a KeyError is the repr of its argument.
    text = error
    while isinstance(text, LookupError | AttributeError) and text.args:
        text = text.args[0]
    text = " ".join(str(text).split()) or type(error).__name__
    if locked := re.search(r'Key "(\w+)" does not exist and cannot be added', str(error)):
        known = list(flatten(default_config(str(ROOT / "configs" / "base.py")).to_dict()))
        text = (
            f"there is no option {locked[1]!r}, {_nearest(locked[1], known)} (one of your own is "
            "added inside `with config.unlocked():`)"
        )
    elif not isinstance(error, ValueError | SyntaxError):
        text = f"{type(error).__name__}: {text}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    # An error that a file raises on purpose says enough.
    return text if isinstance(error, ValueError) or not lines else f"line {lines[-1]}: {text}"


def _checked(value: str) -> str:
    """The file found, and found to make a configuration."""
    found = find_config(value)
    default_config(found)
    return found


def complete(argv: list[str]) -> list[str]:
    """The command line with the configuration's path resolved.

    Raises:
      UsageError: as `find_config` and `default_config`.
    """
    result, expect = [], False
    for argument in argv:
        if expect:
            argument, expect = _checked(argument), False
        elif argument in ("--config", "-config"):
            expect = True
        elif argument.startswith(("--config=", "-config=")):
            head, _, value = argument.partition("=")
            argument = f"{head}={_checked(value)}"
        result.append(argument)
    return result


def unknown_option(argv: list[str]) -> str | None:
    """The first override of an option that the configuration lacks, and the nearest it has."""
    # The flag itself is of no use any more: it keeps the override that it failed at.
    words = " ".join(argv[1:]).replace("--config ", "--config=").split()
    file = next((word.partition("=")[2] for word in words if word.startswith("--config=")), "")
    known = list(flatten(default_config(find_config(file)).to_dict()))
    for argument in argv[1:]:
        match = re.match(r"--?(?:no)?config\.([\w.]+)", argument)
        if match and match[1] not in known:
            return f"unknown configuration option config.{match[1]}; {_nearest(match[1], known)}"
    return None


def _nearest(option: str, known: list[str]) -> str:
    """The options that one which there is not may stand for: those with its last name first."""
    last = [name.rsplit(".", 1)[-1] for name in known]
    wanted = option.rsplit(".", 1)[-1]
    near = [name for name, end in zip(known, last, strict=True) if end == wanted]
    near = near or difflib.get_close_matches(option, known, n=1)
    ends = difflib.get_close_matches(wanted, last, n=1)
    near = near or [name for name, end in zip(known, last, strict=True) if end in ends]
    if near:
        return f"did you mean config.{' or config.'.join(near)}?"
    return f"there are {', '.join(sorted({name.split('.')[0] for name in known}))}"
