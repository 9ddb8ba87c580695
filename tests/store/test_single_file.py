"""Single-file models: bit-exact, atomic, and refused when newer or damaged."""

import copy
import json
import os

import ml_dtypes
import numpy as np
import pytest

from edm_jax.foreign import importer, published
from edm_jax.store import single_file
from edm_jax.store.description import check_description
from edm_jax.store.errors import WeightsError
from edm_jax.store.safetensors import read_safetensors
from tests.support import weights_golden as wg


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("golden") / "small_torch1.pkl"
    path.write_bytes(wg.content("small_torch1.pkl"))
    return importer.read_model_file(path)


@pytest.fixture
def exported(model, tmp_path):
    path = tmp_path / "model.safetensors"
    single_file.write_single_file(path, model.description, model.variables)
    return path


def leaves(tree, prefix=()):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def assert_same(a, b):
    a, b = dict(leaves(a)), dict(leaves(b))
    assert set(a) == set(b)
    for key, value in a.items():
        value = np.asarray(value)
        assert b[key].dtype == value.dtype and b[key].shape == value.shape, key
        assert b[key].tobytes() == value.tobytes(), key


def test_round_trip(model, exported):
    again = importer.read_model_file(exported)
    assert again.description == model.description
    assert_same(again.variables, model.variables)
    assert os.listdir(exported.parent) == ["model.safetensors"]  # no temporary file is left


def test_special_values_and_other_types_survive(model, tmp_path):
    variables = copy.deepcopy(model.variables)
    params = variables["ema"]["params"]
    bias = params["map_layer0"]["bias"]
    bias[:4] = np.array([0x7FC00001, 0xFF800000, 1, 0x80000000], np.uint32).view(np.float32)
    params["map_layer1"]["bias"] = params["map_layer1"]["bias"].astype(ml_dtypes.bfloat16)
    params["map_layer1"]["kernel"] = np.asfortranarray(params["map_layer1"]["kernel"])
    variables["ema_0.05"] = variables["ema"]
    path = tmp_path / "a"
    single_file.write_single_file(path, model.description, variables)
    again = importer.read_model_file(path)
    assert_same(again.variables, variables)
    # The readers' arrays are the caller's to change.
    again.variables["ema"]["params"]["map_layer0"]["bias"][0] = 1


def test_jax_arrays(model, tmp_path):
    import jax

    path = tmp_path / "a"
    single_file.write_single_file(
        path, model.description, jax.tree.map(jax.numpy.asarray, model.variables)
    )
    assert_same(importer.read_model_file(path).variables, model.variables)


def test_the_safetensors_library_reads_it(model, exported):
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(exported, "numpy") as file:
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}
    assert json.loads(metadata["description"]) == model.description
    want = {"/".join(k): v for k, v in leaves(model.variables)}
    assert set(arrays) == set(want)
    for name, value in want.items():
        np.testing.assert_array_equal(arrays[name], value)


def test_we_read_what_the_safetensors_library_writes():
    library = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.normal(size=(3, 4)).astype(np.float32),
        "b": rng.normal(size=(5,)).astype(np.float16),
        "c": rng.normal(size=()).astype(np.float64),
        "d": rng.integers(-5, 5, size=(2, 1, 3)),
        "e": np.array([True, False]),
        "f": np.zeros((0, 7), np.int8),
        "g": rng.integers(0, 255, size=(9,), dtype=np.uint8),
        "naïve": rng.integers(-5, 5, size=(1,), dtype=np.int16),
    }
    metadata, got = read_safetensors(memoryview(library.save(arrays, metadata={"x": "y"})))
    assert metadata == {"x": "y"} and set(got) == set(arrays)
    for name, array in arrays.items():
        assert got[name].dtype == array.dtype and got[name].shape == array.shape
        assert got[name].tobytes() == array.tobytes()


def test_state_dict_export(model, tmp_path):
    """The names and layouts of the EDM program again; complete with its description."""
    golden = wg.expected("small")
    path = tmp_path / "state.safetensors"
    published.write_state_dict(path, model.description, model.variables["ema"])
    _, arrays = read_safetensors(memoryview(path.read_bytes()))
    assert set(arrays) == set(golden["names"])
    for name in golden["names"]:
        assert arrays[name].tobytes() == golden[f"params/{name}"].tobytes(), name
    again = importer.read_model_file(path)
    assert_same(again.variables, model.variables)
    for key in ("network", "precond", "image_shape", "num_classes", "data"):
        assert again.description[key] == model.description[key]
    assert again.description["source"]["licence"] == model.description["source"]["licence"]
    raw = model.description | {"variants": ["raw"]}
    published.write_state_dict(path, raw, model.variables["ema"])
    assert list(importer.read_model_file(path).variables) == ["raw"]


