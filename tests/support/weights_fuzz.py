"""Random model files: mutations of good ones, and random pickle programs.

Everything is drawn from a `random.Random`, so hypothesis and a plain loop can both drive
it:  python tests/support/weights_fuzz.py SECONDS [SEED]
"""

from __future__ import annotations

import functools
import io
import json
import os
import pathlib
import pickletools
import random
import struct
import sys
import tempfile
import time
import zipfile

from edm_jax.foreign import importer, published
from edm_jax.store import single_file
from edm_jax.store.errors import WeightsError
from edm_jax.store.safetensors import read_safetensors
from tests.support import weights_golden as wg
from tests.support import weights_writer as ww

SECONDS_PER_FILE = 20  # generous for a loaded machine; a good file takes 0.1 to 1

_NUMBERS = (0, 1, 2, 3, 5, 127, 128, 255)
_GLOBALS = (
    b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n",
    b"ctorch.nn.modules.container\nModuleDict\n",
    b"ctorch.storage\n_load_from_bytes\n",
    b"cnumpy\ndtype\n",
    b"cnumpy.core.multiarray\nscalar\n",
    b"c_codecs\nencode\n",
    b"c__builtin__\nset\n",
    b"cdnnlib.util\nEasyDict\n",
    b"ctorch\nFloatStorage\n",
    b"cos\nsystem\n",
)
_TEXTS = (
    "ema", "net", "optimizer_state", "type", "class", "version", "module_src", "class_name",
    "EDMPrecond", "state", "_parameters", "_buffers", "_modules", "_init_kwargs", "model",
    "storage", "0", "latin1", "f8", "model.map_layer0.weight", "input_blocks.0.0.weight",
)  # fmt: skip
_PLAIN = b"N\x88\x89)]}(.RabesutQ\x81\x85\x86\x87\x8f\x90\x93\x94o20"


@functools.cache
def bases() -> tuple[tuple[str, bytes, tuple[int, ...]], ...]:
    """Good files: name, bytes, and positions where structure is rather than numbers."""
    names = (
        "small_torch1.pkl", "small_protocol2.pkl", "iddpm_adm_cond.pkl", "small_state_dict.pt",
        "small_state_dict_flat.pt", "small_state_dict.pth", "training_state.pt", "dtypes.pt",
        "dtypes.pth",
    )  # fmt: skip
    result = [(name, wg.content(name)) for name in names]
    path = pathlib.Path(tempfile.mkdtemp()) / "model"
    path.write_bytes(result[0][1])
    model = importer.read_model_file(path)
    single_file.write_single_file(path, model.description, model.variables)
    result.append(("single", path.read_bytes()))
    published.write_state_dict(path, model.description, model.variables["ema"])
    result.append(("state dictionary", path.read_bytes()))
    return tuple((name, data, _structure(data)) for name, data in result)


def _structure(data: bytes) -> tuple[int, ...]:
    if data[:2] == b"PK":
        return tuple(i for i in range(len(data)) if data[i : i + 2] == b"PK")
    if data[8:9] == b"{":
        return tuple(range(8 + int.from_bytes(data[:8], "little")))
    stream, positions = io.BytesIO(data), []
    try:
        while stream.tell() < len(data):
            positions += [position for _, _, position in pickletools.genops(stream)]
    except ValueError:  # behind the pickles of a legacy file
        pass
    return tuple(positions)


def mutate(data: bytes, structure: tuple[int, ...], rng: random.Random) -> bytes:
    """One to four small edits, mostly where structure is."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if rng.random() < 0.8 and structure:
            at = rng.choice(structure) + rng.randrange(12)
        else:
            at = rng.randrange(len(data))
        at = min(at, len(out) - 1)
        size = rng.choice((1, 1, 2, 4, 8, 64))
        kind = rng.randrange(8)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.choice(_NUMBERS)
        elif kind == 2:
            out[at : at + size] = bytes(rng.randrange(256) for _ in range(size))
        elif kind == 3:
            del out[at : at + size]
        elif kind == 4:
            out[at:at] = out[at : at + size]
        elif kind == 5:
            other = rng.choice(structure) if structure else 0
            out[at : at + size] = out[other : other + size]
        elif kind == 6:
            out[at:at] = fragment(rng)
        else:
            del out[at + rng.randrange(64) :]
        if not out:
            out += b"\0"
    return bytes(out)


def mutate_inside_zip(data: bytes, rng: random.Random) -> bytes:
    """Edits of the pickle in an archive, packed again with right sizes and checksums."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        contents = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(n for n in contents if n.endswith("data.pkl"))
    contents[name] = mutate(contents[name], _structure(contents[name]), rng)
    return ww.write_zip([ww.Entry(n, c) for n, c in contents.items()])


