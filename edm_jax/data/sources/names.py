"""Names of files: which of them tools left behind, how they are compared, how they are shown."""

from __future__ import annotations

import unicodedata

# What file managers, network drives, recycle bins and archivers leave in people's folders;
# compared without regard to case.  Names that begin with a dot need no entry.
_OF_TOOLS = frozenset(
    (
        "@eadir", "@tmp", "@__thumb", "@recycle", "@recently-snapshot", "#recycle", "#snapshot",
        "$recycle.bin", "recycler", "system volume information", "lost+found", "__macosx",
        "__pycache__", "_gsdata_", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db",
        "desktop.ini", "icon\r",
    )
)  # fmt: skip


def is_left_out(name: str) -> bool:
    """Whether a file belongs to a tool and not to a data set.

    Args:
      name: relative, forward slashes.  It counts if any of its parts begins with a dot (``.``
        and ``..`` apart) or with ``~$`` (files that are open in an office program), or is one
        of the names that tools are known to leave.
    """
    return any(
        (part.startswith((".", "~$")) and part not in (".", "..")) or part.lower() in _OF_TOOLS
        for part in name.split("/")
    )


def clean(name: str) -> str:
    """One spelling for all of one meaning: ``.\\a\\b.png``, ``/a//b.png`` -> ``a/b.png``.

    Accented letters are composed (NFC): macOS takes them apart.
    """
    parts = name.replace("\\", "/").split("/")
    return unicodedata.normalize("NFC", "/".join(p for p in parts if p not in ("", ".")))


def shown(name: str) -> str:
    """A name as messages and files can hold it: what is no printable character is escaped.

    A name that is no UTF-8 comes from the system with lone surrogates in the place of its
    bytes (PEP 383); these are shown as ``\\xff``.
    """
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else _escaped(c) for c in name)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
