"""The safetensors format, read and written with NumPy alone.

A file is an 8-byte little-endian length, a JSON header of that length, and the tensors'
bytes.  The header maps a name to ``{"dtype", "shape", "data_offsets"}``; the entry
``__metadata__`` maps texts to texts.  Every byte after the header belongs to exactly one
tensor (github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np

from edm_jax.store.errors import WeightsError, show
from edm_jax.store.tensors import dtype_of

_MAX_HEADER = 1 << 23  # about 10 kilobytes per hundred tensors are needed
_MAX_SIZE = 1 << 40
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
# Complex numbers may be read over in the files of others; no model of ours has any.
_CODES = {name: code for code, name in _DTYPES.items() if code != "C64"}


def is_safetensors(data: memoryview) -> bool:
    """Whether a file looks like safetensors: a length, then the start of a JSON object."""
    return len(data) > 8 and data[8] == ord("{") and any(data[:5]) and not any(data[5:8])


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise WeightsError("it has an entry twice")
    return result


def _no_constant(text: str) -> None:
    raise WeightsError(f"it holds {text}, which is not JSON")


def parse_json(text: str) -> object:
    """Strict JSON: no duplicate keys, no NaN or infinity; errors as WeightsError."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except WeightsError:
        raise
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"not valid JSON ({show(str(error))})") from None


def _header(data: memoryview) -> tuple[dict, int]:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise WeightsError(
            f"a safetensors header of {length} bytes in a file of {len(data)}; is it cut off?"
        )
    if length > _MAX_HEADER:
        raise WeightsError(f"a safetensors header of {length} bytes, at most {_MAX_HEADER} allowed")
    try:
        text = str(data[8 : 8 + length], "utf-8")
    except UnicodeDecodeError:
        raise WeightsError("the safetensors header is not UTF-8") from None
    try:
        header = parse_json(text)
    except WeightsError as error:
        raise WeightsError(f"safetensors header: {error}") from None
    if not isinstance(header, dict):
        raise WeightsError("the safetensors header is no JSON object")
    return header, 8 + length


def _entry(name: str, entry: object) -> tuple[np.dtype, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise WeightsError(f"header entry {show(name)} is not dtype, shape, data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise WeightsError(
            f"tensor {show(name)} has dtype {show(code)}; known: {', '.join(_DTYPES)}"
        )

    def sizes(values: object) -> bool:
        return isinstance(values, list) and all(
            type(v) is int and 0 <= v <= _MAX_SIZE for v in values
        )

    if not sizes(shape) or len(shape) > 8 or math.prod(max(n, 1) for n in shape) > _MAX_SIZE:
        raise WeightsError(f"tensor {show(name)} has shape {show(shape)}")
    if not sizes(offsets) or len(offsets) != 2:
        raise WeightsError(f"tensor {show(name)} has data_offsets {show(offsets)}")
    dtype = dtype_of(_DTYPES[code])
    needed = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != needed:
        raise WeightsError(
            f"tensor {show(name)} of shape {show(tuple(shape))} and dtype {code} needs {needed} "
            f"bytes, data_offsets give {offsets[1] - offsets[0]}"
        )
    return dtype, tuple(shape), offsets[0], offsets[1]


def read_safetensors(data: memoryview) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and tensors of a file.

    Args:
      data: the whole file.

    Returns:
      The ``__metadata__`` texts and the arrays by name: read-only views of ``data``.

    Raises:
      WeightsError: anything the format does not allow; names the entry.
    """
    header, start = _header(data)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise WeightsError("safetensors __metadata__ must map texts to texts")
    entries = {name: _entry(name, entry) for name, entry in header.items()}
    position, payload = 0, data[start:]
    arrays: dict[str, np.ndarray] = {}
    for name, (dtype, shape, first, last) in sorted(
        entries.items(), key=lambda item: (item[1][2], item[1][3])
    ):
        if first != position or last > len(payload):
            raise WeightsError(
                f"tensor {show(name)} lies at {first}..{last} of {len(payload)} bytes, expected "
                f"to start at {position}; the file is cut off or damaged"
            )
        position = last
        if first == last:
            arrays[name] = np.empty(shape, dtype)
        elif dtype.kind == "b":  # other bytes than 0 and 1 are no valid NumPy booleans
            arrays[name] = (np.frombuffer(payload[first:last], np.uint8) != 0).reshape(shape)
        else:
            flat = np.frombuffer(payload[first:last], np.uint8)
            arrays[name] = flat.view(dtype).reshape(shape)
    if position != len(payload):
        raise WeightsError(f"{len(payload) - position} bytes follow the last tensor")
    return metadata, {name: arrays[name] for name in entries}


def make_header(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON header of a file whose tensors follow in the order of ``arrays``.

    Raises:
      ValueError: an array has a dtype the format has no code for.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for name, array in arrays.items():
        if array.dtype.name not in _CODES:
            raise ValueError(
                f"array {show(name)} has dtype {array.dtype}, one of {', '.join(_CODES)} is needed"
            )
        entries[name] = {
            "dtype": _CODES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [position, position + array.nbytes],
        }
        position += array.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors start aligned
    return len(text).to_bytes(8, "little") + text
