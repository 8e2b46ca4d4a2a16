"""Read pickles with tensors and plain data, without running code in them.

PyTorch's restricted unpickler builds tensors and containers, and refuses every other class unless
it is on a list.  Checkpoints also contain numpy scalars and arrays, parsed arguments and mmengine's
`HistoryBuffer`.  For numpy and mmengine, the list substitutes classes and functions of this module,
which check their arguments (numpy's own `__setstate__` does not).
"""

from __future__ import annotations

import argparse
import math
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PLAIN_DTYPE = re.compile(r"[<>=|]?[biufcSU]\d{1,4}")
_MOST_NUMBERS = 1 << 26


class _DType:
    """Substitute for `numpy.dtype`: numbers and text of fixed length only."""

    def __init__(self, code: Any = None, *_rest: Any) -> None:
        if isinstance(code, bytes):
            code = code.decode("latin-1")
        if not isinstance(code, str) or not _PLAIN_DTYPE.fullmatch(code):
            raise ValueError(f"a numpy array of type {str(code)[:40]!r}")
        self.value = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
        if isinstance(order, bytes):
            order = order.decode("latin-1")
        if order not in ("<", ">", "=", "|"):
            raise ValueError(f"a numpy array of byte order {str(order)[:10]!r}")
        if order == ">":
            self.value = self.value.newbyteorder(">")


class _Array:
    """Substitute for `numpy.ndarray`; :func:`_settled` replaces it by the array."""

    def __init__(self) -> None:
        self.value: np.ndarray = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_columns, content = state
        self.value = _values(shape, dtype, content, "F" if by_columns is True else "C")


def _values(shape: Any, dtype: Any, content: Any, order: Any = "C") -> np.ndarray:
    plain = (
        isinstance(dtype, _DType)
        and isinstance(shape, tuple)
        and len(shape) <= 32
        and all(type(side) is int and 0 <= side <= _MOST_NUMBERS for side in shape)
        and math.prod(shape) <= _MOST_NUMBERS
    )
    if not plain:
        raise ValueError("a numpy array of another form")
    if isinstance(content, str):  # protocols before 3 hold bytes as text
        content = content.encode("latin-1")
    if not isinstance(content, bytes) or len(content) != math.prod(shape) * dtype.value.itemsize:
        raise ValueError("a numpy array of another length than its shape")
    return np.frombuffer(content, dtype.value).reshape(shape, order=order).copy()


def _array(*_arguments: Any) -> _Array:
    """Substitute for numpy's `_reconstruct`."""
    return _Array()


def _scalar(dtype: Any, content: Any = b"") -> Any:
    """Substitute for numpy's `scalar`."""
    return _values((), dtype, content)[()]


class _History:
    """Substitute for mmengine's `HistoryBuffer` (logged losses), which is not used."""


def _attribute(*_arguments: Any) -> None:
    """Substitute for `getattr`, with which older mmengine stores the methods of that class."""


_SUBSTITUTES: list[Any] = [
    argparse.Namespace,
    (_DType, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    (_History, "mmengine.logging.history_buffer.HistoryBuffer"),
    (_attribute, "builtins.getattr"),
    (_attribute, "__builtin__.getattr"),
    *(
        (substitute, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for substitute, name in ((_scalar, "scalar"), (_array, "_reconstruct"))
    ),
]


def load_plain(path: Path) -> Any:
    """Content of a `.pth` file: tensors on the CPU, plain containers, numbers and texts.

    Raises:
        pickle.UnpicklingError: the file holds a class or function that is not on the list.
        Exception: the file is damaged; PyTorch raises many types.
    """
    if zipfile.is_zipfile(path):
        _check_archive(path)
    with torch.serialization.safe_globals(_SUBSTITUTES), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols
        content = torch.load(path, map_location="cpu", weights_only=True)
    return _settled(content)


def _check_archive(path: Path) -> None:
    """Refuse compressed members, which can unpack to any size, and wrong checksums."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("its members are compressed, which torch.save never does")
        damaged = archive.testzip()  # PyTorch itself compares no checksums
    if damaged is not None:
        raise ValueError(f"the checksum of its member {damaged} is wrong")


def _settled(value: Any) -> Any:
    """The same containers with numpy arrays in place of their substitutes."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = _settled(item)
    elif isinstance(value, list):
        value[:] = [_settled(item) for item in value]
    elif type(value) is tuple:
        return tuple(_settled(item) for item in value)
    elif isinstance(value, (argparse.Namespace, _History)):
        _settled(vars(value))
    return value


def is_dense(value: Any) -> bool:
    """Whether a value is a dense real tensor on the CPU, with memory for each element."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    if value.is_complex() or value.is_quantized:
        return False
    # An expanded tensor can state any shape.
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def are_dense(values: Mapping[Any, Any]) -> bool:
    """Whether all values of a table are dense tensors, see :func:`is_dense`."""
    return all(map(is_dense, values.values()))
