"""The digits compiled for TPUs; needs their compiler, but no TPU.

python -m pip install -e '.[tpu]'
python -m pytest -n 0 -m slow tests/experiments/preflight/test_tpu.py
"""

import importlib.util
import math

import jax
import pytest

from configs import digits
from edm_jax.models.variables import abstract_variables
from experiments.config import build
from experiments.preflight import costs, kernels, program, tpu
from experiments.preflight.topologies import INSTALL, parse

DIGITS = costs.DataShape((8, 8, 1), 10)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason=f"needs the compiler for TPUs: {INSTALL}",
    ),
]


@pytest.fixture(scope="module")
def experiment():
    return build.experiment(digits.get_config())


@pytest.mark.parametrize("name", ["v5e:2x2", "v6e:2x2"])
def test_the_training_step(name, experiment):
    topology = parse(name)
    made = tpu.compiled(experiment, DIGITS, topology)
    net = experiment.build_network(DIGITS)
    state = costs.abstract_state(experiment, net, DIGITS)
    assert made.fits and made.open_loops == 0
    # State and a quarter of the batch; arrays are padded to tiles.
    assert costs.tree_bytes(state) <= made.arguments < 2 * costs.tree_bytes(state) + 2**20
    assert {program.CONVOLUTIONS, program.NORMS, program.OUTSIDE} <= made.cycles.keys()
    # No faster than the peak allows, and within a factor of a thousand of it: a tiny network.
    flops = costs.training_costs(experiment, net, DIGITS).flops * 128 / topology.devices
    least = flops / (topology.chip.tflops * 1e12)
    assert least < made.compute_seconds(topology) < 1000 * least
    # Every gradient is summed over the chips, in float32 or a narrower type.
    params = jax.tree.leaves(abstract_variables(net)["params"])
    gradient = 4 * sum(math.prod(leaf.shape) for leaf in params)
    assert gradient / 2 <= made.collectives["all-reduce"][1] < 1.5 * gradient


@pytest.mark.parametrize("name", ["v5e:2x2", "v6e:2x2"])
def test_the_sampler(name, experiment):
    topology = parse(name)
    made = tpu.compiled(experiment, DIGITS, topology, tpu.SAMPLER)
    assert made.fits and made.open_loops == 0
    assert made.collectives == {}  # an image depends on its seed alone
    # Heun on 18 steps: 35 calls of the network on 25 images a chip.
    net = experiment.build_network(DIGITS)
    flops = costs.forward_flops(net, DIGITS) * 35 * 25
    least = flops / (topology.chip.tflops * 1e12)
    assert least < made.compute_seconds(topology) < 1000 * least


@pytest.mark.parametrize("name", ["v5e:1x1", "v5p:1x1x1", "v6e:1x1"])
def test_attention_in_one_kernel(name):
    """It compiles, and the library counts what its products take at least."""
    topology = parse(name)
    images, heads, channels, tokens = 20, 3, 64, 256
    x = ("bf16", (images, heads, 3, channels, tokens))
    o, z = ("bf16", (images, heads, channels, tokens)), ("f32", (images, heads, 1, tokens))
    forward = program.Kernel("attention_forward", (x,))
    backward = program.Kernel("attention_backward", (x, o, z, o))
    others = [
        program.Kernel("unknown", (x,)),
        program.Kernel("attention_backward", ()),
        program.Kernel("attention_backward", (o,)),  # which does not even trace
    ]
    found = kernels.count([forward, backward, *others], topology)
    assert found.keys() == {forward, backward}
    per_cycle = topology.chip.tflops * 1e12 / topology.chip.devices / topology.chip.hertz
    product = 2 * images * heads * channels * tokens**2 / per_cycle
    # 64 channels fill half of the units of v5e, a quarter of those of v6e; programs are short.
    assert 2 * product < found[forward] < 50 * product
    assert 5 * product < found[backward] < 125 * product


def test_attention_of_several_chips_stays_on_each():
    config = digits.get_config()
    config.model.dtype = "bfloat16"
    config.model.SongUNet.attn_resolutions = (8,)  # 64 tokens go through the kernel
    made = tpu.compiled(build.experiment(config), DIGITS, parse("v5e:2x2"))
    assert made.fits and made.uncounted == 0
    assert made.collectives.keys() <= {"all-reduce"}  # of gradients alone
