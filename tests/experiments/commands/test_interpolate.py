"""--mode=interpolate: the strip of the library's frames."""

import numpy as np
import pytest
from PIL import Image

import edm_jax
from edm_jax.figures.codes import strip
from edm_jax.generate import drawn_labels, to_uint8
from tests.support.flow_commands import exact, one_line  # noqa: F401  (fixture)

INTERPOLATE = ("interpolate", "--seeds=1,2,3", "--dest=strip.png", "--num_frames=4")


@pytest.mark.slow
def test_the_strip_is_that_of_the_images_of_the_seeds(exact):  # noqa: F811
    said = exact(*INTERPOLATE, "--num_steps=8").stdout
    assert "2 x 4 images" in said
    labels = drawn_labels(exact.model, [1, 2, 3])
    # The same programs, which costs no second compilation.
    drawn = to_uint8(edm_jax.sample(exact.model, [1, 2, 3], labels, batch_size=3))
    frames = edm_jax.interpolate(
        exact.model, drawn[:2], drawn[1:], labels[:2], labels[1:],
        num_frames=4, num_steps=8, batch_size=8,
    )  # fmt: skip
    sheet = np.asarray(Image.open(exact.path / "strip.png")).astype(int)
    # A level: float32 sums may come in another order.
    assert np.abs(sheet - strip(frames)[..., 0]).max() <= 1
    # An end is the image itself, up to the error of 8 steps each way (0.06 RMS on the test bed).
    tile = sheet[4:68, 4:68].reshape(2, 32, 2, 32)[:, 0, :, 0]
    assert np.abs(tile - drawn[0, ..., 0]).max() <= 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds=1"], "two or more"),
        (["--seeds=1,1"], "a seed stands there twice"),
        (["--num_frames=1"], "a whole number of at least 2"),
        (["--labels=5"], "label 5 is out of range"),
        (["--guidance=cfg"], "--guidance: a guided"),
        (["--solver=rk5"], "did you mean"),
        (["--sigma_min=90"], "sigma_min"),
        (["--dest=strip.pdf"], "must be a file that ends with .png"),
    ],
)
def test_bad_input_is_one_line(arguments, message, exact):  # noqa: F811
    assert message in one_line(exact(*INTERPOLATE, *arguments, code=2))
    assert not (exact.path / "strip.png").exists()


def test_an_existing_strip_stays(exact):  # noqa: F811
    (exact.path / "strip.png").write_text("mine")
    assert "exists; delete it" in one_line(exact(*INTERPOLATE, code=2))
    assert (exact.path / "strip.png").read_text() == "mine"
