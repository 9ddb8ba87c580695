"""Data sets by the name of their kind."""

import numpy as np
import pytest
from PIL import Image

from edm_jax.data.sources import base, registry


def test_digits():
    source = registry.open_source("digits")
    assert len(source) == 1500 and source.num_classes == 10
    assert len(registry.open_source("digits", split="test")) == 297
    plain = registry.open_source("digits", use_labels=False)
    assert plain.num_classes == 0 and plain.label_names is None and list(plain[5]) == ["image"]
    np.testing.assert_array_equal(plain[5]["image"], source[5]["image"])


def test_image_files(tmp_path):
    Image.fromarray(np.full((4, 4, 3), 7, np.uint8)).save(tmp_path / "a.png")
    source = registry.open_source("images", str(tmp_path), use_labels=False)
    assert source.image_shape == (4, 4, 3) and source[0]["image"].max() == 7
    with pytest.raises(base.NoTestSplit):
        registry.open_source("images", str(tmp_path), "test", use_labels=False)
    mirrored = registry.open_source("images", str(tmp_path), use_labels=False, mirror=True)
    assert len(mirrored) == 2


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("image", "unknown data source 'image'; did you mean 'images'"),
        ("images", "path is missing: the folder or .zip file of images"),
        ("tfds", "path is missing: the name of the TFDS data set"),
    ],
)
def test_what_is_missing(kind, message):
    with pytest.raises(ValueError, match=message):
        registry.open_source(kind)


def test_a_source_of_ones_own(monkeypatch):
    def noise(path, split, *, use_labels, count):
        return base.ArraySource(np.zeros((count, 2, 2, 1), np.uint8))

    monkeypatch.setitem(registry.SOURCES, "noise", noise)
    assert len(registry.open_source("noise", count=3)) == 3
