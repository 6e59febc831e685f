"""Checkpoints through `torch.load(weights_only=True)`, after a rehearsal without tensors."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryodrgn_metric.errors import UnsafeFileError, WorkdirError, brief
from cryodrgn_metric.safe_files.files import require_file
from cryodrgn_metric.safe_files.pickles import NUMPY_NAMES, ArrayUnpickler, require

__all__ = ["Unread", "load_checkpoint"]

LEGACY_PICKLES = 5  # at the start of a file that torch wrote before it wrote zip files
FOLDER_ATTRIBUTE = 0x10  # of a file in a zip file, as MS-DOS has it


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

    path = Path(path)
    _rehearse(path)
    # torch before 2.5 has no such list: there, checkpoints of abinit_het_old are refused
    admitting = getattr(torch.serialization, "safe_globals", contextlib.nullcontext)
    try:
        with warnings.catch_warnings(), admitting(_UNREAD_NAMES):
            warnings.simplefilter("ignore")  # about files that torch did not write
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files, and advises to
        reason = re.split(r"[.\n]", str(error))[0]  # load them unsafely in the next sentence
        raise WorkdirError(
            f"{path} is not a checkpoint, or is damaged: {brief(reason)}."
        ) from error
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


class _Rehearsal(ArrayUnpickler):
    """Reads the pickle of a checkpoint with all tensors left out.

    torch's own safe unpickler executes nothing either, but makes whatever room it is asked for.
    """

    def __init__(self, file: io.BytesIO, path: Path, size: int) -> None:
        super().__init__(file, path)
        self._size = size

    def find_class(self, module: str, name: str) -> object:
        inert = _TENSOR_NAMES.fullmatch(f"{module}.{name}")
        # made anew each time, as everything that a pickle looks up
        return (lambda *_: None) if inert else super().find_class(module, name)

    def persistent_load(self, pid: Any) -> None:
        kind, _, _, _, numbers, *_ = pid
        fine = kind == "storage" and type(numbers) is int and 0 <= numbers <= self._size
        require(fine, "a tensor is larger than the file")


def _rehearse(path: Path) -> None:
    """Refuse a checkpoint that asks for other names than tensors need, or for too much room."""
    require_file(path)
    try:
        for part, count in _pickles_of(path):
            file = io.BytesIO(part)
            for _ in range(count):
                _Rehearsal(file, path, path.stat().st_size).load()
    except UnsafeFileError:
        raise
    except Exception as error:
        raise WorkdirError(f"{path} is not a checkpoint, or is damaged: {brief(error)}") from error


def _pickles_of(path: Path) -> Iterator[tuple[bytes, int]]:
    """The parts of a torch file that hold pickles, and how many."""
    with path.open("rb") as file:
        magic = file.read(2)
    if magic != b"PK":
        yield path.read_bytes(), LEGACY_PICKLES
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        size = sum(member.file_size for member in members)
        require(size <= path.stat().st_size, "it claims more than it holds")
        # of what is marked as a folder torch reads nothing, and returns whatever memory held
        plain = all(_is_plain(member) for member in members)
        require(plain, "it is compressed, or marked as a folder")
        names = {member.filename.lower() for member in members}  # torch ignores case
        require(len(names) == len(members), "it holds two files of one name")
        require(archive.testzip() is None, "a checksum is wrong")
        for member in members:
            if member.filename.lower().endswith("data.pkl"):
                yield archive.read(member), 1


def _is_plain(member: zipfile.ZipInfo) -> bool:
    stored = member.compress_type == zipfile.ZIP_STORED
    is_folder = member.is_dir() or bool(member.external_attr & FOLDER_ATTRIBUTE)
    return stored and member.compress_size == member.file_size and not is_folder


# A checkpoint holds tensors besides.
_TENSOR_NAMES = re.compile(
    r"torch\.(\w+Storage|storage\.(Unt|T)ypedStorage|Size|device|bool|(u?int|b?float)\d+"
    r"|_utils\._rebuild_(tensor|tensor_v2|parameter)|nn\.parameter\.Parameter)"
    r"|datetime\.datetime"
)


def _unread(module: str, name: str) -> type[Unread]:
    """A class that torch files under `module.name`; without attributes that could be written."""
    return type(name, (Unread,), {"__module__": module, "__slots__": ()})


_UNREAD_NAMES = [
    _unread("datetime", "datetime"),
    *(_unread(module, name) for module, name in NUMPY_NAMES),
]
