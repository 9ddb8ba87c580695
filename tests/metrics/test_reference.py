"""References: written, read, published ones, and what is refused."""

import pickle

import numpy as np
import pytest

from edm_jax.metrics.reference import Reference, load_reference, save_reference
from edm_jax.store.errors import WeightsError

MEAN, COV = np.arange(3.0), np.diag([1.0, 2.0, 3.0])


def reference(**changes):
    fields = dict(
        extractor="inception",
        digest="ab" * 32,
        resolution=(32, 32),
        count=500,
        features=np.ones((4, 3), np.float32),
        floor=0.25,
        floor_count=250,
        source="cifar10",
    )
    return Reference(MEAN, COV, **(fields | changes))


@pytest.mark.parametrize("changes", [{}, dict(features=None, floor=None, floor_count=None)])
def test_round_trip(tmp_path, changes):
    path, original = tmp_path / "ref.npz", reference(**changes)
    save_reference(path, original)
    save_reference(path, original)  # over an old one
    again = load_reference(path, "inception")
    for name, value in vars(original).items():
        np.testing.assert_array_equal(getattr(again, name), value, err_msg=name)
    assert [p.name for p in tmp_path.iterdir()] == ["ref.npz"]


def test_a_file_appears_complete_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "ref.npz"
    save_reference(path, reference())
    before = path.read_bytes()

    def fail(file, **_):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        save_reference(path, reference(count=7))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_published_npz(tmp_path):
    np.savez(tmp_path / "cifar10-32x32.npz", mu=MEAN, sigma=COV)
    found = load_reference(tmp_path / "cifar10-32x32.npz", "inception")
    np.testing.assert_array_equal(found.cov, COV)
    assert found.count is None and len(found.remarks()) == 2
    found.check("inception", "any", 3, (32, 32))


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_published_pickle(tmp_path, protocol):
    path = tmp_path / "img512.pkl"
    both = {
        "num_images": 50000,
        "fid": {"mu": MEAN, "sigma": COV},
        "fd_dinov2": {"mu": MEAN[:2], "sigma": np.asfortranarray(COV[:2, :2] + 1)},
    }
    path.write_bytes(pickle.dumps(both, protocol))
    found = load_reference(path, "dinov2")
    np.testing.assert_array_equal(found.cov, COV[:2, :2] + 1)
    assert (found.count, found.extractor) == (50000, "dinov2")
    np.testing.assert_array_equal(load_reference(path, "inception").mean, MEAN)
    with pytest.raises(WeightsError, match=r"img512.pkl: the file has no 'mine'.*'fid'"):
        load_reference(path, "mine")


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("true",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"fid": {"mu": MEAN, "sigma": Evil()}}, "global .*system.* is refused"),
        ({"fid": {"mu": MEAN, "sigma": COV.astype(complex)}}, "numpy.dtype 'c16', expected"),
        ({"fid": {"mu": MEAN}}, "'sigma' is None, expected an array"),
        ({"fid": {"mu": MEAN, "sigma": COV[:2]}}, r"got \(3,\) and \(2, 3\)"),
        ([1], "holds a list of 1, expected a dictionary"),
    ],
)
def test_pickles_that_are_refused(tmp_path, content, said):
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps(content, 4))
    with pytest.raises(WeightsError, match=said) as error:
        load_reference(path, "inception")
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_npz_that_are_refused(tmp_path):
    path = tmp_path / "bad.npz"
    with pytest.raises(FileNotFoundError, match="no reference"):
        load_reference(path, "inception")
    np.savez(path, mu=np.array([object()]), sigma=COV)
    cases = [(path.read_bytes(), "no readable .npz"), (b"<html>", "no readable .npz")]
    for arrays, said in (
        (dict(mu=MEAN), "'sigma' is missing"),
        (dict(mu=MEAN, sigma=COV * np.nan), "not finite"),
        (dict(mu=MEAN, sigma=COV + np.triu(np.ones((3, 3)), 1)), "not symmetric"),
        (dict(mu=MEAN, sigma=COV, meta=np.array("{")), "damaged"),
        (dict(mu=MEAN, sigma=COV, meta=np.array('{"format": "other"}')), "another version"),
    ):
        np.savez(path, **arrays)
        cases.append((path.read_bytes(), said))
    save_reference(path, reference())
    cases.append((path.read_bytes()[:-200], "no readable .npz"))
    for content, said in cases:
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=said) as error:
            load_reference(path, "inception")
        assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (("dinov2", "ab" * 32, 3, (32, 32)), "extractor 'inception', the images of 'dinov2'"),
        (("inception", "cd" * 32, 3, (32, 32)), "other weights or another preprocessing"),
        (("inception", "ab" * 32, 4, (32, 32)), "features of 3 numbers, .* gives 4"),
        (("inception", "ab" * 32, 3, (64, 64)), "32x32 pixels, these have 64x64"),
    ],
)
def test_what_does_not_match_is_refused(found, said):
    with pytest.raises(ValueError, match=said):
        reference().check(*found)


def test_other_file_names():
    with pytest.raises(ValueError, match=r"ends with \.npz, got ref\.pkl"):
        save_reference("ref.pkl", reference())
