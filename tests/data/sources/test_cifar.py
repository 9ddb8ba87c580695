"""The reader of the CIFAR-10 archive: plain pickles yes, programs no."""

import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest

from edm_jax.data.sources.cifar import read_cifar10, read_plain_pickle

RNG = np.random.default_rng(0)


def python2_pickle(data, labels):
    """A batch as Python 2 wrote it (the published file, protocol 2), opcode by opcode."""
    text = data.tobytes()

    def short(value):
        return b"U" + bytes([len(value)]) + value

    def integer(value):
        return b"J" + struct.pack("<i", value)

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short(b"b")
        + b"\x87R(K\x01" + integer(data.shape[0]) + integer(data.shape[1]) + b"\x86"
        + b"cnumpy\ndtype\n" + short(b"u1") + b"K\x00K\x01\x87R(K\x03" + short(b"|")
        + b"NNN" + integer(-1) + integer(-1) + b"K\x00tb\x89"
        + b"T" + struct.pack("<i", len(text)) + text + b"tb"
    )  # fmt: skip
    return (
        b"\x80\x02}q\x01(" + short(b"batch_label") + b"q\x02" + short(b"training batch 1 of 5")
        + short(b"labels") + b"]q\x04(" + b"".join(b"K" + bytes([c]) for c in labels) + b"e"
        + short(b"data") + array + short(b"filenames") + b"](" + short(b"a.png") + b"eu."
    )  # fmt: skip


def write_archive(path, batches, folder="cifar-10-batches-py/"):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in batches.items():
            info = tarfile.TarInfo(folder + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def batches():
    made = {}
    for i in range(1, 6):
        data = RNG.integers(0, 256, (3, 3072), dtype=np.uint8)
        labels = RNG.integers(0, 10, 3).tolist()
        made[f"data_batch_{i}"] = (data, labels)
    return made


def test_the_hand_made_stream_is_a_pickle():
    data = RNG.integers(0, 256, (2, 3072), dtype=np.uint8)
    value = pickle.loads(python2_pickle(data, [3, 7]), encoding="bytes")  # our own bytes
    np.testing.assert_array_equal(value[b"data"], data)
    assert value[b"labels"] == [3, 7]


@pytest.mark.parametrize("protocol", ["python 2", 2, 3, 4])
def test_plain_values(protocol):
    data = RNG.integers(0, 256, (4, 3072), dtype=np.uint8)
    if protocol == "python 2":
        stream, key = python2_pickle(data, [1, 2, 3, 4]), str.encode
    else:
        value = {"data": data, "labels": [1, 2, 3, 4], "x": (None, True, 2.5, 10**6, b"b", ["é"])}
        stream, key = pickle.dumps(value, protocol=protocol), str
    out = read_plain_pickle(stream, "x")
    assert out[key("labels")] == [1, 2, 3, 4]
    np.testing.assert_array_equal(out[key("data")], data)
    if protocol != "python 2":
        assert out["x"] == (None, True, 2.5, 10**6, b"b", ["é"])


class Evil:
    def __reduce__(self):
        return os.mkdir, ("created-by-a-pickle",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_programs_are_refused_without_effect(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    for value in (Evil(), {"data": [Evil()]}, {Evil(): 1}):
        stream = pickle.dumps(value, protocol=protocol)
        with pytest.raises(ValueError, match=r"x: not a pickle of plain values"):
            read_plain_pickle(stream, "x")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"nonsense",
        b"\x80\x02}",  # does not end
        b"\x80\x02(K\x01.",  # ends inside a mark
        b"\x80\x02K\x01h\x05.",  # an unknown memo
        b"\x80\x02cbuiltins\neval\nU\x031+1\x85R.",
        b"\x80\x02cnumpy\nload\n.",
        b"\x80\x02cnumpy\nndarray\nU\x011\x85R.",  # ndarray itself is not called
        b"\x80\x02K\x01K\x02b.",
        b"\x80\x02U\x03abcQ.",  # persistent id
        b"\x80\x02cnumpy\ndtype\n)\x81.",  # NEWOBJ
        pickle.dumps({"data": np.zeros((2, 2))}, protocol=2),  # float64
        pickle.dumps(np.array([None, {}], dtype=object), protocol=2),
    ],
)
def test_other_streams_are_refused(stream):
    with pytest.raises(ValueError, match="x: not a pickle of plain values and byte arrays"):
        read_plain_pickle(stream, "x")


@pytest.mark.parametrize("version", ["python 2", "python 3"])
def test_archive(tmp_path, batches, version):
    write = python2_pickle if version == "python 2" else (
        lambda data, labels: pickle.dumps({"data": data, "labels": labels}, protocol=2)
    )  # fmt: skip
    content = {name: write(*batch) for name, batch in batches.items()}
    # Out of order, beside files that are not to be read.
    content = dict(reversed(content.items())) | {"test_batch": b"rubbish", "readme.html": b""}
    images, labels = read_cifar10(write_archive(tmp_path / "cifar-10-python.tar.gz", content))
    assert images.shape == (15, 32, 32, 3) and images.dtype == np.uint8
    assert labels.tolist() == [c for _, classes in batches.values() for c in classes]
    # A row of data is the red, then the green, then the blue plane, row by row.
    data = batches["data_batch_2"][0]
    assert images[4, 5, 6].tolist() == data[1, [5 * 32 + 6, 1024 + 166, 2048 + 166]].tolist()


def test_bad_archives(tmp_path, batches):
    path = tmp_path / "cifar-10-python.tar.gz"
    content = {name: python2_pickle(*batch) for name, batch in batches.items()}
    write_archive(path, {k: v for k, v in content.items() if k != "data_batch_4"})
    with pytest.raises(ValueError, match="holds no data_batch_4"):
        read_cifar10(path)
    data, labels = batches["data_batch_3"]
    bad = [(data[:, :100], labels), (data, labels[:2]), (data, [1, 2, 10])]
    for wrong in bad:
        write_archive(path, content | {"data_batch_3": python2_pickle(*wrong)})
        with pytest.raises(ValueError, match="data_batch_3: expected 'data' of shape"):
            read_cifar10(path)
    write_archive(path, content | {"data_batch_3": pickle.dumps([1])})
    with pytest.raises(ValueError, match="got NoneType"):
        read_cifar10(path)
    write_archive(path, content)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"damaged archive .*; download it again"):
        read_cifar10(path)
    path.write_bytes(b"not gzip")
    with pytest.raises(ValueError, match="damaged archive"):
        read_cifar10(path)
