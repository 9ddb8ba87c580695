"""guided-diffusion weights: golden tensors, both attention orders, what is refused."""

import json
import zlib

import numpy as np
import pytest

from edm_jax.foreign import guided, importer, state_dict
from edm_jax.store.errors import WeightsError
from tests.support import weights_golden as wg
from tests.support import weights_writer as ww
from tests.support.weights_guided_shapes import GIVEN, hollow, narrow_shapes, released_shapes


@pytest.fixture(scope="module")
def golden():
    with np.load(wg.GOLDEN / "10_adm_guided.npz") as archive:
        return dict(archive)


@pytest.fixture
def golden_file(tmp_path):
    path = tmp_path / "10_adm_guided.pt"
    path.write_bytes(wg.content("10_adm_guided.pt"))
    return path


def small_config(golden):
    return wg.json_of(golden["small/config"]) | {"narrow_norms": True}


def test_golden_file(golden, golden_file):
    """All tensors are views with offsets into two flat storages."""
    model = importer.read_model_file(golden_file, config=small_config(golden))
    d = model.description
    got = state_dict.from_variables(model.variables["ema"], d["network"])
    names = [n for n in golden["small/edm_names"] if n != "u"]
    assert set(got) == {n.removeprefix("model.") for n in names}
    for name in names:
        want = golden[f"small/edm/{name}"]
        assert got[name.removeprefix("model.")].tobytes() == want.tobytes(), name
    want = wg.json_of(golden["small/edm_config"])["kwargs"]
    assert d["network"]["name"] == want.pop("model_type")
    assert d["image_shape"] == [want["img_resolution"]] * 2 + [want.pop("img_channels")]
    assert d["num_classes"] == want["label_dim"]
    assert {k: d["network"][k] for k in want} == want
    assert d["network"]["out_channels"] == 6
    assert d["precond"] == {"name": "iddpm", "num_levels": 1000}
    assert "MIT" in d["source"]["licence"] and "model card" in d["source"]["licence"]
    json.dumps(d, allow_nan=False)


def test_golden_file_denoises(golden, golden_file):
    model = importer.read_model_file(golden_file, config=small_config(golden))
    sigma = golden["small/denoise_sigma"]
    labels = np.eye(7, dtype=np.float32)[golden["small/y"]]
    d = wg.denoise(model, "ema", golden["small/denoise_x"], sigma, class_labels=labels)
    # Suggested with the golden arrays: the network's error of 5e-5 is multiplied by sigma.
    atol = 5e-5 * (1 + sigma[:, None, None, None])
    assert np.all(np.abs(d - golden["small/D"]) < atol)


@pytest.mark.parametrize("order", guided.ATTENTION_ORDERS)
@pytest.mark.parametrize("heads", [1, 2, 3, 6])
def test_qkv_permutation(golden, order, heads):
    got = guided.qkv_permutation(64 * heads, order)
    np.testing.assert_array_equal(got, golden[f"permutation/{order}_{heads}x64"])


def wide_tensors(golden):
    """The weights of the wider golden network, by the recipe given with it."""
    tensors = {}
    for name, shape in zip(golden["wide/names"], golden["wide/shapes"], strict=True):
        shape = tuple(int(n) for n in str(shape).strip("()[]").replace("x", ",").split(",") if n)
        seed = zlib.crc32(f"{golden['wide/recipe_prefix']}{name}".encode())
        z = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
        if name.endswith(".bias"):
            z = 0.1 * z
        elif len(shape) == 1:
            z = 1 + 0.1 * z
        elif name == "label_emb.weight":
            z = 0.5 * z
        else:
            z = z / np.sqrt(np.prod(shape[1:]))
        tensors[str(name)] = z.astype(np.float32)
    return tensors


@pytest.fixture(scope="module")
def wide(golden):
    tensors = wide_tensors(golden)
    for i, a in enumerate(tensors.values()):  # the recipe is followed
        np.testing.assert_array_equal(a.reshape(-1)[:3], golden["wide/param_first3"][i][: a.size])
    return tensors


