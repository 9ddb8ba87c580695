"""Text as a data source: numbers, chunks, splits, refusals."""

import pickle

import numpy as np
import pytest

from edm_jax.data.sources.registry import open_source
from edm_jax.data.sources.text import TEXT8, TextSource, as_text


@pytest.fixture
def path(tmp_path):
    """A hundred characters of the alphabet: digit i of the file is letter i mod 26 + 1."""
    path = tmp_path / "text"
    path.write_text("".join(TEXT8[i % 26 + 1] for i in range(100)))
    return path


def test_chunks(path):
    source = TextSource(path, 20, alphabet=TEXT8)
    assert len(source) == 4 and source.image_shape == (20,) and source.num_values == 27
    token = source[1]["image"]
    np.testing.assert_array_equal(token, np.arange(20, 40) % 26 + 1)
    assert token.dtype == np.uint8
    assert as_text(token[:7], TEXT8) == "uvwxyza"
    with pytest.raises(IndexError):
        source[4]


def test_splits_do_not_overlap(path):
    seen = [
        as_text(source[i]["image"], TEXT8)
        for source in (
            TextSource(path, 5, split=s, alphabet=TEXT8) for s in ("train", "valid", "test")
        )
        for i in range(len(source))
    ]
    assert "".join(seen) == path.read_text()


def test_bytes(tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes("größe".encode() * 10)
    source = TextSource(path, 7)
    assert source.num_values == 256 and as_text(source[3]["image"]) == "größe"


def test_travels_to_processes(path):
    source = TextSource(path, 20, alphabet=TEXT8)
    source[0]
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[2]["image"], source[2]["image"])
    assert len(pickle.dumps(source)) < 2000


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"length": 91}, "train split has 90 bytes, fewer than one sequence of 91"),
        ({"length": 5, "split": "dev"}, "splits train, valid, test, got 'dev'"),
        ({"length": 0}, "length must be an integer of at least 1"),
        ({"length": 5, "alphabet": "abc"}, "byte b'd' at 3 is not in the alphabet"),
        ({"length": 5, "alphabet": "aa"}, "different characters"),
    ],
)
def test_refusals(path, arguments, message):
    with pytest.raises(ValueError, match=message):
        TextSource(path, **arguments)


def test_opened_by_name(path):
    source = open_source("text", str(path), "test", length=5, alphabet=TEXT8)
    assert len(source) == 1 and source.num_values == 27
    with pytest.raises(ValueError, match="path is missing"):
        open_source("text")


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match="no such text file"):
        TextSource(tmp_path / "none", 5)
