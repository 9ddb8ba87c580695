"""Reading the stored (uncompressed) zip archives that torch.save writes, without copying.

Only what such an archive needs is accepted: one folder, entries stored as they are, each
once, inside the file, not overlapping, with sizes and names that agree between the
directory and the entries, and with the right checksum.  Hence there is nothing to
inflate, and no name leads anywhere.

With ``torch.serialization.set_crc32_options(False)`` PyTorch writes the checksum 0 for
every entry; such an archive cannot be checked for damage.
"""

from __future__ import annotations

import itertools
import re
import struct
import zlib

from edm_jax.store.errors import WeightsError, show

_END = struct.Struct("<4s4H2LH")  # end of central directory
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL32 = 0xFFFFFFFF
# The folder is called like the file that was saved, which may well have a time in its name.
_NAME = re.compile(r"[^/\\\x00-\x1f]+(/[^/\\:\x00-\x1f]+)+")
_SERIALIZATION_ID = ".data/serialization_id"  # in every archive of a PyTorch with that option


def _unpack(layout: struct.Struct, signature: bytes, data: memoryview, at: int, what: str) -> tuple:
    if at < 0 or at + layout.size > len(data):
        raise WeightsError(f"zip: {what} at byte {at} lies outside the file; is it cut off?")
    fields = layout.unpack_from(data, at)
    if fields[0] != signature:
        raise WeightsError(f"zip: no {what} at byte {at}; the file is damaged")
    return fields


def _directory(data: memoryview) -> tuple[int, int, int]:
    """Number of entries, start and size of the central directory."""
    tail = bytes(data[max(0, len(data) - _END.size - 0xFFFF) :])
    found = tail.rfind(b"PK\x05\x06")
    if found < 0:
        raise WeightsError("zip: no end of central directory; the file is cut off, copy it again")
    end = len(data) - len(tail) + found
    fields = _unpack(_END, b"PK\x05\x06", data, end, "end of central directory")
    _, disk, first_disk, here, count, size, start, comment = fields
    if disk or first_disk or here != count or end + _END.size + comment != len(data):
        raise WeightsError("zip: a damaged or multi-part end of central directory")
    if end >= _LOCATOR64.size and data[end - _LOCATOR64.size : end][:4] == b"PK\x06\x07":
        end -= _LOCATOR64.size
        _, _, end64, _ = _unpack(_LOCATOR64, b"PK\x06\x07", data, end, "zip64 locator")
        fields = _unpack(_END64, b"PK\x06\x06", data, end64, "zip64 end of directory")
        count, size, start = fields[7:10]
        end = end64
    if start + size != end:
        raise WeightsError(
            f"zip: a directory of {size} bytes at byte {start}, expected to end at byte {end}"
        )
    if count * _CENTRAL.size > size:
        raise WeightsError(f"zip: {count} entries announced in a directory of {size} bytes")
    return count, start, size


def _wide_sizes(extra: bytes, values: list[int], name: str) -> list[int]:
    """Replace the fields that are all ones by their 64-bit values in the zip64 extra field."""
    while len(extra) >= 4:
        tag, size = struct.unpack_from("<HH", extra)
        body, extra = extra[4 : 4 + size], extra[4 + size :]
        if tag == 1:
            wide = iter(struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8]))
            values = [next(wide, v) if v == _FULL32 else v for v in values]
    if _FULL32 in values:
        raise WeightsError(f"zip: entry {show(name)} has no 64-bit sizes")
    return values


def _checked_name(raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise WeightsError(f"zip: an entry name that is not UTF-8 ({show(str(raw))})") from None
    if not _NAME.fullmatch(name) or any(p in (".", "..") for p in name.split("/")):
        raise WeightsError(f"zip: entry name {show(name)} is refused, expected folder/name")
    return name


def _local_data(data: memoryview, at: int, raw_name: bytes, size: int, name: str) -> tuple:
    """The content of an entry and its place, checked against its local header."""
    fields = _unpack(_LOCAL, b"PK\x03\x04", data, at, f"header of entry {show(name)}")
    _, _, flags, method, _, _, _, packed, unpacked, name_size, extra_size = fields
    start = at + _LOCAL.size + name_size + extra_size
    if bytes(data[at + _LOCAL.size :][:name_size]) != raw_name or method or flags & 0x2041:
        raise WeightsError(f"zip: the header of entry {show(name)} differs from the directory")
    # Zero where the sizes follow the data, all ones where they are in the extra field.
    if packed not in (size, 0, _FULL32) or unpacked not in (size, 0, _FULL32):
        raise WeightsError(f"zip: the header of entry {show(name)} gives another size")
    return data[start : start + size], start


def read_entries(data: memoryview) -> dict[str, memoryview]:
    """Entries of an archive by their name inside its single folder.

    Raises:
      WeightsError: damaged, compressed, encrypted, duplicate or oddly named entries;
        names the entry.
    """
    count, at, size = _directory(data)
    end = directory = at
    end += size
    entries: dict[str, memoryview] = {}
    folder, places = None, []
    for _ in range(count):
        fields = _unpack(_CENTRAL, b"PK\x01\x02", data, at, "directory entry")
        _, _, _, flags, method, _, _, crc, packed, unpacked, *lengths = fields
        name_size, extra_size, comment_size, _, _, _, header = lengths
        raw = bytes(data[at + _CENTRAL.size :][:name_size])
        extra = bytes(data[at + _CENTRAL.size + name_size :][:extra_size])
        at += _CENTRAL.size + name_size + extra_size + comment_size
        if at > end:
            raise WeightsError("zip: the directory is longer than announced")
        name = _checked_name(raw)
        if flags & 0x2041:
            raise WeightsError(f"zip: entry {show(name)} is encrypted")
        if method:
            raise WeightsError(f"zip: entry {show(name)} is compressed (method {method}); refused")
        unpacked, packed, header = _wide_sizes(extra, [unpacked, packed, header], name)
        if packed != unpacked:
            raise WeightsError(f"zip: entry {show(name)} stores {packed} bytes for {unpacked}")
        content, start = _local_data(data, header, raw, unpacked, name)
        if len(content) != unpacked or start + unpacked > directory:
            raise WeightsError(f"zip: entry {show(name)} of {unpacked} bytes does not fit the file")
        top, _, inner = name.partition("/")
        folder = folder or top
        if top != folder or inner in entries:
            reason = "appears twice" if top == folder else f"is outside folder {show(folder)}"
            raise WeightsError(f"zip: entry {show(name)} {reason}")
        entries[inner] = content
        places.append((header, start + unpacked, name, crc))
    places.sort()
    for (_, last, _, _), (first, _, name, _) in itertools.pairwise(places):
        if first < last:
            raise WeightsError(f"zip: entry {show(name)} overlaps another")
    if _SERIALIZATION_ID in entries and not any(crc for *_, crc in places):
        return entries  # written without checksums
    # Only now, so that each byte of the file is summed at most once.
    for _, _, name, crc in places:
        if zlib.crc32(entries[name.partition("/")[2]]) != crc:
            raise WeightsError(
                f"zip: entry {show(name)} is damaged (CRC-32 differs); copy it again"
            )
    return entries
