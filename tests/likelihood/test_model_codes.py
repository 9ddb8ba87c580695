"""Encode, decode and interpolate with a Model: closed forms, round trips, codes of others."""

import numpy as np
import pytest

import edm_jax
from edm_jax.likelihood import Codes
from tests.support.exact_model import SHAPE, STD, exact_model, images

MEANS = (0.25, -0.25)


@pytest.fixture(scope="module")
def pixels():
    return images(4)


def _code(x, mean, low=0.002, high=80.0):
    """x(S) / S of Gaussian data in closed form."""
    stretch = np.sqrt((STD**2 + high**2) / (STD**2 + low**2))
    return (mean + (x - mean) * stretch) / high


def test_codes_in_closed_form_and_back(pixels):
    model, x = exact_model(num_classes=2), pixels / 127.5 - 1
    labels = np.array([0, 1, 1, 0])
    z = edm_jax.encode(model, pixels, labels, batch_size=3)
    mean = np.array(MEANS)[labels].reshape(-1, 1, 1, 1)
    # The spec's 3.7e-4 at 32 steps, of codes of size 1.
    np.testing.assert_allclose(np.asarray(z), _code(x, mean), atol=1e-3)
    back = edm_jax.decode(model, z)
    np.testing.assert_allclose(back, x, atol=1e-3)
    assert np.array_equal(edm_jax.to_uint8(back), pixels)
    # Finishing with D changes the image by s0^2 times the score, no more.
    final = edm_jax.decode(model, z, final_denoise=True)
    np.testing.assert_allclose(final, back, atol=4e-6 * 4 / STD**2)
    assert not np.array_equal(final, back)
    # Another label draws the code's image of another class.
    moved = edm_jax.decode(model, z, 1 - labels)
    np.testing.assert_allclose(moved - back, -2 * mean * np.ones_like(x), atol=0.02)


@pytest.mark.parametrize("method", ["vp", "ve", "iddpm"])
def test_imported_networks(method, pixels):
    model = exact_model(method)
    z = edm_jax.encode(model, pixels, num_steps=64)
    expected = _code(pixels / 127.5 - 1, 0.0, z.sigma_min, z.sigma_max)
    np.testing.assert_allclose(np.asarray(z), expected, atol=2e-3)
    np.testing.assert_allclose(
        edm_jax.decode(model, z, num_steps=64), pixels / 127.5 - 1, atol=2e-3
    )


def test_interpolation_ends_on_the_images(pixels):
    model, x = exact_model(num_classes=2), pixels / 127.5 - 1
    frames = edm_jax.interpolate(model, pixels[:2], pixels[2:], 0, 1, num_frames=3)
    assert frames.shape == (2, 3, *SHAPE)
    np.testing.assert_allclose(frames[:, 0], x[:2], atol=1e-3)
    np.testing.assert_allclose(frames[:, 2], x[2:], atol=1e-3)
    assert np.abs(frames[:, 1] - x[:2]).max() > 0.01


def test_codes_are_written_and_read(pixels, tmp_path):
    model = exact_model(num_classes=2)
    z = edm_jax.encode(model, pixels, 1, num_steps=4)
    np.savez(tmp_path / "codes.npz", **z.to_arrays())
    with np.load(tmp_path / "codes.npz") as archive:
        again = Codes.from_arrays(archive)
    np.testing.assert_array_equal(
        edm_jax.decode(model, again, num_steps=4), edm_jax.decode(model, z, num_steps=4)
    )
    with pytest.raises(ValueError, match="no file of codes: model, sigma_max, sigma_min missing"):
        Codes.from_arrays({"values": np.zeros(3)})


def test_codes_of_another_model(pixels):
    model, other = exact_model(num_classes=2), exact_model(num_classes=2, scale=2.0)
    z = edm_jax.encode(model, pixels, 1, num_steps=4)
    with pytest.raises(ValueError, match="made by another model"):
        edm_jax.decode(other, z)
    edm_jax.decode(other, np.asarray(z), 1, num_steps=4)  # asked for by name
    with pytest.raises(ValueError, match=r"shape \(B, 2, 2, 1\), got \(1, 4, 4, 3\)"):
        edm_jax.decode(model, np.zeros((1, 4, 4, 3)), 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: edm_jax.encode(m, x, churn=10.0), "takes no churn, got 10.0"),
        (lambda m, x: edm_jax.encode(m, x, guidance=2.0), "take no guidance"),
        (lambda m, x: edm_jax.decode(m, x / 127.5, guidance=2.0), "take no guidance"),
        (lambda m, x: edm_jax.encode(m, x, solver="adaptive"), "unknown solver of the flow"),
        (lambda m, x: edm_jax.encode(m, x.astype(float)), "values up to"),
        (lambda m, x: edm_jax.decode(m, x), "root mean square of about 1"),
        (lambda m, x: edm_jax.interpolate(m, x, x[:1]), "must be as many, got 4 and 1"),
        (lambda m, x: edm_jax.interpolate(m, x, x, num_frames=1), "num_frames"),
        (lambda m, x: edm_jax.interpolate(m, x, x, num_frames=None), "num_frames .* got None"),
        (lambda m, x: edm_jax.interpolate(m, x, x, final_denoise=2), "final_denoise must be True"),
        (lambda m, x: edm_jax.decode(m, x / 127.5, final_denoise="a"), "final_denoise must be"),
        (lambda m, x: edm_jax.decode(m, None), "codes are numbers, got None; encode makes them"),
        (lambda m, x: edm_jax.decode(m, "a"), "codes are numbers, got 'a'"),
        (lambda m, x: edm_jax.decode("runs/x", x / 127.5), "model must be a Model, got 'runs/x'"),
        (lambda m, x: edm_jax.encode(None, x), "model must be a Model, got None; edm_jax.load"),
    ],
)
def test_bad_input(pixels, call, message):
    with pytest.raises(ValueError, match=message):
        call(exact_model(), pixels)
