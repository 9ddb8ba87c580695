"""Model files written byte by byte: what the formats allow beyond the golden files."""

import json

import numpy as np
import pytest

from edm_jax.foreign import importer, state_dict
from edm_jax.store.errors import WeightsError
from tests.support import weights_golden as wg
from tests.support import weights_writer as ww


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


WRAPPINGS = {
    "DistributedDataParallel": ("module.", {}),
    "torch.compile": ("_orig_mod.", {}),
    "both": ("module._orig_mod.", {}),
    "training program": ("", {"net": None, "optimizer_state": {"state": {}, "param_groups": []}}),
    "both, in a dictionary": ("_orig_mod.module.", {"epoch": 3, "state_dict": None}),
}


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda sd: {"ema": {"decay": 0.9, "shadow": sd}, "net": sd}, "'ema' holds a model below"),
        (lambda sd: {"model": sd, "state_dict": sd}, "two models with raw weights, 'state_dict'"),
    ],
)
def test_no_model_of_a_file_is_passed_over(wrap, message, tmp_path):
    arrays, _, _ = small()
    path = tmp_path / "a.pt"
    tensors = {
        name: ww.tensor(ww.pid(str(i), a.size, a.dtype.name), a.shape)
        for i, (name, a) in enumerate(arrays.items())
    }
    storages = {str(i): a.tobytes() for i, a in enumerate(arrays.values())}
    path.write_bytes(ww.torch_zip(wrap(tensors), storages))
    with pytest.raises(WeightsError, match=message):
        importer.read_model_file(path)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("name", WRAPPINGS)
def test_wrapped_state_dicts(name, bare, tmp_path):
    """Modules around the network put a prefix before every name; programs, a dictionary around."""
    arrays, _, _ = small()
    prefix, around = WRAPPINGS[name]
    names = {k.removeprefix("model.") if bare else k: v for k, v in arrays.items()}
    tensors = {
        prefix + k: ww.tensor(ww.pid(str(i), v.size), v.shape)
        for i, (k, v) in enumerate(names.items())
    }
    storages = {str(i): np.ascontiguousarray(v).tobytes() for i, v in enumerate(arrays.values())}
    root = {k: ww.ordered(tensors) if v is None else v for k, v in around.items()}
    path = tmp_path / "a.pt"
    path.write_bytes(ww.torch_zip(root or ww.ordered(tensors), storages))
    assert_has(importer.read_model_file(path), arrays, "raw" if around else "ema")


def test_messages_name_no_class_of_this_package(tmp_path):
    path = tmp_path / "a.pt"
    optimizer = {"state": {}, "param_groups": []}
    path.write_bytes(ww.torch_zip({"net": ww.ordered({}), "optimizer_state": optimizer}, {}))
    with pytest.raises(WeightsError, match=r"no model in the file: .*got 'net', 'optimizer_state'"):
        importer.read_model_file(path)
    tensors = {"module.a": ww.tensor(ww.pid("0", 1), (1,)), "b": ww.tensor(ww.pid("0", 1), (1,))}
    path.write_bytes(ww.torch_zip(ww.ordered(tensors), {"0": b"\0" * 4}))
    with pytest.raises(WeightsError, match=r"'module.a' is in the naming of no known network"):
        importer.read_model_file(path)


@pytest.mark.parametrize("needed", [False, True])
def test_complex_numbers_are_refused_only_where_they_are_needed(needed, tmp_path):
    """An optimizer or a frequency table may hold them beside the network."""
    arrays, _, _ = small()
    last = list(arrays)[-1]
    storages, root = {}, {}
    for number, (name, a) in enumerate(arrays.items()):
        dtype = "complex64" if needed and name == last else "float32"
        storages[str(number)] = np.ascontiguousarray(a, dtype).tobytes()
        root[name] = ww.tensor(ww.pid(str(number), a.size, dtype), a.shape)
    storages["table"] = np.ones(3, np.complex64).tobytes()
    table = ww.tensor(ww.pid("table", 3, "complex64"), (3,))
    path = tmp_path / "model.pt"
    path.write_bytes(ww.torch_zip({"ema": root, "optimizer": {"table": table}}, storages))
    if needed:
        with pytest.raises(WeightsError, match="of complex64, expected floating point"):
            importer.read_model_file(path)
    else:
        variables = importer.read_model_file(path).variables["ema"]
        assert variables["params"]["map_layer0"]["kernel"].dtype == np.float32
