"""What only the user knows of guided-diffusion weights: demanded, or assumed and told."""

import numpy as np
import pytest

from edm_jax.foreign import guided, guided_flags, importer
from edm_jax.store.errors import WeightsError
from tests.support import weights_writer as ww
from tests.support.weights_guided_shapes import GIVEN, hollow, narrow_shapes, released_shapes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "image size is not in the file"),
        ({"image_size": 16, "noise_schedule": "sigmoid"}, "noise_schedule is 'sigmoid', known"),
        ({"image_size": 16}, "image_size 16 was trained.*'noise_schedule': .*'num_head_channels'"),
        ({"image_size": 16, "num_heads": 2}, "give config={'noise_schedule': [^}]*'cosine'}"),
        (
            {"image_size": 16, "noise_schedule": "linear", "num_head_channels": -1},
            "give config={'num_head_channels': 64 [^}]*}",
        ),
        ({"image_size": 16, "num_heads": 4}, r"num_heads is 4 at attention widths \[128\]; only"),
        ({"image_size": 16, "num_head_channels": 32}, "num_head_channels is 32; only heads of 64"),
        (GIVEN | {"diffusion_steps": 1 << 40}, "diffusion_steps must be an integer in 2"),
        (GIVEN | {"noise_schedule": "linear", "diffusion_steps": 20}, "schedule needs at least 21"),
        ({"image_size": 16, "resblock_updown": False}, "resblock_updown is False"),
        ({"image_size": 16, "num_channels": 192}, "num_channels is 192, but the file has 128"),
        ({"image_size": 16, "class_cond": True}, "class_cond is True, but the file has False"),
        ({"image_size": 16, "channel_mult": "1,2"}, "channel_mult"),
        ({"image_size": 16, "use_new_attention_order": False}, "use_new_attention_order says"),
        ({"image_size": 16, "attention_resolutions": "a"}, "list of integers"),
        ({"image_size": 16, "attention_resolutions": [8.5]}, "list of integers"),
        (GIVEN | {"use_new_attention_order": "False"}, "must be true or false, got 'False'"),
        (GIVEN | {"class_cond": 0}, "class_cond must be true or false"),
        (GIVEN | {"narrow_norms": "no"}, "narrow_norms must be true or false"),
        # The network was told t / 4; c_noise would be t.
        (GIVEN | {"rescale_timesteps": True, "diffusion_steps": 4000}, "rescale_timesteps with"),
        (
            {"image_size": 64, "rescale_timesteps": True, "precond": {"num_levels": 500}},
            "rescale_timesteps with 500 steps",
        ),
        (GIVEN | {"precond": {"levels": [2.0, 1.0, 0.0]}}, "noise_schedule and 'precond' both"),
        (
            {"image_size": 64, "diffusion_steps": 1000, "precond": {"name": "edm"}},
            "diffusion_steps and 'precond' both",
        ),
        ({"image_size": 64, "num_heads": [1]}, r"num_heads must be an integer, got"),
        (GIVEN | {"num_channels": "128"}, "num_channels must be an integer, got '128'"),
        (GIVEN | {"dropout": 1}, r"dropout must be in \[0, 1\), got 1"),
        ({"image_size": 64, "precond": {"levels": [10**400, 1, 0]}}, "levels must be finite"),
        ({"image_size": 64, "precond": {"levels": [1 + 1e-12, 1, 0]}}, "must decrease strictly"),
        (GIVEN | {"licence": ""}, r"config\['licence'\] must be a text, got ''"),
        (GIVEN | {"licence": {"name": "MIT"}}, r"config\['licence'\] must be a text"),
    ],
)
def test_flags_that_do_not_fit(config, message, tmp_path):
    arrays = {k: np.zeros(s, np.float32) for k, s in narrow_shapes().items()}
    path = tmp_path / "model.pt"
    path.write_bytes(ww.state_dict_zip(arrays))
    with pytest.raises(ValueError, match=message):
        importer.read_model_file(path, attention_order="new", config=config)


@pytest.fixture
def narrow_file(tmp_path):
    """The zip file of the narrow model."""
    arrays = {k: np.zeros(s, np.float32) for k, s in narrow_shapes().items()}
    path = tmp_path / "model.pt"
    path.write_bytes(ww.state_dict_zip(arrays))
    return path


