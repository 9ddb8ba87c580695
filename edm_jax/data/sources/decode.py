"""Encoded images to uint8 pixels and back.

Every source decodes through here, so that a palette, an alpha channel or 16 bits mean
the same wherever an image comes from.  What cannot be represented faithfully is an
error; what loses something (16 bits, CMYK, animations) is done and noted.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from edm_jax.data.sources.names import shown

if TYPE_CHECKING:
    from PIL import Image

# An explicit list: Pillow also "opens" formats that it only identifies (HDF5, MPEG) or
# hands to another program (EPS).
IMAGE_FORMATS = (
    "PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF",
)  # fmt: skip

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_STORED_BLOCK = 65535  # largest stored block of a deflate stream (RFC 1951, 3.2.4)
_EXIF_ORIENTATION = 0x0112
# Images that Pillow does not read, or not without other programs.
_UNREAD = frozenset(
    ".heic .heif .jxl .psd .svg .exr .hdr .eps .pdf .raw .dng .cr2 .cr3 .nef .arw .orf .rw2".split()
)
# Texts of a PNG that may say how it was turned.
_TURNING = (b"XML:com.adobe.xmp", b"Raw profile type")
Colour = tuple[int, int, int]


@functools.cache
def _available_formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()  # loads all plugins; until then Pillow does not know MPO, for one
    return tuple(name for name in IMAGE_FORMATS if name in Image.OPEN)


@functools.cache
def image_extensions() -> frozenset[str]:
    """Lower-case file extensions, dot included, of the formats that are read."""
    from PIL import Image

    known = Image.registered_extensions()
    return frozenset(ext.lower() for ext, name in known.items() if name in IMAGE_FORMATS)


def _extension(name: str) -> str:
    base = name.rsplit("/", 1)[-1]
    dot = base.rfind(".")
    return base[dot:].lower() if dot > 0 else ""


def has_image_extension(name: str) -> bool:
    """Whether a file of that name holds an image that can be read."""
    return _extension(name) in image_extensions()


def has_unread_extension(name: str) -> bool:
    """Whether a file of that name holds an image of a kind that is not read."""
    return _extension(name) in _UNREAD


def parse_background(text: str | None) -> Colour | None:
    """A colour, such as ``white``, ``#ff8000`` or ``rgb(255, 128, 0)``, as (R, G, B).

    Raises:
      ValueError: for what is no opaque colour.
    """
    if text is None:
        return None
    from PIL import ImageColor

    try:
        colour = ImageColor.getrgb(text.strip())
    except ValueError:
        colour = ()
    if len(colour) != 3 or not all(0 <= part <= 255 for part in colour):
        raise ValueError(f"background must be a colour, such as white or #ff8000, got {text!r}")
    return colour


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Pixels of an encoded image.

    Args:
      data: the file's bytes.
      name: what messages call it.

    Returns:
      ``(H, W, C)`` uint8, C = 1 for grey and black-and-white images, else 3.

    Raises:
      ValueError: if the data is corrupt, or has no faithful 8-bit form (partly
        transparent, float or 32-bit pixels).
    """
    pixels = _decode_png_fast(data)
    if pixels is None:
        pixels = np.asarray(open_image(data, name)[0])
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return pixels


def open_image(
    data: bytes, name: str, background: Colour | None = None
) -> tuple[Image.Image, list[str]]:
    """The same as a Pillow image of mode L or RGB, and notes on what was lost.

    Args:
      data, name: as in `decode_image`.
      background: what transparent images are laid on; None refuses them.

    Raises:
      ValueError: as `decode_image`.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data), formats=_available_formats())
        notes = _notes(image, data)
        image.load()
        turn = _turn(image)
        if image.mode not in ("L", "RGB") or "transparency" in image.info:
            image = _to_grey_or_rgb(image, background)
        return (image if turn is None else image.transpose(turn)), notes
    except Exception as error:  # decoders of damaged data raise whatever they meet
        # Pillow's text for this one is the address of our buffer.
        unknown = isinstance(error, UnidentifiedImageError)
        text = "of no known format" if unknown else str(error).strip() or type(error).__name__
        raise ValueError(
            f"{shown(name)}: cannot be used as an image ({text if data else 'empty file'}); repair "
            "or remove it"
        ) from error


def is_coloured(data: bytes, name: str, background: Colour | None = None) -> bool:
    """Whether `open_image` gives colour; False for what it refuses.

    The header decides where it can, which takes a fraction of the time of decoding.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=_available_formats()) as image:
            grey = image.mode in ("1", "L") or image.mode.startswith("I;16")
            if grey and "transparency" not in image.info:
                return False
        return open_image(data, name, background)[0].mode == "RGB"
    except Exception:  # as in `open_image`
        return False


def size_of(data: bytes) -> tuple[int, int] | None:
    """Height and width that `open_image` gives, from the header; None for what it refuses."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=_available_formats()) as image:
            width, height = image.size
            # Of a square one how it is turned does not matter, and may take decoding to know.
            turned = width != height and _turn(image) in _SIDEWAYS
            return (width, height) if turned else (height, width)
    except Exception:  # as in `open_image`
        return None


def _notes(image: Image.Image, data: bytes) -> list[str]:
    notes = []
    if getattr(image, "is_animated", False) and image.format != "MPO":  # previews, in photographs
        notes.append("several frames, the first is used")
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        notes.append(f"{image.mode} converted to RGB")
    if image.mode.startswith("I;16") or (image.format == "PNG" and data[24] == 16):
        notes.append("16 bits per channel, the upper 8 are used")
    return notes


# Image.Transpose.ROTATE_90, ROTATE_270, TRANSPOSE and TRANSVERSE, without loading Pillow.
_SIDEWAYS = (2, 4, 5, 6)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What brings an image upright that its camera stored turned (EXIF 2.3, tag 0x0112)."""
    from PIL import Image

    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # damaged remarks do no harm to the pixels
        return None
    return {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)