def test_state_dict_export_of_iddpm(tmp_path):
    path = tmp_path / "iddpm_adm_cond.pkl"
    path.write_bytes(wg.content("iddpm_adm_cond.pkl"))
    model = importer.read_model_file(path)
    published.write_state_dict(path, model.description, model.variables["ema"])
    _, arrays = read_safetensors(memoryview(path.read_bytes()))
    golden = wg.expected("iddpm_adm_cond")
    assert set(arrays) == set(golden["names"])
    np.testing.assert_array_equal(arrays["u"], golden["params/u"])
    assert importer.read_model_file(path).description["precond"] == model.description["precond"]


@pytest.mark.parametrize("num_levels", [None, 3])
def test_state_dict_export_keeps_levels_that_float32_cannot(num_levels, tmp_path):
    path = tmp_path / "iddpm_adm_cond.pkl"
    path.write_bytes(wg.content("iddpm_adm_cond.pkl"))
    model = importer.read_model_file(path)
    precond = {"name": "iddpm", "levels": [80.1, 3.3, 1.0, 0.0]}
    precond |= {} if num_levels is None else {"num_levels": num_levels}
    published.write_state_dict(
        path, model.description | {"precond": precond}, model.variables["ema"]
    )
    assert importer.read_model_file(path).description["precond"] == precond
    # What a user says besides must still agree with the table of the file.
    with pytest.raises(ValueError, match="contradicts the file"):
        importer.read_model_file(path, config={"precond": {"name": "edm"}})


# ---------------------------------------------------------------- damaged and newer files


def test_every_changed_byte_is_noticed(exported):
    """Header, description, digest and payload: no byte can change unnoticed."""
    good = exported.read_bytes()
    end = 8 + int.from_bytes(good[:8], "little")
    places = [*range(0, end, 41), *range(end, len(good), 997), len(good) - 1]
    for at in places:
        data = bytearray(good)
        data[at] ^= 0x04
        exported.write_bytes(data)
        with pytest.raises(WeightsError):
            importer.read_model_file(exported)
    exported.write_bytes(good)
    importer.read_model_file(exported)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.99])
def test_cut_file(exported, share):
    data = exported.read_bytes()
    exported.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(WeightsError, match=r"empty|header|cut off"):
        importer.read_model_file(exported)


def rewritten(path, arrays, description):
    """A file like ours with a right digest."""
    metadata = {"format": single_file.FORMAT, "description": json.dumps(description)}
    single_file.write_arrays(path, arrays, metadata)


def flat(variables):
    return {"/".join(k): v for k, v in leaves(variables)}


