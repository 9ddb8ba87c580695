"""The order of images: a permutation an epoch, the same for any number of hosts."""

import itertools
import multiprocessing
import os
import signal

import grain
import jax
import numpy as np
import pytest
from absl import flags

from edm_jax.data import pipeline
from edm_jax.data.sources import digits
from edm_jax.data.sources.base import ArraySource
from edm_jax.train import sharding


def numbered(count):
    images = np.zeros((count, 2, 2, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    images[:, 0, 1, 0] = 200
    return ArraySource(images, np.arange(count, dtype=np.int32))


def take(count, source, batch_size, **options):
    options = {"seed": 0, "num_threads": 2} | options
    return list(itertools.islice(pipeline.host_batches(source, batch_size, **options), count))


def labels(batches):
    return np.concatenate([b["label"] for b in batches])


def test_every_epoch_is_a_new_permutation():
    order = labels(take(12, numbered(20), 5)).reshape(3, 20)
    for epoch in order:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(20))
    assert not np.array_equal(order[0], order[1])
    assert not np.array_equal(order[1], order[2])


def test_batches_cross_epochs_without_dropping():
    order = labels(take(7, numbered(10), 4))[:20].reshape(2, 10)
    for epoch in order:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(10))


def test_resuming_anywhere_gives_the_same_stream():
    whole = take(9, numbered(20), 6)
    for start in (1, 4, 8):
        rest = take(9 - start, numbered(20), 6, start_step=start)
        np.testing.assert_array_equal(labels(rest), labels(whole[start:]))


@pytest.mark.parametrize("batch_size", [7, 24, 48])
def test_images_that_are_read_together_stay_in_order(batch_size):
    # By ones, eights and sixteens.
    batches = take(3, numbered(50), batch_size)
    one_by_one = labels(take(3 * batch_size, numbered(50), 1))
    np.testing.assert_array_equal(labels(batches), one_by_one)
    for batch in batches:
        assert batch["image"].shape == (batch_size, 2, 2, 1)
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])


def test_far_positions_are_reached_at_once():
    (batch,) = take(1, numbered(20), 6, start_step=10**9)
    assert batch["image"].shape == (6, 2, 2, 1)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_see_the_single_host_batch(hosts):
    whole = take(5, numbered(20), 8)
    parts = [take(5, numbered(20), 8, process_index=h, process_count=hosts) for h in range(hosts)]
    for step, batch in enumerate(whole):
        joined = np.concatenate([part[step]["label"] for part in parts])
        np.testing.assert_array_equal(joined, batch["label"])


def test_threads_do_not_change_the_order():
    a, b = (labels(take(6, numbered(50), 10, num_threads=n)) for n in (1, 8))
    np.testing.assert_array_equal(a, b)


def test_seeds_differ():
    a, b = (labels(take(2, numbered(50), 25, seed=s)) for s in (0, 1))
    assert not np.array_equal(a, b)


def test_mirroring_flips_about_half_and_only_along_width():
    batches = take(8, numbered(100), 100, mirror=True)
    images = np.concatenate([b["image"] for b in batches])
    flipped = images[:, 0, 0, 0] == 200
    value = np.where(flipped, images[:, 0, 1, 0], images[:, 0, 0, 0])
    kept = value != 200
    np.testing.assert_array_equal(value[kept], labels(batches)[kept])
    # 800 fair coins: five standard deviations are 71
    assert abs(flipped.sum() - 400) < 71
    again = np.concatenate([b["image"] for b in take(8, numbered(100), 100, mirror=True)])
    np.testing.assert_array_equal(images, again)


def test_uneven_hosts_are_refused():
    with pytest.raises(ValueError, match="batch size 9 does not divide over 2 hosts"):
        take(1, numbered(20), 9, process_count=2)


