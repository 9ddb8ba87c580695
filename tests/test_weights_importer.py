"""Golden model files, end to end: tensors bit for bit, configurations, D(x; sigma)."""

import dataclasses
import json

import numpy as np
import pytest
import weights_golden as wg
import weights_writer as ww

from edm_jax.weights import export, importer, state_dict, torch_files, training_state
from edm_jax.weights.errors import WeightsError

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


def test_training_state(import_golden, tmp_path):
    golden = wg.expected("training_state")
    model = import_golden("training_state.pt")
    assert list(model.variables) == ["raw"]
    assert_tensors(model, "raw", golden)
    assert_d(model, "raw", golden)
    assert model.description["progress"] == {"nimg": None, "kimg": None, "step": 3}

    state = training_state.read_optimizer_state(tmp_path / "training_state.pt")
    groups = wg.json_of(golden["optimizer/param_groups"])
    assert state.param_groups == [{k: v for k, v in g.items() if k != "params"} for g in groups]
    buffers = model.variables["raw"]["buffers"]
    network = model.description["network"]
    for key, tree in (("exp_avg", state.mu), ("exp_avg_sq", state.nu)):
        tensors = state_dict.from_variables({"params": tree, "buffers": buffers}, network)
        for i, name in enumerate(golden["optimizer/param_names"]):
            want = golden[f"optimizer/{i}/{key}"]
            assert tensors[name.removeprefix("model.")].tobytes() == want.tobytes(), name
            assert state.step == golden[f"optimizer/{i}/step"]


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


# ---------------------------------------------------------------- files written by the tests


