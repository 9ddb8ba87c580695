"""The flags of a command as data, and their values from a command line.

Every mode declares its own (`experiments/commands/`); a flag that only another mode has is
refused by naming that mode.  Nothing here loads jax: ``--help`` and most mistakes are
answered at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
import re
import textwrap
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from absl import flags as absl_flags

from experiments.config.flag import UsageError, home_expanded, read_config

# A number may follow its flag as a word of its own, although it begins with a dash.
_WORD = re.compile(r"(?!-)|-[\d.]")
FORMATS = ("png", "pdf", "svg")  # those of `edm_jax.figures.files`


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
      name: without dashes.
      help: one sentence or two.
      default: its value where it is not given.
      convert: from text to the value; raises ValueError that says what is expected
        ("must be a whole number").  None for a switch, which is given without a value.
      example: shown in help, and where a required flag is missing.
      required: whether the command cannot do without it.
      refused: why the command does not take it, although others do; it is then no flag of it,
        but a mistake that deserves a reason.
    """

    name: str
    help: str
    default: Any = None
    convert: Callable[[str], Any] | None = str
    example: str = ""
    required: bool = False
    refused: str = ""


def text(name: str, help: str, default: str | None = None, **options: Any) -> Flag:
    """A flag whose value is any text but none."""
    return Flag(name, help, default, **{"convert": _to_text, **options})


def switch(name: str, help: str) -> Flag:
    """A flag that is on (``--name``) or off (``--noname``, the default)."""
    return Flag(name, help, False, None)


def path(name: str, help: str, **options: Any) -> Flag:
    """A file or directory; ``~`` is the home of the user."""
    return Flag(name, help, convert=lambda value: _to_path(name, value), **options)


def integer(name: str, help: str, *, least: int | None = None, **options: Any) -> Flag:
    """A whole number, at least ``least``."""
    return Flag(name, help, convert=lambda value: _to_number(value, int, least), **options)


def number(name: str, help: str, *, least: float | None = None, **options: Any) -> Flag:
    """A number, at least ``least``."""
    return Flag(name, help, convert=lambda value: _to_number(value, float, least), **options)


def choice(name: str, names: Sequence[str], help: str, **options: Any) -> Flag:
    """One of some names."""
    help += f" One of {', '.join(names)}."
    return Flag(name, help, convert=lambda value: _to_choice(value, names), **options)


def figure_format(help: str = "Of the figures.", formats: Sequence[str] = FORMATS) -> Flag:
    """``--figure_format``: vectors where a page is to be printed."""
    return choice("figure_format", formats, help, default=formats[0])


def config(help: str = "", *, required: bool = True) -> Flag:
    """``--config=FILE``, whose options are set with ``--config.a.b=value``."""
    help = help or "Configuration; --config.a.b=value sets one option of it."
    return Flag("config", help, example="configs/digits.py", required=required)


def refusal(name: str, why: str) -> Flag:
    """A flag that a command does not take, and the reason."""
    return Flag(name, "", refused=why)


