"""One run at a time in a folder: an advisory lock that ends with the process that holds it."""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryodrgn_metric.errors import FolderBusyError, OutputError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

__all__ = ["locked"]

logger = logging.getLogger(__name__)

# What file systems answer that have no locks (Lustre without -o flock, some NFS mounts).
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
MOST_SHOWN = 200  # characters of the holder's name: anyone can write to the file


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a folder inside the block.

    The lock (flock) belongs to the process: it ends when that does, however it ends, so nothing
    stale is ever in the way. The file stays, and holds who took the lock last.

    Arguments:
        path: The lock's file; its folder is made if it is missing.

    Raises:
        FolderBusyError: Another run holds it; the message says which.
        OutputError: The file cannot be made, or was removed while it was held.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "lock"
        >>> with locked(path), locked(path):
        ...     pass
        Traceback (most recent call last):
        cryodrgn_metric.errors.FolderBusyError: ...
    """
    descriptor = _open(path)
    try:
        _take(descriptor, path)
        while not _is_there(descriptor, path):  # it was removed while we opened it
            os.close(descriptor)
            descriptor = _open(path)
            _take(descriptor, path)
        _sign(descriptor, path)
        yield
        if not _is_there(descriptor, path):
            raise OutputError(
                f"{path.parent} was removed or replaced while the run wrote there: what is there "
                "is not complete. Type the same again."
            )
    finally:
        os.close(descriptor)


def _is_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise OutputError(
            f"{path.parent} cannot be written to: {error.strerror}. "
            "Name a folder of your own with -o."
        ) from error


def _take(descriptor: int, path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, MOST_SHOWN, 0).decode(errors="replace").strip()
        raise FolderBusyError(
            f"{path.parent} is being written by another run: {holder or 'unknown'}. "
            "Wait for it, stop it, or name another folder with -o."
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise OutputError(f"{path} cannot be locked: {error.strerror}.") from error
        logger.warning(
            "%s is on a file system without locks: make sure that no other run writes there.",
            path.parent,
        )


def _sign(descriptor: int, path: Path) -> None:
    name = _this_process().encode()
    try:
        os.pwrite(descriptor, name, 0)  # first: the file marks the folder as ours, never empty
        os.ftruncate(descriptor, len(name))
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from error


def _this_process() -> str:
    job = os.environ.get("SLURM_JOB_ID")
    where = f"process {os.getpid()} on {socket.gethostname()}"
    since = time.strftime("since %Y-%m-%d %H:%M:%S")
    return f"{where}{f', Slurm job {job}' if job else ''}, {since}\n"