def small():
    """State dictionary, class and arguments of a small published network."""
    golden = wg.expected("small")
    arrays = {n: golden[f"params/{n}"] for n in golden["names"]}
    config = wg.json_of(golden["config"])
    return arrays, config["class_name"], config["kwargs"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("package", ["numpy.core.multiarray", "numpy._core.multiarray"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_written_snapshots(protocol, package, dtype, tmp_path):
    arrays, class_name, arguments = small()
    arrays = {k: v.astype(dtype) for k, v in arrays.items()}
    net = ww.network(arrays, class_name, arguments, package=package, sigma_data=0.25)
    path = tmp_path / "network-snapshot-000001.pkl"
    path.write_bytes(ww.dumps(ww.snapshot(net), protocol, frame=protocol == 5))
    model = importer.read_model_file(path)
    got = state_dict.from_variables(model.variables["ema"], model.description["network"])
    for name, array in arrays.items():
        want = array.astype(np.float32)
        assert got[name.removeprefix("model.")].tobytes() == want.tobytes(), name
    # The attribute of the object, which the program computes with.
    assert model.description["precond"]["sigma_data"] == 0.25


def test_written_variants_of_the_format(tmp_path):
    """EasyDict, _rebuild_parameter_with_state, positional arguments, a network saved alone."""
    arrays, class_name, arguments = small()
    net = ww.network(arrays, class_name, arguments)
    state = net.arguments[0]["state"]
    easy = ww.Items(
        ww.New(ww.Global("dnnlib.util", "EasyDict")),
        {k: v for k, v in arguments.items() if k not in ("img_resolution", "img_channels")},
    )
    state["_init_args"] = (arguments["img_resolution"], arguments["img_channels"])
    state["_init_kwargs"] = easy
    layer = state["_modules"]["model"].arguments[0]["state"]["_modules"]["map_layer0"]
    parameters = layer.arguments[0]["state"]["_parameters"]
    for key, value in parameters.items():
        with_state = ww.Global("torch._utils", "_rebuild_parameter_with_state")
        parameters[key] = ww.Call(with_state, (*value.arguments, {"note": 1}))
    path = tmp_path / "alone.pkl"
    path.write_bytes(ww.dumps(net))
    model = importer.read_model_file(path)
    want = {k: v for k, v in arguments.items() if k in model.description["network"]}
    assert {k: model.description["network"][k] for k in want} == want
    got = model.variables["ema"]["params"]["map_layer0"]["kernel"]
    np.testing.assert_array_equal(got, arrays["model.map_layer0.weight"].T)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("container", ["zip", "zip64", "legacy", "safetensors"])
def test_written_state_dicts(container, bare, tmp_path):
    arrays, _, _ = small()
    if bare:
        arrays = {k.removeprefix("model."): v for k, v in arrays.items()}
    flat = {k: (str(i), np.ascontiguousarray(v)) for i, (k, v) in enumerate(arrays.items())}
    if container == "legacy":
        root = ww.ordered(
            {k: ww.tensor(ww.pid(i, a.size, legacy=True), a.shape) for k, (i, a) in flat.items()}
        )
        data = ww.legacy(root, {i: (a.size, a.tobytes()) for i, a in flat.values()})
    elif container == "zip64":
        root = {k: ww.tensor(ww.pid(i, a.size), a.shape) for k, (i, a) in flat.items()}
        entries = [ww.Entry("a/data.pkl", ww.dumps(root, 2))]
        entries += [ww.Entry(f"a/data/{i}", a.tobytes(), zip64=True) for i, a in flat.values()]
        data = ww.write_zip(entries, zip64=True)
    elif container == "safetensors":
        safetensors = pytest.importorskip("safetensors.numpy")
        data = safetensors.save(dict(arrays))
    else:
        data = ww.state_dict_zip(arrays)
    path = tmp_path / "weights"
    path.write_bytes(data)
    model = importer.read_model_file(path, config={"variant": "raw"})
    got = state_dict.from_variables(model.variables["raw"], model.description["network"])
    for name, array in arrays.items():
        assert got[name.removeprefix("model.")].tobytes() == array.tobytes(), name
    licence = model.description["source"]["licence"]
    assert licence.startswith("unknown" if container == "safetensors" else "CC BY-NC-SA")


def test_zip_named_after_a_time(tmp_path):
    """torch.save("run:1.pt") calls the folder in the archive "run:1"."""
    arrays, _, _ = small()
    path = tmp_path / "run:1.pt"
    path.write_bytes(ww.state_dict_zip(arrays, folder="run:1"))
    assert_has(importer.read_model_file(path), arrays)
    path.write_bytes(ww.write_zip([ww.Entry("m/data:0", b"")]))
    with pytest.raises(WeightsError, match="entry name 'm/data:0' is refused"):
        importer.read_model_file(path)


def test_zip_without_checksums(tmp_path):
    """torch.serialization.set_crc32_options(False): all are 0.  One that is 0 is damage."""
    arrays, _, _ = small()
    path = tmp_path / "a.pt"
    identity = ww.Entry("model/.data/serialization_id", b"1" * 40, crc=0)
    path.write_bytes(ww.state_dict_zip(arrays, crc=0, more=[identity]))
    assert_has(importer.read_model_file(path), arrays)
    for data in (
        ww.state_dict_zip(arrays, crc=0),  # not as PyTorch writes it
        ww.state_dict_zip(arrays, more=[identity]),
    ):
        path.write_bytes(data)
        with pytest.raises(WeightsError, match="CRC-32 differs"):
            importer.read_model_file(path)


def assert_has(model, arrays, variant="ema"):
    """The model's tensors are the given ones, bit for bit."""
    got = state_dict.from_variables(model.variables[variant], model.description["network"])
    for name, array in arrays.items():
        assert got[name.removeprefix("model.")].tobytes() == array.tobytes(), name


def test_ema_and_raw_in_one_file(tmp_path):
    arrays, _, _ = small()
    names = list(arrays)
    both = {"net": arrays, "ema": {k: v + 1 if "conv0.bias" in k else v for k, v in arrays.items()}}
    storages, root = {}, {}
    for key, dictionary in both.items():
        root[key] = {}
        for name in names:
            a = dictionary[name]
            number = str(len(storages))
            storages[number] = np.ascontiguousarray(a).tobytes()
            root[key][name] = ww.tensor(ww.pid(number, a.size), a.shape)
    path = tmp_path / "both.pt"
    path.write_bytes(ww.torch_zip(root | {"step": 7}, storages))
    model = importer.read_model_file(path)
    assert set(model.variables) == {"ema", "raw"}
    for variant, key in (("ema", "ema"), ("raw", "net")):
        got = state_dict.from_variables(model.variables[variant], model.description["network"])
        for name in names:
            assert got[name.removeprefix("model.")].tobytes() == both[key][name].tobytes()


def test_bfloat16_and_float64(tmp_path):
    import ml_dtypes

    arrays, _, _ = small()
    path = tmp_path / "a.pt"
    for dtype in (ml_dtypes.bfloat16, np.float64):
        cast = {k: v.astype(dtype) for k, v in arrays.items()}
        path.write_bytes(ww.state_dict_zip(cast))
        model = importer.read_model_file(path)
        got = state_dict.from_variables(model.variables["ema"], model.description["network"])
        for name, a in cast.items():
            if not name.endswith("resample_filter"):  # rebuilt in float32
                assert got[name.removeprefix("model.")].tobytes() == a.astype("f4").tobytes()
    name = "model.map_layer0.bias"
    cast[name] = cast[name] + 1e-12
    path.write_bytes(ww.state_dict_zip(cast))
    with pytest.raises(WeightsError, match=r"map_layer0.bias' is float64 and not exact"):
        importer.read_model_file(path)


def test_config_completes_and_overrides(tmp_path):
    arrays, _, _ = small()
    path = tmp_path / "a.pt"
    path.write_bytes(ww.state_dict_zip(arrays))
    config = {
        "network": {"dropout": 0.2},
        "precond": {"name": "ve", "sigma_min": 0.02, "sigma_max": 50.0},
        "label_names": ["a", "b", "c"],
        "data": {"path": "x"},
        "licence": "CC0",
        "progress": {"nimg": 1, "kimg": 0, "step": 1},
    }
    before = json.dumps(config)
    d = importer.read_model_file(path, config=config).description
    assert json.dumps(config) == before  # not changed
    assert d["network"]["dropout"] == 0.2
    assert d["precond"] == config["precond"]
    assert d["label_names"] == ["a", "b", "c"] and d["data"] == {"path": "x"}
    assert d["source"]["licence"] == "CC0" and d["progress"]["nimg"] == 1
    assert d["source"]["assumed"] == ["label_dropout"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sigma": 1}, "no entry 'sigma'"),
        ({"data": np.float32(3)}, "config must be plain JSON"),
        ({"precond": {"sigma_max": float("inf")}}, "leave infinite bounds out"),
        ({"network": 3}, r"config\['network'\] must be a dictionary"),
        ({"variant": "best"}, "must be 'ema' or 'raw'"),
        ({"network": {"widht": 3}}, "widht"),
        ({"network": {"num_blocks": 2}}, "dec.4x4_block1.norm2.weight' is no part"),
        ({"network": {"num_blocks": 10**9}}, "num_blocks"),
        ({"network": {"label_dim": 4}}, r"map_label.weight' has shape \(8, 3\), expected \(8, 4\)"),
        ({"precond": {"name": "ddpm"}}, "preconditioning 'ddpm' is unknown"),
        ({"precond": {"name": "edm", "sigma_data": -1.0}}, "sigma_data must be positive"),
        ({"precond": {"sigma": 1.0}}, "edm has no argument 'sigma'; known: sigma_data,"),
        ({"network": {"resample_filter": [1] * 62}}, "resample_filter|cannot run"),
        ({"label_names": ["one"]}, "1 label_names for 3 classes"),
    ],
)
def test_unusable_config(config, message, tmp_path):
    arrays, _, _ = small()
    path = tmp_path / "a.pt"
    path.write_bytes(ww.state_dict_zip(arrays))
    with pytest.raises(ValueError, match=message):
        importer.read_model_file(path, config=config)


def test_attention_order_is_for_guided_diffusion_only(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(ww.state_dict_zip(small()[0]))
    with pytest.raises(ValueError, match="attention_order is for guided-diffusion"):
        importer.read_model_file(path, attention_order="new")
    with pytest.raises(ValueError, match=r"config\['image_size'\] is for guided-diffusion"):
        importer.read_model_file(path, config={"image_size": 8})
    path.write_bytes(wg.content("small_torch1.pkl"))
    with pytest.raises(ValueError, match="attention_order is for guided-diffusion"):
        importer.read_model_file(path, attention_order="new")
    with pytest.raises(ValueError, match="must be 'new' or 'legacy'"):
        importer.read_model_file(path, attention_order="old")


def test_import_export_import_is_bit_exact(import_golden, tmp_path):
    for name in ("half.pkl", "iddpm_adm_cond.pkl", "training_state.pt"):
        model = import_golden(name)
        path = tmp_path / "model.safetensors"
        export.write_single_file(path, model.description, model.variables)
        for again in (export.read_single_file(path), importer.read_model_file(path)):
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
