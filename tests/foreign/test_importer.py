"""Golden model files, end to end: tensors bit for bit, configurations, D(x; sigma)."""

import dataclasses
import json
import zipfile

import ml_dtypes
import numpy as np
import pytest

from edm_jax.foreign import importer, state_dict, torch_files
from edm_jax.store import single_file
from tests.support import weights_golden as wg
from tests.support import weights_writer as ww

# Suggested with the golden arrays, from |float32 - float64| of the reference: VP loses
# digits in c_noise, and VP, VE and iDDPM multiply the network's output by sigma.
D_ATOL = {"edm": 5e-5, "ve": 5e-4, "iddpm": 5e-4, "vp": 2e-3}

# The preconditionings that belong to the recorded arguments and attributes.
PRECONDS = {
    "EDMPrecond": {"name": "edm", "sigma_data": 0.5},
    "VEPrecond": {"name": "ve", "sigma_min": 0.02, "sigma_max": 100.0},
    "VPPrecond": {
        "name": "vp",
        "beta_d": 19.9,
        "beta_min": 0.1,
        "num_levels": 1000,
        "eps_t": 1e-5,
    },
    "iDDPMPrecond": {"name": "iddpm", "c_1": 0.001, "c_2": 0.008, "num_levels": 1000},
}


@pytest.fixture
def import_golden(tmp_path):
    def read(name, **arguments):
        path = tmp_path / name
        path.write_bytes(wg.content(name))
        return importer.read_model_file(path, **arguments)

    return read


def assert_tensors(model, variant, golden):
    """Every golden tensor comes back bit for bit (half precision widened)."""
    tensors = state_dict.from_variables(model.variables[variant], model.description["network"])
    names = [n for n in golden["names"] if n != "u"]
    assert len(tensors) == len(names)
    for name in names:
        want = golden[f"params/{name}"].astype(np.float32)
        got = tensors[name.removeprefix("model.")]
        assert got.dtype == np.float32 and got.shape == want.shape, name
        assert got.tobytes() == want.tobytes(), name


def assert_d(model, variant, golden):
    labels = {k: golden[k] for k in ("class_labels", "augment_labels") if k in golden}
    d = wg.denoise(model, variant, golden["x"], golden["sigma"], **labels)
    atol = D_ATOL[model.description["precond"]["name"]]
    np.testing.assert_allclose(d, golden["D"], rtol=0, atol=atol)
    assert np.std(golden["D"]) > 1000 * atol  # else the comparison would mean nothing


@pytest.mark.parametrize("name", wg.SNAPSHOTS)
def test_golden_snapshot(name, import_golden):
    golden = wg.expected(wg.SNAPSHOTS[name])
    config, snapshot = wg.json_of(golden["config"]), wg.json_of(golden["snapshot"])
    model = import_golden(name)
    description, source = model.description, model.description["source"]
    assert list(model.variables) == ["ema"]
    assert_tensors(model, "ema", golden)

    # What was recorded is kept as it is ...
    assert source["class_name"] == config["class_name"]
    assert source["arguments"] == config["kwargs"]
    assert source["attributes"] == wg.json_of(golden["attributes"])
    assert source["loss"] == snapshot.get("loss_fn")
    assert source["augment"] == snapshot.get("augment_pipe")
    assert description["data"] == snapshot.get("dataset_kwargs", {})
    assert "CC BY-NC-SA 4.0" in source["licence"]

    # ... and turned into our configuration.
    kwargs = dict(config["kwargs"])
    size, channels = kwargs.pop("img_resolution"), kwargs.pop("img_channels")
    assert description["image_shape"] == [size, size, channels]
    assert description["num_classes"] == kwargs["label_dim"]
    network = description["network"]
    assert network["name"] == kwargs.pop("model_type")
    assert network["in_channels"] == channels
    del kwargs["use_fp16"]
    assert {k: network[k] for k in kwargs} == kwargs
    precond = dict(description["precond"])
    levels = precond.pop("levels", None)
    assert precond == PRECONDS[config["class_name"]]
    if config["class_name"] == "iDDPMPrecond":
        assert network["out_channels"] == 2 * channels
        # The table of the file differs from ours in its last digits, so it is kept.
        np.testing.assert_array_equal(np.float32(levels), golden["params/u"])
    else:
        assert network["out_channels"] == channels and levels is None
    json.dumps(description, allow_nan=False)


