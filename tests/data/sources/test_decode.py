"""Decoding of ordinary, odd and damaged images; images are made with Pillow."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from edm_jax.data.sources import decode
from tests.support.made_images import encode

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]


def _notes(data):
    return decode.open_image(data, "x")[1]


@pytest.fixture(params=["installed decoder", "pillow only"])
def decoders(request, monkeypatch):
    if request.param == "pillow only":
        monkeypatch.setattr(decode, "_pyspng_load", lambda: None)


@pytest.mark.parametrize("level", [0, 9])
def test_png(decoders, level):
    for pixels in (RGB, GREY):
        out = decode.decode_image(encode(pixels, compress_level=level), "x")
        assert out.shape == (12, 20, 3 if pixels.ndim == 3 else 1) and out.dtype == np.uint8
        np.testing.assert_array_equal(out.reshape(pixels.shape), pixels)
        assert _notes(encode(pixels)) == []


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 7, 1), (64, 64, 3), (200, 301, 3)])
def test_own_png_is_read_by_pillow_and_by_the_fast_path(shape, monkeypatch):
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    data = decode.encode_png(pixels)
    with Image.open(io.BytesIO(data)) as image:
        image.verify()
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == ("RGB" if shape[2] == 3 else "L")
        np.testing.assert_array_equal(np.asarray(image).reshape(shape), pixels)
    monkeypatch.setattr(decode, "open_image", None)  # would fail if it were needed
    np.testing.assert_array_equal(decode.decode_image(data, "x"), pixels)


def test_own_png_follows_the_standards():
    # Python's zlib checks deflate and Adler-32; the chunk layout is PNG 1.2, section 3.
    data = decode.encode_png(GREY)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, []
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack_from(">I", data, at + 8 + length)[0]
        chunks.append((kind, body))
        at += 12 + length
    assert [kind for kind, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    raw = zlib.decompress(chunks[1][1])
    assert raw == b"".join(b"\0" + row.tobytes() for row in GREY)


def test_encode_rejects_what_is_no_image():
    for bad in (RGB.astype(float), RGB[:, :, :2], RGB[None]):
        with pytest.raises(ValueError, match="pixels must be uint8"):
            decode.encode_png(bad)


def test_jpeg_and_others():
    for fmt, tolerance in [("jpeg", 60), ("bmp", 0), ("webp", 60), ("tiff", 0), ("ppm", 0)]:
        smooth = np.broadcast_to(np.linspace(0, 255, 20, dtype=np.uint8)[None, :, None], RGB.shape)
        out = decode.decode_image(encode(smooth.copy(), fmt), "x")
        assert np.abs(out.astype(int) - smooth).max() <= tolerance


def test_palette():
    image = Image.fromarray(RGB).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode.decode_image(encode(image), "x"), expected)
    assert _notes(encode(image)) == []


def test_black_and_white():
    bits = GREY > 127
    out = decode.decode_image(encode(Image.fromarray(bits)), "x")
    np.testing.assert_array_equal(out[:, :, 0], np.where(bits, 255, 0))


def test_cmyk():
    image = Image.fromarray(RNG.integers(0, 256, (8, 8, 4), dtype=np.uint8), "CMYK")
    data = encode(image, "jpeg", quality=95)
    assert decode.decode_image(data, "x").shape == (8, 8, 3)
    assert _notes(data) == ["CMYK converted to RGB"]


def test_sixteen_bits_keep_the_upper_eight(decoders):
    values = np.array([[0, 255, 256, 0x1234, 0xFFFF]], np.uint16)
    data = encode(Image.fromarray(values))
    np.testing.assert_array_equal(decode.decode_image(data, "x")[:, :, 0], values >> 8)
    assert _notes(data) == ["16 bits per channel, the upper 8 are used"]


def test_sixteen_bit_rgb(decoders):
    # Pillow cannot write it: chunks by hand (PNG 1.2, section 4.1.1).
    values = np.array([[[0x0102, 0x8000, 0xFFFF], [0, 0x00FF, 0x7F01]]], ">u2")
    body = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", body), (b"IDAT", zlib.compress(b"\0" + values.tobytes())), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks
    )
    np.testing.assert_array_equal(decode.decode_image(data, "x"), values >> 8)
    assert _notes(data) == ["16 bits per channel, the upper 8 are used"]


def test_animation_gives_its_first_frame():
    frames = [Image.fromarray(np.full((8, 8), v, np.uint8)) for v in (40, 200)]
    data = encode(frames[0], "gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode.decode_image(data, "x"), 40)
    assert _notes(data) == ["several frames, the first is used"]


# The EXIF standard, tag 0x0112: where the 0th row and the 0th column of what is stored are seen.
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],  # top, right
    3: lambda x: x[::-1, ::-1],  # bottom, right
    4: lambda x: x[::-1],  # bottom, left
    5: lambda x: x.swapaxes(0, 1),  # left, top
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],  # right, top
    7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda x: x.swapaxes(0, 1)[::-1],  # left, bottom
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("fmt", ["png", "tiff", "webp"])
def test_images_are_turned_upright(decoders, fmt, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(RGB, fmt, exif=exif, **({"lossless": True} if fmt == "webp" else {}))
    np.testing.assert_array_equal(decode.decode_image(data, "x"), UPRIGHT[orientation](RGB))
    assert _notes(data) == []


def test_photographs_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = encode(RGB, "jpeg", quality=95)
    turned = encode(RGB, "jpeg", quality=95, exif=exif)
    expected = UPRIGHT[6](decode.decode_image(stored, "x"))
    np.testing.assert_array_equal(decode.decode_image(turned, "x"), expected)
    damaged = encode(RGB, "jpeg", quality=95, exif=b"Exif\0\0" + b"\xff" * 40)
    assert decode.decode_image(damaged, "x").shape == RGB.shape


def test_opaque_alpha_is_dropped(decoders):
    rgba = np.dstack([RGB, np.full((12, 20), 255, np.uint8)])
    np.testing.assert_array_equal(decode.decode_image(encode(rgba), "x"), RGB)
    la = Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (20, 12), 255)])
    np.testing.assert_array_equal(decode.decode_image(encode(la), "x")[:, :, 0], GREY)


def test_transparency_is_an_error(decoders):
    rgba = np.dstack([RGB, np.full((12, 20), 255, np.uint8)])
    rgba[3, 4, 3] = 7
    keyed = encode(np.full((4, 4, 3), 9, np.uint8), transparency=(9, 9, 9))
    palette = Image.fromarray(RGB).quantize(4)
    for data in (encode(rgba), keyed, encode(palette, transparency=0)):
        with pytest.raises(ValueError, match=r"x: .*transparent; .* --background=white"):
            decode.decode_image(data, "x")
        assert decode.open_image(data, "x", (255, 255, 255))[0].mode == "RGB"
    # PNG specification, 12.3: alpha * image + (1 - alpha) * background; rounded to 8 bits twice.
    flat = np.asarray(decode.open_image(encode(rgba), "x", (200, 100, 0))[0])
    expected = 7 / 255 * RGB[3, 4] + (1 - 7 / 255) * np.array([200, 100, 0])
    np.testing.assert_allclose(flat[3, 4], expected, atol=1)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_wide_pixels_are_an_error(mode):
    data = encode(Image.new(mode, (4, 4)), "tiff")
    with pytest.raises(ValueError, match="no defined 8-bit range"):
        decode.decode_image(data, "x")


def test_damage_is_named(decoders):
    for good in (decode.encode_png(RGB), encode(RGB), encode(RGB, "jpeg")):
        for bad in (b"", b"not an image", good[: len(good) // 2], good[:30]):
            with pytest.raises(ValueError, match=r"dir/y\.png: cannot be used as an image"):
                decode.decode_image(bad, "dir/y.png")


def test_flipped_bits_of_a_png_are_noticed(decoders):
    for good in (decode.encode_png(RGB), encode(RGB)):
        for position in (45, 100, len(good) - 20):
            bad = bytearray(good)
            bad[position] ^= 4
            with pytest.raises(ValueError, match="x: cannot be used"):
                decode.decode_image(bytes(bad), "x")


def test_image_names():
    for good in ("a.png", "b/c.JPG", "d.jpeg", "ü/é.webp", "e.tar.png"):
        assert decode.has_image_extension(good), good
    for bad in ("a.txt", "png", ".png", "b/.png", "x.eps", "x.pdf", "x.heic"):
        assert not decode.has_image_extension(bad), bad
    assert decode.has_unread_extension("x.HEIC") and not decode.has_unread_extension("x.txt")


def _as_palette(pixels, fmt, *, extra=(), **options):
    """Stored as numbers of colours, of which ``extra`` are not used."""
    colours, index = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    image = Image.fromarray(index.reshape(pixels.shape[:2]).astype(np.uint8), "P")
    image.putpalette(
        np.concatenate([colours, np.reshape(extra, (-1, 3))]).astype(np.uint8).tobytes()
    )
    return encode(image, fmt, **options)


@pytest.mark.parametrize("fmt", ["png", "gif", "tiff"])
def test_grey_stored_with_a_palette_is_grey(fmt):
    grey = np.repeat((GREY // 16 * 16)[..., None], 3, axis=2)
    for extra in ([], [[255, 0, 0]]):
        data = _as_palette(grey, fmt, extra=extra)
        out = decode.decode_image(data, "x")
        assert out.shape == (12, 20, 1) and not decode.is_coloured(data, "x")
        np.testing.assert_array_equal(out, grey[..., :1])
    grey[3, 4] = (16, 16, 17)
    data = _as_palette(grey, fmt)
    np.testing.assert_array_equal(decode.decode_image(data, "x"), grey)
    assert decode.is_coloured(data, "x")


def test_a_transparent_grey_palette():
    """What shows is grey, or as the background."""
    pixels = np.full((4, 4, 3), 80, np.uint8)
    pixels[0] = 40  # the lower is number 0
    data = _as_palette(pixels, "png", transparency=0)
    for background, expected in (((255, 255, 255), (4, 4, "L")), ((255, 0, 0), (4, 4, "RGB"))):
        image = decode.open_image(data, "x", background)[0]
        assert (*image.size, image.mode) == expected
        top = np.asarray(image)[0, 0].tolist()
        assert top == (255 if image.mode == "L" else [255, 0, 0])
        assert decode.is_coloured(data, "x", background) == (image.mode == "RGB")
