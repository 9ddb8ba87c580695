"""Grids of noise levels: published tables, golden sequences, properties of all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edm_jax import arguments, grids, precond, respacing, schedules

NAMES = sorted(grids.GRIDS)

# Published values for N = 8 with each grid's default range.
TABLE = {
    "vp": [
        152.16697028, 40.401971229, 13.106689188, 5.1394199429,
        2.3501169719, 1.1523327908, 0.49590633819, 0.010485992787,
    ],
    "ve": [
        100, 29.619362959, 8.7730666212, 2.5985264452,
        0.76966697941, 0.22797045621, 0.067523396865, 0.02,
    ],
    "iddpm": [
        80.203676178, 4.1995369376, 2.0517290263, 1.2497999993,
        0.80242525521, 0.48907996407, 0.23940604239, 0.0064224695812,
    ],
    "edm": [
        80, 34.992189005, 13.698574683, 4.6370749687,
        1.2866142696, 0.26747536138, 0.035186650991, 0.002,
    ],
}  # fmt: skip
KARRAS_18 = [
    80, 57.585984721, 40.785573797, 28.374584604, 19.352452980, 12.910082381, 8.4009353091,
    5.3151945218, 3.2568215198, 1.9233398370, 1.0881706365, 0.58534812319, 0.29644228448,
    0.13951646873, 0.059947311235, 0.022934518372, 0.0075280199628, 0.002,
]  # fmt: skip


@pytest.mark.parametrize("name", sorted(TABLE))
def test_published_tables(name):
    # The published iDDPM levels come from a table with float32 cosines (4.6e-4 at the end).
    rtol = 6e-4 if name == "iddpm" else 1e-10
    np.testing.assert_allclose(grids.make_sigmas(name, 8)[:-1], TABLE[name], rtol=rtol)


def test_published_karras_grids():
    np.testing.assert_allclose(grids.karras_sigmas(18)[:-1], KARRAS_18, rtol=1e-10)
    np.testing.assert_allclose(
        grids.karras_sigmas(5)[:-1],
        [80, 17.527831965, 2.5152189761, 0.16975275627, 0.002],
        rtol=1e-10,
    )
    grid = grids.karras_sigmas(40)
    np.testing.assert_allclose(grid[:3], [80, 69.4509460, 60.1173948], rtol=1e-8)
    np.testing.assert_allclose(grid[37:40], [0.00643711328, 0.00367658917, 0.002], rtol=1e-8)


@pytest.mark.parametrize("name", sorted(TABLE))
@pytest.mark.parametrize("num_steps", [2, 10, 35, 256])
def test_golden_sequences(name, num_steps, golden):
    archive = golden("03_samplers")
    options = {"levels": archive["iddpm_u"]} if name == "iddpm" else {}
    np.testing.assert_allclose(
        grids.make_sigmas(name, num_steps, **options)[:-1],
        archive[f"sigma_steps/{name}-N{num_steps}"],
        rtol=1e-10,
    )
    if name == "iddpm":  # in exact arithmetic the same indices, slightly other levels
        np.testing.assert_allclose(
            grids.iddpm_sigmas(num_steps)[:-1],
            archive[f"sigma_steps/iddpm-N{num_steps}"],
            rtol=5e-4,
        )


def test_golden_iddpm_tables(golden):
    archive = golden("03_samplers")
    np.testing.assert_allclose(schedules.iddpm_levels(), archive["iddpm_u_f64"], rtol=1e-10)


@pytest.mark.parametrize("name", ["vp", "ve", "iddpm", "edm"])
@pytest.mark.parametrize("suffix", ["", "_churn"])
def test_golden_grids_of_networks(name, suffix, golden):
    """Clamped to the network's range, then rounded to its levels."""
    expected = golden("03_samplers")[f"precond/{name}{suffix}/t_steps"]
    coefs = precond.PRECONDITIONINGS[name]()
    # The float32 recursion of the iDDPM table rounds differently between libraries.
    rtol = 2e-6 if name == "iddpm" else 1e-9
    np.testing.assert_allclose(
        grids.make_sigmas("edm", 8, preconditioning=coefs), expected, rtol=rtol
    )
    if name == "iddpm":
        table = golden("01_preconditioning")["iddpm/u"]
        coefs = precond.iddpm_preconditioning(levels=table)
        np.testing.assert_array_equal(grids.make_sigmas("edm", 8, preconditioning=coefs), expected)