# One of each architecture and preconditioning.  The other files differ in how the same
# arrays are stored; these are compared bit for bit above.
@pytest.mark.parametrize(
    "name", [n for n in wg.SNAPSHOTS if not n.startswith(("small_", "strided"))]
)
def test_golden_snapshot_denoises(name, import_golden):
    assert_d(import_golden(name), "ema", wg.expected(wg.SNAPSHOTS[name]))


def test_defaults_not_passed(import_golden):
    """num_blocks and attn_resolutions are absent from this file (spec: 4 blocks, at 16)."""
    network = import_golden("vp_ddpmpp_uncond.pkl").description["network"]
    assert (network["num_blocks"], network["attn_resolutions"]) == (4, [16])
    network = import_golden("edm_adm_cond_fp16.pkl").description["network"]
    assert network["attn_resolutions"] == [32, 16, 8]


@pytest.mark.parametrize("name", wg.STATE_DICTS)
def test_golden_state_dict(name, import_golden):
    """The configuration of a plain state dictionary is inferred from names and shapes."""
    golden = wg.expected(wg.STATE_DICTS[name])
    model = import_golden(name)
    assert_tensors(model, "ema", golden)
    kwargs = wg.json_of(golden["config"])["kwargs"]
    network = model.description["network"]
    for key in set(kwargs) - {"use_fp16", "img_channels", "model_type", "dropout"}:
        assert network[key] == kwargs[key], key
    assert model.description["precond"] == {"name": "edm", "sigma_data": 0.5}
    assert set(model.description["source"]["assumed"]) == {"dropout", "label_dropout", "precond"}


@pytest.mark.parametrize("name", sorted(set(wg.SNAPSHOTS) - {"small_protocol2.pkl"}))
def test_inferred_configuration_equals_recorded_one(name, import_golden, tmp_path):
    """All architectures: the state dictionary alone gives the network of the snapshot."""
    recorded = import_golden(name)
    network = recorded.description["network"]
    arrays = {
        f"model.{k}": v
        for k, v in state_dict.from_variables(recorded.variables["ema"], network).items()
    }
    golden = wg.expected(wg.SNAPSHOTS[name])
    if "params/u" in golden:
        arrays["u"] = golden["params/u"]
    path = tmp_path / "dictionary.pt"
    path.write_bytes(ww.state_dict_zip(arrays))
    inferred = importer.read_model_file(path, config={"network": {"dropout": network["dropout"]}})
    want = dict(network)
    if network["name"] == "DhariwalUNet":
        want["attn_resolutions"] = []  # too narrow for any attention, so none is seen
    assert inferred.description["network"] == want
    if recorded.description["precond"]["name"] == "iddpm":
        got = inferred.description["precond"]
        assert got == {"name": "iddpm", "levels": recorded.description["precond"]["levels"]}


@pytest.mark.parametrize(
    ("factor", "dtype"), [(1.0, np.float16), (0.5, np.float16), (1.0, ml_dtypes.bfloat16)]
)
def test_levels_in_half_precision(factor, dtype, import_golden, tmp_path):
    """The table of the schedule loses no digit by it; another one is kept as it is."""
    name = "iddpm_adm_cond.pkl"
    recorded = import_golden(name)
    arrays = state_dict.from_variables(recorded.variables["ema"], recorded.description["network"])
    arrays = {f"model.{k}": v.astype(dtype) for k, v in arrays.items()}
    arrays["u"] = (factor * wg.expected(wg.SNAPSHOTS[name])["params/u"]).astype(dtype)
    path = tmp_path / "half.pt"
    path.write_bytes(ww.state_dict_zip(arrays))
    precond = importer.read_model_file(path).description["precond"]
    assert precond["name"] == "iddpm"
    assert precond.get("levels") == (None if factor == 1 else arrays["u"].tolist())
    contradictions = [{"name": "edm"}, {"levels": [2.0, 1.0, 0.0]}]
    for contradiction in contradictions + [{"c_1": 0.5}] * (factor != 1):
        with pytest.raises(ValueError, match="contradicts the file"):
            importer.read_model_file(path, config={"precond": contradiction})


