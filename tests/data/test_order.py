"""The published data order, held against numbers of the published program."""

import itertools

import pytest

from edm_jax.data import order


def _first(count, *args, **kwargs):
    return list(itertools.islice(order.infinite_order(*args, **kwargs), count))


def test_published_order():
    # The specification, 11.6: n = 10, seed 0.
    expected = [2, 8, 4, 9, 1, 6, 2, 3, 0, 9, 7, 8, 1, 5, 6, 4, 3, 8, 2, 1, 9, 6, 7, 5]
    assert _first(24, 10) == expected


def test_published_order_of_two_processes():
    # The specification, 11.6: n = 10, seed 0, two processes.
    assert _first(12, 10, num_shards=2) == [2, 4, 1, 2, 0, 7, 1, 6, 3, 2, 9, 7]
    assert _first(12, 10, shard=1, num_shards=2) == [8, 9, 6, 3, 9, 8, 5, 4, 8, 1, 6, 5]


def test_shards_interleave_to_the_whole():
    whole = _first(60, 17, seed=3)
    shards = [_first(20, 17, seed=3, shard=i, num_shards=3) for i in range(3)]
    assert [x for row in zip(*shards, strict=True) for x in row] == whole


def test_without_shuffling_it_counts():
    assert _first(7, 3, shuffle=False, seed=9) == [0, 1, 2, 0, 1, 2, 0]


def test_small_windows_keep_the_permutation():
    # rint(10 * 0.14) = 1 < 2: nothing changes places, so the permutation repeats.
    first = _first(20, 10, window_size=0.14)
    assert sorted(first[:10]) == list(range(10)) and first[:10] == first[10:]


def test_seeds_are_taken_mod_two_to_the_31():
    assert _first(30, 10, seed=5 + 2**31) == _first(30, 10, seed=5) != _first(30, 10, seed=6)


@pytest.mark.parametrize(
    "kwargs",
    [{"length": 0}, {"length": 3, "shard": 2, "num_shards": 2}, {"length": 3, "window_size": 2.0}],
)
def test_bad_arguments(kwargs):
    with pytest.raises(ValueError, match="need length"):
        order.infinite_order(**kwargs)