SIZES = {"img_resolution": 8, "in_channels": 3, "out_channels": 3, "label_dim": 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version 2 is newer than 1.*update edm_jax"),
        ({"format_version": "1"}, "format_version '1'"),
        ({"format_version": None}, "format_version None"),
        ({"network": None}, "no network"),
        ({"network": SIZES | {"name": "EvilUNet"}}, "EvilUNet"),
        ({"network": SIZES | {"name": "SongUNet", "evil" * 99: 1}}, "evil.*is too large"),
        ({"network": SIZES | {"name": "SongUNet", "num_blocks": 1e300}}, "num_blocks"),
        ({"precond": {"name": "evil"}}, "preconditioning 'evil'"),
        ({"precond": {"name": "edm", "sigma_data": "0.5"}}, "'sigma_data' must be a number"),
        ({"precond": {"name": "edm", "evil": 1}}, "evil"),
        ({"precond": {"name": "iddpm", "num_levels": 10**9}}, "num_levels"),
        ({"precond": {"name": "iddpm", "levels": [1.0, 2.0, 0.0]}}, "decrease"),
        ({"image_shape": [8, 8]}, "image_shape"),
        ({"num_classes": -1}, "num_classes"),
        ({"num_classes": 4}, "num_classes 4 are not those of the network"),
        ({"image_shape": [8, 8, 1]}, "not those of the network"),
        ({"data": [1]}, "data must be a dictionary"),
        ({"label_names": ["a"]}, "1 label_names for 3 classes"),
    ],
)
def test_unusable_description(model, tmp_path, change, message):
    path = tmp_path / "a"
    rewritten(path, flat(model.variables), model.description | change)
    with pytest.raises(WeightsError, match=message):
        importer.read_model_file(path)
    with pytest.raises(ValueError, match=message):
        single_file.write_single_file(path, model.description | change, model.variables)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("ema/params/map_layer0/bias", None, "'params/map_layer0/bias' of shape .* is missing"),
        ("ema/params/map_layer0/bias", np.zeros(9), "has shape .9., expected .8."),
        ("ema/params/extra/bias", np.zeros(9), "'params/extra/bias' is no part"),
        ("ema/params/map_layer0/bias/x", np.zeros(9), "lies below"),
        ("ema/params/map_layer0", np.zeros(9), "lies above"),
        ("ema/state/x", np.zeros(9), "'ema/state/x' is not <variant>/params"),
        ("bias", np.zeros(9), "'bias' is not <variant>/params"),
        ("ema/params/" + "a/" * 40 + "b", np.zeros(9), "is not <variant>/params"),
    ],
)
def test_arrays_that_are_not_the_networks(model, tmp_path, name, array, message):
    arrays = flat(model.variables)
    if array is None:
        del arrays[name]
    else:
        arrays[name] = array
    path = tmp_path / "a"
    rewritten(path, arrays, model.description)
    with pytest.raises(WeightsError, match=message):
        importer.read_model_file(path)


def test_no_variables(model, tmp_path):
    rewritten(tmp_path / "a", {}, model.description)
    with pytest.raises(WeightsError, match="no variables"):
        importer.read_model_file(tmp_path / "a")
    with pytest.raises(ValueError, match="at least one variant"):
        single_file.write_single_file(tmp_path / "a", model.description, {})


def test_own_file_needs_no_config(exported):
    with pytest.raises(ValueError, match="this one is complete"):
        importer.read_model_file(exported, config={"variant": "raw"})


# ---------------------------------------------------------------- writing


def test_a_failed_write_leaves_the_old_file(model, exported):
    good = exported.read_bytes()

    class Unreadable:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("no array")

    broken = {"ema": {"params": {"a": Unreadable()}, "buffers": {}}}
    with pytest.raises(RuntimeError, match="no array"):
        single_file.write_single_file(exported, model.description, broken)
    assert exported.read_bytes() == good
    assert os.listdir(exported.parent) == ["model.safetensors"]


def test_an_interrupted_write_leaves_the_old_file(model, exported, monkeypatch):
    good = exported.read_bytes()

    def fail(fd):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        single_file.write_single_file(exported, model.description, model.variables)
    assert exported.read_bytes() == good
    assert os.listdir(exported.parent) == ["model.safetensors"]


def test_infinite_bounds_are_left_out_of_the_description(model, tmp_path):
    precond = {"name": "edm", "sigma_data": 0.5, "sigma_max": float("inf")}
    check_description(model.description | {"precond": precond})
    with pytest.raises(ValueError, match="leave infinite bounds out"):
        single_file.write_single_file(
            tmp_path / "a", model.description | {"precond": precond}, model.variables
        )


def test_unusable_arrays(model, tmp_path):
    variables = copy.deepcopy(model.variables)
    layer = variables["ema"]["params"]["map_layer0"]
    for change, message in (
        ({"bias": layer["bias"].astype(np.complex64)}, "complex64"),
        ({"bias": np.zeros(9)}, "has shape .9., expected .8."),
        ({"evil": np.zeros(9)}, "'params/map_layer0/evil' is no part"),
        ({"bias": [np.zeros(9)]}, "is no part"),
    ):
        variables["ema"]["params"]["map_layer0"] = layer | change
        with pytest.raises(ValueError, match=message):
            single_file.write_single_file(tmp_path / "a", model.description, variables)
    for variant in ("a/b", "", 3):
        with pytest.raises(ValueError, match="called by a text without '/'"):
            single_file.write_single_file(
                tmp_path / "a", model.description, {variant: model.variables["ema"]}
            )
