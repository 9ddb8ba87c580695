"""What extractors accept, and what they say otherwise."""

import numpy as np
import pytest

from edm_jax.metrics import extractors
from edm_jax.store.errors import WeightsError
from tests.support import weights_writer

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)


def test_pixels():
    found = extractors.build("pixels")(IMAGES).features
    np.testing.assert_array_equal(found, np.float32(IMAGES.reshape(5, -1)) / np.float32(127.5) - 1)
    with pytest.raises(ValueError, match=r"images of 12288 numbers are too large .* up to 4096"):
        extractors.build("pixels")(np.zeros((1, 64, 64, 3), np.uint8))


def test_batches_of_one_size():
    """Whatever comes, the function sees one shape."""
    seen = []

    def mean(images):
        seen.append(images.shape)
        return images.mean(axis=(1, 2), dtype=np.float32)

    mine = extractors.from_function(mean, "colour", batch_size=2)
    np.testing.assert_allclose(
        mine(IMAGES).features, IMAGES.mean(axis=(1, 2)), rtol=1e-6
    )  # float32 sums of 16 bytes
    assert seen == [(2, 4, 4, 3)] * 3


def test_grey_images_are_repeated():
    mine = extractors.Extractor("x", "", lambda x: x[:, 0, 0], 2, repeats_grey=True)
    found = mine(IMAGES[..., :1])
    np.testing.assert_array_equal(found.features, np.repeat(IMAGES[:, 0, 0, :1], 3, axis=1))
    assert found.remarks == ("grey images were repeated to three channels",)
    assert extractors.build("pixels")(IMAGES[..., :1]).features.shape == (5, 16)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (IMAGES / 255, "uint8, got float64; convert with edm_jax.to_uint8"),
        (IMAGES[0], r"\(B, H, W, C\), got \(4, 4, 3\)"),
        (IMAGES[:0], r"got \(0, 4, 4, 3\)"),
        (np.zeros((2, 4, 4, 4), np.uint8), "1 or 3 channels, got 4; remove the transparency"),
        ([IMAGES[0], IMAGES[1, :3]], r"several sizes, \(3, 4, 3\) and \(4, 4, 3\)"),
    ],
)
def test_bad_images(images, said):
    with pytest.raises(ValueError, match=said):
        extractors.build("pixels")(images)


def test_bad_features():
    def broken(images):
        rows = images.mean(axis=(1, 2))
        rows[3] = np.nan
        return rows

    with pytest.raises(ValueError, match="not finite for 1 of 5 images, the first is image 3"):
        extractors.from_function(broken, "broken", batch_size=8)(IMAGES)
    with pytest.raises(ValueError, match="gave logits that are not finite"):
        both = extractors.Extractor("both", "", lambda x: (x[:, 0, 0], broken(x)), 8)
        both(IMAGES)
    with pytest.raises(ValueError, match=r"must give features \(B, D\), got \(5, 4, 4, 3\)"):
        extractors.from_function(lambda x: x, "same")(IMAGES)


def test_digests_tell_versions_apart():
    digests = {
        extractors.from_function(np.mean, name, version=version).digest
        for name, version in (("a", ""), ("a", "2"), ("b", ""))
    }
    assert len(digests) == 3


def test_missing_weights_say_what_is_accepted(tmp_path):
    for weights in (None, "", tmp_path / "nowhere.pth", tmp_path):
        with pytest.raises(ValueError) as error:
            extractors.build("inception", weights=weights, option="--evaluation.inception")
        said = str(error.value)
        assert "--evaluation.inception" in said and "nothing is downloaded" in said
        assert "pt_inception-2015-12-05-6726825d.pth" in said and "96 MB" in said
        assert "\n" not in said
    with pytest.raises(ValueError, match="1,217,586,395 bytes"):
        extractors.build("dinov2")
    with pytest.raises(ValueError, match="did you mean 'inception'"):
        extractors.build("inceptoin")


def test_unusable_weights(tmp_path):
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    whole = weights_writer.state_dict_zip({"fc.weight": np.zeros((1000, 8), np.float32)})
    for content, said in (
        (b"<html>404", "not a file of PyTorch weights"),
        (whole[:-100], "cut off"),
        (whole, "torchvision's Inception-v3 .1000 classes."),
    ):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=said) as error:
            extractors.build("inception", weights=tmp_path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
