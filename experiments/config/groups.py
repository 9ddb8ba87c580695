"""How a group of a configuration is read: a name, and the constants of that name."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from edm_jax.names import lookup, unknown


class ConfigError(ValueError):
    """A configuration that cannot work, said in one line."""


def pick(table: Mapping[str, Any], name: str, key: str) -> Any:
    """``table[name]``, or a ConfigError that names the key and the nearest known name."""
    with named(key):
        return lookup(table, name, key.split(".")[-2 if key.endswith(".name") else -1])


@contextlib.contextmanager
def named(
    group: str, options: Iterable[str] = (), keys: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Put the key of the configuration before the message of whatever is raised inside.

    Args:
      group: the key of the group, such as ``config.train``.
      options: arguments that are options of the group under their own names: a message
        that begins with one of them gets ``group.option``, any other the group.
      keys: argument -> key of those that are called otherwise, or live elsewhere.
    """
    keys = {option: f"{group}.{option}" for option in options} | dict(keys or {})
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        first = re.match(r"\w*", str(error))[0]
        raise ConfigError(f"{keys.get(first, group)}: {error}") from error


def plain(value: Any) -> Any:
    """Dictionaries and tuples, whatever they were read from."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value)
    return value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as ``{"a.b": value}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def choice(group: Mapping[str, Any], key: str = "name") -> tuple[str, dict[str, Any]]:
    """The name that a group chooses, and the constants of that name."""
    return group[key], dict(group.get(group[key], {}))


def construct(
    table: Mapping[str, Callable[..., Any]], group: Mapping[str, Any], key: str, *arguments: Any
) -> Any:
    """What a group chooses of a table, built from its constants.

    Args:
      table: name -> constructor.
      group: ``{"name": ..., name: {constants}, ...}``.
      key: of the group, such as ``config.noise``.
      *arguments: what the constructor is given besides.

    Raises:
      ConfigError: for an unknown name or constant, or whatever the constructor refuses.
    """
    name, constants = choice(group)
    constructor = pick(table, name, f"{key}.name")
    known = list(inspect.signature(constructor).parameters)[len(arguments) :]
    for constant in constants:
        if constant not in known:
            raise ConfigError(f"{key}.{name}: {unknown(f'option of {name}', constant, known)}")
    with named(f"{key}.{name}", constants):
        return constructor(*arguments, **constants)
