"""A network of the user's own: one file, one line of the registry, a configuration."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import edm_jax
from edm_jax import models
from edm_jax.model import describe, from_description
from edm_jax.store.errors import WeightsError

CONFIG = """
from configs import tiny


def get_config():
    config = tiny.get_config()
    with config.unlocked():
        config.model.name = "TinyTransformer"
        config.model.TinyTransformer = dict(width=16, patch=4)
    config.train.update(total_kimg=0.08, checkpoint_kimg=0.08, sample_kimg=0)
    config.evaluation.update(num_images=0, trajectory_seeds=0)
    return config
"""


class TinyTransformer(nn.Module):
    """Patches attend to one another; shares nothing with the U-Nets."""

    img_resolution: int
    in_channels: int
    out_channels: int
    label_dim: int = 0
    width: int = 8
    patch: int = 2

    @nn.compact
    def __call__(
        self, x, c_noise, class_labels=None, augment_labels=None, *, train=False, image_ids=None
    ):
        size, p = self.img_resolution, self.patch
        tokens = x.reshape(-1, size // p, p, size // p, p, self.in_channels)
        tokens = tokens.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], (size // p) ** 2, -1)
        tokens = nn.Dense(self.width)(tokens)
        tokens += self.param("place", nn.initializers.normal(0.02), tokens.shape[1:])[None]
        level = jnp.broadcast_to(jnp.atleast_1d(c_noise), x.shape[:1])[:, None]
        condition = nn.Dense(self.width)(jnp.concatenate([jnp.sin(level), jnp.cos(level)], -1))
        if self.label_dim:
            labels = jnp.zeros((1, self.label_dim)) if class_labels is None else class_labels
            condition += nn.Dense(self.width, name="labels")(labels)
        tokens += condition[:, None]
        tokens += nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(tokens))
        tokens += nn.Dense(self.width)(nn.gelu(nn.Dense(2 * self.width)(nn.LayerNorm()(tokens))))
        tokens = nn.Dense(p * p * self.out_channels)(nn.LayerNorm()(tokens))
        tokens = tokens.reshape(-1, size // p, size // p, p, p, self.out_channels)
        return tokens.transpose(0, 1, 3, 2, 4, 5).reshape(*x.shape[:-1], self.out_channels)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(models.NETWORKS, "TinyTransformer", TinyTransformer)


def test_it_trains_loads_samples_exports_and_preflights(registered, one_device, call, tmp_path):
    config, run = tmp_path / "mine.py", tmp_path / "run"
    config.write_text(CONFIG)
    told = call("--mode=preflight", f"--config={config}").stdout
    assert "this run would work" in told and "TinyTransformer" in told

    call(f"--config={config}", f"--workdir={run}")
    assert "finished" in call(f"--config={config}", f"--workdir={run}").stdout
    call(f"--config={config}", f"--workdir={run}", "--config.train.total_kimg=0.16")  # resumes

    model = edm_jax.load(run)
    assert isinstance(model.net, TinyTransformer) and model.net.width == 16
    images = edm_jax.sample(model, range(4), [0, 1, 2, 3], num_steps=3)
    assert images.shape == (4, 8, 8, 1) and np.all(np.isfinite(images))
    other = edm_jax.sample(model, range(4), [1, 1, 2, 3], num_steps=3)
    assert not np.allclose(images[0], other[0]) and np.allclose(images[1:], other[1:], atol=1e-4)

    call("--mode=export", f"--workdir={run}", f"--dest={tmp_path / 'mine.safetensors'}")
    again = edm_jax.load(tmp_path / "mine.safetensors")
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    call("--mode=sample", f"--workdir={run}", "--seeds=0-3", f"--outdir={tmp_path / 'images'}")
    assert (tmp_path / "images" / "000003.png").exists()


def test_without_the_registry_line_the_checkpoint_says_so(registered, monkeypatch, tmp_path):
    network = dict(name="TinyTransformer", img_resolution=8, in_channels=1, out_channels=1)
    description = describe(
        network=network, precond={"name": "edm"}, image_shape=(8, 8, 1), num_classes=0
    )
    variables = models.init_variables(TinyTransformer(8, 1, 1), jax.random.key(0))
    monkeypatch.delitem(models.NETWORKS, "TinyTransformer")
    with pytest.raises(WeightsError, match="unknown network 'TinyTransformer'"):
        from_description(description, variables)
