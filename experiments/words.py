"""Numbers in the words people read."""

from __future__ import annotations


def format_duration(seconds: float) -> str:
    """``5s``, ``3m07s``, ``2h05m``, ``4d03h``."""
    seconds = round(seconds)
    for size, big, small in ((86400, "d", "h"), (3600, "h", "m"), (60, "m", "s")):
        if seconds >= size:
            part = {"h": 3600, "m": 60, "s": 1}[small]
            return f"{seconds // size}{big}{seconds % size // part:02d}{small}"
    return f"{seconds}s"


def size(count: float) -> str:
    """A number of bytes for people, such as 3.21 GiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
