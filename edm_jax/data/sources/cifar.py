"""The original CIFAR-10 archive, whose batches are pickles, read without executing them.

A pickle is a program.  This interpreter knows the opcodes that build plain values and
four names, all of NumPy arrays of bytes; anything else is an error, and nothing is ever
imported or called by what the file says.
"""

from __future__ import annotations

import dataclasses
import os
import pickletools
import tarfile
import zlib
from typing import Any

import numpy as np

ARCHIVE_NAME = "cifar-10-python.tar.gz"
# Classes 0 to 9, as its batches.meta calls them.
CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))

_RECONSTRUCT, _NDARRAY, _DTYPE, _ENCODE = "reconstruct", "ndarray", "dtype", "encode"
_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _DTYPE,
    ("_codecs", "encode"): _ENCODE,
}


@dataclasses.dataclass(frozen=True)
class _Global:
    name: str


@dataclasses.dataclass
class _Dtype:
    code: str


@dataclasses.dataclass
class _ArrayBox:
    array: np.ndarray | None = None


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = (
    "INT", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE",
    "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
)  # fmt: skip
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}


def read_plain_pickle(data: bytes, where: str) -> Any:
    """The value of a pickle of dicts, lists, numbers, strings and byte arrays.

    Args:
      data: a pickle of any protocol, by Python 2 or 3.  Byte strings of Python 2 come
        back as bytes.
      where: what messages begin with.

    Raises:
      ValueError: for anything else, before it has any effect.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                (value,) = stack
                return _open_boxes(value)
            _step(opcode.name, argument, stack, memo)
        raise ValueError("it does not end")
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"{where}: not a pickle of plain values and byte arrays ({error}); download it again "
            "from where CIFAR-10 is published"
        ) from error


def _step(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    """One opcode."""
    if name in ("PROTO", "FRAME"):
        return
    if name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in _LITERALS:
        stack.append(argument)
    elif name in ("BINSTRING", "SHORT_BINSTRING"):  # pickletools shows bytes as latin-1
        stack.append(argument.encode("latin-1"))
    elif name in _EMPTY:
        stack.append(_EMPTY[name]())
    elif name == "MARK":
        stack.append(_MARK)
    elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
        memo[argument] = stack[-1]
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET", "GET"):
        stack.append(memo[argument])
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        count = int(name[-1])
        stack[-count:] = [tuple(stack[-count:])]
    elif name in ("TUPLE", "APPENDS", "SETITEMS"):
        _collect(name, stack)
    elif name == "APPEND":
        item = stack.pop()
        stack[-1].append(item)
    elif name == "SETITEM":
        value, key = stack.pop(), stack.pop()
        stack[-1][key] = value
    elif name in ("GLOBAL", "STACK_GLOBAL"):
        path = tuple(argument.split(" ")) if name == "GLOBAL" else (stack.pop(-2), stack.pop())
        if path not in _GLOBALS:
            raise ValueError(f"it asks for {'.'.join(map(str, path))}")
        stack.append(_Global(_GLOBALS[path]))
    elif name == "REDUCE":
        arguments, function = stack.pop(), stack.pop()
        stack.append(_reduce(function, arguments))
    elif name == "BUILD":
        state = stack.pop()
        _build(stack[-1], state)
    else:
        raise ValueError(f"opcode {name}")


def _collect(name: str, stack: list[Any]) -> None:
    """The opcodes that take everything since the last mark."""
    mark = len(stack) - 1 - stack[::-1].index(_MARK)
    items = stack[mark + 1 :]
    del stack[mark:]
    if name == "TUPLE":
        stack.append(tuple(items))
    elif name == "APPENDS":
        stack[-1].extend(items)
    else:
        stack[-1].update(zip(items[::2], items[1::2], strict=True))


def _reduce(function: Any, arguments: tuple[Any, ...]) -> Any:
    if function == _Global(_RECONSTRUCT) and arguments[0] == _Global(_NDARRAY):
        return _ArrayBox()
    if function == _Global(_DTYPE):
        code = arguments[0]
        return _Dtype(code.decode() if isinstance(code, bytes) else code)
    if function == _Global(_ENCODE) and arguments[1] in ("latin1", "latin-1"):
        return arguments[0].encode("latin-1")
    raise ValueError(f"a call of {function}")


def _build(target: Any, state: Any) -> None:
    if isinstance(target, _Dtype):
        return  # byte order, of no meaning for bytes
    if not isinstance(target, _ArrayBox):
        raise ValueError("a state for something that is no array")
    _, shape, dtype, fortran, content = state
    if not isinstance(dtype, _Dtype) or dtype.code != "u1" or not isinstance(content, bytes):
        raise ValueError(f"an array of {getattr(dtype, 'code', dtype)!r}")
    target.array = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


def _open_boxes(value: Any) -> Any:
    if isinstance(value, _ArrayBox):
        return value.array
    if isinstance(value, dict):
        return {_open_boxes(k): _open_boxes(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_open_boxes(v) for v in value)
    return value


def read_cifar10(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """The training images of ``cifar-10-python.tar.gz``.

    Returns:
      ``(N, 32, 32, 3)`` uint8 and ``(N,)`` int64 classes, batches 1 to 5 in order; N is
      50,000 for the published file.

    Raises:
      ValueError: if the archive is damaged or not what it should be.
    """
    path = os.fspath(path)
    contents = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                base = member.name.rsplit("/", 1)[-1]
                if base in _BATCHES and member.isfile():
                    contents[base] = archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: damaged archive ({error}); download it again") from error
    missing = [name for name in _BATCHES if name not in contents]
    if missing:
        raise ValueError(
            f"{path}: holds no {', '.join(missing)}; expected the python version of CIFAR-10"
        )
    images, labels = [], []
    for base in _BATCHES:
        where = f"{path}: {base}"
        batch = read_plain_pickle(contents[base], where)
        batch = batch if isinstance(batch, dict) else {}
        batch = {k.decode("latin-1") if isinstance(k, bytes) else k: v for k, v in batch.items()}
        data, classes = batch.get("data"), batch.get("labels")
        if not (
            isinstance(data, np.ndarray)
            and data.ndim == 2
            and data.shape[1] == 3072
            and isinstance(classes, list)
            and len(classes) == len(data)
            and all(type(c) is int and 0 <= c < 10 for c in classes)
        ):
            raise ValueError(
                f"{where}: expected 'data' of shape (N, 3072) and as many 'labels' in 0..9, got "
                f"{getattr(data, 'shape', type(data).__name__)}; download it again"
            )
        images.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels += classes
    return np.ascontiguousarray(np.concatenate(images)), np.array(labels)
