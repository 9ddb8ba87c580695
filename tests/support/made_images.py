"""Made images and collections of files for the tests of the data sources."""

import io
import pathlib
import zipfile

import numpy as np
from PIL import Image

_RNG = np.random.default_rng(0)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Random pixels, ``(height, width, channels)``, or ``(height, width)`` for one."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return _RNG.integers(0, 256, shape, dtype=np.uint8)


def encode(image: np.ndarray | Image.Image, fmt: str = "png", **kwargs) -> bytes:
    """An image file by Pillow."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, format=fmt, **kwargs)
    return buffer.getvalue()


def write_folder(path: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    """``files`` below the folder ``path``."""
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_zip(path: pathlib.Path, files: dict[str, bytes], **kwargs) -> pathlib.Path:
    """``files`` in an archive, by Python's zipfile."""
    with zipfile.ZipFile(path, "w", **kwargs) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_source(path: pathlib.Path) -> pathlib.Path:
    """A folder of twelve images of different sizes in three classes."""
    names = {f"class{i % 3}/{i:02d}.png": encode(noise(20 + i, 30 - i)) for i in range(12)}
    return write_folder(path, names)


def write_odd_source(path: pathlib.Path) -> pathlib.Path:
    """Nine files of which 0, 3, 5 and 8 can be used; 3 and 8 deserve a remark."""
    transparent = np.dstack([noise(16, 16), np.zeros((16, 16), np.uint8)])
    frames = [Image.fromarray(noise(16, 16)) for _ in range(3)]
    cmyk = Image.fromarray(noise(16, 16, 4), "CMYK")
    jpeg = encode(noise(16, 16), "jpeg")
    return write_folder(
        path,
        {
            "0.png": encode(noise(16, 16)),
            "1 truncated.jpg": jpeg[: len(jpeg) // 2],
            "2 emptÿ.png": b"",
            "3 cmyk.jpg": encode(cmyk, "jpeg"),
            "4 transparent.png": encode(transparent),
            "5 grey.png": encode(noise(16, 16, 1)),
            "6 small.png": encode(noise(8, 8)),
            "7 text.png": b"<html>404</html>",
            "8 animated.gif": encode(frames[0], "gif", save_all=True, append_images=frames[1:]),
        },
    )
