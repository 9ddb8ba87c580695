"""The run that an earlier revision left (tests/golden/README.md)."""

import zipfile

import numpy as np
import pytest

from tests.support.paths import GOLDEN


@pytest.fixture
def old_run(tmp_path):
    """A copy of its directory."""
    path = tmp_path / "old_run"
    with zipfile.ZipFile(GOLDEN / "old_run.zip") as archive:
        archive.extractall(path)
    return path


def expected(prefix):
    """Arrays of old_run.npz below a prefix, by the rest of their names."""
    with np.load(GOLDEN / "old_run.npz") as archive:
        return {name.removeprefix(prefix): archive[name] for name in archive.files
                if name.startswith(prefix)}  # fmt: skip