@pytest.mark.slow
def test_wide_network_in_both_orders(golden, wide, tmp_path):
    """Unmodified program, 2 and 4 heads: tensors by checksum, D(x; sigma) by value."""
    path = tmp_path / "ema_0.9999_010000.pt"
    path.write_bytes(ww.state_dict_zip(wide))
    config = wg.json_of(golden["wide/config"])
    del config["use_new_attention_order"]
    with pytest.raises(WeightsError, match="how its attention rows are ordered"):
        importer.read_model_file(path, config=config)
    sigma = golden["wide/denoise_sigma"]
    labels = np.eye(10, dtype=np.float32)[golden["wide/y"]]
    for order in guided.ATTENTION_ORDERS:
        model = importer.read_model_file(path, config=config, attention_order=order)
        got = state_dict.from_variables(model.variables["ema"], model.description["network"])
        for name, want in zip(
            golden["wide/edm_names"], golden[f"wide/edm_checksum_{order}"], strict=True
        ):
            a = got[name.removeprefix("model.")].astype(np.float64).reshape(-1)
            # float64 sums of up to 2.4e6 terms of size up to 3.
            np.testing.assert_allclose(np.sum(a * np.cos(np.arange(a.size))), want, atol=1e-9)
        d = wg.denoise(model, "ema", golden["wide/denoise_x"], sigma, class_labels=labels)
        atol = 5e-5 * (1 + sigma[:, None, None, None])
        assert np.all(np.abs(d - golden[f"wide/D_{order}"]) < atol), order
    assert model.description["progress"] == {"nimg": None, "kimg": None, "step": 10000}


def test_name_map_is_the_golden_one(golden, wide):
    structure = guided.read_structure(wide)
    got = {ours: (theirs, op) for theirs, ours, op in guided.name_map(wide, structure, 16)}
    operations = zip(golden["wide/edm_source"], golden["wide/edm_operation"], strict=True)
    want = dict(
        zip((n.removeprefix("model.") for n in golden["wide/edm_names"]), operations, strict=True)
    )
    assert got == want


# ---------------------------------------------------------------- the released 64x64 model


def test_released_configuration():
    shapes = released_shapes()
    # Numbers stated by the source of the mapping: 541 tensors with 295,904,454 numbers.
    assert len(shapes) == 541
    assert sum(int(np.prod(s)) for s in shapes.values()) == 295_904_454
    tensors = hollow(shapes)
    guided.check_supported(tensors, narrow_norms=False)
    structure = guided.read_structure(tensors)
    assert guided.attention_order(structure, None) == "new"
    size = guided.image_size(structure, None, None)
    assert size == 64
    network = guided.network_arguments(structure, size, 3)
    assert network["channel_mult"] == [1, 2, 3, 4] and network["num_blocks"] == 3
    assert network["attn_resolutions"] == [32, 16, 8] and network["label_dim"] == 1000
    names = {ours: theirs for theirs, ours, _ in guided.name_map(tensors, structure, size)}
    assert len(names) == 541 and set(names.values()) == set(shapes)
    expected = state_dict.expected_tensors(network)
    parameters = {n: s for n, s in expected.items() if not n.endswith("resample_filter")}
    assert {n: int(np.prod(s)) for n, s in parameters.items()} == {
        ours: int(np.prod(shapes[theirs])) for ours, theirs in names.items()
    }


def test_what_only_the_user_knows():
    tensors = hollow(released_shapes())
    structure = guided.read_structure(tensors)
    assert guided.image_size(structure, None, [64, 32, 16]) == 128
    with pytest.raises(WeightsError, match="contradict the file"):
        guided.image_size(structure, 64, [16, 8])
    with pytest.raises(WeightsError, match="multiple of 8"):
        guided.image_size(structure, 60, None)
    del tensors["label_emb.weight"]
    assert guided.read_structure(tensors).num_classes == 0


# ---------------------------------------------------------------- what is refused


def changed(shapes, **changes):
    result = dict(shapes)
    for name, shape in changes.items():
        name = name.replace("__", ".")
        if shape is None:
            del result[name]
        else:
            result[name] = shape
    return result


