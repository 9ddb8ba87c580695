"""The configuration file of a command line: found, completed, and what it does not know."""

from __future__ import annotations

import difflib
import inspect
import pathlib
import re
import runpy
import traceback
from collections.abc import Sequence
from typing import Any

import ml_collections
from absl import flags as absl_flags

from experiments.config.keys import check_keys, nearest

ROOT = pathlib.Path(__file__).resolve().parents[2]
STORED = pathlib.Path(__file__).resolve().with_name("stored.py")


NEEDS_FILE = "--config needs a file, for example --config=configs/digits.py"


class UsageError(ValueError):
    """A command line that cannot be carried out, said in one line."""


def home_expanded(value: str, name: str) -> pathlib.Path:
    """A path of the command line with ``~`` written out; UsageError for a home not known."""
    if not value.startswith("~"):
        return pathlib.Path(value)
    from edm_jax.arguments import user_path  # loads jax, which most mistakes do without

    try:
        return user_path(name, value)
    except ValueError as error:
        raise UsageError(str(error)) from None


def find_config(value: str) -> str:
    """``file.py[:variant]`` with the file found here or in the repository.

    A ``config.json``, which every run directory has, becomes the file that reads one.
    """
    name, separator, variant = value.partition(":")
    if not name:
        raise UsageError(NEEDS_FILE)
    name = str(home_expanded(name, "--config"))
    for base in (pathlib.Path.cwd(), ROOT):
        if (base / name).is_file():
            if name.endswith(".json"):
                if separator:
                    raise UsageError(
                        f"--config={value}: the configuration of a run has no variants; leave out "
                        f"{':' + variant!r}"
                    )
                return f"{STORED}:{(base / name).absolute()}"
            return f"{(base / name).absolute()}{separator}{variant}"
        if (base / name / "config.json").is_file():
            raise UsageError(
                f"--config={value} is the directory of a run; its configuration is "
                f"--config={pathlib.Path(name) / 'config.json'}"
            )
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
        check_keys(config.to_dict())
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
    if told := _told(str(error), text, list(_options(str(ROOT / "configs" / "base.py")))):
        text = told
    elif not isinstance(error, ValueError | SyntaxError):
        text = f"{type(error).__name__}: {text}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    # An error that a file raises on purpose says enough.
    return text if isinstance(error, ValueError) or not lines else f"line {lines[-1]}: {text}"


def _told(whole: str, text: str, known: list[str]) -> str | None:
    """What the errors of ml_collections say, in the words of a configuration."""
    if found := re.search(r'Key "(\w+)" does not exist and cannot be added', whole):
        return (
            f"there is no option {found[1]!r}, {nearest(found[1], known)} (a group of "
            "your own, such as config.model.MyNet, is added inside `with config.unlocked():`)"
        )
    if found := re.search(r"but the key ([\w.]+) contains one", whole):
        if found[1] not in known:
            return f"there is no option {found[1]!r}, {nearest(found[1], known)}"
        return f"a name with dots is no key of update(); write config.{found[1]} = ..."
    if found := re.match(
        r"Could not override field '(\w+)' \(.*?\)\. (.*) is of original type <class '(\w+)", text
    ):
        options = [name for name in known if name.rsplit(".", 1)[-1] == found[1]]
        name = f"config.{options[0]}" if len(options) == 1 else found[1]
        value = repr(found[2]) if found[3] == "str" else found[2]
        return f"{name} = {value}: must be {_kind(text)}"
    if found := re.match(r"'(\w+)' Did you mean", text):
        return f"there is no option {found[1]!r}, {nearest(found[1], known)}"
    return None


def _kind(text: str) -> str:
    """What a value must be, of the message that ml_collections has for one that is not."""
    match = re.search(r"cannot be casted to type <class '([\w.]+)'>", text)
    kinds = {
        "bool": "True or False", "int": "a whole number", "float": "a number", "str": "a text",
        "tuple": "a tuple, such as (16, 8)",
    }  # fmt: skip
    return kinds.get(match[1] if match else "", "a group of options")


