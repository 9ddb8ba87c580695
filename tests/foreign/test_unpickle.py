"""The machine against CPython's pickler, and the zip reader against the zipfile module."""

import io
import pickle
import zipfile
from collections import OrderedDict

import hypothesis
import pytest
from hypothesis import strategies as st

from edm_jax.foreign.allowed import Allowed, LongText, SetRecord
from edm_jax.foreign.torch_files import read_plain
from edm_jax.foreign.unpickle import Unpickler
from edm_jax.foreign.zip_entries import read_entries
from edm_jax.store.errors import WeightsError, show

KEYS = st.text(max_size=8) | st.integers(-(2**62), 2**62)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**120), 2**120)
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
    | st.binary(max_size=300)
    | st.sets(st.integers(0, 9))
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(KEYS, inner, max_size=5)
        | st.dictionaries(KEYS, inner, max_size=5).map(OrderedDict)
        | st.lists(inner, max_size=5).map(tuple)
    ),
    max_leaves=20,
)


def plain(value):
    """Records back to what was pickled."""
    if isinstance(value, SetRecord):
        return set(value)
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(v) for v in value)
    return value


@hypothesis.settings(max_examples=300, deadline=None, derandomize=True)
@hypothesis.given(value=VALUES, protocol=st.sampled_from([2, 3, 4, 5]))
def test_reads_what_cpython_writes(value, protocol):
    value = replace_empty_bytes(value) if protocol == 2 else value
    got = plain(read_plain(memoryview(pickle.dumps(value, protocol))))
    assert got == value and repr(got) == repr(plain(value))


def replace_empty_bytes(value):
    # Protocol 2 writes b"" as a call of bytes, which no model file needs.
    if value == b"":
        return b"a"
    if isinstance(value, dict):
        return type(value)((k, replace_empty_bytes(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return type(value)(replace_empty_bytes(v) for v in value)
    return value


def test_shared_objects_stay_shared():
    shared = ["a"]
    got = read_plain(memoryview(pickle.dumps({"x": shared, "y": [shared]}, 4)))
    assert got["x"] is got["y"][0]


def test_long_texts_and_bytes_are_views():
    """Source texts and storages are not copied out of the file."""
    data = memoryview(pickle.dumps({"text": "x" * 70_000, "bytes": b"y" * 70_000}, 4))
    got = read_plain(data)
    assert isinstance(got["text"], LongText)
    assert got["text"].data.obj is data.obj and got["bytes"].obj is data.obj


@pytest.mark.parametrize("size", [10, 300, 70_000, 3_000_000])
def test_bytes_of_protocol_2(size):
    """They are written as texts, long ones of which are decoded in pieces."""
    value = bytes(range(256)) * (size // 256) + b"\xff" * (size % 256)
    assert bytes(read_plain(memoryview(pickle.dumps(value, 2)))) == value


@pytest.mark.parametrize("protocol", [0, 1])
def test_old_protocols_are_refused(protocol):
    with pytest.raises(WeightsError, match="no pickle of protocol 2 to 5"):
        read_plain(memoryview(pickle.dumps({"a": 1}, protocol)))


def test_nothing_is_allowed_by_default():
    for value in (OrderedDict(), {1}, range(3)):
        with pytest.raises(WeightsError, match="is refused"):
            Unpickler(memoryview(pickle.dumps(value, 2)), Allowed()).load()


def test_error_names_the_place():
    data = pickle.dumps({"a": range(3)}, 2)
    at = data.index(b"c__builtin__")
    with pytest.raises(WeightsError, match=rf"^pickle, byte {at}: global '__builtin__.xrange'"):
        read_plain(memoryview(data))


def test_show_is_bounded():
    endless: list = []
    endless.append(endless)
    for value in (endless, "x" * 10**6, 10**10_000, (endless,), {1: endless}, object(), b"ab"):
        assert len(show(value)) < 120
    assert show((1, 2)) == "(1, 2)" and show("a\nb") == r"'a\nb'" and show(None) == "None"


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
    contents=st.dictionaries(
        st.from_regex(r"[a-z]{1,6}", fullmatch=True), st.binary(max_size=99), max_size=6
    )
)
def test_reads_what_zipfile_stores(contents):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in contents.items():
            archive.writestr(f"top/{name}", data)
    entries = read_entries(memoryview(file.getvalue()))
    assert {n: bytes(d) for n, d in entries.items()} == contents


def test_zip64_of_zipfile():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open("top/a", "w", force_zip64=True) as entry:
            entry.write(b"abc")
    assert bytes(read_entries(memoryview(file.getvalue()))["a"]) == b"abc"
