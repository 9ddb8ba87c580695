"""Figures of curves: every format, nothing left behind, no state of matplotlib touched."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from edm_jax.figures import curves, files

KINDS = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}


@pytest.mark.parametrize("kind", files.FORMATS)
def test_loss_per_noise_level_states_its_scales(kind, tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / f"loss.{kind}"
    losses = rng.uniform(0.5, 1, (8, 4))
    draws = np.exp(rng.normal(-1.2, 1.2, 1000))
    curves.loss_per_noise_level(path, np.geomspace(0.002, 80, 8), losses, losses / 2, draws)
    assert path.read_bytes().startswith(KINDS[kind])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    if kind == "svg":
        text = path.read_text()
        for word in ("weighted loss per element", "density of training, per unit of", "trained"):
            assert word in text
    again = tmp_path / f"again.{kind}"
    curves.loss_per_noise_level(again, np.geomspace(0.002, 80, 8), losses, losses / 2, draws)
    if kind != "svg":  # whose names of parts are random
        assert again.read_bytes() == path.read_bytes()


def test_a_figure_has_the_width_of_a_column(tmp_path):
    curves.training_curve(tmp_path / "loss.png", [0.1, 0.2, 0.3], [1.0, None, 0.5])
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.width == pytest.approx(files.COLUMN * 300, abs=1)
    curves.evaluation_curves(tmp_path / "none.png", [1.0], {})
    assert not (tmp_path / "none.png").exists()
    curves.evaluation_curves(tmp_path / "two.pdf", [1.0, 2.0], {"a": [1, 2], "b": [2, 1]})
    assert (tmp_path / "two.pdf").exists()
    with pytest.raises(ValueError, match="must end in one of png, pdf, svg"):
        curves.training_curve(tmp_path / "loss.bmp", [0.1], [1.0])


def test_the_users_matplotlib_is_left_alone():
    """No backend is chosen, no figure stays open, no style is set."""
    code = (
        "import pathlib, tempfile, matplotlib\n"
        "matplotlib.use('template'); before = dict(matplotlib.rcParams)\n"
        "from edm_jax.figures import curves\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    curves.training_curve(pathlib.Path(folder) / 'a.png', [1, 2], [1, 2])\n"
        "assert dict(matplotlib.rcParams) == before\n"
        "import matplotlib.pyplot as plt; assert not plt.get_fignums()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