def read_config(words: Sequence[str]) -> tuple[Any, str | None]:
    """The configuration of ``--config=FILE`` with the options of ``--config.a.b=value``.

    Args:
      words: those of the command line that begin with ``--config``, and their values.

    Returns:
      The resolved, locked configuration, and ``file.py[:variant]`` by its full path; None
      and None without words.

    Raises:
      UsageError: one line, for a file that is not there or cannot be read, an option it
        lacks or a value of another type.
    """
    if not words:
        return None, None
    words, file = _complete(words)
    if file is None:
        if "--config" in words or "-config" in words:
            raise UsageError(NEEDS_FILE)
        raise UsageError(
            f"{words[0].partition('=')[0]} sets an option of a configuration, but --config is "
            "missing, for example --config=configs/digits.py"
        )
    # What is wrong in the file is said by its line, and what it lacks by the nearest it has.
    if told := _unknown_option(words, file):
        raise UsageError(told)
    from ml_collections import config_flags

    values = absl_flags.FlagValues()
    holder = config_flags.DEFINE_config_file(
        "config", None, lock_config=True, flag_values=values, sys_argv=["main.py", *words]
    )
    try:
        rest = values(["main.py", *words])
    except absl_flags.IllegalFlagValueError as error:
        # A configuration that raises comes with the traceback of its file.
        line = str(error).strip().splitlines()[-1].removeprefix("ValueError: ")
        raise UsageError(_wrong_value(line, file) or line) from None
    except absl_flags.Error as error:
        raise UsageError(str(error).strip().splitlines()[-1]) from None
    except (AttributeError, KeyError) as error:
        raise UsageError(f"unknown configuration option {error}") from None
    except (ImportError, SyntaxError, TypeError, ValueError, OSError) as error:
        raise UsageError(f"the configuration cannot be read: {error}") from None
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]!r}; options are written --name=value")
    config = holder.value
    try:
        config.to_dict()
    except AttributeError:
        told = getattr(config, "_error", "cannot be loaded")
        raise UsageError(f"--config: {told}") from None
    return config, file


def _complete(words: Sequence[str]) -> tuple[list[str], str | None]:
    """The words with the configuration's file found and put first, and that file."""
    rest, file = list(words), None
    for i, word in enumerate(rest):
        name, equals, value = word.lstrip("-").partition("=")
        if name == "config" and (equals or i + 1 < len(rest)):
            last = i + (1 if equals else 2)
            file = find_config(value if equals else rest[i + 1])
            # Options may stand before the file that they are about.
            return [f"--config={file}", *rest[:i], *rest[last:]], file
    return rest, file


def _options(file: str) -> dict[str, Any]:
    """``{"a.b": value}`` of the configuration of a file."""
    from experiments.config.groups import flatten

    return flatten(default_config(file).to_dict())


def _wrong_value(line: str, file: str) -> str | None:
    """What a value should have been, where the message speaks of Python's types."""
    match = re.match(r"flag --(?:no)?config\.([\w.]+)=(.*?): ", line)
    old = _options(file).get(match[1]) if match else None
    for kind, what in ((bool, "true or false"), (int, "a whole number"), (float, "a number")):
        if isinstance(old, kind):
            return f"--config.{match[1]}={match[2]}: must be {what}"
    return None


def _unknown_option(words: Sequence[str], file: str) -> str | None:
    """The first override of an option that the configuration lacks, and the nearest it has."""
    known = list(_options(file))
    for word in words:
        match = re.match(r"--?(?:no)?config\.([\w.]+)", word)
        if match and not any(f"{name}.".startswith(f"{match[1]}.") for name in known):
            return f"unknown configuration option config.{match[1]}; {nearest(match[1], known)}"
    return None