REFUSED = {
    "classifier with attention pooling": (
        {"out__2__positional_embedding": (768, 65)},
        "noisy classifier.*positional_embedding",
    ),
    "plain down-sampling": (
        {"input_blocks__4__0__op__weight": (192, 192, 3, 3)},
        r"input_blocks.4.0.op.weight.*resblock_updown False",
    ),
    "plain up-sampling": (
        {"output_blocks__3__2__conv__weight": (192, 192, 3, 3)},
        r"output_blocks.3.2.conv.weight.*resblock_updown False",
    ),
    "no scale-shift norm": (
        {"input_blocks__1__0__emb_layers__1__weight": (128, 512)},
        r"input_blocks.1.0.emb_layers.1.weight' has 128 rows.*use_scale_shift_norm False",
    ),
    "no learned variance": ({"out__2__weight": (3, 128, 3, 3)}, "out.2.weight.*learn_sigma False"),
    "up-sampling model": (
        {"input_blocks__0__0__weight": (128, 6, 3, 3)},
        "6 input channels: an up-sampling model",
    ),
    "heads of another width": (
        {"middle_block__1__qkv__weight": (3 * 96, 96, 1)},
        r"middle_block.1.qkv.weight.*not divisible by the 64 channels",
    ),
    "narrow norm": (
        {"input_blocks__1__0__in_layers__0__weight": (96,)},
        "norm of 96 channels.*narrow_norms",
    ),
    "missing tensor": (
        {"input_blocks__1__0__in_layers__2__bias": None},
        "input_blocks.1.0.in_layers.2.bias' is missing",
    ),
    "superfluous tensor": (
        {"middle_block__3__weight": (1,)},
        "middle_block.3.weight' has no place",
    ),
    "gap in the numbering": (
        {"input_blocks__3__0__weight": (1,)},
        "input_blocks are not numbered",
    ),
    "odd class table": ({"label_emb__weight": (5,)}, "label_emb.weight"),
    "no time embedding": ({"time_embed__0__weight": None}, "time_embed.0.weight' is missing"),
    "embedding of odd width": ({"time_embed__0__weight": (500, 128)}, "embedding of 500"),
    "misshapen kernel": (
        {"middle_block__0__in_layers__2__weight": (128, 128, 3, 1)},
        r"dec.16x16_in0.conv0.weight' has shape \(128, 128, 3, 1\), expected \(128, 128, 3, 3\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tmp_path):
    changes, message = REFUSED[name]
    arrays = {k: np.zeros(s, np.float32) for k, s in changed(narrow_shapes(), **changes).items()}
    path = tmp_path / "model.pt"
    path.write_bytes(ww.state_dict_zip(arrays))
    with pytest.raises(WeightsError, match=message):
        importer.read_model_file(path, attention_order="new", config=GIVEN)


def test_the_model_to_change_is_accepted_itself(tmp_path):
    arrays = {k: np.zeros(s, np.float32) for k, s in narrow_shapes().items()}
    path = tmp_path / "model.pt"
    path.write_bytes(ww.state_dict_zip(arrays))
    model = importer.read_model_file(path, attention_order="new", config=GIVEN)
    assert model.description["network"]["attn_resolutions"] == []


def test_variants_of_the_program_s_files(tmp_path):
    """float32 runs save parameters, halved models float16 kernels; raw files are called model."""
    rng = np.random.default_rng(0)
    arrays = {k: rng.normal(size=s).astype(np.float32) for k, s in narrow_shapes().items()}
    halved = {k: a.astype(np.float16) if a.ndim > 2 else a for k, a in arrays.items()}
    storages = {str(i): a.tobytes() for i, a in enumerate(halved.values())}
    root = {
        name: ww.parameter(ww.tensor(ww.pid(str(i), a.size, a.dtype.name), a.shape))
        for i, (name, a) in enumerate(halved.items())
    }
    path = tmp_path / "model020000.pt"
    path.write_bytes(ww.torch_zip(ww.ordered(root), storages))
    model = importer.read_model_file(path, attention_order="new", config=GIVEN)
    assert model.description["progress"] == {"nimg": None, "kimg": None, "step": 20000}
    params = model.variables["raw"]["params"]
    kernel = halved["middle_block.0.in_layers.2.weight"].astype(np.float32)
    np.testing.assert_array_equal(
        params["dec_16x16_in0"]["conv0"]["kernel"].transpose(3, 2, 0, 1), kernel
    )
    # Rows of qkv: the new order is (part, head, channel), ours (head, channel, part).
    qkv = halved["middle_block.1.qkv.weight"].astype(np.float32)[..., 0]
    want = qkv.reshape(3, 2, 64, 128).transpose(1, 2, 0, 3).reshape(384, 128)
    np.testing.assert_array_equal(params["dec_16x16_in0"]["qkv"]["kernel"][0, 0].T, want)


def test_classifier_without_decoder():
    tensors = {n: a for n, a in hollow(released_shapes()).items() if "output_blocks" not in n}
    with pytest.raises(WeightsError, match="no output_blocks"):
        guided.check_supported(tensors, narrow_norms=False)


def test_narrow_golden_file_needs_the_flag(golden, golden_file):
    with pytest.raises(WeightsError, match=r"norm of 8 channels.*narrow_norms"):
        importer.read_model_file(golden_file, config=wg.json_of(golden["small/config"]))