def test_published_rounded_grid():
    sigmas = grids.make_sigmas("edm", 8, preconditioning=precond.iddpm_preconditioning())
    published = [
        80.2037125, 35.6385918, 15.2558613, 5.5198017, 1.7072058, 0.4139938, 0.0707098, 0.0064223,
    ]  # fmt: skip
    np.testing.assert_allclose(sigmas[:-1], published, rtol=2e-5)  # 5 digits of the last


RANGE = st.tuples(st.floats(1e-3, 0.1), st.floats(1.0, 200.0))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=50, deadline=None)
@given(num_steps=st.integers(2, 300), ends=RANGE, rho=st.floats(1.0, 12.0))
def test_every_grid_decreases_between_exact_ends(name, num_steps, ends, rho):
    low, high = ends
    options = {"rho": rho} if name in ("edm", "polyexponential") else {}
    try:
        sigmas = grids.make_sigmas(name, num_steps, sigma_min=low, sigma_max=high, **options)
    except ValueError as error:
        # What cannot be built is refused with its reason, never returned wrong.
        reason = {"iddpm": "number of levels", "vp": "does not increase", "polyexponential": "rho"}
        assert reason[name] in str(error)
        return
    arguments.check_grid(sigmas)
    assert sigmas.dtype == np.float64 and sigmas.shape == (num_steps + 1,)
    if name != "iddpm":
        assert sigmas[0] == high and sigmas[-2] == low
    else:
        table = schedules.iddpm_levels()
        assert set(sigmas) <= set(table)
        inside = table[(table >= low) & (table <= high)]
        assert sigmas[0] == inside[0] and sigmas[-2] == inside[-1]


@pytest.mark.parametrize("name", NAMES)
def test_one_step(name):
    sigmas = grids.make_sigmas(name, 1)
    assert sigmas.shape == (2,) and sigmas[1] == 0 and np.all(np.isfinite(sigmas))


def test_log_spacing():
    ratios = grids.log_linear_sigmas(20)[:-1]
    np.testing.assert_allclose(np.diff(np.log(ratios)), np.log(0.002 / 80) / 19, rtol=1e-12)
    np.testing.assert_allclose(
        grids.polyexponential_sigmas(9, rho=2.0)[4], np.exp(0.25 * np.log(4e4) + np.log(0.002))
    )


@settings(max_examples=30, deadline=None)
@given(num_steps=st.integers(1, 100))
def test_resampling(num_steps):
    given_sigmas = grids.append_zero(np.array([14.615, 6.475, 1.886, 0.652, 0.152, 0.029]))
    sigmas = grids.resample_sigmas(given_sigmas, num_steps)
    arguments.check_grid(sigmas)
    assert sigmas.shape == (num_steps + 1,) and sigmas[0] == 14.615
    if num_steps > 1:
        assert sigmas[-2] == 0.029
    if num_steps == 6:
        np.testing.assert_array_equal(sigmas, given_sigmas)
    if num_steps == 11:  # every second level is given, the others are geometric means
        np.testing.assert_allclose(sigmas[::2][:6], given_sigmas[:-1], rtol=1e-12)
        np.testing.assert_allclose(
            sigmas[1:-1:2], np.sqrt(given_sigmas[:-2] * given_sigmas[1:-1]), rtol=1e-12
        )


