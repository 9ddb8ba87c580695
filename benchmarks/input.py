"""How many images per second the data sources decode.

    python benchmarks/input.py --threads=1,2,4,8

Made images of natural smoothness, 32x32 and 64x64, in random order, from

* an EDM archive of this project (`edm_jax.data.conversion.convert`: PNG rows unfiltered),
* an EDM archive with PNGs as Pillow writes them (rows filtered), which is what archives
  made elsewhere hold,
* array_record through TFDS.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import common  # noqa: F401  (finds the repository)
import numpy as np

from edm_jax.data.sources import decode
from edm_jax.data.sources.base import ImageSource
from edm_jax.data.sources.image_files import open_images
from edm_jax.data.sources.stored_zip import central_directory, stored_record
from edm_jax.data.sources.tfds import TfdsSource


def made_images(count: int, size: int) -> np.ndarray:
    """``(count, size, size, 3)`` uint8 with a spectrum falling like that of photographs."""
    random = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    amplitude = 1 / np.maximum(frequency, 1 / size) ** 1.2
    noise = np.fft.fft2(random.normal(size=(count, 3, size, size)))
    pixels = np.moveaxis(np.fft.ifft2(noise * amplitude).real, 1, -1)
    pixels = pixels / pixels.std() * 60 + 128
    return np.clip(pixels, 0, 255).astype(np.uint8)


def pillow_png(pixels: np.ndarray) -> bytes:
    """A PNG of compression level 0, rows filtered as Pillow sees fit."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png", compress_level=0)
    return buffer.getvalue()


def archive(path: str, images: np.ndarray, encode: Callable[[np.ndarray], bytes]) -> ImageSource:
    """An EDM archive of ``images``."""
    entries = []
    with open(path, "wb") as file:
        for i, pixels in enumerate(images):
            name = f"{i // 1000:05d}/img{i:08d}.png"
            entry, record = stored_record(name, encode(pixels))
            entries.append(entry)
            file.write(record)
        file.write(central_directory(entries))
    return open_images(path)


def array_record(path: str, images: np.ndarray) -> ImageSource:
    """A TFDS data set of ``images``."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    size = images.shape[1]

    class MadeImages(tfds.core.GeneratorBasedBuilder):
        """Made images."""

        VERSION = tfds.core.Version("1.0.0")
        name = f"made_images{size}"

        def _info(self):
            image = tfds.features.Image(shape=images.shape[1:], encoding_format="png")
            features = tfds.features.FeaturesDict({"image": image})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, pixels in enumerate(images):
                yield i, {"image": io.BytesIO(pillow_png(pixels))}

    with contextlib.redirect_stdout(sys.stderr):
        MadeImages(data_dir=path, file_format="array_record").download_and_prepare()
    return TfdsSource(MadeImages.name, data_dir=path)


def images_per_second(source: ImageSource, num_threads: int, seconds: float) -> float:
    """Decoded images per second of all threads together."""
    counts = [0] * num_threads
    stop = time.perf_counter() + seconds

    def work(thread: int) -> None:
        order = np.random.default_rng(thread).permutation(len(source)).tolist()
        while True:
            for index in order:
                source[index]
                counts[thread] += 1
                if time.perf_counter() > stop:
                    return

    start = time.perf_counter()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cores = os.cpu_count() or 1
    default = ",".join(str(n) for n in (1, 2, 4, 8, 16) if n <= max(2, 2 * cores))
    parser.add_argument("--threads", default=default, help="numbers of threads")
    parser.add_argument("--count", type=int, default=4000, help="images in each data set")
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement")
    options = parser.parse_args()
    threads = [int(n) for n in options.threads.split(",")]

    fast = "pyspng" if decode.pyspng_installed() else "Pillow; pip install pyspng for more"
    print(f"{cores} processors; filtered PNGs are decoded by {fast}\n")
    print(f"{'source':34s}" + "".join(f"{n:>5d} threads" for n in threads) + "   (img/s)")
    for size in (32, 64):
        images = made_images(options.count, size)
        with tempfile.TemporaryDirectory() as folder:
            sources = {
                f"{size}x{size} zip": archive(f"{folder}/own.zip", images, decode.encode_png),
                f"{size}x{size} zip, filtered": archive(f"{folder}/pil.zip", images, pillow_png),
                f"{size}x{size} array_record": array_record(f"{folder}/tfds", images),
            }
            for name, source in sources.items():
                rates = [images_per_second(source, n, options.seconds) for n in threads]
                print(f"{name:34s}" + "".join(f"{rate:13,.0f}" for rate in rates), flush=True)


if __name__ == "__main__":
    main()