def test_device_batches_are_sharded_and_in_order():
    mesh = sharding.make_mesh()
    spec = sharding.batch_sharding(mesh)
    host = take(6, numbered(64), 16)
    device = list(pipeline.device_batches(iter(host), spec))
    assert len(device) == 6
    for a, b in zip(host, device, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        assert b["image"].sharding.is_equivalent_to(spec, 4)
        assert isinstance(b["label"], jax.Array)


def test_digits_splits():
    train, test = digits.digits("train"), digits.digits("test")
    assert (len(train), len(test)) == (1500, 297)
    assert train.image_shape == (8, 8, 1) and train.num_classes == 10
    pixels = np.stack([train[i]["image"] for i in range(100)])
    assert pixels.dtype == np.uint8 and pixels.min() == 0 and pixels.max() == 255
    with pytest.raises(ValueError, match="'train' and 'test', got 'val'"):
        digits.digits("val")


@pytest.fixture
def parsed_flags():
    """Grain asks for flags of its own, as a program has them that absl started."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


@pytest.mark.slow
def test_a_reading_process_that_dies_is_one_line(parsed_flags):
    batches = pipeline.host_batches(numbered(20), 4, seed=0, num_workers=1)
    where = sharding.batch_sharding(sharding.make_mesh(jax.devices()[:1]))
    on_device = pipeline.device_batches(batches, where)
    next(on_device)
    (process,) = multiprocessing.active_children()
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(
        pipeline.InputError, match=r"exit code -9.* lower config\.data\.num_workers"
    ):
        for _ in range(1000):  # what was read before comes first
            next(on_device)


def test_hosts_mirror_the_images_that_one_host_would():
    """The coin is tossed by the position in the stream, not by the row of a host."""
    whole = take(4, numbered(20), 8, mirror=True)
    parts = [
        take(4, numbered(20), 8, mirror=True, process_index=h, process_count=2) for h in range(2)
    ]
    for step, batch in enumerate(whole):
        joined = np.concatenate([part[step]["image"] for part in parts])
        np.testing.assert_array_equal(joined, batch["image"])


@pytest.mark.parametrize("hosts", [1, 2])
def test_hosts_resume_together(hosts):
    """Step 3 is what an uninterrupted run would have read, mirrored as it would have been."""
    whole = take(6, numbered(20), 8, mirror=True)
    parts = [
        take(3, numbered(20), 8, start_step=3, mirror=True, process_index=h, process_count=hosts)
        for h in range(hosts)
    ]
    for name in ("label", "image"):
        for step in range(3):
            joined = np.concatenate([part[step][name] for part in parts])
            np.testing.assert_array_equal(joined, whole[3 + step][name])


def test_mirroring_is_another_draw_for_another_seed_and_epoch():
    """800 coins: two independent rows of them agree about half of the time."""

    def flips(seed):
        batches = take(8, numbered(100), 100, mirror=True, seed=seed)
        by_label = [b["image"][np.argsort(b["label"])][:, 0, 0, 0] == 200 for b in batches]
        return np.stack(by_label)  # (epoch, image)

    first, second = flips(0), flips(1)
    # Five standard deviations of 800 and 100 fair coins.
    assert abs((first == second).mean() - 0.5) < 0.09
    assert abs((first[0] == first[1]).mean() - 0.5) < 0.25


@pytest.mark.parametrize(("index", "rows"), [(0, [0, 1]), (1, [2, 3]), (2, [4, 5])])
def test_rows_of_a_host(index, rows):
    assert list(pipeline.host_rows(6, index, 3)) == rows


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_no_more_batches_are_read_ahead_than_asked_for(prefetch):
    read = []

    def batches():
        for i in range(6):
            read.append(i)
            yield {"image": np.full((8, 1), i)}

    where = sharding.batch_sharding(sharding.make_mesh())
    stream = pipeline.device_batches(batches(), where, prefetch=prefetch)
    for i in range(6):
        assert int(next(stream)["image"][0, 0]) == i
        assert len(read) == min(i + 1 + prefetch, 6)
    assert next(stream, None) is None


def test_the_coin_of_a_position():
    """A function of (seed, position), the same in every version."""
    batches = take(5, numbered(20), 8, mirror=True, seed=3)
    flipped = np.concatenate([b["image"] for b in batches])[:, 0, 0, 0] == 200
    expected = [np.random.default_rng((3, k)).random() < 0.5 for k in range(40)]
    np.testing.assert_array_equal(flipped, expected)
    plain = np.concatenate([b["image"] for b in take(5, numbered(20), 8, seed=3)])
    assert not np.any(plain[:, 0, 0, 0] == 200)  # none by default


def test_reading_processes_get_the_same_batches(monkeypatch):
    """What is handed to them, read here in their place."""
    monkeypatch.setattr(grain.IterDataset, "mp_prefetch", lambda stream, options: stream)
    options = {"start_step": 3, "mirror": True, "process_index": 1, "process_count": 2}
    expected = take(4, numbered(20), 8, **options)
    found = take(4, numbered(20), 8, num_workers=2, **options)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a["label"], b["label"])
        np.testing.assert_array_equal(a["image"], b["image"])


@pytest.mark.parametrize("wanted", [1, 3])
def test_a_stream_that_is_left_or_ends_closes_what_it_reads(wanted):
    class Batches:
        left, closed = 3, False

        def __iter__(self):
            return self

        def __next__(self):
            if not self.left:
                raise StopIteration
            self.left -= 1
            return {"image": np.zeros((8, 1))}

        def close(self):
            self.closed = True

    batches = Batches()
    where = sharding.batch_sharding(sharding.make_mesh())
    stream = pipeline.device_batches(batches, where, prefetch=0)
    for _ in range(wanted):
        next(stream)
        assert not batches.closed
    if wanted == 3:
        assert next(stream, None) is None
    else:
        stream.close()
    assert batches.closed
