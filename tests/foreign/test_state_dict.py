"""Names and shapes of the published networks against the published counts."""

import math

import numpy as np
import pytest

from edm_jax.foreign import infer, state_dict
from edm_jax.foreign.edm_snapshot import NETWORK_DEFAULTS

COMMON = {"in_channels": 3, "out_channels": 3}
DDPMPP = COMMON | {"name": "SongUNet"}
NCSNPP = DDPMPP | {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}
ADM = COMMON | {"name": "DhariwalUNet", "img_resolution": 64, "label_dim": 1000}
SMALL = {"img_resolution": 32, "channel_mult": [2, 2, 2], "augment_dim": 9}
LARGE = {"img_resolution": 64, "augment_dim": 9}

# network, parameters, parameter tensors, buffer elements, buffers: as published.
PUBLISHED = {
    "ddpmpp cifar cond": (DDPMPP | SMALL | {"label_dim": 10}, 55_735_299, 419, 32, 8),
    "ddpmpp cifar uncond": (DDPMPP | SMALL, 55_733_891, 417, 32, 8),
    "ncsnpp cifar cond": (NCSNPP | SMALL | {"label_dim": 10}, 56_400_643, 423, 288, 11),
    "ncsnpp cifar uncond": (NCSNPP | SMALL, 56_397_827, 421, 288, 11),
    "ddpmpp 64": (DDPMPP | LARGE, 61_805_571, 541, 48, 12),
    "ncsnpp 64": (NCSNPP | LARGE, 62_761_091, 547, 368, 16),
    "adm": (ADM, 295_899_267, 541, 48, 12),
    # The preconditioner's table u of 1001 numbers is counted there, not here.
    "adm iddpm": (ADM | {"out_channels": 6}, 295_904_454, 541, 48, 12),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name):
    network, numbers, tensors, buffer_numbers, buffers = PUBLISHED[name]
    expected = state_dict.expected_tensors(NETWORK_DEFAULTS[network["name"]] | network)
    is_buffer = {n: n.endswith((".resample_filter", ".freqs")) for n in expected}
    sizes = {n: math.prod(s) for n, s in expected.items()}
    assert sum(not b for b in is_buffer.values()) == tensors
    assert sum(sizes[n] for n in sizes if not is_buffer[n]) == numbers
    assert sum(is_buffer.values()) == buffers
    assert sum(sizes[n] for n in sizes if is_buffer[n]) == buffer_numbers


@pytest.mark.parametrize("name", PUBLISHED)
def test_inference_from_published_shapes(name):
    """Shapes alone give every argument that leaves a trace."""
    network = PUBLISHED[name][0]
    network = NETWORK_DEFAULTS[network["name"]] | network
    expected = state_dict.expected_tensors(network)
    tensors = {n: np.broadcast_to(np.float32(0), s) for n, s in expected.items()}
    for n in tensors:
        if n.endswith(".resample_filter"):
            tensors[n] = infer.filter_2d(network.get("resample_filter", [1, 1]))
    inferred, assumed = infer.infer_network(tensors)
    assert inferred == network
    assert assumed == ["dropout", "label_dropout"]


def test_published_examples():
    """Names and shapes given as examples of the naming (NCSN++ CIFAR-10 conditional)."""
    network = PUBLISHED["ncsnpp cifar cond"][0]
    expected = state_dict.expected_tensors(NETWORK_DEFAULTS["SongUNet"] | network)
    for name, shape in {
        "map_noise.freqs": (128,),
        "map_label.weight": (256, 10),
        "map_augment.weight": (256, 9),
        "enc.32x32_conv.weight": (128, 3, 3, 3),
        "enc.32x32_block0.skip.weight": (256, 128, 1, 1),
        "enc.16x16_down.conv0.resample_filter": (1, 1, 4, 4),
        "enc.16x16_aux_residual.weight": (256, 3, 3, 3),
        "enc.8x8_aux_residual.weight": (256, 256, 3, 3),
        "enc.16x16_block0.qkv.weight": (768, 256, 1, 1),
        "dec.8x8_block0.conv0.weight": (256, 512, 3, 3),
        "dec.32x32_aux_conv.weight": (3, 256, 3, 3),
    }.items():
        assert expected[name] == shape, name
    assert "map_augment.bias" not in expected


@pytest.mark.parametrize("taps", [[1, 1], [1, 3, 3, 1], [1, 2, 3, 3, 2, 1], [0.5, 1.25, 1.25, 0.5]])
def test_filter_taps_are_recovered_up_to_scale(taps):
    for dtype in (np.float32, np.float16):
        got = infer.filter_taps({"a.resample_filter": infer.filter_2d(taps).astype(dtype)})
        np.testing.assert_allclose(infer.filter_2d(got), infer.filter_2d(taps), rtol=2e-3)
    if all(isinstance(t, int) for t in taps):
        assert got == taps


@pytest.mark.parametrize(
    "filter_2d",
    [np.zeros((1, 1, 2, 2)), np.eye(2)[None, None], np.full((1, 1, 2, 2), np.nan)],
    ids=["zeros", "no outer product", "NaN"],
)
def test_filters_that_are_none(filter_2d):
    with pytest.raises(ValueError, match="resample_filter"):
        infer.filter_taps({"a.resample_filter": filter_2d.astype(np.float32)})
