"""Storages and tensors of the PyTorch formats as views of the file.

A storage is a flat run of numbers; a tensor is an offset, a shape and strides into one.
Many tensors may share a storage, so nothing is copied here: `Tensor.array` is a read-only
NumPy view of the file.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np

from edm_jax.store.errors import WeightsError, show

_MAX_DIMENSIONS = 8
_MAX_SIZE = 1 << 40

# (name of the storage type, name of the dtype)
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    # No network here has any, but a file may hold some beside what is needed.
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
STORAGE_NAMES = frozenset(("torch", name) for name in _STORAGES)


def dtype_of(name: str) -> np.dtype:
    """The little-endian NumPy dtype called ``name``; bfloat16 comes with JAX."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name).newbyteorder("<")


@dataclasses.dataclass(eq=False)
class Storage:
    """A typed run of numbers; ``data`` is bound when the file says where they are."""

    type_name: str
    numel: int
    key: str
    data: memoryview | None = None

    def shown(self) -> str:
        return f"a storage of {show(self.numel)} numbers"

    @property
    def dtype(self) -> np.dtype:
        return dtype_of(_STORAGES[self.type_name])

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def bind(self, data: memoryview) -> None:
        """Attach the raw bytes; their number must be exactly what was announced."""
        if len(data) != self.nbytes:
            raise WeightsError(
                f"storage {show(self.key)} announces {self.numel} numbers ({self.nbytes} "
                f"bytes of {self.dtype}), the file has {len(data)} bytes"
            )
        self.data = data


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A view of a storage; sizes and strides count elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.storage, Storage):
            raise WeightsError(f"a tensor over {show(self.storage)}, expected a storage")
        for label, values in (("size", self.size), ("stride", self.stride)):
            if type(values) is not tuple or not all(type(v) is int and v >= 0 for v in values):
                raise WeightsError(f"a tensor of {label} {show(values)}")
        if type(self.offset) is not int or self.offset < 0:
            raise WeightsError(f"a tensor at offset {show(self.offset)}")
        if len(self.size) != len(self.stride) or len(self.size) > _MAX_DIMENSIONS:
            raise WeightsError(f"a tensor of size {show(self.size)}, stride {show(self.stride)}")
        # NumPy multiplies the axes into a machine integer even where one of them is 0.
        if math.prod(max(n, 1) for n in self.size) > _MAX_SIZE:
            raise WeightsError(f"a tensor of size {show(self.size)}, larger than any model's")
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        if self.numel and last >= self.storage.numel:
            raise WeightsError(
                f"a tensor of size {show(self.size)}, stride {show(self.stride)} and offset "
                f"{show(self.offset)} reaches past the {self.storage.numel} numbers of its storage"
            )

    def shown(self) -> str:
        return f"a tensor of shape {show(self.size)}"

    @property
    def numel(self) -> int:
        return math.prod(self.size)

    def array(self) -> np.ndarray:
        """The numbers in the stored dtype: a read-only view of the file (bool: a copy)."""
        dtype = self.storage.dtype
        if self.storage.data is None:
            raise WeightsError(f"storage {show(self.storage.key)} has no data in the file")
        if not self.numel:
            return np.empty(self.size, dtype)
        if dtype.kind == "b":  # bytes other than 0 and 1 are no valid NumPy booleans
            return self._strided(np.dtype(np.uint8)) != 0
        return self._strided(dtype)

    def _strided(self, dtype: np.dtype) -> np.ndarray:
        flat = np.frombuffer(self.storage.data, np.uint8).view(dtype)[self.offset :]
        # The stride of an axis of length 1 means nothing and may be any number.
        steps = [
            s * dtype.itemsize if n > 1 else 0 for n, s in zip(self.size, self.stride, strict=True)
        ]
        return np.lib.stride_tricks.as_strided(flat, self.size, steps, writeable=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Parameter:
    """A tensor registered as trainable."""

    tensor: Tensor

    def shown(self) -> str:
        return f"a parameter of shape {show(self.tensor.size)}"


def shape_of(tensor: Tensor | np.ndarray) -> tuple[int, ...]:
    """The shape of a tensor of a file, opened or not."""
    return tensor.size if isinstance(tensor, Tensor) else tensor.shape


def array_of(tensor: Tensor | np.ndarray) -> np.ndarray:
    """The numbers of a tensor of a file, opened or not."""
    return tensor.array() if isinstance(tensor, Tensor) else tensor


def numel_of(tensors: Iterable[Tensor | np.ndarray]) -> int:
    """How many numbers tensors have together."""
    return sum(math.prod(shape_of(tensor)) for tensor in tensors)


def shape_with(tensors: Mapping[str, Tensor | np.ndarray], name: str, ndim: int) -> tuple[int, ...]:
    """The shape of the tensor called ``name``, which must be there and have ``ndim`` axes."""
    if name not in tensors:
        raise WeightsError(f"tensor {show(name)} is missing")
    shape = shape_of(tensors[name])
    if len(shape) != ndim or 0 in shape:
        raise WeightsError(f"tensor {show(name)} has shape {show(shape)}, expected {ndim} axes")
    return shape


def _arguments(arguments: tuple, least: int, most: int, name: str) -> tuple:
    if not least <= len(arguments) <= most:
        raise WeightsError(f"{name} with {len(arguments)} arguments, expected {least} to {most}")
    return arguments


def rebuild_tensor(arguments: tuple) -> Tensor:
    """torch._utils._rebuild_tensor_v2 (storage, offset, size, stride, grad, hooks[, meta])."""
    storage, offset, size, stride, _, _, *metadata = _arguments(
        arguments, 6, 7, "_rebuild_tensor_v2"
    )
    if metadata not in ([], [None]) and (type(metadata[0]) is not dict or metadata[0]):
        # Lazily negated or conjugated tensors: the numbers are not those in the storage.
        raise WeightsError(f"a tensor with metadata {show(metadata[0])}")
    return Tensor(storage, offset, size, stride)


def rebuild_parameter(arguments: tuple) -> Parameter:
    """torch._utils._rebuild_parameter (tensor, requires_grad, hooks)."""
    tensor = _arguments(arguments, 3, 3, "_rebuild_parameter")[0]
    if not isinstance(tensor, Tensor):
        raise WeightsError(f"a parameter around {show(tensor)}, expected a tensor")
    return Parameter(tensor)


def rebuild_parameter_with_state(arguments: tuple) -> Parameter:
    """torch._utils._rebuild_parameter_with_state (tensor, requires_grad, hooks, state)."""
    return rebuild_parameter(_arguments(arguments, 4, 4, "_rebuild_parameter_with_state")[:3])


def persistent_storage(identifier: object) -> Storage:
    """A storage from its persistent id.

    The id is ``("storage", type, key, location, numel)``, in legacy files with a sixth
    entry None.  The location says on which device the tensor lived and is ignored.
    """
    if type(identifier) is not tuple or not 5 <= len(identifier) <= 6:
        raise WeightsError(f"a persistent id is {show(identifier)}, expected a storage")
    kind, storage_type, key, location, numel, *view = identifier
    module, name = getattr(storage_type, "module", None), getattr(storage_type, "name", None)
    if kind != "storage" or (module, name) not in STORAGE_NAMES:
        raise WeightsError(f"a persistent id of {show(kind)} and {show(storage_type)}")
    if type(key) is not str or type(location) is not str:
        raise WeightsError(f"a storage with key {show(key)} and location {show(location)}")
    if type(numel) is not int or numel < 0:
        raise WeightsError(f"storage {show(key)} of {show(numel)} numbers")
    if view not in ([], [None]):
        raise WeightsError(f"storage {show(key)} is a view of another, as PyTorch 0.3 wrote it")
    return Storage(name, numel, key)
