"""The streams of an image, written out: a seed means the same image in every version."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import seeds

SHAPE = (3, 2)


def _key(seed, *path):
    """The key of one stream: the image's own, with the numbers of ``path`` folded in turn."""
    key = jax.random.key(seed, impl="threefry2x32")
    for number in path:
        key = jax.random.fold_in(key, number)
    return key


def _normal(seed, *path):
    return jax.random.normal(_key(seed, *path), SHAPE)


DRAWS = {
    "latents": (lambda k: seeds.latents(k, (1, *SHAPE)), _normal, (0,)),
    "churn of step 0": (lambda k: seeds.churn_noise(k, 0, (1, *SHAPE)), _normal, (2, 0)),
    "churn of step 7": (lambda k: seeds.churn_noise(k, 7, (1, *SHAPE)), _normal, (2, 7)),
    "node 0 of a path": (lambda k: seeds.path_noise(k, 0, (1, *SHAPE)), _normal, (3, 0)),
    "node 5 of a path": (lambda k: seeds.path_noise(k, 5, (1, *SHAPE)), _normal, (3, 5)),
    "probe": (lambda k: seeds.probe_key(k, 4), _key, (4, 4)),
    "dequantisation": (lambda k: seeds.dequantisation_key(k, 3), _key, (5, 3)),
    "bound": (lambda k: seeds.bound_key(k, 2), _key, (6, 2)),
}


def _plain(value):
    """Numbers, of keys the bits."""
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value)


@pytest.mark.parametrize("name", DRAWS)
def test_every_stream_is_its_own(name):
    """A draw from another stream, or of another step, would be another number."""
    draw, expected, path = DRAWS[name]
    got = draw(seeds.image_keys([11]))
    np.testing.assert_array_equal(_plain(got)[0], _plain(expected(11, *path)))


def test_labels_have_a_stream_of_their_own():
    expected = [int(jax.random.randint(_key(s, 1), (), 0, 1000)) for s in range(8)]
    np.testing.assert_array_equal(seeds.random_labels(seeds.image_keys(range(8)), 1000), expected)
    few = np.asarray(seeds.random_labels(seeds.image_keys(range(200)), 3))
    assert set(few) == {0, 1, 2}  # both ends are classes, the number of classes is none


def test_a_seed_means_the_same_whatever_generator_a_program_prefers():
    with jax.default_prng_impl("rbg"):
        keys = seeds.image_keys([11])
    np.testing.assert_array_equal(_plain(keys)[0], _plain(_key(11)))


def test_one_key_draws_a_whole_batch():
    key = jax.random.key(5)
    expected = jax.random.normal(jax.random.fold_in(key, 0), (2, *SHAPE))
    np.testing.assert_array_equal(seeds.latents(key, (2, *SHAPE)), expected)
    expected = jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, 2), 3), (2, *SHAPE))
    np.testing.assert_array_equal(seeds.churn_noise(key, 3, (2, *SHAPE)), expected)
    expected = jax.random.uniform(key, (2, *SHAPE))
    np.testing.assert_array_equal(seeds.uniform(key, (2, *SHAPE)), expected)


def test_uniforms_and_signs():
    keys = seeds.image_keys(range(50))
    values = np.asarray(seeds.uniform(keys, (50, 40)))
    assert values.min() >= 0 and values.max() < 1
    # 2000 uniforms: five standard errors of the mean are 0.033.
    assert abs(values.mean() - 0.5) < 0.033
    signs = np.asarray(seeds.signs(keys, (50, 40)))
    np.testing.assert_array_equal(signs, np.where(values < 0.5, -1, 1))


def test_the_same_noise_in_64_bit_mode():
    keys = seeds.image_keys([3])
    narrow = seeds.latents(keys, (1, *SHAPE))
    with jax.enable_x64(True):
        wide = seeds.latents(keys, (1, *SHAPE), jnp.float64)
        assert wide.dtype == jnp.float64
    np.testing.assert_array_equal(wide, narrow)


@pytest.mark.parametrize(
    ("given", "bits"),
    [
        ([0, 2**32 - 1, 2**32, 2**32 + 5], [0, 2**32 - 1, 0, 5]),
        ([-1, -(2**31)], [2**32 - 1, 2**31]),
        ([2**70 + 9, -(2**70) - 1], [9, 2**32 - 1]),
        (np.array([2**64 - 1], np.uint64), [2**32 - 1]),
        (np.array([-3], np.int8), [2**32 - 3]),
        (range(3, 5), [3, 4]),
        (iter([6]), [6]),
        # Beside a small one NumPy makes floats of integers from 2^63 on, which lose their bits.
        ([2**63 + 1, 2], [1, 2]),
        ([np.uint64(2**63 + 5), 1], [5, 1]),
        ([jnp.int32(3), 2**63 + 1], [3, 1]),
        (np.array([2**63 + 1, 2], object), [1, 2]),
        (jnp.array([1, 7], jnp.int4), [1, 7]),
        (jnp.array([1, 15], jnp.uint4), [1, 15]),
    ],
)
def test_seeds_modulo_two_to_the_32(given, bits):
    found = seeds.seed_bits(given)
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(found, bits)


def test_seeds_from_2_to_the_63_are_kept_as_they_are():
    assert seeds.check_seeds([2**63 + 1, 2]).tolist() == [2**63 + 1, 2]
    assert seeds.check_seeds([np.uint64(2**63 + 5), 1]).tolist() == [2**63 + 5, 1]
    assert seeds.check_seeds(jnp.array([1, 7], jnp.int4)).tolist() == [1, 7]


@pytest.mark.parametrize(
    "given",
    [
        [0.5],
        [[1, 2]],
        "ab",
        None,
        True,
        b"12",
        bytearray(b"1"),
        {1: 2},
        {1, 2},
        [True],
        [True, 2],
        [1.0, 2**63],
        jnp.ones(2),
        [[1], [2, 3]],
    ],
)
def test_what_are_no_seeds(given):
    with pytest.raises(ValueError, match="must be a list of integers"):
        seeds.seed_bits(given)
    with pytest.raises(ValueError, match="non-empty list of integers"):
        seeds.check_seeds(given)


def test_seeds_that_are_checked():
    np.testing.assert_array_equal(seeds.check_seeds([0, 3]), [0, 3])  # 0 is a seed
    np.testing.assert_array_equal(seeds.check_seeds(5), [5])
    assert seeds.check_seeds([2**70, 1])[0] == 2**70
    for mixed in ([2**70, 0.5], [2**70, "a"], [3, "a"], [[2**70]]):
        with pytest.raises(ValueError, match="non-empty list of integers"):
            seeds.check_seeds(mixed)
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        seeds.check_seeds([4, -1])
    with pytest.raises(ValueError, match="non-empty"):
        seeds.check_seeds([])


def test_keys_that_do_not_fit():
    keys = seeds.image_keys([1, 2])
    seeds.check_keys(keys, (2, 3))
    seeds.check_keys(jax.random.key(0), (5, 3))
    for shape in ((1, 2), (3, 2), ()):  # the second axis is not that of images
        with pytest.raises(ValueError, match="need one key per image"):
            seeds.check_keys(keys, shape)
    with pytest.raises(ValueError, match="need one key per image"):
        seeds.check_keys(keys[:, None], (2, 3))
    for raw in (jax.random.PRNGKey(0), 3):
        with pytest.raises(ValueError, match="need typed keys"):
            seeds.check_keys(raw, (2, 3))
