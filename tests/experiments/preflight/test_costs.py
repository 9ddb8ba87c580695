"""Arithmetic and memory of a run, against closed forms, XLA's own count and a compilation."""

import dataclasses
import json
import math
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from configs import cifar10, tiny
from edm_jax.data.sources.base import ArraySource
from edm_jax.models.variables import abstract_variables
from experiments.config import build
from experiments.preflight import children, costs

DIGITS = costs.DataShape((8, 8, 1), 10)


def struct(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def count(f, *shapes):
    return costs.flops(jax.make_jaxpr(f)(*(struct(*shape) for shape in shapes)))


def conv(x, kernel, **options):
    options = {"window_strides": (1, 1), "padding": "SAME"} | options
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, dimension_numbers=numbers, **options)


X, K = (2, 8, 8, 4), (3, 3, 4, 6)


@pytest.mark.parametrize(
    ("f", "shapes", "expected"),
    [
        (jnp.matmul, [(3, 5), (5, 7)], 2 * 3 * 5 * 7),
        (lambda a, b: jnp.einsum("bij,bkj->bik", a, b), [(4, 3, 5), (4, 7, 5)], 2 * 4 * 3 * 5 * 7),
        (conv, [X, K], 2 * 2 * 64 * 9 * 4 * 6),
        (lambda x, k: conv(x, k, window_strides=(2, 2)), [X, K], 2 * 2 * 16 * 9 * 4 * 6),
        # Grouped: each output sees half of the inputs.
        (lambda x, k: conv(x, k, feature_group_count=2), [X, (3, 3, 2, 6)], 2 * 2 * 64 * 9 * 2 * 6),
        # Transposed: each of the 64 inputs meets every tap once.
        (
            lambda x, k: conv(x, k, lhs_dilation=(2, 2), padding=((1, 2), (1, 2))),
            [X, K],
            2 * 2 * 64 * 9 * 4 * 6,
        ),
        (jax.jit(jnp.matmul), [(3, 5), (5, 7)], 210),
        (lambda a, b: lax.scan(lambda c, _: (c @ b, None), a, length=6)[0], [(3, 5), (5, 5)], 900),
        (
            lambda a, b: lax.cond(a[0, 0] > 0, lambda: a @ b @ b.T @ b, lambda: a @ b),
            [(3, 5), (5, 7)],
            3 * 210,
        ),
        (lambda a: jnp.exp(a) + 1, [(3, 5)], 0),
    ],
)
def test_flops_in_closed_form(f, shapes, expected):
    assert count(f, *shapes) == expected


def test_a_gradient_is_two_more_products_of_the_same_size():
    def loss(x, kernel):
        return jnp.sum(conv(x, kernel) ** 2)

    forward = count(loss, X, K)
    assert count(jax.grad(loss, (0, 1)), X, K) == 3 * forward
    # Only the kernel: no product for the input.
    assert count(jax.grad(loss, 1), X, K) == 2 * forward
    # Recomputing: the forward pass once more.
    block = jax.checkpoint(lambda x, k: jnp.sin(conv(x, k)))
    recomputed = jax.grad(lambda x, k: jnp.sum(block(block(x, k), k)), (0, 1))
    square = (3, 3, 4, 4)
    assert count(recomputed, X, square) == 8 * count(conv, X, square)


def test_flops_agree_with_xla():
    """Without padding, which XLA leaves out, and without element-wise operations."""

    def f(x, kernel, w):
        return conv(x, kernel, padding="VALID").reshape(2, -1) @ w

    shapes = [struct(*X), struct(*K), struct(216, 11)]
    analysis = jax.jit(f).lower(*shapes).cost_analysis()
    assert costs.flops(jax.make_jaxpr(f)(*shapes)) == analysis["flops"]


def closed_form(net):
    """Forward FLOPs of DDPM++: each kernel at each pixel of its level, and attention."""
    total = 0
    for path, leaf in jax.tree.leaves_with_path(abstract_variables(net)["params"]):
        names = [key.key for key in path]
        if names[-1] != "kernel" or names[0] in ("map_label", "map_augment"):
            continue  # not given; zeros in place of a label are counted below
        pixels = int(names[0].split("_")[1].split("x")[0]) ** 2 if len(leaf.shape) == 4 else 1
        if names[0].endswith("_up") and names[1] == "skip":
            pixels //= 4  # multiplied before it is upsampled
        total += 2 * pixels * math.prod(leaf.shape)
    for entry in net.plan:
        if entry.attention:
            pixels = int(entry.name.split("x")[1].split("_")[0]) ** 2
            total += 2 * 2 * pixels**2 * entry.out_channels
    return total


def test_forward_flops_of_ddpmpp_in_closed_form():
    shape = costs.DataShape((32, 32, 3))
    net = build.experiment(cifar10.get_config("uncond")).build_network(shape)
    assert costs.forward_flops(net, shape) == closed_form(net)
    # 21.2 billion multiplications.
    assert costs.forward_flops(net, shape) == pytest.approx(2 * 21.2e9, rel=0.01)


@pytest.fixture(scope="module")
def network():
    """Experiment and network of the tiny run, wide enough that FSDP splits some of it."""
    experiment = made_with()
    return experiment, experiment.build_network(DIGITS)


def made_with(**training):
    """The tiny run, 16 channels wide, with some options of ``config.train``."""
    config = tiny.get_config()
    config.model.SongUNet.model_channels = 16
    config.train.update(training)
    return build.experiment(config)