def test_linear_schedule(narrow_file):
    """sigma_t = sqrt(1/ab_t - 1) with beta from 1e-4 to 0.02 (Ho et al. 2020), all but 64x64."""
    config = GIVEN | {"noise_schedule": "linear"}
    model = importer.read_model_file(narrow_file, attention_order="new", config=config)
    precond = model.description["precond"]
    assert precond.keys() == {"name", "num_levels", "levels"} and precond["name"] == "iddpm"
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    want = np.append(np.sqrt(1 / alpha_bar[::-1] - 1), 0)
    # Levels are kept in float32.
    np.testing.assert_allclose(precond["levels"], want, rtol=1e-7)
    del config["noise_schedule"]  # a table in its place
    given = {"name": "iddpm", "levels": [2.0, 1.0, 0.0]}
    model = importer.read_model_file(
        narrow_file, attention_order="new", config=config | {"precond": given}
    )
    assert model.description["precond"]["levels"] == given["levels"]


def test_rescaled_times_of_a_thousand_steps_are_the_steps(narrow_file):
    config = GIVEN | {"rescale_timesteps": True}
    read = importer.read_model_file
    model = read(narrow_file, attention_order="new", config=config)
    other = read(narrow_file, attention_order="new", config=GIVEN)
    assert model.description["precond"] == other.description["precond"]


def test_another_number_of_levels_is_not_assumed_to_be_1000(narrow_file):
    config = {"image_size": 64, "precond": {"num_levels": 500}}
    model = importer.read_model_file(narrow_file, attention_order="new", config=config)
    assert model.description["precond"]["num_levels"] == 500
    assert model.assumed["noise_schedule"] == "cosine" and "diffusion_steps" not in model.assumed


def test_what_is_assumed_at_64x64_is_told(narrow_file):
    """Said again as config, it is no longer assumed and changes nothing."""
    config = {"image_size": 64}
    model = importer.read_model_file(narrow_file, attention_order="new", config=config)
    assert model.assumed == {
        "dropout": 0.1,
        "num_head_channels": 64,
        "noise_schedule": "cosine",
        "diffusion_steps": 1000,
    }
    assert set(model.description["source"]["assumed"]) == set(model.assumed)
    assert "dropout" not in model.doubtful and "noise_schedule" in model.doubtful
    again = importer.read_model_file(
        narrow_file, attention_order="new", config=config | model.assumed
    )
    assert again.assumed == {} and "assumed" not in again.description["source"]
    for key in ("network", "precond"):
        assert again.description[key] == model.description[key]
    given = {"num_heads": 2, "noise_schedule": "cosine", "diffusion_steps": 1000}
    given |= {"precond": {"name": "iddpm"}, "network": {"dropout": 0.2}}
    model = importer.read_model_file(narrow_file, attention_order="new", config=config | given)
    assert model.assumed == {} and model.description["network"]["dropout"] == 0.2


@pytest.mark.parametrize(
    "nothing", [{"noise_schedule": None}, {"precond": {"name": "iddpm", "levels": None}}]
)
def test_what_says_nothing_of_the_schedule_counts_as_nothing(nothing, narrow_file):
    config = {"image_size": 64} | nothing
    model = importer.read_model_file(narrow_file, attention_order="new", config=config)
    assert model.assumed["noise_schedule"] == "cosine"
    config = {"image_size": 32, "num_heads": 2} | nothing
    with pytest.raises(WeightsError, match="'noise_schedule': 'linear'"):
        importer.read_model_file(narrow_file, attention_order="new", config=config)


def test_null_is_no_order_of_the_attention_rows(narrow_file):
    config = {"image_size": 64, "use_new_attention_order": None, "licence": None}
    with pytest.raises(WeightsError, match="how its attention rows are ordered"):
        importer.read_model_file(narrow_file, config=config)
    model = importer.read_model_file(narrow_file, attention_order="new", config=config)
    assert model.description["source"]["licence"]


def test_what_is_assumed_of_the_released_model():
    """Its structure alone gives the size and the order of the rows; both are told."""
    structure = guided.read_structure(hollow(released_shapes()))
    assumed = guided_flags.assumptions({}, None, structure, 64)
    assert assumed["image_size"] == 64 and assumed["use_new_attention_order"] is True
    given = {"use_new_attention_order": True, "image_size": 64}
    assumed = guided_flags.assumptions(given, None, structure, 64)
    assert not assumed.keys() & given.keys()
    assert "use_new_attention_order" not in guided_flags.assumptions({}, "new", structure, 64)
