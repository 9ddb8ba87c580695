"""Zip archives with a million images: a fast index, lock-free reads, resumable writing.

`zipfile` takes half a kilobyte of memory per entry, one lock for all reads, and a
central directory before it can continue an archive.  This module keeps six numbers per
entry, reads by position, and writes uncompressed entries one after the other, so that
what is on disk is always a prefix of the finished file.
Layouts: PKWARE APPNOTE 4.3.7 (local header), 4.3.12 (central), 4.3.14-16 (end), 4.5.3
(zip64).
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import struct
import zlib
from collections.abc import Callable
from typing import BinaryIO

import numpy as np

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_ENCRYPTED, _UTF8 = 0x1, 0x800
_DATE_1980 = 0x21  # 1980-01-01, the earliest there is: dates would make bytes differ


def _broken(path: str, what: str) -> ValueError:
    return ValueError(
        f"{path}: not a complete zip archive ({what}); copy or make it again"
    )  # fmt: skip


def _find_directory(file: BinaryIO, path: str) -> tuple[int, int, int, int]:
    """Position, size and number of entries of the central directory, and the bytes before
    the archive (of a self-extracting one) that offsets do not count."""
    size = file.seek(0, os.SEEK_END)
    tail_start = max(0, size - _END.size - _MAX16)  # a comment may follow
    file.seek(tail_start)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise _broken(path, "no end record")
    _, disk, _, _, count, length, start, _ = _END.unpack_from(tail, at)
    end = tail_start + at
    if _MAX16 in (count, disk) or _MAX32 in (length, start):
        file.seek(max(0, end - _LOCATOR64.size))
        locator = file.read(_LOCATOR64.size)
        if locator[:4] == b"PK\x06\x07":
            file.seek(_LOCATOR64.unpack(locator)[2])
            record = file.read(_END64.size)
            if len(record) < _END64.size or record[:4] != b"PK\x06\x06":
                raise _broken(path, "no zip64 end record")
            *_, disk, _, _, count, length, start = _END64.unpack(record)
            end -= _LOCATOR64.size + _END64.size
    if disk:
        raise ValueError(f"{path}: one part of a multi-part zip archive; join the parts first")
    shift = end - length - start
    if shift < 0:
        raise _broken(path, "the central directory lies outside the file")
    return start + shift, length, count, shift


_CENTRAL_DTYPE = np.dtype(
    [("signature", "<u4"), ("versions", "<u4"), ("flags", "<u2"), ("method", "<u2"),
     ("time", "<u4"), ("crc", "<u4"), ("packed", "<u4"), ("unpacked", "<u4"),
     ("lengths", "<u2", 3), ("disk", "<u2"), ("internal", "<u2"), ("external", "<u4"),
     ("offset", "<u4")]
)  # fmt: skip
_ROW = ("offset", "packed", "unpacked", "crc", "method", "flags")


def _split_directory(
    directory: bytes, count: int, path: str
) -> tuple[np.ndarray, list[bytes], list[bytes]]:
    """The fixed part, name and extra field of every entry of a central directory."""
    lengths = struct.Struct("<3H").unpack_from
    starts, names, extras = [], [], []
    at, last = 0, len(directory) - _CENTRAL.size
    for _ in range(count):
        if at > last:
            raise _broken(path, f"{len(names)} of {count} entries in the central directory")
        name, extra, comment = lengths(directory, at + 28)
        starts.append(at)
        at += _CENTRAL.size + name
        names.append(directory[at - name : at])
        extras.append(directory[at : at + extra])
        at += extra + comment
    fixed = np.frombuffer(directory, np.uint8)[
        np.array(starts, np.int64)[:, None] + np.arange(_CENTRAL.size)
    ]
    headers = fixed.view(_CENTRAL_DTYPE)[:, 0] if count else np.zeros(0, _CENTRAL_DTYPE)
    wrong = np.flatnonzero(headers["signature"] != int.from_bytes(b"PK\x01\x02", "little"))
    if wrong.size:
        raise _broken(path, f"entry {wrong[0]} of {count} in the central directory is damaged")
    return headers, names, extras


def _zip64_values(extra: bytes, values: list[int]) -> list[int]:
    """``[offset, packed, unpacked]`` with those that are all ones from the zip64 field."""
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, at)
        if tag == 1:
            wide = struct.unpack_from(f"<{length // 8}Q", extra, at + 4)[::-1]  # as stored
            wide = list(wide[-values.count(_MAX32) :])
            return [wide.pop(0) if v == _MAX32 and wide else v for v in values]
        at += 4 + length
    return values


def _widen(rows: np.ndarray, extras: list[bytes]) -> None:
    """Take what did not fit into 32 bits from the zip64 extra fields."""
    rest = (rows[:, :3] == _MAX32).any(axis=1)
    # All but a few entries of a large archive have just a wide offset: in one go.
    plain = np.array([extra[:4] == b"\x01\x00\x08\x00" for extra in extras], bool)
    plain &= (rows[:, 0] == _MAX32) & (rows[:, 1:3] != _MAX32).all(axis=1)
    if plain.any():
        fields = b"".join(extras[i][4:12] for i in np.flatnonzero(plain).tolist())
        rows[plain, 0] = np.frombuffer(fields, "<u8")
    for i in np.flatnonzero(rest & ~plain).tolist():
        rows[i, :3] = _zip64_values(extras[i], rows[i, :3].tolist())


def _decode_names(encoded: list[bytes], flags: np.ndarray) -> list[str]:
    """Names with forward slashes; some programs for Windows write backslashes."""
    joined = b"\0".join(encoded)
    if joined.isascii() and joined.count(b"\0") == len(encoded) - 1:
        return joined.decode("ascii").replace("\\", "/").split("\0")
    utf8 = (flags & _UTF8).astype(bool).tolist()
    return [_decode_name(*pair).replace("\\", "/") for pair in zip(encoded, utf8, strict=True)]


def _decode_name(encoded: bytes, utf8: bool) -> str:
    if not utf8:
        try:
            return encoded.decode("utf-8")  # not flagged as such: macOS and others write these
        except UnicodeDecodeError:
            return encoded.decode("cp437")
    return encoded.decode("utf-8", "backslashreplace")


class ZipReader:
    """The files in a zip archive, sorted by name, read by number.

    Reads take no lock and keep no position, so threads and forked processes share one
    reader; pickling carries the index, not the open file.

    Args:
      path: of the archive; entries stored or deflated.

    Attributes:
      names: of the files (directories left out), sorted as strings.

    Raises:
      ValueError: if it is no complete zip archive, or names an entry twice.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        with open(self.path, "rb") as file:
            start, length, count, shift = _find_directory(file, self.path)
            file.seek(start)
            directory = file.read(length)
        headers, encoded, extras = _split_directory(directory, count, self.path)
        # Offset, packed size, unpacked size, CRC, method, flags: one row per entry.
        rows = np.stack([headers[key].astype(np.int64) for key in _ROW], axis=1)
        _widen(rows, extras)
        rows[:, 0] += shift
        names = _decode_names(encoded, headers["flags"])
        order = sorted(range(count), key=names.__getitem__)
        order = [i for i in order if not names[i].endswith("/")]
        self.names = [names[i] for i in order]
        self._rows = rows[order]
        for a, b in itertools.pairwise(self.names):
            if a == b:
                raise ValueError(f"{self.path}: holds {a!r} twice; make the archive again")
        self._open()

    def _open(self) -> None:
        # Reads by position (pread) share the descriptor; Windows has none of that.
        self._fd = os.open(self.path, os.O_RDONLY) if hasattr(os, "pread") else None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_fd": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # Bound above: at the end of a program the module may be gone before its objects.
        descriptor, self._fd = self.__dict__.get("_fd"), None
        if descriptor is not None:
            try:
                close(descriptor)
            except OSError:
                pass  # somebody closed it, as programs do that become daemons

    def _read_at(self, offset: int, size: int) -> bytes:
        if self._fd is not None:
            return os.pread(self._fd, size, offset)
        with open(self.path, "rb", buffering=0) as file:
            file.seek(offset)
            return file.read(size)

    def read(self, number: int) -> bytes:
        """The content of file ``names[number]``.

        Raises:
          ValueError: if it is damaged (CRC), encrypted or compressed in another way.
        """
        name = self.names[number]
        offset, packed, unpacked, crc, method, flags = self._rows[number].tolist()
        where = f"{self.path}: {name}"
        if flags & _ENCRYPTED or method not in (0, 8):
            raise ValueError(
                f"{where} is {'encrypted' if flags & 1 else f'compressed by method {method}'}; "
                "write the archive without (stored or deflated)"
            )
        # One read in all but odd cases: the extra field of the local header may be longer.
        guess = _LOCAL.size + 4 * len(name) + 64
        data = self._read_at(offset, guess + packed)
        if data[:4] != b"PK\x03\x04" or len(data) < _LOCAL.size:
            raise ValueError(f"{where} is damaged (no local header); copy the archive again")
        *_, name_length, extra_length = _LOCAL.unpack_from(data)
        start = _LOCAL.size + name_length + extra_length
        if len(data) < start + packed:
            data, start = self._read_at(offset + start, packed), 0
        data = data[start : start + packed]
        try:
            # One byte more than stated is enough to see that the statement is wrong.
            data = zlib.decompressobj(-15).decompress(data, unpacked + 1) if method else data
        except zlib.error as error:
            raise ValueError(f"{where} is damaged ({error}); copy the archive again") from error
        if len(data) != unpacked or zlib.crc32(data) != crc:
            raise ValueError(f"{where} is damaged (checksum); copy the archive again")
        return data


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One written entry: what its line of the central directory needs."""

    name: str
    size: int
    crc: int

    @property
    def record_size(self) -> int:
        """Bytes the entry takes in the archive: header, name, data."""
        return _LOCAL.size + len(self.name.encode()) + self.size


def stored_record(name: str, data: bytes) -> tuple[Entry, bytes]:
    """An uncompressed entry as it stands in the archive, after its local header."""
    if len(data) >= _MAX32:
        raise ValueError(f"{name}: {len(data)} bytes are too many for one zip entry (4 GiB)")
    entry = Entry(name, len(data), zlib.crc32(data))
    encoded = name.encode()
    flags = 0 if name.isascii() else _UTF8
    header = _LOCAL.pack(
        b"PK\x03\x04", 20, flags, 0, 0, _DATE_1980, entry.crc, entry.size, entry.size,
        len(encoded), 0,
    )  # fmt: skip
    return entry, header + encoded + data


def central_directory(entries: list[Entry], start: int = 0) -> bytes:
    """What ends an archive whose entries lie back to back.

    Args:
      entries: in file order.
      start: position of the first one.

    Returns:
      Central directory and end records, to be written right after the last entry.
    """
    lines = []
    offset = start
    for entry in entries:
        encoded = entry.name.encode()
        wide = offset >= _MAX32
        extra = struct.pack("<2HQ", 1, 8, offset) if wide else b""
        header = _CENTRAL.pack(
            b"PK\x01\x02", 3 << 8 | 20, 45 if wide else 20, 0 if entry.name.isascii() else _UTF8,
            0, 0, _DATE_1980, entry.crc, entry.size, entry.size, len(encoded), len(extra), 0, 0,
            0, 0o100644 << 16, _MAX32 if wide else offset,
        )  # fmt: skip
        lines += [header, encoded, extra]
        offset += entry.record_size
    directory = b"".join(lines)
    count, length = len(entries), len(directory)
    end = b""
    if count >= _MAX16 or length >= _MAX32 or offset >= _MAX32:
        end += _END64.pack(
            b"PK\x06\x06", _END64.size - 12, 45, 45, 0, 0, count, count, length, offset
        )
        end += _LOCATOR64.pack(b"PK\x06\x07", 0, offset + length, 1)
    count = min(count, _MAX16)
    end += _END.pack(b"PK\x05\x06", 0, 0, count, count, min(length, _MAX32), min(offset, _MAX32), 0)
    return directory + end
