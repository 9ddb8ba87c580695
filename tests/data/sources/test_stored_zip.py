"""The zip reader and writer against Python's zipfile."""

import io
import os
import pickle
import struct
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest

from edm_jax.data.sources.stored_zip import ZipReader, central_directory, stored_record
from tests.support.made_images import write_zip

FILES = {"b/x.png": b"123", "a.txt": b"", "ü/é.png": bytes(range(256)) * 40, "b/a.png": b"z" * 999}


def _own(files, start=0):
    """Entries and bytes of an archive by the code under test."""
    entries, records = [], []
    for name, data in files.items():
        entry, record = stored_record(name, data)
        entries.append(entry)
        records.append(record)
    return b"".join(records) + central_directory(entries, start)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_reads_what_zipfile_writes(tmp_path, method):
    reader = ZipReader(write_zip(tmp_path / "x.zip", FILES, compression=method))
    assert reader.names == sorted(FILES)
    assert [reader.read(i) for i in range(4)] == [FILES[n] for n in sorted(FILES)]


def test_directories_comments_prefixes_and_extra_fields(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.mkdir("folder")
        info = zipfile.ZipInfo("folder/a.bin")
        info.extra = struct.pack("<2H", 0x7777, 300) + bytes(300)  # longer than the guess
        archive.writestr(info, b"content")
        archive.writestr("b.bin", b"more")
        archive.comment = b"PK\x05 a comment" * 9
    path = tmp_path / "x.zip"
    path.write_bytes(b"#!/bin/sh self-extracting\n" + buffer.getvalue())
    reader = ZipReader(path)
    assert reader.names == ["b.bin", "folder/a.bin"]
    assert [reader.read(0), reader.read(1)] == [b"more", b"content"]


def test_writes_what_zipfile_reads(tmp_path):
    path = tmp_path / "x.zip"
    path.write_bytes(_own(FILES))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {n: archive.read(n) for n in archive.namelist()} == FILES
        assert {i.compress_type for i in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {i.date_time for i in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    reader = ZipReader(path)
    assert {n: reader.read(i) for i, n in enumerate(reader.names)} == FILES


def test_more_entries_than_sixteen_bits_count(tmp_path):
    files = {f"{i // 1000:05d}/img{i:08d}.png": b"%d" % i for i in range(66_000)}
    path = tmp_path / "x.zip"
    path.write_bytes(_own(files))
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == list(files)
        assert archive.read("00065/img00065999.png") == b"65999"
    reader = ZipReader(path)
    assert reader.names == list(files)
    assert [reader.read(i) for i in (0, 65_535, 65_999)] == [b"0", b"65535", b"65999"]


def test_positions_beyond_four_gigabytes(tmp_path):
    # A hole of 5 GiB at the front takes no space on disk.
    path, start = tmp_path / "x.zip", 5 << 30
    with open(path, "wb") as file:
        file.seek(start)
        file.write(_own(FILES, start))
    with zipfile.ZipFile(path) as archive:
        assert archive.read("ü/é.png") == FILES["ü/é.png"]
    reader = ZipReader(path)
    assert {n: reader.read(i) for i, n in enumerate(reader.names)} == FILES


def test_wide_sizes_by_zipfile(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive, archive.open("a", "w", force_zip64=True) as file:
        file.write(b"content")
    assert ZipReader(path).read(0) == b"content"


def test_names_in_the_old_code_page(tmp_path):
    path = tmp_path / "x.zip"
    data = bytearray(_own({"XX.png": b"1"}))
    path.write_bytes(data.replace(b"XX", b"\x81\x82"))  # cp437: ü é, no UTF-8 flag
    with zipfile.ZipFile(path) as archive:
        expected = archive.namelist()
    assert ZipReader(path).names == expected == ["üé.png"]


def test_names_are_read_as_they_are_and_nothing_is_extracted(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    reader = ZipReader(write_zip(inside / "x.zip", {"../../evil.png": b"1", "/abs.png": b"2"}))
    assert reader.names == ["../../evil.png", "/abs.png"] and reader.read(0) == b"1"
    assert os.listdir(tmp_path) == ["inside"] and os.listdir(inside) == ["x.zip"]


def test_pickle_threads_and_forks_share_nothing_that_moves(tmp_path):
    files = {f"{i:03d}": np.random.default_rng(i).bytes(5000 + i) for i in range(100)}
    reader = ZipReader(write_zip(tmp_path / "x.zip", files))
    copy = pickle.loads(pickle.dumps(reader))
    wrong = []

    def work(seed):
        for i in np.random.default_rng(seed).permutation(100):
            if copy.read(i) != files[f"{i:03d}"]:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    # Parent and child of a fork read through one descriptor; a fresh interpreter,
    # because a program with threads of its own must not fork.
    code = (
        "import os, sys\n"
        "from edm_jax.data.sources.stored_zip import ZipReader\n"
        "reader = ZipReader(sys.argv[1])\n"
        "child = os.fork() == 0\n"
        "ok = all(len(reader.read(i)) == 5000 + i for _ in range(20) for i in range(100))\n"
        "if child: os._exit(not ok)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]) or not ok)\n"
    )
    if hasattr(os, "fork"):
        command = [sys.executable, "-c", code, str(tmp_path / "x.zip")]
        assert subprocess.run(command, timeout=60).returncode == 0


def test_every_flipped_byte_of_the_data_is_noticed(tmp_path):
    path = tmp_path / "x.zip"
    good = _own({"a": b"some content", "b": b"more"})
    for position in range(31, 31 + 12):
        bad = bytearray(good)
        bad[position] ^= 1
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"a is damaged \(checksum\)"):
            ZipReader(path).read(0)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.9, 0.99])
def test_truncated_archives(tmp_path, kept):
    path = tmp_path / "x.zip"
    good = _own(FILES)
    path.write_bytes(good[: int(kept * len(good))])
    with pytest.raises(ValueError, match=r"x\.zip: not a complete zip archive"):
        ZipReader(path)


def test_damaged_directory_and_headers(tmp_path):
    path = tmp_path / "x.zip"
    bad = bytearray(_own({"a": b"1", "b": b"2"}))
    bad[bad.rindex(b"PK\x01\x02")] = 0
    path.write_bytes(bad)
    with pytest.raises(ValueError, match=r"entry 1 of 2 .* is damaged"):
        ZipReader(path)
    bad = bytearray(_own({"a": b"1"}))
    bad[0] = 0
    path.write_bytes(bad)
    with pytest.raises(ValueError, match="no local header"):
        ZipReader(path).read(0)
    write_zip(path, {"a": b"1"}, compression=zipfile.ZIP_BZIP2)
    with pytest.raises(ValueError, match="compressed by method 12"):
        ZipReader(path).read(0)
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a", b"1")
        archive.writestr("a", b"2")
    with pytest.raises(ValueError, match="holds 'a' twice"):
        ZipReader(path)


def test_backslashes_part_folders(tmp_path):
    files = {"a\\b.png": b"1", "a\\": b"", "c/d.png": b"2"}
    reader = ZipReader(write_zip(tmp_path / "x.zip", files))
    assert reader.names == ["a/b.png", "c/d.png"] and reader.read(0) == b"1"


def test_utf8_names_that_are_not_flagged(tmp_path):
    path = tmp_path / "x.zip"
    data = bytearray(_own({"XX.png": b"1"}))
    path.write_bytes(data.replace(b"XX", "é".encode()))
    assert ZipReader(path).names == ["é.png"]


@pytest.mark.parametrize("where", ["stored_zip.kept", "sys.kept", "kept"])
def test_a_reader_says_nothing_when_the_program_ends(tmp_path, where):
    write_zip(tmp_path / "x.zip", FILES)
    program = (
        "import sys\nfrom edm_jax.data.sources import stored_zip\n"
        f"{where} = stored_zip.ZipReader(sys.argv[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x.zip")],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout + done.stderr == ""