def test_user_arrays_are_verbatim():
    values = [3.0, 1.5, 0.1, 0.0]
    np.testing.assert_array_equal(grids.as_sigmas(values), values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 2.0, 0.0], "strictly decreasing"),
        ([1.0, 1.0, 0.0], "strictly decreasing"),
        ([1.0, 0.5], "end in 0"),
        ([1.0, -0.5, 0.0], "strictly decreasing"),
        ([np.inf, 1.0, 0.0], "finite"),
        ([np.nan, 1.0, 0.0], "finite"),
        ([0.0], "shape"),
        ([[1.0, 0.0]], "shape"),
    ],
)
def test_bad_arrays_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        grids.as_sigmas(values)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="did you mean 'iddpm'"):
        grids.make_sigmas("idpm", 5)
    with pytest.raises(ValueError, match="no option 'rho'"):
        grids.make_sigmas("ve", 5, rho=3.0)
    with pytest.raises(ValueError, match="lies outside"):
        grids.clamp_range(200.0, 300.0, precond.ve_preconditioning())
    with pytest.raises(ValueError, match="outside the range"):
        grids.check_in_range(grids.karras_sigmas(5), precond.ve_preconditioning())
    for bad in ({"num_steps": 0}, {"num_steps": 2.5}, {"num_steps": 5, "sigma_min": 900.0}):
        for name in NAMES:
            with pytest.raises(ValueError):
                grids.make_sigmas(name, **bad)
    with pytest.raises(ValueError, match="eps_s"):
        grids.vp_sigmas(5, eps_s=1.0)
    for grid in (grids.karras_sigmas, grids.polyexponential_sigmas):
        with pytest.raises(ValueError, match="rho"):
            grid(5, rho=0.0)
    with pytest.raises(ValueError, match="does not increase"):
        grids.vp_sigmas(5, sigma_min=0.1, sigma_max=1.0)
    with pytest.raises(ValueError, match="is too extreme"):
        grids.polyexponential_sigmas(300, rho=50.0)
    with pytest.raises(ValueError, match="cannot bring"):
        grids.resample_sigmas([1.0, 0.0], 3)


def test_a_grid_finer_than_the_table_repeats_levels_unless_merged():
    iddpm = precond.iddpm_preconditioning()
    repeated = grids.make_sigmas("edm", 200, preconditioning=iddpm)
    assert repeated.shape == (201,) and np.any(np.diff(repeated) == 0)
    merged = grids.make_sigmas("edm", 200, preconditioning=iddpm, merge=True)
    arguments.check_grid(merged)
    np.testing.assert_array_equal(np.unique(merged), np.unique(repeated))


def test_both_ends_of_a_range_of_the_table_belong_to_it():
    table = np.array([8.0, 4.0, 2.0, 1.0, 0.5, 0.0])
    grid = grids.iddpm_sigmas(3, sigma_min=1.0, sigma_max=4.0, levels=table)
    np.testing.assert_array_equal(grid, [4, 2, 1, 0])
    with pytest.raises(ValueError, match="at most 3, the number of levels"):
        grids.iddpm_sigmas(4, sigma_min=1.0, sigma_max=4.0, levels=table)
    # The index is rounded half to even: 4/2 = 2 of five, 3 (1/2) = 1.5 -> 2 of four.
    grid = grids.iddpm_sigmas(3, sigma_min=1.0, sigma_max=8.0, levels=table)
    np.testing.assert_array_equal(grid, [8, 2, 1, 0])


def test_ends_of_the_range_of_a_network_are_within_it():
    ve = precond.ve_preconditioning(0.5, 4.0)
    grids.check_in_range([4.0, 0.5, 0.0], ve)
    for bad in ([4.1, 0.5, 0.0], [4.0, 0.4, 0.0]):
        with pytest.raises(ValueError, match="outside the range"):
            grids.check_in_range(bad, ve)
    assert grids.clamp_range(0.1, 9.0, ve) == (0.5, 4.0)
    assert grids.clamp_range(1.0, 2.0, ve) == (1.0, 2.0)
    for ends in ((4.0, 9.0), (0.1, 0.5)):  # nothing, or one level, is left
        with pytest.raises(ValueError, match="lies outside that of the ve network"):
            grids.clamp_range(*ends, ve)


def test_default_ranges_of_functions_and_names_are_the_same():
    for name, grid in grids.GRIDS.items():
        np.testing.assert_array_equal(grid(7), grids.make_sigmas(name, 7))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_network_of_a_table_is_visited_at_its_own_levels(schedule):
    """All of the table, so that fewer steps are the published respacing, here "250"."""
    network = precond.iddpm_preconditioning(schedule=schedule)
    ends = {"sigma_min": 1e-6, "sigma_max": 1e6, "preconditioning": network}
    levels = respacing.ddpm_levels(schedule)
    expected = respacing.respaced_sigmas(levels, respacing.respaced_indices(1000, "250"))
    # The cosine table of published networks is in float32, off by 5e-4 at its small end.
    np.testing.assert_allclose(grids.make_sigmas("iddpm", 250, **ends), expected, rtol=6e-4)
    np.testing.assert_allclose(grids.make_sigmas("iddpm", 1000, **ends), levels, rtol=6e-4)
