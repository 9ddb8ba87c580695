"""Images of several hosts: each draws its part of a batch, and every one gets all of them."""

import types

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec

from edm_jax import generate
from tests.test_generate import PIXELS, draw, tiny_model

HOSTS = 2


def _sharding():
    """What `batches` sees of a mesh of two devices on each host; here they are the same two."""
    everywhere = [types.SimpleNamespace(process_index=host) for host in (0, 0, 1, 1)]
    here = np.asarray(jax.devices()[:2])
    mesh = types.SimpleNamespace(
        devices=np.asarray(everywhere), local_devices=here, axis_names=("data",)
    )
    return types.SimpleNamespace(mesh=mesh, spec=PartitionSpec("data"))


@pytest.fixture
def on_each_host(monkeypatch):
    """What a call returns on the last host, and what each host gave the others."""

    def run(call):
        given = [[] for _ in range(HOSTS)]
        for host in range(HOSTS):

            def gather(values, tiled, host=host):
                assert tiled
                given[host].append(values)
                turn = len(given[host]) - 1
                # On the first host the others have not drawn yet.
                parts = [given[h][turn] if h <= host else values for h in range(HOSTS)]
                return np.concatenate(parts)

            monkeypatch.setattr(jax, "process_index", lambda host=host: host)
            monkeypatch.setattr(multihost_utils, "process_allgather", gather)
            monkeypatch.setattr(generate, "check_sharding", lambda sharding: None)
            result = call(_sharding())
        return result, given

    return run


@pytest.mark.parametrize("trajectory", [False, True])
def test_hosts_draw_different_parts_of_a_batch(on_each_host, trajectory):
    """Batches of eight, for four devices; the last one has two seeds and is padded."""
    labels = np.arange(10) % 3
    options = {"batch_size": 5, "trajectory": trajectory}
    found, given = on_each_host(
        lambda sharding: draw(range(10), labels, sharding=sharding, **options)
    )
    expected = draw(range(10), labels, **options)
    for ours, alone in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert ours.shape == alone.shape
        # Relative to the size of the states, which begin at 80.
        np.testing.assert_allclose(ours, alone, rtol=1e-4, atol=1e-4 * np.abs(alone).max())
    for parts in given:
        assert {len(values) for values in parts} == {4}


def test_batches_of_hosts_come_with_their_seeds(on_each_host):
    def call(sharding):
        model = tiny_model()
        request = generate.Sampling(num_steps=3)
        return list(
            generate.batches(model, range(20, 30), 1, request, batch_size=8, sharding=sharding)
        )

    found, _ = on_each_host(call)
    assert [list(seeds) for seeds, _ in found] == [list(range(20, 28)), [28, 29]]
    images = np.concatenate([images for _, images in found])
    np.testing.assert_allclose(images, draw(range(20, 30), 1), **PIXELS)
