"""Writing that never leaves half a file behind.

Every file of `WORKDIR/metric_embed.N/`, which `metric_folder.py` names, is written through
`atomic_path`: into a hidden neighbour first, flushed to the disk, then renamed over the final
name, so that a reader (or a run that continues after a crash) sees the old file or the whole
new one.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import pickle
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import yaml

from cryodrgn_metric.errors import OutputError

__all__ = [
    "atomic_path",
    "plain",
    "remove_drafts",
    "remove_drafts_of",
    "remove_files",
    "require_space",
    "save_columns",
    "save_csv",
    "save_json",
    "save_link",
    "save_npz",
    "save_pickle",
    "save_text",
    "save_yaml",
    "sha256_of",
    "sha256_of_array",
]

# Readable from Python 3.4 on, like the pickles that cryoDRGN itself writes.
PICKLE_PROTOCOL = 4
BYTES_PER_READ = 1 << 20


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(final: str | os.PathLike[str]) -> Iterator[Path]:
    """Lend a hidden path beside `final`; rename it to `final` once the block has succeeded.

    The folder is made if it is missing. If the block fails, `final` is as it was and the
    hidden file is gone. The suffix is kept, because writers choose formats by it.

    Arguments:
        final: the path that readers will open.

    Returns:
        a context manager that yields the path to write.

    Raises:
        OutputError: the disk is full, read-only, or the folder cannot be made.

    Example:
        >>> import tempfile
        >>> final = Path(tempfile.mkdtemp()) / "numbers.txt"
        >>> with atomic_path(final) as path:
        ...     _ = path.write_text("1 2 3")
        >>> final.read_text()
        '1 2 3'
    """
    target = Path(final)
    draft = target.with_name(f".{target.stem}.{secrets.token_hex(6)}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield draft
            _flush(draft, os.O_RDWR)
            os.replace(draft, target)
        finally:
            draft.unlink(missing_ok=True)
        if os.name == "posix":  # a folder cannot be opened elsewhere
            _flush(target.parent, os.O_RDONLY)
    except OSError as error:
        raise OutputError(
            f"{target} cannot be written: {error.strerror or error}. Make room, or name another "
            "folder with -o."
        ) from error


_DRAFT = re.compile(r"\..*\.[0-9a-f]{12}(\.[^.]*)?")


def remove_drafts(folder: Path) -> None:
    """Remove what a killed run had begun to write in one of our own folders.

    Arguments:
        folder: an output folder of this package that no other run writes to.
    """
    for path in folder.rglob(".*"):
        if _DRAFT.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def remove_drafts_of(final: Path) -> None:
    """Remove what a killed run had begun to write for one file, in a folder that isn't ours.

    Arguments:
        final: the file; it stays.
    """
    draft = rf"\.{re.escape(final.stem)}\.[0-9a-f]{{12}}{re.escape(final.suffix)}"
    for path in final.parent.glob(".*"):
        if re.fullmatch(draft, path.name) and path.is_file():
            path.unlink(missing_ok=True)


def require_space(folder: Path, needed_in_bytes: int) -> None:
    """Refuse a disk that is too full before anything is computed.

    Arguments:
        folder: where results will go; an ancestor is asked where it doesn't exist yet.
        needed_in_bytes: what the run will write, about.

    Raises:
        OutputError: there is less space than that.
    """
    there = next(p for p in (folder, *folder.absolute().parents) if os.path.exists(p))
    # what an earlier run has written is written already, or replaced
    written = sum(map(_size_of, folder.rglob("*"))) if os.path.isdir(folder) else 0
    free = shutil.disk_usage(there).free + written
    if free < needed_in_bytes:
        raise OutputError(
            f"{folder} needs about {needed_in_bytes / 1e6:.0f} MB, and {free / 1e6:.0f} MB are "
            "free or taken by it. Make room, or name another folder with -o."
        )


def remove_files(paths: Iterable[Path]) -> None:
    """Remove what an earlier run wrote and this one did not; what is no file is left alone."""
    for path in paths:
        if path.is_file():
            path.unlink()


def save_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as draft:
        draft.write_text(text, encoding="utf-8")


def save_csv(path: str | os.PathLike[str], values: np.ndarray, names: list[str]) -> None:
    """Write columns of numbers with a header line, comma-separated, atomically."""
    with atomic_path(path) as draft:
        np.savetxt(draft, values, delimiter=",", header=",".join(names), comments="", fmt="%.7g")


def save_columns(path: str | os.PathLike[str], values: np.ndarray) -> None:
    """Write numbers as cryoDRGN writes centers.txt and centers_ind.txt, atomically."""
    with atomic_path(path) as draft:
        np.savetxt(draft, values, fmt="%d" if values.dtype.kind in "iu" else "%.18e")


def save_pickle(path: str | os.PathLike[str], value: object) -> None:
    """Write `value` as one pickle, atomically, like cryoDRGN's own z.N.pkl."""
    with atomic_path(path) as draft, draft.open("wb") as file:
        pickle.dump(value, file, protocol=PICKLE_PROTOCOL)


