"""Preconditioning: golden coefficients and denoisers, published table, identities, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edm_jax import grids, precond
from edm_jax.likelihood.levels import flow_levels, known_levels
from edm_jax.precond import Coefs

NAMES = ["edm", "iddpm", "ve", "vp"]  # the columns of Table 1
SIGMAS = st.floats(1e-3, 1e3)


def _stand_in(x, c_noise):
    """F(x, c) = 0.3 x + 0.1 sin(c), the network of the golden arrays."""
    label = jnp.sin(c_noise).reshape(jnp.shape(c_noise) + (1,) * (x.ndim - jnp.ndim(c_noise)))
    return 0.3 * x + 0.1 * label


def _twice_the_channels(x, c_noise):
    f_x = _stand_in(x, c_noise)
    return jnp.concatenate([f_x, 1 - f_x], axis=-1)


def _make(name, archive, **kwargs):
    if name == "iddpm":
        return precond.iddpm_preconditioning(levels=archive["iddpm/u"])
    return precond.PRECONDITIONINGS[name](**kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_golden_coefficients(name, golden):
    archive = golden("01_preconditioning")
    sigma = archive[f"{name}/sigma"]
    for field, value in _make(name, archive)(sigma)._asdict().items():
        # Float32: 1e-6. The VP time goes through log1p and sqrt, scaled by 999: 1e-5.
        rtol = 1e-5 if (name, field) == ("vp", "c_noise") else 1e-6
        np.testing.assert_allclose(
            value, archive[f"{name}/{field}_f64"], rtol=rtol, atol=1e-7, err_msg=field
        )
        atol = 2e-3 if (name, field) == ("vp", "c_noise") else 1e-7
        np.testing.assert_allclose(value, archive[f"{name}/{field}"], rtol=1e-6, atol=atol)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scalar", [False, True])
def test_golden_denoiser(name, scalar, golden):
    archive = golden("01_preconditioning")
    net = _twice_the_channels if name == "iddpm" else _stand_in
    denoise = precond.precondition(net, _make(name, archive))
    x = np.moveaxis(archive[f"{name}/x"], 1, -1)
    sigma = archive[f"{name}/scalar_sigma"] if scalar else archive[f"{name}/sigma"]
    expected = archive[f"{name}/D_scalar_sigma"] if scalar else archive[f"{name}/D"]
    denoised = np.moveaxis(np.asarray(denoise(x, sigma)), -1, 1)
    # sigma up to 150 times float32 rounding, and the VP label's own 5e-4.
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(
        denoised, expected, rtol=1e-5, atol=scale * (3e-5 if name == "vp" else 1e-6)
    )


@pytest.mark.parametrize("name", NAMES)
def test_golden_denoiser_float64(name, golden, x64):
    archive = golden("01_preconditioning")
    net = _twice_the_channels if name == "iddpm" else _stand_in
    denoise = precond.precondition(net, _make(name, archive))
    x = np.moveaxis(archive[f"{name}/x"], 1, -1).astype(np.float64)
    denoised = denoise(x, archive[f"{name}/sigma"].astype(np.float64))
    np.testing.assert_allclose(
        np.moveaxis(np.asarray(denoised), -1, 1), archive[f"{name}/D_f64"], rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("name", NAMES)
def test_golden_ranges(name, golden):
    archive = golden("01_preconditioning")
    made = precond.PRECONDITIONINGS[name]()
    # The reference evaluates the smallest VP level in float32, 2.4 % too small.
    low_rtol = 0.025 if name == "vp" else 1e-5
    np.testing.assert_allclose(made.sigma_min, archive[f"{name}/sigma_min"], rtol=low_rtol)
    np.testing.assert_allclose(made.sigma_max, archive[f"{name}/sigma_max"], rtol=1e-6)
    if name == "vp":
        np.testing.assert_allclose(made.sigma_min, 0.00100050, rtol=1e-5)


def test_golden_rounding(golden, x64):
    archive = golden("01_preconditioning")
    table = archive["iddpm/u"]
    level, index = precond.round_to_levels(archive["iddpm/round_in"], table)
    np.testing.assert_array_equal(index, archive["iddpm/round_index"])
    np.testing.assert_array_equal(level, archive["iddpm/round_out"])
    own = precond.iddpm_preconditioning()
    assert own.rounds and not precond.edm_preconditioning().rounds
    np.testing.assert_allclose(own.round_sigma(archive["iddpm/round_in"]), level, rtol=1e-3)
    np.testing.assert_array_equal(own.round_sigma(table.astype(np.float64))[-1], 0)


# Published float32 values: c_skip, c_out, c_in, c_noise.
PUBLISHED = {
    ("vp", 0.01): (1, -0.01, 0.9999501, 0.9156161),
    ("vp", 20.0): (1, -20, 0.04993762, 770.3696),
    ("ve", 0.5): (1, 0.5, 1, -1.386294),
    ("ve", 20.0): (1, 20, 1, 2.302585),
    ("iddpm", 0.01): (1, -0.01, 0.9999501, 1),
    ("iddpm", 1.0): (1, -1, 0.7071068, 495),
    ("iddpm", 20.0): (1, -20, 0.04993762, 967),
    ("edm", 0.01): (0.9996002, 0.009998001, 1.9996, -1.151293),
    ("edm", 0.5): (0.5, 0.3535534, 1.414214, -0.1732868),
    ("edm", 1.0): (0.2, 0.4472136, 0.8944272, 0),
    ("edm", 20.0): (0.0006245971, 0.4998438, 0.04998438, 0.7489331),
}


@pytest.mark.parametrize(("name", "sigma"), sorted(PUBLISHED))
def test_published_table(name, sigma):
    coefs = precond.PRECONDITIONINGS[name]()(jnp.float32(sigma))
    expected = Coefs(*PUBLISHED[name, sigma])
    # 3e-5: the published c_skip at 20 is 2e-5 below 0.25 / 400.25.
    np.testing.assert_allclose(coefs[:3], expected[:3], rtol=3e-5)
    # VP labels as published carry float32 errors of 5e-4.
    np.testing.assert_allclose(coefs.c_noise, expected.c_noise, rtol=1e-6, atol=5e-4)


@settings(max_examples=50, deadline=None)
@given(sigma=SIGMAS, sigma_data=st.floats(0.05, 5.0))
def test_edm_identities(sigma, sigma_data):
    c_skip, c_out, c_in, _ = precond.edm_coefs(jnp.float32(sigma), sigma_data)
    total = sigma**2 + sigma_data**2
    # Unit variance at the network's input and target (EDM Eq. 113 and 120), float32.
    np.testing.assert_allclose(c_in**2 * total, 1, rtol=2e-6)
    target = ((1 - c_skip) * sigma_data) ** 2 + (c_skip * sigma) ** 2
    np.testing.assert_allclose(target / c_out**2, 1, rtol=2e-5)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(sigma=SIGMAS)
def test_a_perfect_eps_network_gives_back_the_data(name, sigma):
    """c_skip and c_out recover y if F is what the coefficients ask of it."""
    y, noise = 0.4, -1.3
    c_skip, c_out, _, _ = precond.PRECONDITIONINGS[name]()(jnp.float32(sigma))
    x = y + sigma * noise
    target = (y - c_skip * x) / c_out
    # Float32: c_skip x and c_out F cancel to y, so the error scales with sigma.
    np.testing.assert_allclose(c_skip * x + c_out * target, y, atol=1e-6 * (1 + sigma))
    if name in ("vp", "iddpm"):
        np.testing.assert_allclose(target, noise, rtol=1e-3)
    if name == "ve":
        np.testing.assert_allclose(target, -noise, rtol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", sorted(precond.PRECONDITIONINGS))
def test_finite_at_both_ends_of_the_range(name, dtype):
    made = precond.PRECONDITIONINGS[name]()
    low = made.sigma_min if made.sigma_min > 0 else 1e-30
    high = made.sigma_max if np.isfinite(made.sigma_max) else 1e30
    coefs = made(jnp.asarray([low, high], dtype))
    assert all(np.all(np.isfinite(np.asarray(c, np.float32))) for c in coefs)
    assert all(c.dtype == jnp.float32 for c in coefs)
    x = jnp.ones((2, 1, 1, 1), dtype)
    denoise = precond.precondition(lambda x, c: 0 * x, made)
    assert np.all(np.isfinite(denoise(x, jnp.asarray([low, high], dtype))))


def test_limits_of_the_edm_coefficients():
    """D = x without noise; at infinite noise D is the network's alone (EDM section 5)."""
    c_skip, c_out, c_in, _ = precond.edm_coefs(jnp.array([1e-30, 1e30], jnp.float32))
    np.testing.assert_allclose(c_skip, [1, 0], atol=1e-20)
    np.testing.assert_allclose(c_out, [1e-30, 0.5], rtol=1e-6)
    np.testing.assert_allclose(c_in, [2, 1e-30], rtol=1e-6)


