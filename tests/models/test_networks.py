"""Whole networks against arrays of an independent implementation (golden 04_net_*)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import models, precond
from edm_jax.models.ops import target
from tests.support.models_golden import (
    ATOL,
    GRAD_RTOL,
    assert_close,
    labels,
    load_network,
    nhwc,
    parameter_names,
)

FILES = ["ddpmpp_cond", "ddpmpp_uncond", "ncsnpp_cond", "adm_cond"]


@pytest.fixture(params=FILES, scope="module")
def case(request):
    archive, net, variables = load_network(request.param)
    return archive, net, variables, jax.jit(net.apply)


def test_output(case):
    archive, _, variables, apply = case
    x, c_noise = nhwc(archive["x"]), archive["noise_labels"]
    out = apply(variables, x, c_noise, **labels(archive))
    assert out.dtype == jnp.float32
    assert_close(out, nhwc(archive["out"]))
    assert_close(out, nhwc(archive["out_f64"]))
    if "out_vp_labels" in archive.files:  # c_noise up to 999
        out = apply(variables, x, archive["noise_labels_vp"], **labels(archive))
        assert_close(out, nhwc(archive["out_vp_labels"]))
    if "out_no_augment" in archive.files:
        out = apply(variables, x, c_noise, archive["class_labels"])
        assert_close(out, nhwc(archive["out_no_augment"]))


def test_an_image_does_not_depend_on_the_others(case):
    archive, _, variables, apply = case
    x, c_noise, given = nhwc(archive["x"]), archive["noise_labels"], labels(archive)
    whole = apply(variables, x, c_noise, **given)
    others = np.full(len(x), True)
    others[1] = False
    moved = {k: np.where(others[:, None], v[::-1], v) for k, v in given.items()}
    x = np.where(others[:, None, None, None], -x, x)
    out = apply(variables, x, np.where(others, c_noise + 1, c_noise).astype(np.float32), **moved)
    np.testing.assert_array_equal(out[1], whole[1])
    assert np.abs(out - whole)[others].max() > 0.1


def test_every_intermediate_output(case):
    archive, net, variables, _ = case

    @jax.jit
    def run(variables, x, c_noise, labels):
        _, state = net.apply(
            variables, x, c_noise, **labels, capture_intermediates=True, mutable="intermediates"
        )
        return state["intermediates"]

    acts = run(variables, nhwc(archive["x"]), archive["noise_labels"], labels(archive))
    names = [k[4:] for k in archive.files if k.startswith("act/")]
    assert len(names) > 15
    for name in names:
        expected = archive[f"act/{name}"]
        (actual,) = acts[name.replace(".", "_", 1)]["__call__"]
        if expected.ndim == 4:  # the first image alone is stored
            actual, expected = actual[:1], nhwc(expected)
        if name.endswith("norm"):  # ours includes the activation that follows
            expected = jax.nn.silu(expected)
        # Phases of the Fourier embedding reach hundreds of radians.
        atol = 2e-4 if name == "map_noise" else ATOL
        assert_close(actual, expected, atol=atol, err_msg=name)


@pytest.mark.parametrize("name", ["ddpmpp_cond", "adm_cond"])
def test_gradients(name):
    archive, net, variables = load_network(name)
    weight = nhwc(archive["grad/R"])

    @jax.jit
    @jax.grad
    def gradients(inputs):
        params, x = inputs
        out = net.apply({"params": params}, x, archive["noise_labels"], **labels(archive))
        return jnp.sum(out * weight)

    params, x = gradients((variables["params"], nhwc(archive["x"])))
    # Absolute, at the size of the largest entry.
    assert_close(x, nhwc(archive["grad/x"]), atol=GRAD_RTOL * np.abs(archive["grad/x"]).max())

    ours = models.to_state_dict({"params": params})
    assert parameter_names(net) == list(archive["grad/names"])
    norms = np.array([np.linalg.norm(ours[k].astype(np.float64)) for k in archive["grad/names"]])
    # The softmax does not depend on the bias of the keys: that part of a gradient is
    # rounding alone, but queries and values dominate every norm.
    np.testing.assert_allclose(norms, archive["grad/norms_f64"], rtol=GRAD_RTOL)
    full = [k for k in archive.files if k.startswith("grad/full/")]
    assert len(full) > 100
    for key in full:
        expected = archive[key]
        atol = GRAD_RTOL * np.abs(expected).max()
        assert_close(ours[key.removeprefix("grad/full/")], expected, atol=atol, err_msg=key)


# Golden name, preconditioning, absolute tolerance: VP multiplies by sigma and its c_noise
# loses digits in the float32 reference, VE multiplies by sigma up to 80.
PRECONDITIONED = [
    ("D_edm", "edm", 5e-5),
    ("D_edm_no_labels", "edm", 5e-5),
    ("D_ve", "ve", 5e-4),
    ("D_ve_no_labels", "ve", 5e-4),
    ("D_vp", "vp", 2e-3),
    ("D_vp_no_labels", "vp", 2e-3),
]


def test_preconditioned_output(case):
    archive, _, variables, apply = case
    x, sigma = nhwc(archive["precond/x"]), archive["precond/sigma"]
    checked = 0
    for key, method, atol in PRECONDITIONED:
        if f"precond/{key}" not in archive.files:
            continue
        denoise = precond.precondition(
            functools.partial(apply, variables),
            precond.PRECONDITIONINGS[method](),
        )
        given = {} if key.endswith("no_labels") else labels(archive)
        assert_close(denoise(x, sigma, **given), nhwc(archive[f"precond/{key}"]), atol, err_msg=key)
        checked += 1
    assert checked >= 2


def test_iddpm_uses_the_first_half_of_twice_the_channels():
    archive, net, variables = load_network("adm_cond", out_channels=6)
    kernel, bias = (archive[f"precond/iddpm_out_conv.{k}"] for k in ("weight", "bias"))
    out_conv = {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias}
    variables = {"params": {**variables["params"], "out_conv": out_conv}}
    net_fn = functools.partial(jax.jit(net.apply), variables)
    denoise = precond.precondition(net_fn, precond.PRECONDITIONINGS["iddpm"]())
    x, sigma = nhwc(archive["precond/x"]), archive["precond/sigma"]
    denoised = denoise(x, sigma, **labels(archive))
    # The output is multiplied by sigma, up to 80.
    assert_close(denoised, nhwc(archive["precond/D_iddpm"]), atol=5e-4)


def test_tpus_keep_biases_apart_and_compute_the_same(case):
    """Outputs and gradients of weights that are not those of a fresh network, in float32."""
    archive, net, variables, _ = case
    given = nhwc(archive["x"]), archive["noise_labels"], labels(archive)

    def run(variables, x, c_noise, labels):
        out, pullback = jax.vjp(lambda v: net.apply(v, x, c_noise, **labels), variables)
        return out, pullback(jnp.cos(out))[0]["params"]

    expected, gradient = jax.jit(run)(variables, *given)
    with target.assumed("tpu", 1):
        program = jax.jit(lambda *given: run(*given))
        got, other = program(variables, *given)
    assert_close(got, expected)
    for (path, one), two in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(other), strict=True
    ):
        # Float32: sums of thousands of terms in another order.
        atol = 1e-4 * max(float(np.abs(one).max()), 1e-2)
        np.testing.assert_allclose(two, one, rtol=0, atol=atol, err_msg=str(path))
