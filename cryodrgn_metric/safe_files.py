"""Readers of files that may be hostile: nothing in them is executed.

Pickles go through an unpickler that knows numpy arrays and builtin containers only, checkpoints
through `torch.load(weights_only=True)`, where numpy arrays and dates come back as `Unread`.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cryodrgn_metric.errors import UnsafeFileError, WorkdirError

__all__ = ["Unread", "load_checkpoint", "load_pickle", "load_pickles"]


def load_pickle(path: str | Path) -> object:
    """Read the first pickle of a file, admitting numpy arrays in builtin containers only.

    Arguments:
        path: a pickle such as z.N.pkl, ctf.pkl, poses.pkl, or a file of particle indices.

    Returns:
        arrays, numpy scalars, and dict, list, tuple, set, str, bytes, numbers, None of them.

    Raises:
        UnsafeFileError: the pickle names anything else; nothing of it has been executed.
        WorkdirError: the file is missing, cut off, or not a pickle.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "ind.pkl"
        >>> _ = path.write_bytes(pickle.dumps(np.arange(3)))
        >>> load_pickle(path).tolist()
        [0, 1, 2]
    """
    return load_pickles(Path(path), 1)[0]


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a weights.N.pkl onto the CPU with `torch.load(weights_only=True)`.

    abinit_het_old keeps numpy arrays and a date beside its tensors: they come back as `Unread`.

    Arguments:
        path: the checkpoint, of a run on any device.

    Returns:
        the dictionary that was saved, tensors on the CPU.

    Raises:
        UnsafeFileError: the checkpoint names a global that neither torch nor `Unread` admits.
        WorkdirError: the file is missing, damaged, or holds no dictionary.
    """
    import torch

    # torch before 2.5 has no such list: there, checkpoints of abinit_het_old are refused
    admitting = getattr(torch.serialization, "safe_globals", contextlib.nullcontext)
    try:
        with warnings.catch_warnings(), admitting(_UNREAD_NAMES):
            warnings.simplefilter("ignore")  # about files that torch did not write
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if re.search(r"unsupported operand|pickle data was truncated", str(error), re.I):
            load_pickle(path)  # torch stops before any name; ours says if there is a hostile one
            raise WorkdirError(f"{path} is not a checkpoint, or is damaged.") from error
        # torch's own advice is to load unsafely: only the sentence that names the global is kept
        named = re.search(r"[^.\n]*GLOBAL.*?(?=\. |\n|$)", str(error), re.I)
        reason = named.group(0).strip() if named else "it is not a plain state dictionary"
        raise UnsafeFileError(f"{path} was refused, nothing was executed: {reason}") from error
    except Exception as error:  # torch raises many types for damaged files
        raise WorkdirError(f"{path} is not a checkpoint, or is damaged: {error}") from error
    if not isinstance(checkpoint, dict):
        raise WorkdirError(f"{path}: expected a dictionary; got {type(checkpoint).__name__}.")
    return checkpoint


class Unread:
    """Stands for an array or a date of a checkpoint: takes all that is passed, does nothing.

    Admitting numpy's own names instead would not be safe: `numpy.ndarray(1, "O", buffer)`, which
    a pickle may then call, makes Python objects of any bytes.
    """

    __slots__ = ()

    def __init__(self, *_: object) -> None:
        """Ignore what a pickle passes."""

    def __setstate__(self, _: object) -> None:
        """Ignore the state that a pickle sets."""


def load_pickles(path: Path, count: int) -> list[object]:
    """Read up to `count` pickles that follow one another in a file; the first must be there.

    Arguments and errors as for `load_pickle`; z.N.pkl of train_vae holds two.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WorkdirError(f"{path} cannot be read: {error.strerror}.") from error
    file = io.BytesIO(data)
    values: list[object] = []
    while len(values) < count and (not values or file.tell() < len(data)):
        try:
            values.append(_ArrayUnpickler(file, path).load())
        except UnsafeFileError:
            raise
        except Exception as error:  # damaged pickles raise nearly every builtin exception
            raise WorkdirError(f"{path} is not a pickle, or is cut off: {error}") from error
    return values


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that resolves only the names which a pickled numpy array needs.

    The stand-ins are made anew for every look-up and take no subclass, buffer or object that
    numpy's own constructors would: a pickle can write attributes on whatever it looks up.
    """

    def __init__(self, file: io.BytesIO, path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> object:
        if maker := _PICKLED_NAMES.get((module, name)):
            return maker()
        raise UnsafeFileError(
            f"{self._path} was refused: it asks for {module}.{name}, and only numpy arrays in "
            "builtin containers are read. Nothing was executed; don't open it with other tools."
        )


def _dtype(name: object, *_: object) -> np.dtype[Any]:
    if not isinstance(name, str) or np.dtype(name).kind == "V":
        raise pickle.UnpicklingError(f"it holds records ({name}), not arrays of numbers")
    return np.dtype(name, align=False, copy=True)  # its state, the byte order, is set after this


def _from_buffer(
    data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], order: str, *_: object
) -> np.ndarray:
    array: np.ndarray = np.frombuffer(data, dtype=dtype)
    return array.reshape(shape, order="F" if order == "F" else "C")


def _fresh(function: Callable[..., object]) -> Callable[[], object]:
    return lambda: lambda *arguments: function(*arguments)


def _same(value: object) -> Callable[[], object]:
    return lambda: value


_NUMPY_NAMES: dict[str, Callable[[], object]] = {
    "ndarray": _same(None),  # only ever an argument of _reconstruct, which doesn't use it
    "dtype": _fresh(_dtype),
    "_reconstruct": _fresh(lambda *_: np.empty(0, dtype=np.int8)),
    "scalar": _same(np.float64(0).__reduce__()[0]),
    "_frombuffer": _fresh(_from_buffer),
}
# numpy 1 calls its private package numpy.core, numpy 2 numpy._core; files of both are about.
_NUMPY_CORES = ("core.multiarray", "core.numeric", "_core.multiarray", "_core.numeric")
_NUMPY_MODULES = ("numpy", *(f"numpy.{core}" for core in _NUMPY_CORES))
_PICKLED_NAMES: dict[tuple[str, str], Callable[[], object]] = {
    **{(module, name): maker for module in _NUMPY_MODULES for name, maker in _NUMPY_NAMES.items()},
    **{
        (module, kind.__name__): _same(kind)
        for module in ("builtins", "__builtin__")  # the latter in pickle protocols 0 to 2
        for kind in (bytearray, bytes, complex, frozenset, list, set)
    },
    ("collections", "OrderedDict"): _same(OrderedDict),
    # how protocols 0 to 2 hold bytes
    ("_codecs", "encode"): _fresh(lambda text, *_: text.encode("latin1")),
}


def _unread(module: str, name: str) -> type[Unread]:
    """A class that torch files under `module.name`; without attributes that could be written."""
    return type(name, (Unread,), {"__module__": module, "__slots__": ()})


_UNREAD_NAMES = [
    _unread("datetime", "datetime"),
    *(_unread(module, name) for module in _NUMPY_MODULES for name in _NUMPY_NAMES),
]