def test_training_costs(network):
    experiment, net = network
    forward = costs.forward_flops(net, DIGITS)
    training = costs.training_costs(experiment, net, DIGITS)
    # Two more products for every product, but those whose input has no gradient.
    assert 2.9 * forward < training.flops <= 3 * forward
    # The input of every convolution is needed for the gradient of its kernel; nothing here
    # has more than 20 intermediate results per convolution.
    least = 0
    for path, leaf in jax.tree.leaves_with_path(abstract_variables(net)["params"]):
        if len(leaf.shape) == 4 and path[-1].key == "kernel":
            least += 64 * leaf.shape[2] * 4
    assert least < training.kept_bytes < 20 * least


def test_training_costs_are_those_of_other_devices(monkeypatch):
    """What only CPUs compute otherwise does not count, wherever the question is asked."""
    config = tiny.get_config()
    config.model.SongUNet.update(model_channels=192, channel_mult=(1,), num_blocks=1)
    experiment, shape = build.experiment(config), costs.DataShape((16, 16, 1), 10)
    net = experiment.build_network(shape)
    here = costs.training_costs(experiment, net, shape)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert here == costs.training_costs(experiment, net, shape)


def test_recomputation_keeps_less_and_computes_more(network):
    experiment, _ = network
    plain, recomputed = (
        costs.training_costs(experiment, experiment.build_network(DIGITS, remat=remat), DIGITS)
        for remat in ("none", "blocks")
    )
    assert recomputed.kept_bytes < plain.kept_bytes / 2
    assert plain.flops < recomputed.flops <= 4 / 3 * plain.flops


def test_state_bytes(network):
    experiment, net = network
    state = costs.abstract_state(experiment, net, DIGITS)
    params = costs.tree_bytes(state.params)
    # Weights, two moments and two averages in float32; counters and metrics beside them.
    assert 5 * params < costs.tree_bytes(state) < 5 * params + 1024
    assert costs.state_bytes(experiment, net, state, 8) == costs.tree_bytes(state)
    split = made_with(sharding="fsdp")
    assert costs.state_bytes(split, net, state, 1) == costs.tree_bytes(state)
    eighth = costs.state_bytes(split, net, state, 8)
    assert costs.tree_bytes(state) / 8 < eighth < costs.tree_bytes(state)


def test_shape_of_a_data_set():
    images = np.zeros((3, 8, 8, 1), np.uint8)
    plain = costs.DataShape.of(ArraySource(images))
    assert plain == costs.DataShape((8, 8, 1)) and list(plain.batch(5)) == ["image"]
    classes = costs.DataShape.of(ArraySource(images, np.array([0, 1, 2])))
    assert classes == costs.DataShape((8, 8, 1), 3)
    label = classes.batch(5)["label"]
    assert (label.shape, label.dtype) == ((5,), jnp.int32)
    vectors = costs.DataShape.of(ArraySource(images, np.ones((3, 4), np.float32)))
    assert vectors == costs.DataShape((8, 8, 1), 4, vector_labels=True)
    label = vectors.batch(5)["label"]
    assert (label.shape, label.dtype) == ((5, 4), jnp.float32)


@pytest.mark.slow
def test_memory_of_the_compiled_step(network):
    """Its arguments are the state, split as the layout says, a share of the batch and a key."""
    experiment, net = made_with(sharding="fsdp"), network[1]
    memory = costs.compiled_memory(experiment, DIGITS, 4)
    state = costs.state_bytes(experiment, net, costs.abstract_state(experiment, net, DIGITS), 4)
    batch = costs.tree_bytes(DIGITS.batch(16)) // 4
    assert memory.platform == "cpu"
    assert memory.state == state + batch + 8
    # At least the gradients of a quarter of the parameters; the images' share is less than
    # what the gradient keeps of them, and twice that is room for it and its gradients.
    kept = 4 * costs.training_costs(experiment, net, DIGITS).kept_bytes
    params = costs.tree_bytes(abstract_variables(net)["params"])
    assert params / 4 < memory.temporary < 2 * (kept + params)
    assert memory.total == memory.state + memory.temporary


def test_a_compilation_that_fails_is_one_line(network, monkeypatch):
    def run(command, **options):
        assert "--xla_force_host_platform_device_count=3 " in options["env"]["XLA_FLAGS"]
        assert "JAX_NUM_CPU_DEVICES" not in options["env"]  # JAX lets it overrule the flag
        return subprocess.CompletedProcess(command, 1, "", "Traceback\n ...\nValueError: no luck\n")

    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    monkeypatch.setattr(children.subprocess, "run", run)
    with pytest.raises(ValueError, match=r"for 3 devices \(exit code 1: ValueError: no luck\)"):
        costs.compiled_memory(network[0], DIGITS, 3)


def test_a_compilation_that_took_all_memory_says_so():
    killed = subprocess.CompletedProcess(["python"], -9, "", "")
    words = children.last_words(killed)
    assert "killed" in words and "memory of the computer" in words and "\n" not in words


def test_what_travels_to_the_compilation(network, monkeypatch):
    """The configuration and the shape survive JSON, infinities and tuples included."""
    sent = {}

    def run(command, **options):
        sent.update(json.loads(options["input"]))
        answer = children.ANSWER + '{"state": 1, "temporary": 2, "platform": "cpu"}'
        return subprocess.CompletedProcess(command, 0, f"noise\n{answer}\n", "")

    monkeypatch.setattr(children.subprocess, "run", run)
    assert costs.compiled_memory(network[0], DIGITS, 2) == costs.CompiledMemory(1, 2, "cpu")
    assert costs.DataShape(**sent["shape"]).batch(2) == DIGITS.batch(2)
    assert sent["config"]["sampler"]["s_tmax"] == math.inf
    assert sent["config"]["train"]["ema_halflife_kimg"] == [0.1, 0.05]
    assert dataclasses.asdict(DIGITS)["num_classes"] == 10
