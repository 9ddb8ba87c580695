"""The one documented error of the model-file readers, and bounded printing."""

from __future__ import annotations

_TEXT_SHOWN = 80


class WeightsError(ValueError):
    """A model file that is damaged, foreign, or refused.

    The message is one line: what is wrong, where in the file, what was found, what was
    expected, and the cure where there is one.  No reader of `edm_jax.store` or
    `edm_jax.foreign` raises anything else for the content of a file.
    """


class NewerFormatError(WeightsError):
    """A model that a newer edm_jax wrote: not damaged, and never passed over as if it were."""


def show(value: object) -> str:
    """A short, bounded description of a value that came out of a foreign file.

    `repr` is no choice: nested lists can make it exponentially long, or endless, and
    integers of many digits make it raise.  The records of the readers have a method
    ``shown``: their class names mean nothing to a user.
    """
    if hasattr(type(value), "shown"):
        return value.shown()
    if isinstance(value, memoryview):
        return f"{len(value)} bytes"
    if isinstance(value, str):
        cut = "..." if len(value) > _TEXT_SHOWN else ""
        return repr(value[:_TEXT_SHOWN]) + cut
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        bits = value.bit_length()
        return str(value) if bits <= 64 else f"an integer of {bits} bits"
    if isinstance(value, tuple) and len(value) <= 8 and all(type(v) is int for v in value):
        return "(" + ", ".join(show(v) for v in value) + ")"
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