def fragment(rng: random.Random) -> bytes:
    """One random opcode with its argument."""
    kind = rng.randrange(10)
    if kind <= 3:
        return bytes([rng.choice(_PLAIN)])
    if kind == 4:
        return rng.choice(_GLOBALS)
    if kind == 5:
        text = rng.choice(_TEXTS).encode()
        return b"X" + struct.pack("<I", len(text)) + text
    if kind == 6:
        return rng.choice((b"K", b"h", b"q")) + bytes([rng.choice(_NUMBERS)])
    if kind == 7:
        return b"C\x08" + bytes(rng.randrange(256) for _ in range(8))
    if kind == 8:
        return b"\x8a\x02" + bytes(rng.randrange(256) for _ in range(2))
    return bytes([rng.randrange(256)])


def random_program(rng: random.Random) -> bytes:
    """A pickle of random opcodes."""
    body = b"".join(fragment(rng) for _ in range(rng.randrange(60)))
    return b"\x80" + bytes([rng.randrange(2, 6)]) + body + b"."


def random_values(rng: random.Random, depth: int = 0) -> object:
    """A random value in the shapes the readers expect, to get behind the unpickler."""
    kind = rng.randrange(12 if depth < 5 else 5)
    if kind == 0:
        return rng.choice((None, True, 0, 1, -1, 4, 1 << 40, 0.5, float("inf"), float("nan")))
    if kind in (1, 2):
        return rng.choice(_TEXTS)
    if kind == 3:
        return ww.ORDERED
    if kind == 4:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(9)))
    inner = [random_values(rng, depth + 1) for _ in range(rng.randrange(4))]
    keys = rng.sample(_TEXTS, len(inner))
    if kind == 5:
        return inner
    if kind == 6:
        return tuple(inner)
    if kind == 7:
        return dict(zip(keys, inner, strict=True))
    if kind == 8:
        size = tuple(rng.choice((0, 1, 2, 4)) for _ in range(rng.randrange(5)))
        return ww.tensor(ww.pid("0", rng.choice((0, 1, 4))), size, offset=rng.choice((0, 0, 1)))
    if kind == 9:
        state = ww.module_state(modules=dict(zip(keys, inner, strict=True)))
        return ww.persistent(rng.choice(("EDMPrecond", "iDDPMPrecond", "SongUNet")), state)
    if kind == 10:
        return ww.parameter(random_values(rng, depth + 1))
    return ww.ordered(dict(zip(keys, inner, strict=True)))


def random_description(rng: random.Random) -> bytes:
    """One of our own files with a changed description and a right digest."""
    data = rng.choice([d for n, d, _ in bases() if n in ("single", "state dictionary")])
    metadata, arrays = read_safetensors(memoryview(data))
    description = json.loads(metadata["description"])
    values = (
        None, True, 0, 1, -1, 3, 1 << 20, 1e300, 0.5, "", "iddpm", "DhariwalUNet", [], [1], [2, 2],
        [0.5], [[1]], {}, {"name": "ve"}, "x" * 5000,
    )  # fmt: skip
    for _ in range(rng.choice((1, 1, 2, 5))):
        target = rng.choice([description] + [v for v in description.values() if type(v) is dict])
        key = rng.choice([*target, "evil", "name", "levels"])
        if rng.random() < 0.2:
            target.pop(key, None)
        else:
            target[key] = rng.choice(values)
    if rng.random() < 0.3:
        arrays.pop(rng.choice(list(arrays)))
    metadata = {k: v for k, v in metadata.items() if k != "sha256"}
    metadata["description"] = json.dumps(description)
    path = pathlib.Path(tempfile.gettempdir()) / f"edm_jax_fuzz_{os.getpid()}"
    single_file.write_arrays(path, arrays, metadata)
    return path.read_bytes()


def random_file(rng: random.Random) -> bytes:
    """Any of the above."""
    kind = rng.randrange(10)
    if kind == 0:
        return random_program(rng)
    if kind == 1:
        root = {k: random_values(rng) for k in rng.sample(_TEXTS, 3)}
        return ww.torch_zip(root, {"0": b"\0" * rng.choice((0, 4, 16))})
    if kind == 2:
        return random_description(rng)
    name, data, structure = rng.choice(bases())
    if name.endswith(".pt") and kind < 8:
        return mutate_inside_zip(data, rng)
    return mutate(data, structure, rng)


def check(data: bytes, path: pathlib.Path) -> str:
    """Read a file; anything but a model or WeightsError is raised."""
    path.write_bytes(data)
    start, outcome = time.monotonic(), "refused"
    try:
        model = importer.read_model_file(path)
        outcome = "read"
        assert model.variables and model.description["network"]
    except WeightsError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
    assert time.monotonic() - start < SECONDS_PER_FILE
    return outcome


def main() -> None:
    seconds, seed = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    end, counts = time.monotonic() + seconds, {"read": 0, "refused": 0}
    path = pathlib.Path(tempfile.mkdtemp()) / "file"
    while time.monotonic() < end:
        data = random_file(random.Random(seed))
        try:
            counts[check(data, path)] += 1
        except BaseException:
            print(f"seed {seed}: {path}")
            raise
        seed += 1
    print(counts, "next seed", seed)


if __name__ == "__main__":
    main()