def _to_grey_or_rgb(image: Image.Image, background: Colour | None) -> Image.Image:
    from PIL import Image

    mode = image.mode
    if mode.startswith("I;16"):
        # Not convert("L"): that clips at 255 instead of scaling.
        array = np.asarray(image)
        return Image.fromarray((array.astype(np.uint16) >> 8).astype(np.uint8))
    if mode in ("I", "F"):
        raise ValueError(f"pixels of type {mode} (32 bits) have no defined 8-bit range")
    if "transparency" in image.info or mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        grey = mode in ("L", "1", "LA", "La") or _grey_palette(image)
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            if background is None:
                raise ValueError(
                    "partly transparent; convert it onto a background, as with --mode=dataset "
                    "--background=white"
                )
            grey = grey and len(set(background)) == 1
            canvas = Image.new("RGBA", image.size, (*background, 255))
            image = Image.alpha_composite(canvas, image)
        return image.convert("RGB").convert("L" if grey else "RGB")
    return image.convert("L" if mode in ("1", "L") or _grey_palette(image) else "RGB")


def _grey_palette(image: Image.Image) -> bool:
    """Whether all colours that are used of a palette are grey, as small PNG and GIF files have."""
    if image.mode not in ("P", "PA"):
        return False
    pixels = np.asarray(image.convert("RGBA"))
    seen = pixels[pixels[:, :, 3] > 0][:, :3]
    return bool((seen == seen[:, :1]).all())


def _decode_png_fast(data: bytes) -> np.ndarray | None:
    """8-bit grey or RGB PNG without Pillow; None where that needs more than is here."""
    if data[:8] != _PNG_SIGNATURE or len(data) < 57 or data[12:16] != b"IHDR":
        return None
    width, height, depth, colour, _, _, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    if depth != 8 or colour not in (0, 2) or interlace:
        return None
    channels = 3 if colour == 2 else 1
    pixels = _decode_unfiltered_png(data, width, height, channels)
    if pixels is None and (load := _pyspng_load()) is not None and _is_plain_png(data):
        try:
            pixels = load(data).reshape(height, width, channels)
        except (RuntimeError, ValueError):
            return None  # Pillow says what is wrong
    return pixels


def _is_plain_png(data: bytes) -> bool:
    """Whether checksums hold, which pyspng leaves to us; nothing transparent, nothing turned."""
    at, view = 8, memoryview(data)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if end + 4 > len(data) or kind in (b"tRNS", b"eXIf"):
            return False
        if kind in (b"tEXt", b"zTXt", b"iTXt") and view[at + 8 : end].tobytes().startswith(
            _TURNING
        ):
            return False
        if zlib.crc32(view[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            return False
        if kind == b"IEND":
            return True
        at = end + 4
    return False


def _decode_unfiltered_png(
    data: bytes, width: int, height: int, channels: int
) -> np.ndarray | None:
    """The PNG that `encode_png` writes: one IDAT, no row filtered.  None for others."""
    length, kind = struct.unpack_from(">I4s", data, 33)
    if kind != b"IDAT" or len(data) != 57 + length or data[49 + length : 53 + length] != b"IEND":
        return None
    stored_crc = struct.unpack_from(">I", data, 41 + length)[0]
    if zlib.crc32(memoryview(data)[37 : 41 + length]) != stored_crc:
        return None
    size = height * (1 + width * channels)
    try:
        # Bounded: a damaged header must not make a small file fill the memory.
        raw = zlib.decompressobj().decompress(memoryview(data)[41 : 41 + length], size + 1)
    except zlib.error:
        return None
    if len(raw) != size:
        return None
    rows = np.frombuffer(raw, np.uint8).reshape(height, 1 + width * channels)
    if rows[:, 0].any():
        return None
    return rows[:, 1:].reshape(height, width, channels)


@functools.cache
def _pyspng_load() -> Any:
    try:
        import pyspng
    except ImportError:
        return None
    return pyspng.load


def pyspng_installed() -> bool:
    """Whether PNGs with filtered rows are decoded by pyspng, several times faster."""
    return _pyspng_load() is not None


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG at compression level 0, the same bytes on every machine.

    Written here, without any library: their output depends on their version.  No row
    is filtered, which `decode_image` reads several times faster than other PNGs.

    Args:
      pixels: ``(H, W)``, ``(H, W, 1)`` or ``(H, W, 3)`` uint8.
    """
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or channels not in (1, 3):
        raise ValueError(
            f"pixels must be uint8 of shape (H, W), (H, W, 1) or (H, W, 3), got {pixels.dtype} "
            f"{pixels.shape}"
        )
    height, width = pixels.shape[:2]
    rows = np.zeros((height, 1 + width * channels), np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    raw = rows.tobytes()
    # zlib stream (RFC 1950) of stored blocks, the last one flagged.
    stream = [b"\x78\x01"]
    for start in range(0, len(raw), _STORED_BLOCK):
        block = raw[start : start + _STORED_BLOCK]
        last = start + _STORED_BLOCK >= len(raw)
        stream += [struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF), block]
    stream.append(struct.pack(">I", zlib.adler32(raw)))
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", b"".join(stream)), (b"IEND", b"")]
    return _PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