def save_npz(path: str | os.PathLike[str], **arrays: np.ndarray) -> None:
    """Write named arrays to one .npz file, atomically; open it with `numpy.load`."""
    with atomic_path(path) as draft, draft.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes no **arrays


def save_json(path: str | os.PathLike[str], value: object) -> None:
    """Write `plain(value)` as JSON, atomically; NaN and infinity become null."""
    text = json.dumps(_finite(plain(value)), indent=2, allow_nan=False)
    save_text(path, text + "\n")


# What file systems answer that have no links (exFAT, SMB shares), and Windows without the right.
NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def save_link(path: str | os.PathLike[str], target: str | os.PathLike[str]) -> bool:
    """Make a link to a file, atomically; a copy of it where the file system has no links.

    The link is relative, so that both can be moved or mounted elsewhere together. Folders on the
    way are followed to where they really are, the file itself is not.

    Arguments:
        path: the link, or what it replaces.
        target: the file that it leads to.

    Returns:
        whether it is a link; False for a copy.

    Raises:
        OutputError: neither can be written.
    """
    final, source = Path(path), Path(target)
    draft = final.with_name(f".{final.stem}.{secrets.token_hex(6)}{final.suffix}")
    real = os.path.join(os.path.realpath(source.parent), source.name)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        draft.symlink_to(os.path.relpath(real, os.path.realpath(final.parent)))
        os.replace(draft, final)
        return True
    except (OSError, ValueError) as error:  # ValueError: on another drive of Windows
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno not in NO_LINKS:
            raise OutputError(f"{final} cannot be written: {error.strerror or error}.") from error
    with atomic_path(final) as copy:
        shutil.copyfile(source, copy)
    return False


def save_yaml(path: str | os.PathLike[str], value: object) -> None:
    """Write `plain(value)` as YAML, atomically; `yaml.safe_load` reads it back."""
    save_text(path, yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True))


def plain(value: object) -> object:
    """Turn dataclasses, numpy values, paths and tuples into what JSON and YAML can hold.

    Example:
        >>> plain({"path": Path("a"), "sizes": (np.int64(3), np.float64(0.5))})
        {'path': 'a', 'sizes': [3, 0.5]}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    # str() also turns subclasses such as torch's version into what YAML knows.
    return value if isinstance(value, bool | int | float | None) else str(value)


def _finite(value: object) -> object:
    """JSON has no NaN: many readers refuse the whole file because of one."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _size_of(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # another run is at work there, and will be named
        return 0


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "empty"
        >>> path.touch()
        >>> sha256_of(path)[:8]
        'e3b0c442'
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BYTES_PER_READ):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_array(values: np.ndarray) -> str:
    """The SHA-256 of an array's type, shape and numbers.

    Example:
        >>> sha256_of_array(np.arange(3)) == sha256_of_array(np.arange(3.0))
        False
    """
    numbers = np.ascontiguousarray(values)
    head = f"{numbers.dtype.str} {numbers.shape} ".encode()
    return hashlib.sha256(head + numbers.tobytes()).hexdigest()