def test_bad_arguments_are_named():
    denoise = precond.precondition(_stand_in, precond.edm_coefs)
    with pytest.raises(ValueError, match="sigma must be a scalar or have shape"):
        denoise(jnp.zeros((4, 2, 2, 3)), jnp.ones(3))
    with pytest.raises(ValueError, match="sigma_data must be positive"):
        precond.edm_preconditioning(sigma_data=0.0)


def test_the_deviation_of_the_data_is_known_where_there_is_one():
    assert precond.edm_preconditioning(0.75).sigma_data == 0.75
    assert precond.ve_preconditioning().sigma_data is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_edm_coefficients_have_their_limits_at_zero_and_infinity(dtype):
    at_zero = precond.edm_coefs(jnp.zeros((), dtype), 0.5)
    at_infinity = precond.edm_coefs(jnp.asarray(jnp.inf, dtype), 0.5)
    # Table 1: 1, 0, 1/sd and -inf; 0, sd, 0 and inf.
    np.testing.assert_array_equal(np.stack(at_zero), [1.0, 0.0, 2.0, -np.inf])
    np.testing.assert_array_equal(np.stack(at_infinity), [0.0, 0.5, 0.0, np.inf])


def test_ties_go_to_the_larger_level():
    table = np.array([4.0, 2.0, 1.0, 0.0])
    level, index = precond.round_to_levels(jnp.array([3.0, 1.5, 0.5, 2.9, 0.4, 9.0]), table)
    np.testing.assert_array_equal(level, [4, 2, 1, 2, 0, 4])
    np.testing.assert_array_equal(index, [0, 1, 2, 1, 3, 0])
    coefs = precond.iddpm_coefs(jnp.array([4.0, 2.0, 1.0]), table)
    np.testing.assert_array_equal(coefs.c_noise, [2, 1, 0])  # M - 1 - j, with M = 3


