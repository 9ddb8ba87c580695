"""Pickled dictionaries of NumPy arrays, such as the references of EDM2, without executing them.

{"num_images": 50000, "fid": {"mu": ..., "sigma": ...}, "fd_dinov2": {...}}
"""

from __future__ import annotations

import dataclasses
import math
import os

import numpy as np

from edm_jax.foreign.allowed import Allowed, Budget, NameToken, encode_latin1
from edm_jax.foreign.unpickle import Unpickler
from edm_jax.store.binary import map_file
from edm_jax.store.errors import WeightsError, show

_DTYPES = ("f8", "f4", "i8", "i4")


@dataclasses.dataclass(eq=False)
class _Dtype:
    code: str

    def shown(self) -> str:
        return f"numpy.dtype {show(self.code)}"


@dataclasses.dataclass(eq=False)
class _Array:
    array: np.ndarray | None = None

    def shown(self) -> str:
        return "an array without content" if self.array is None else "an array"


def _dtype(arguments: tuple) -> _Dtype:
    code = arguments[0] if arguments else None
    if type(code) is not str or code not in _DTYPES:
        raise WeightsError(f"numpy.dtype {show(code)}, expected one of {', '.join(_DTYPES)}")
    return _Dtype(code)


def _reconstruct(arguments: tuple) -> _Array:
    kind = arguments[0] if arguments else None
    if not isinstance(kind, NameToken) or (kind.module, kind.name) != ("numpy", "ndarray"):
        raise WeightsError(f"an array of {show(arguments)}")
    return _Array()


def _scalar(arguments: tuple) -> float | int:
    if len(arguments) != 2 or not isinstance(arguments[0], _Dtype):
        raise WeightsError(f"a NumPy scalar of {show(arguments)}")
    dtype = np.dtype("<" + arguments[0].code)
    if not isinstance(arguments[1], memoryview) or len(arguments[1]) != dtype.itemsize:
        raise WeightsError(f"a NumPy scalar of {dtype.itemsize} bytes from {show(arguments[1])}")
    return np.frombuffer(arguments[1], dtype)[0].item()


def _build(target: object, state: object) -> None:
    if type(state) is not tuple:
        raise WeightsError(f"BUILD of {show(target)} with {show(state)} is refused")
    if isinstance(target, _Dtype):
        if len(state) < 2 or state[1] != "<":
            raise WeightsError(f"numpy.dtype with state {show(state)}; expected little-endian")
        return
    if not isinstance(target, _Array) or target.array is not None or len(state) != 5:
        raise WeightsError(f"BUILD of {show(target)} with {show(state)} is refused")
    _, shape, dtype, fortran, data = state
    numbers = type(shape) is tuple and all(type(n) is int and 0 <= n < 1 << 20 for n in shape)
    if not numbers or not 1 <= len(shape) <= 2 or not isinstance(dtype, _Dtype):
        raise WeightsError(f"an array of shape {show(shape)} and type {show(dtype)}")
    kind = np.dtype("<" + dtype.code)
    if not isinstance(data, memoryview) or len(data) != math.prod(shape) * kind.itemsize:
        raise WeightsError(f"an array of shape {show(shape)} from {show(data)}")
    order = "F" if fortran is True else "C"
    target.array = np.frombuffer(data, kind).reshape(shape, order=order)


def read_array_pickle(path: str | os.PathLike[str]) -> dict[str, object]:
    """The dictionary in a pickle of numbers, texts, arrays and further dictionaries.

    Returns:
      Plain dictionaries; arrays are read-only NumPy arrays.

    Raises:
      FileNotFoundError: there is no such file.
      WeightsError: damaged, of another kind, or asking for anything refused.
    """
    data = map_file(path)
    budget = Budget(len(data))

    def encode(arguments: tuple) -> memoryview:  # bytes in protocol 2
        if len(arguments) != 2 or arguments[1] not in ("latin1", "latin-1"):
            raise WeightsError(f"_codecs.encode of {show(arguments)}")
        budget.copy("_codecs.encode", len(arguments[0]) if isinstance(arguments[0], str) else 0)
        return memoryview(encode_latin1(arguments[0]))

    calls = {("numpy", "dtype"): _dtype, ("_codecs", "encode"): encode}
    for package in ("numpy._core.multiarray", "numpy.core.multiarray"):  # before NumPy 2
        calls |= {(package, "_reconstruct"): _reconstruct, (package, "scalar"): _scalar}
    tokens, classes = frozenset({("numpy", "ndarray")}), {("dnnlib.util", "EasyDict"): dict}
    try:
        allowed = Allowed(calls=calls, classes=classes, tokens=tokens, build=_build)
        return _plain(Unpickler(data, allowed, budget).load())
    except WeightsError as error:
        raise WeightsError(f"{os.fspath(path)}: {error}") from None


def _plain(root: object, depth: int = 0) -> dict[str, object]:
    if type(root) is not dict or depth > 4:
        raise WeightsError(f"the file holds {show(root)}, expected a dictionary of arrays")
    plain: dict[str, object] = {}
    for key, value in root.items():
        if isinstance(value, _Array) and value.array is None:
            raise WeightsError(f"{show(key)} is an array without content")
        if isinstance(value, dict):
            plain[key] = _plain(value, depth + 1)
        else:
            plain[key] = value.array if isinstance(value, _Array) else value
    return plain
