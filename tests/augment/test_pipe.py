"""Augmentation against recorded images of the published program and closed forms."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from edm_jax.augment import drawing, warp
from edm_jax.augment import pipe as pipe_lib
from edm_jax.augment.drawing import EDM_AUGMENT, AugmentParams, AugmentPipe

ALL = AugmentPipe(**dict.fromkeys(drawing.TRANSFORMS, 1.0))
FIELDS = tuple(field.name for field in dataclasses.fields(AugmentParams))
CASES = (
    [f"single_{name}" for name in drawing.TRANSFORMS]
    + ["train_p012", "train_p1", "train_p1_32", "blit_all", "geom_all", "color_all"]
    + ["all_p1", "all_p1_32", "all_p05", "all_p1_gray"]
)


# Outermost, as a training step would; op by op everything compiles for seconds.
sample_params = jax.jit(drawing.sample_params, static_argnums=(1, 2))
augment_labels = jax.jit(pipe_lib.augment_labels, static_argnums=(1, 2))
geometric_matrix = jax.jit(pipe_lib.geometric_matrix, static_argnums=(1, 2))
colour_matrix = jax.jit(pipe_lib.colour_matrix, static_argnums=1)
apply_augment = jax.jit(pipe_lib.apply_augment, static_argnames=("pipe", "method"))
augment_batch = jax.jit(pipe_lib.augment, static_argnames="pipe")


def identity_params(batch):
    """Parameters that change nothing, for ``batch`` images."""

    def zeros(name):
        pair, whole = "translate_" in name, name in drawing.WHOLE
        return jnp.zeros((batch, 2) if pair else (batch,), jnp.int32 if whole else jnp.float32)

    return AugmentParams(**{f.name: zeros(f.name) for f in dataclasses.fields(AugmentParams)})


def _params(batch, **values):
    values = {name: jnp.asarray(value) for name, value in values.items()}
    return dataclasses.replace(identity_params(batch), **values)


def _case(archive, case):
    """Pipe, NHWC images and recorded parameters of one golden case."""
    pipe = AugmentPipe(**json.loads(str(archive[f"{case}/config"])))
    images = np.moveaxis(archive[f"{case}/images"], 1, -1)
    recorded = {n: archive[f"{case}/param/{n}"] for n in FIELDS if f"{case}/param/{n}" in archive}
    return pipe, images, _params(len(images), **recorded)


def _only(pipe, names):
    """The pipe with everything but ``names`` turned off."""
    return dataclasses.replace(pipe, **{n: 0.0 for n in drawing.TRANSFORMS if n not in names})


def test_every_golden_case_is_listed(golden):
    assert {name.split("/")[0] for name in golden("05_augment").files} == set(CASES)


@pytest.mark.parametrize("method", ["gather", "matmul"])
@pytest.mark.parametrize("case", CASES)
def test_images_match_the_published_program(golden, case, method):
    archive = golden("05_augment")
    pipe, images, params = _case(archive, case)
    # Tolerances of the recording: its own float32 differs from float64 by 4e-7 without,
    # 2e-5 with geometry.
    geometric = any(getattr(pipe, n) for n in drawing.TRANSFORMS[4:8])
    out = np.moveaxis(archive[f"{case}/out"], 1, -1)
    np.testing.assert_allclose(
        apply_augment(images, params, pipe, method=method), out, atol=1e-4 if geometric else 1e-6
    )
    if f"{case}/before_color" in archive:
        pipe = _only(pipe, drawing.TRANSFORMS[:8])
        before = apply_augment(jnp.asarray(images), params, pipe, method=method)
        expected = np.moveaxis(archive[f"{case}/before_color"], 1, -1)
        np.testing.assert_allclose(before, expected, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_labels_and_matrices_match_the_published_program(golden, case):
    archive = golden("05_augment")
    pipe, images, params = _case(archive, case)
    labels = augment_labels(params, images.shape, pipe)
    assert labels.shape == (len(images), pipe.label_dim)
    # Sums and products of a few float32 numbers below 10: a few ulp.
    np.testing.assert_allclose(labels, archive[f"{case}/labels"], atol=1e-6)
    if f"{case}/G_inv" in archive:
        matrix = geometric_matrix(params, images.shape, pipe)
        np.testing.assert_allclose(matrix, archive[f"{case}/G_inv"], atol=2e-6)
    if f"{case}/M" in archive:
        np.testing.assert_allclose(colour_matrix(params, pipe), archive[f"{case}/M"], atol=2e-6)


@pytest.mark.parametrize("case", ["train_p012", "train_p1", "train_p1_32"])
def test_flips_alone_copy_pixels(golden, case):
    archive = golden("05_augment")
    pipe, images, params = _case(archive, case)
    flipped = apply_augment(jnp.asarray(images), params, _only(pipe, ("xflip", "yflip")))
    np.testing.assert_array_equal(flipped, np.moveaxis(archive[f"{case}/after_blit"], 1, -1))


@pytest.mark.parametrize("method", ["gather", "matmul"])
def test_warp_of_the_specification(method):
    # The specification, 11.5; values printed there to six digits, float32 geometry adds up to 2e-5.
    row, column = np.mgrid[:16, :16]
    image = (0.5 * np.sin(0.4 * row) + 0.5 * np.cos(0.3 * column + 0.2))[None, :, :, None]
    params = _params(
        1, scale_w=[0.7], rotate_angle=[0.5], aniso_w=[-0.6], aniso_angle=[0.9],
        translate_w=[[0.4, -0.3]],
    )  # fmt: skip
    matrix = geometric_matrix(params, image.shape, EDM_AUGMENT)
    expected = [[0.81939514, -0.50941221, -0.96116343], [0.36377541, 0.77896408, 0.17635812]]
    np.testing.assert_allclose(matrix[0], [*expected, [0, 0, 1]], atol=1e-6)
    image = jnp.asarray(image, jnp.float32)
    out = apply_augment(image, params, EDM_AUGMENT, method=method)[0, :, :, 0]
    rows, columns = [0, 0, 3, 8, 15, 15], [0, 15, 11, 8, 3, 15]
    pixels = [0.222083, 0.257903, -0.015185, -0.372900, -0.059872, -0.842319]
    np.testing.assert_allclose(out[rows, columns], pixels, atol=3e-5)
    assert float(out.mean()) == pytest.approx(-0.104536, abs=3e-5)


def test_axes_of_oblong_images_are_not_mixed_up():
    # A whole-pixel shift through the filters is a shift: sym6 is orthonormal to even
    # shifts of the doubled grid.  Compared where no reflected edge comes into view.
    images = jax.random.uniform(jax.random.key(0), (1, 12, 20, 3), minval=-1)
    shift = [[3 / (0.125 * 20), -2 / (0.125 * 12)]]  # 3 right, 2 up
    pipe = AugmentPipe(translate_frac=1)
    for method in ("gather", "matmul"):
        out = apply_augment(images, _params(1, translate_w=shift), pipe, method=method)
        np.testing.assert_allclose(out[:, :10, 3:], images[:, 2:, :17], atol=2e-5)
    whole = AugmentPipe(translate_int=1)
    out = apply_augment(images, _params(1, translate_int=[[3, 2]]), whole)
    np.testing.assert_array_equal(out[:, :10, 3:], images[:, 2:, :17])


def test_identity_goes_through_the_filters_unharmed():
    images = jax.random.uniform(jax.random.key(1), (3, 16, 16, 3), minval=-1)
    params = identity_params(3)
    out = apply_augment(images, params, ALL)
    # The taps have 16 digits, so what remains is float32 rounding of 4 passes.
    np.testing.assert_allclose(out, images, atol=1e-5)
    assert not np.array_equal(out, images), "identity must be resampled like everything"
    np.testing.assert_array_equal(augment_labels(params, images.shape, ALL), 0)


def test_gain_is_one_and_far_away_is_grey():
    ones = jnp.ones((1, 8, 8, 1))
    pipe = AugmentPipe(scale=1, translate_frac=1)
    magnified = apply_augment(ones, _params(1, scale_w=[2.0]), pipe)
    np.testing.assert_allclose(magnified, 1, atol=1e-5)
    away = apply_augment(ones, _params(1, translate_w=[[40.0, 0.0]]), pipe)
    np.testing.assert_array_equal(away, 0)


def test_images_do_not_depend_on_their_batch(golden):
    pipe, images, params = _case(golden("05_augment"), "all_p1")
    together = apply_augment(jnp.asarray(images), params, pipe)
    for i in (0, 5):
        alone = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], params)
        out = apply_augment(jnp.asarray(images[i : i + 1]), alone, pipe)
        # Matrix products may group sums by batch size.
        np.testing.assert_allclose(out[0], together[i], atol=2e-6)


def test_dtype_is_kept_and_colours_alone_leave_geometry():
    images = jax.random.uniform(jax.random.key(2), (2, 8, 8, 3), jnp.bfloat16, minval=-1)
    out = apply_augment(images, identity_params(2), EDM_AUGMENT)
    assert out.dtype == jnp.bfloat16
    pipe = AugmentPipe(brightness=1)
    out = apply_augment(images.astype(jnp.float32), _params(2, brightness_w=[1.0, -0.5]), pipe)
    expected = images.astype(jnp.float32) + jnp.array([0.2, -0.1])[:, None, None, None]
    np.testing.assert_allclose(out, expected, atol=1e-7)


# ---------------------------------------------------------------------------- drawing


def test_published_setting_has_nine_labels_in_order():
    assert EDM_AUGMENT.label_dim == 9 and ALL.label_dim == 19
    params = _params(
        1, xflip=[1], yflip=[1], scale_w=[0.3], rotate_angle=[0.2], aniso_w=[0.5],
        aniso_angle=[0.7], translate_w=[[0.8, -0.9]], hue_angle=[1.0], saturation_w=[1.0],
    )  # fmt: skip
    expected = [
        1, 1, 0.3, np.cos(0.2) - 1, np.sin(0.2), 0.5 * np.cos(0.7), 0.5 * np.sin(0.7), 0.8, -0.9,
    ]  # fmt: skip
    labels = augment_labels(params, (1, 32, 32, 3), EDM_AUGMENT)
    np.testing.assert_allclose(labels, [expected], rtol=1e-6, atol=1e-7)


def test_draws_depend_on_the_image_key_alone():
    key = jax.random.key(3)
    whole = sample_params(key, (6, 16, 16, 3), ALL)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(6))
    part = sample_params(keys[2:4], (2, 16, 16, 3), ALL)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[2:4], b), whole, part)


def test_draws_do_not_depend_on_what_else_is_enabled():
    key, shape = jax.random.key(5), (16, 16, 16, 3)
    everything = sample_params(key, shape, ALL)
    for name, field in [("aniso", "aniso_w"), ("xflip", "xflip")]:
        alone = sample_params(key, shape, AugmentPipe(**{name: 1.0}))
        np.testing.assert_array_equal(getattr(alone, field), getattr(everything, field))
        own = [field, "aniso_angle"] if name == "aniso" else [field]
        others = dataclasses.replace(alone, **dict.fromkeys(own, jnp.zeros(16)))
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(others))


def test_draws_are_the_same_in_64_bit_mode():
    key, shape = jax.random.key(13), (4, 16, 16, 3)
    narrow = sample_params(key, shape, ALL)
    with jax.enable_x64(True):
        wide = sample_params(key, shape, ALL)
    for name in FIELDS:
        a, b = getattr(narrow, name), getattr(wide, name)
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-6)  # erfinv may be fused otherwise


COUNT = 40_000
# The draws are fixed by the seed; a correct implementation would fail one of some 40
# checks with probability below 40 * 1e-5 for a seed picked blindly.
LEVEL = 1e-5


def _assert_frequency(observed, probability):
    p_value = scipy.stats.binomtest(int(observed), COUNT, probability).pvalue
    assert p_value > LEVEL, (observed / COUNT, probability)


@pytest.fixture(scope="module")
def drawn():
    pipe = dataclasses.replace(ALL, p=0.3, xflip=1e8, yflip=2.0, rotate_frac_max=0.5)
    # rotate_int needs square images.
    with pytest.raises(ValueError, match="square"):
        sample_params(jax.random.key(6), (COUNT, 32, 16, 3), pipe)
    return jax.tree.map(np.asarray, sample_params(jax.random.key(6), (COUNT, 32, 32, 3), pipe))


def test_gates_and_bits_have_their_probabilities(drawn):
    _assert_frequency(np.sum(drawn.xflip == 1), 0.5)  # gate always open
    _assert_frequency(np.sum(drawn.yflip == 1), 2 * 0.3 / 2)
    _assert_frequency(np.sum(drawn.lumaflip == 1), 0.3 / 2)
    for turn in (1, 2, 3):
        _assert_frequency(np.sum(drawn.rotate_int == turn), 0.3 / 4)
    for name in ("scale_w", "rotate_angle", "aniso_w", "brightness_w", "contrast_w"):
        _assert_frequency(np.sum(getattr(drawn, name) != 0), 0.3)
    for name in ("hue_angle", "saturation_w"):
        _assert_frequency(np.sum(getattr(drawn, name) != 0), 0.3)
    # Not multiplied by p: one half whatever p is.
    _assert_frequency(np.sum(drawn.aniso_angle != 0), 0.5)
    # Both shifts pass one common gate.
    kept = np.any(drawn.translate_w != 0, axis=1)
    _assert_frequency(np.sum(kept), 0.3)
    assert np.all(np.all(drawn.translate_w != 0, axis=1) == kept)


def test_whole_pixel_shifts_are_rounded_uniforms(drawn):
    # round(4 U(-1, 1)): 1/8 each for -3..3, 1/16 each for -4 and 4.
    for axis in (0, 1):
        shift = drawn.translate_int[:, axis]
        assert shift.min() == -4 and shift.max() == 4
        for value in (-4, -3, -2, -1, 1, 2, 3, 4):
            probability = 0.3 / (16 if abs(value) == 4 else 8)
            _assert_frequency(np.sum(shift == value), probability)


def test_gates_are_independent(drawn):
    gates = [drawn.scale_w, drawn.rotate_angle, drawn.aniso_w, drawn.translate_w[:, 0]]
    for i, first in enumerate(gates):
        for second in gates[i + 1 :]:
            _assert_frequency(np.sum((first != 0) & (second != 0)), 0.09)
    _assert_frequency(np.sum((drawn.aniso_w != 0) & (drawn.aniso_angle != 0)), 0.15)


def test_kept_values_have_their_distributions(drawn):
    normal = ["scale_w", "aniso_w", "brightness_w", "contrast_w", "saturation_w"]
    for values in [getattr(drawn, n) for n in normal] + list(drawn.translate_w.T):
        assert scipy.stats.kstest(values[values != 0], "norm").pvalue > LEVEL
    angles = [(drawn.rotate_angle, np.pi / 2), (drawn.aniso_angle, np.pi), (drawn.hue_angle, np.pi)]
    for values, limit in angles:
        uniform = scipy.stats.uniform(-limit, 2 * limit)
        assert scipy.stats.kstest(values[values != 0], uniform.cdf).pvalue > LEVEL


def test_signs_are_independent(drawn):
    """Of any two numbers of an image, its two shifts among them, where both are drawn."""
    columns = {
        **{name: getattr(drawn, name) for name in FIELDS if "translate" not in name},
        **{f"int_{i}": drawn.translate_int[:, i] for i in (0, 1)},
        **{f"frac_{i}": drawn.translate_w[:, i] for i in (0, 1)},
    }
    for name in ("xflip", "yflip", "lumaflip", "rotate_int"):
        del columns[name]  # 0 is one of their values; `test_gates_are_independent` has gates
    columns["xflip"] = 2 * drawn.xflip - 1
    for (name, first), (other, second) in itertools.combinations(columns.items(), 2):
        both = (first != 0) & (second != 0)
        equal = np.sum(both & ((first > 0) == (second > 0)))
        assert scipy.stats.binomtest(int(equal), int(both.sum())).pvalue > LEVEL, (name, other)


def test_the_least_number_of_the_generator_is_a_finite_deviate(monkeypatch):
    least = lambda key, shape, dtype: jnp.zeros(shape, dtype)  # noqa: E731
    monkeypatch.setattr(jax.random, "uniform", least)
    draw = jax.jit(lambda key: drawing.sample_params(key, (1, 8, 8, 3), ALL).scale_w)
    # Half a spacing of the generator's 2^-24, whose normal deviate is this; erfinv to 1e-3.
    np.testing.assert_allclose(draw(jax.random.key(0)), scipy.stats.norm.ppf(2.0**-25), rtol=1e-3)


def test_p_zero_changes_nothing_but_keeps_the_label_columns():
    pipe = dataclasses.replace(ALL, p=0.0)
    params = sample_params(jax.random.key(7), (64, 8, 8, 3), pipe)
    labels = augment_labels(params, (64, 8, 8, 3), pipe)
    assert labels.shape == (64, 19)
    np.testing.assert_array_equal(labels, 0)


def test_everything_off_is_the_identity_without_labels():
    images = jax.random.uniform(jax.random.key(8), (2, 8, 8, 3))
    out, labels = augment_batch(jax.random.key(9), images, AugmentPipe())
    np.testing.assert_array_equal(out, images)
    assert labels.shape == (2, 0)


# ------------------------------------------------------------------------ compilation


@pytest.mark.parametrize("method", ["gather", "matmul"])
def test_sharded_over_the_batch_without_communication(method):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shard = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    images = jax.random.uniform(jax.random.key(10), (16, 8, 8, 3), minval=-1)
    keys = jax.random.split(jax.random.key(11), 16)

    def step(keys, images):
        params = sample_params(keys, images.shape, ALL)
        labels = augment_labels(params, images.shape, ALL)
        return apply_augment(images, params, ALL, method=method), labels

    step = jax.jit(step, in_shardings=shard, out_shardings=shard)
    compiled = step.lower(keys, images).compile()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in compiled.as_text()
    out, labels = step(keys, images)
    params = sample_params(keys, images.shape, ALL)
    expected = apply_augment(images, params, ALL, method=method)
    np.testing.assert_allclose(out, expected, atol=1e-5)  # fusion regroups float32 sums
    np.testing.assert_allclose(labels, augment_labels(params, images.shape, ALL), atol=1e-6)


def test_tpus_get_no_gather():
    def f(images, params):
        return apply_augment(images, params, EDM_AUGMENT)

    arguments = jnp.zeros((2, 8, 8, 3)), identity_params(2)
    traced = jax.jit(f).trace(*arguments)
    assert "stablehlo.gather" not in traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo.gather" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_filter_is_orthonormal_to_even_shifts():
    for shift in range(0, 12, 2):
        product = np.dot(warp.SYM6[shift:], warp.SYM6[: 12 - shift])
        assert product == pytest.approx(float(shift == 0), abs=1e-9)
    assert warp.SYM6.sum() == pytest.approx(np.sqrt(2), abs=1e-9)


# ----------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"p": 1.5}, r"p must be in \[0, 1\], got 1.5"),
        ({"scale": -1.0}, "scale must be finite and not negative, got -1.0"),
        ({"hue": float("inf")}, "hue must be finite"),
        ({"aniso_rotate_prob": 2.0}, "aniso_rotate_prob must be in"),
        ({"translate_int": 1.0, "translate_int_max": 0.0}, "translate_int_max must be positive"),
    ],
)
def test_bad_constants(kwargs, message):
    with pytest.raises(ValueError, match=message):
        AugmentPipe(**kwargs)


def test_bad_images_and_parameters():
    params = identity_params(2)
    with pytest.raises(ValueError, match="floating point"):
        apply_augment(jnp.zeros((2, 8, 8, 3), jnp.uint8), params, EDM_AUGMENT)
    with pytest.raises(ValueError, match="shape"):
        apply_augment(jnp.zeros((8, 8, 3)), params, EDM_AUGMENT)
    with pytest.raises(ValueError, match="batch of 3"):
        apply_augment(jnp.zeros((3, 8, 8, 3)), params, EDM_AUGMENT)
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
        apply_augment(jnp.zeros((2, 8, 8, 4)), params, ALL)
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):  # one is enough
        apply_augment(jnp.zeros((2, 8, 8, 4)), params, AugmentPipe(hue=1.0))
    with pytest.raises(ValueError, match="need one key"):
        sample_params(jax.random.split(jax.random.key(0), 3), (2, 8, 8, 3), ALL)
    with pytest.raises(ValueError, match="need typed keys"):
        sample_params(jax.random.PRNGKey(0), (2, 8, 8, 3), ALL)
    with pytest.raises(ValueError, match="method must be"):
        apply_augment(jnp.zeros((2, 8, 8, 3)), params, EDM_AUGMENT, method="fft")