@pytest.mark.parametrize(
    ("coefs", "made"),
    [
        (precond.edm_coefs, precond.edm_preconditioning()),
        (precond.vp_coefs, precond.vp_preconditioning()),
        (precond.ve_coefs, precond.ve_preconditioning()),
    ],
)
def test_functions_and_their_bundles_have_the_same_constants(coefs, made):
    for alone, bundled in zip(coefs(jnp.float32(0.7)), made(jnp.float32(0.7)), strict=True):
        np.testing.assert_array_equal(alone, bundled)


def test_ranges_and_channels_of_bundles():
    plain = precond.Preconditioning("mine", precond.edm_coefs)
    assert (plain.sigma_min, plain.sigma_max, plain.channel_multiplier) == (0, np.inf, 1)
    edm = precond.edm_preconditioning()
    assert (edm.sigma_min, edm.sigma_max, edm.channel_multiplier) == (0, np.inf, 1)
    table = np.array([4.0, 2.0, 1.0, 0.0])
    iddpm = precond.iddpm_preconditioning(levels=table)
    assert (iddpm.sigma_min, iddpm.sigma_max, iddpm.channel_multiplier) == (1.0, 4.0, 2)
    assert precond.edm_preconditioning(0.5, 0.0, 3.0).sigma_max == 3.0
    for low, high in ((2.0, 2.0), (3.0, 2.0), (-0.5, 2.0)):
        with pytest.raises(ValueError, match="0 <= sigma_min < sigma_max"):
            precond.edm_preconditioning(0.5, low, high)


