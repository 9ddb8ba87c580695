"""Random files never raise anything but the documented error (generators: weights_fuzz)."""

import pathlib
import tempfile

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.support import weights_fuzz as wf

RANDOM = st.randoms(use_true_random=False)
SETTINGS = hypothesis.settings(
    max_examples=150,
    deadline=None,  # a first import compiles; every file has a limit of its own
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
PATH = pathlib.Path(tempfile.mkdtemp()) / "file"


@pytest.mark.slow
@hypothesis.given(rng=RANDOM)
@SETTINGS
def test_mutated_files(rng):
    wf.check(wf.random_file(rng), PATH)


@hypothesis.given(rng=RANDOM)
@SETTINGS
def test_random_programs(rng):
    wf.check(wf.random_program(rng), PATH)


@hypothesis.given(data=st.binary(max_size=300))
@SETTINGS
def test_random_bytes(data):
    for start in (b"", b"\x80\x04", b"PK\x03\x04", b"\x40\0\0\0\0\0\0\0{", wf.bases()[5][1][:64]):
        wf.check(start + data, PATH)


def test_bases_are_good():
    """The files that are mutated are read when they are not."""
    names = [n for n, _, _ in wf.bases() if not n.startswith("dtypes")]
    for name, data, _ in wf.bases():
        assert (wf.check(data, PATH) == "read") == (name in names), name
