"""Programs traced for another platform than that of this machine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import models
from edm_jax.models.blocks import UNetBlock
from edm_jax.models.ops import attention, layers, resample, target, winograd
from edm_jax.models.ops.remat import remat
from edm_jax.models.ops.stored import stored
from edm_jax.models.variables import abstract_variables


def test_the_default_is_that_of_jax_and_comes_back():
    here = (jax.default_backend(), jax.device_count())
    assert (target.platform(), target.devices()) == here
    with pytest.raises(KeyError), target.assumed("tpu", 256):
        assert (target.platform(), target.devices()) == ("tpu", 256)
        with target.batch_over(8):
            assert (target.platform(), target.devices()) == ("tpu", 8)
        with target.assumed("gpu"):
            assert (target.platform(), target.devices()) == ("gpu", here[1])
        raise KeyError
    assert (target.platform(), target.devices()) == here


def test_a_mesh_says_where_the_parts_of_a_batch_are():
    here = jax.devices()
    mesh = jax.sharding.Mesh(np.array(here[:2]), ("data",))
    assert target.mesh() is None and target.device_kind() == here[0].device_kind
    with target.batch_over(mesh):
        assert target.mesh() is mesh and target.devices() == len(mesh.devices)
        assert target.device_kind() == here[0].device_kind
        with target.batch_over(1):
            assert target.mesh() is None and target.devices() == 1
    with target.assumed("tpu", 2):
        assert target.mesh() is None and target.device_kind() == ""  # described, but not how
    with target.assumed("tpu", jax.sharding.Mesh(np.array(here[:1]), ("data",))):
        assert target.mesh() is None and target.devices() == 1  # nothing is split
        assert target.device_kind() == here[0].device_kind

    seen = jax.jit(target.over(mesh, lambda x: x * target.devices()))(jnp.ones(()))
    assert seen == len(mesh.devices)


def test_what_is_for_cpus_alone_stays_out():
    x = jax.ShapeDtypeStruct((1, 16, 16, 192), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 192, 192), jnp.float32)

    def convolutions():
        traced = jax.make_jaxpr(lambda x, kernel: layers.conv2d(x, kernel, 1))(x, kernel)
        return str(traced).count("conv_general_dilated")

    assert winograd.worthwhile(x, kernel, 1) and convolutions() > 1  # six products and a plain one
    with target.assumed("tpu"):
        assert not winograd.worthwhile(x, kernel, 1) and convolutions() == 1


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_plain_forms_are_the_same_everywhere(platform):
    """Convolutions, attention, averages of pixels and what is stored, in float32 and bfloat16."""

    def traced(dtype):
        def block(x, kernel):
            x = layers.conv2d(x, kernel, 1)
            q = x.reshape(8, 1024, 2, 4)
            x = resample.downsample(attention.attention(q, q, q).reshape(x.shape), [1, 1])
            return stored(resample.upsample(x, [1, 1]))

        x, kernel = jnp.ones((8, 32, 32, 8), dtype), jnp.ones((3, 3, 8, 8), dtype)
        with target.assumed(platform):
            return str(jax.make_jaxpr(jax.grad(lambda *a: block(*a).sum(), (0, 1)))(x, kernel))

    for dtype in (jnp.float32, jnp.bfloat16):
        own = traced(dtype)
        with target.plain_forms():
            plain = traced(dtype)
            assert target.platform() == jax.default_backend()
            with target.assumed("another"):
                assert plain == traced(dtype)
        assert own != plain


def test_recomputation_is_that_of_the_platform():
    here = remat(UNetBlock)
    with target.assumed("tpu"):
        there = remat(UNetBlock)
        assert remat(UNetBlock) is there  # equal networks share programs
    assert here is remat(UNetBlock) and here is not there
    sizes = dict(img_resolution=4, in_channels=1, out_channels=1, attn_resolutions=())
    net = models.build("SongUNet", model_channels=8, channel_mult=(1,), num_blocks=1, **sizes,
                       remat="blocks")  # fmt: skip
    variables = abstract_variables(net)
    x = jax.ShapeDtypeStruct((1, 4, 4, 1), jnp.float32)

    def traced():
        def loss(variables, x):
            return net.apply(variables, x, jnp.ones(1)).sum()

        return str(jax.make_jaxpr(jax.grad(loss))(variables, x))

    assert "cond[" in traced()  # the branch that CPUs cannot see into
    with target.assumed("tpu"):
        program = traced()
    assert "cond[" not in program
    assert "remat" in program or "checkpoint" in program