def test_one_level_for_all_or_one_for_each():
    x = jnp.arange(8.0).reshape(2, 2, 2) - 3
    denoise = precond.precondition(_stand_in, precond.edm_coefs)
    both = denoise(x, jnp.array([0.5, 2.0]))
    for sigma in (0.5, jnp.array([0.5])):
        # The same sums; a scalar and a vector may be fused otherwise.
        np.testing.assert_allclose(denoise(x, sigma)[0], both[0], rtol=1e-6)
    np.testing.assert_allclose(denoise(x, 2.0)[1], both[1], rtol=1e-6)
    np.testing.assert_allclose(denoise(x[0, 0, 0], 0.5), both[0, 0, 0], rtol=1e-6)
    for sigma in (jnp.ones((2, 1)), jnp.ones((1, 1)), jnp.ones(3)):
        with pytest.raises(ValueError, match=r"must be a scalar or have shape \(2,\)"):
            denoise(x, sigma)


def test_reflected_coefficients():
    """D = x + sigma F, told ln(sigma) / 4 as EDM's network is."""
    coefs = precond.reflected_coefs(jnp.array([0.5, 1.0, 20.0], jnp.float32))
    np.testing.assert_array_equal(coefs.c_skip, 1)
    np.testing.assert_array_equal(coefs.c_out, np.float32([0.5, 1, 20]))
    np.testing.assert_array_equal(coefs.c_in, 1)
    np.testing.assert_allclose(coefs.c_noise, [-0.1732868, 0, 0.7489331], rtol=1e-6)


def test_the_other_channels_are_the_variance():
    coefs = precond.iddpm_preconditioning()
    x, sigma = jnp.linspace(-2, 2, 24).reshape(2, 2, 2, 3), jnp.array([0.3, 4.0])
    denoised, v = precond.precondition_with_variance(_twice_the_channels, coefs)(x, sigma)
    want = precond.precondition(_twice_the_channels, coefs)(x, sigma)
    np.testing.assert_array_equal(denoised, want)
    # F is (x - D) / sigma, and the others are 1 - F.
    f_x = (x - denoised) / sigma.reshape(2, 1, 1, 1)
    np.testing.assert_allclose(v, (2 - f_x) / 2, atol=1e-6)  # float32, values of order 1
    with pytest.raises(ValueError, match="twice the channels of the image, got 0 more than its 3"):
        precond.precondition_with_variance(_stand_in, coefs)(x, sigma)


def test_known_levels_are_rounded_while_a_caller_is_traced():
    """A grid made inside a compiled function is that made outside."""
    network = precond.iddpm_preconditioning()
    asked = np.array([50.0, 3.0, 0.02])
    table = network.levels[:-1].astype(np.float32)  # as the network sees them
    nearest = table[np.abs(table - asked[:, None]).argmin(axis=1)]
    makers = (
        lambda: network.round_known(asked),
        lambda: grids.round_grid(np.append(asked, 0.0), network)[:-1],
        lambda: flow_levels(2, sigma_min=0.02, sigma_max=50.0, preconditioning=network)[::-2],
        lambda: known_levels(network)[::-1],
    )
    for make, expected in zip(makers, (nearest, nearest, nearest[::2], table), strict=True):
        inside = []
        jax.jit(lambda x, make=make, inside=inside: (inside.append(make()), x)[1])(0.0)
        np.testing.assert_allclose(inside[0], expected, rtol=1e-6)  # float32 tables
        np.testing.assert_array_equal(inside[0], make())