def test_levels_of_another_number_name_the_cure(import_golden, tmp_path):
    name = "iddpm_adm_cond.pkl"
    recorded = import_golden(name)
    arrays = state_dict.from_variables(recorded.variables["ema"], recorded.description["network"])
    arrays = {f"model.{k}": v for k, v in arrays.items()}
    arrays["u"] = np.array([3, 2, 1, 0], np.float32)
    path = tmp_path / "few.pt"
    path.write_bytes(ww.state_dict_zip(arrays))
    with pytest.raises(ValueError, match=r"expected \(1000 \+ 1,\); .*'num_levels': M"):
        importer.read_model_file(path)
    model = importer.read_model_file(path, config={"precond": {"num_levels": 3}})
    assert model.description["precond"]["levels"] == [3.0, 2.0, 1.0, 0.0]


def test_training_state(import_golden, tmp_path):
    golden = wg.expected("training_state")
    model = import_golden("training_state.pt")
    assert list(model.variables) == ["raw"]
    assert_tensors(model, "raw", golden)
    assert_d(model, "raw", golden)
    assert model.description["progress"] == {"nimg": None, "kimg": None, "step": 3}


@pytest.mark.parametrize("name", ["dtypes.pt", "dtypes.pth"])
def test_all_dtypes_bit_for_bit(name):
    golden = wg.expected("dtypes")
    _, root = torch_files.read_torch(memoryview(wg.content(name)))
    assert list(root) == list(golden["names"])
    for key in root:
        got, want = root[key].array(), golden[f"params/{key}"]
        assert got.dtype.name == ("bfloat16" if key == "bfloat16" else want.dtype.name)
        assert got.shape == want.shape
        assert got.astype(want.dtype).tobytes() == want.tobytes(), key


def test_progress_from_the_file_name(tmp_path):
    path = tmp_path / "network-snapshot-002500.pkl"
    path.write_bytes(wg.content("small_torch1.pkl"))
    progress = importer.read_model_file(path).description["progress"]
    assert progress == {"nimg": 2_500_000, "kimg": 2500, "step": None}


def test_import_export_import_is_bit_exact(import_golden, tmp_path):
    for name in ("half.pkl", "iddpm_adm_cond.pkl", "training_state.pt"):
        model = import_golden(name)
        path = tmp_path / "model.safetensors"
        single_file.write_single_file(path, model.description, model.variables)
        again = importer.read_model_file(path)
        assert again.description == model.description
        assert list(again.variables) == list(model.variables)
        for variant in model.variables:
            assert_same_trees(again.variables[variant], model.variables[variant])


def assert_same_trees(a, b):
    assert set(a) == set(b)
    for key, value in a.items():
        if isinstance(value, dict):
            assert_same_trees(value, b[key])
        else:
            assert value.dtype == b[key].dtype and value.shape == b[key].shape
            assert value.tobytes() == b[key].tobytes()


def test_imported_arrays_do_not_depend_on_the_file(import_golden, tmp_path):
    """The file is mapped while it is read; overwriting it later must change nothing."""
    model = import_golden("small_torch1.pkl")
    before = model.variables["ema"]["params"]["map_layer0"]["bias"].copy()
    path = tmp_path / "small_torch1.pkl"
    with open(path, "r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    np.testing.assert_array_equal(model.variables["ema"]["params"]["map_layer0"]["bias"], before)
    assert dataclasses.is_dataclass(model)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        importer.read_model_file(tmp_path / "nothing.pkl")


@pytest.mark.parametrize("name", ["cat/0.png", "00000/img00000000.png", "x.JPG", "dataset.json"])
def test_a_data_set_is_no_model(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr(name, b"pixels")
        archive.writestr("dog/1.png", b"pixels")
    with pytest.raises(
        importer.WeightsError, match=r"data\.zip: an archive of images, which is data"
    ):
        importer.read_model_file(tmp_path / "data.zip")