def _to_text(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    return value


def _to_path(name: str, value: str) -> pathlib.Path:
    if not value:
        raise ValueError("must not be empty")
    return home_expanded(value, f"--{name}")


def _to_number(value: str, kind: type, least: float | None) -> Any:
    what = {int: "a whole number", float: "a number"}[kind]
    what += f" of at least {least}" if least is not None else ""
    try:
        result = kind(value)
    except ValueError:
        raise ValueError(f"must be {what}") from None
    if result != result or (least is not None and result < least):
        raise ValueError(f"must be {what}")
    return result


def _to_choice(value: str, names: Sequence[str]) -> str:
    if value in names:
        return value
    near = difflib.get_close_matches(value, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"must be one of {', '.join(names)}{hint}")


# ---------------------------------------------------------------------------- parsing


def expand(argv: Sequence[str]) -> list[str]:
    """The words of a command line, those of any ``--flagfile`` in its place."""
    try:
        return absl_flags.FlagValues().read_flags_from_files(list(argv), force_gnu=False)
    except UnicodeDecodeError:
        raise UsageError("--flagfile: the file is no text; it holds one flag a line") from None
    except (absl_flags.Error, OSError) as error:
        raise UsageError(f"--flagfile: {str(error).removeprefix('ERROR:: ')}") from None


def split(word: str) -> tuple[str, str | None]:
    """``--name=value`` -> (name, value); the value is None if there is none."""
    if not re.match(r"--?[A-Za-z]", word):
        raise UsageError(f"unexpected argument {word!r}; options are written --name=value")
    name, equals, value = word.lstrip("-").partition("=")
    return name, value if equals else None


def is_flag(word: str, names: set[str]) -> bool:
    """Whether a word of the command line is one of some flags, with a value or without."""
    return word.startswith("-") and word.lstrip("-").partition("=")[0] in names


def parse(
    words: Sequence[str], declared: Iterable[Flag], owners: Callable[[str], list[str]]
) -> types.SimpleNamespace:
    """The values of a command's flags.

    Args:
      words: of the command line, without the program and ``--mode``.
      declared: the flags of the command.
      owners: the other modes that have a flag of this name.

    Returns:
      A namespace with a value for each flag, and ``given``, the names on the command line.
      Of a configuration the value is a `ConfigDict`, and ``config_file`` names its file.

    Raises:
      UsageError: in one line, for what is wrong or missing.
    """
    known = {flag.name: flag for flag in declared}
    values: dict[str, Any] = {name: flag.default for name, flag in known.items()}
    config_words: list[str] = []
    given = set()
    rest = list(words)
    while rest:
        name, value = split(rest.pop(0))
        if re.fullmatch(r"(no)?config(\..*)?", name) and "config" in known:
            config_words.append(f"--{name}" if value is None else f"--{name}={value}")
            if value is None and rest and _WORD.match(rest[0]):
                config_words.append(rest.pop(0))
            given.add("config")
            continue
        flag, value = _resolve(name, value, known, owners)
        if flag.refused:
            raise UsageError(f"--{name}: {flag.refused}; leave it out")
        if value is None and flag.convert is not None:
            if not rest or not _WORD.match(rest[0]):
                raise UsageError(f"--{name} needs a value: --{name}={flag.example or 'VALUE'}")
            value = rest.pop(0)
        given.add(flag.name)
        values[flag.name] = _convert(flag, name, value)
    if "config" in known:
        values["config"], values["config_file"] = read_config(config_words)
    for flag in known.values():
        if flag.required and values[flag.name] is None:
            raise UsageError(f"--{flag.name} is missing, for example --{flag.name}={flag.example}")
    return types.SimpleNamespace(**values, given=frozenset(given))


def _resolve(
    name: str, value: str | None, known: dict[str, Flag], owners: Callable[[str], list[str]]
) -> tuple[Flag, str | None]:
    """The flag that a word names, and its value."""
    if name in known:
        return known[name], value
    off = known.get(name.removeprefix("no"))
    if off is not None and off.convert is None and value is None:
        return off, "false"
    if modes := owners("config" if name.startswith("config.") else name):
        raise UsageError(f"--{name} belongs to --mode={' or --mode='.join(modes)}")
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean --{near[0]}?" if near else "; --help lists what there is"
    raise UsageError(f"unknown option --{name}{hint}")


def _convert(flag: Flag, name: str, value: str | None) -> Any:
    if flag.convert is None:
        if (value or "true").lower() not in ("true", "false", "1", "0"):
            raise UsageError(f"--{name}={value}: is given without a value, or true or false")
        return (value or "true").lower() in ("true", "1")
    try:
        return flag.convert(value)
    except UsageError:
        raise  # names the flag itself
    except ValueError as error:
        raise UsageError(f"--{name}={value}: {error}") from None


# ------------------------------------------------------------------------------- help


def describe(declared: Iterable[Flag]) -> str:
    """The flags in two columns, as ``--help`` shows them."""
    lines = []
    for flag in declared:
        if flag.refused:
            continue
        name = f"--{flag.name}"
        if flag.convert is not None:
            name += f"={flag.example or flag.default or 'VALUE'}"
        unset = flag.default in (None, "") or flag.convert is None
        told = flag.help + ("" if unset else f" Default: {flag.default}.")
        told += " Required." if flag.required else ""
        folded = textwrap.wrap(told, 60)
        if len(name) > 28:
            lines.append(f"  {name}")
            name = ""
        lines += [f"  {name:<28}  {folded[0]}", *(f"{'':32}{line}" for line in folded[1:])]
    return "\n".join(lines)
