"""The picture of the two-dimensional toy."""

import numpy as np
from PIL import Image

from edm_jax.figures.guided_toy import guided_toy
from edm_jax.guidance.toy import branching_toy


def test_picture(tmp_path):
    toy = branching_toy(depth=2)
    guided_toy(tmp_path / "toy.png", toy, count=8, paths=2, resolution=16)
    picture = np.asarray(Image.open(tmp_path / "toy.png").convert("RGB"), float)
    assert picture.shape[1] > 3 * picture.shape[0]  # four panels in a row
    # The density is there: each quarter holds dark and bright colours of the map.
    for part in np.array_split(picture, 4, axis=1):
        red = part[..., 0]
        assert red.min() < 10 and ((red > 200) & (part[..., 2] < 160)).mean() > 0.002
