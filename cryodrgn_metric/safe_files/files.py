"""The bytes of a file, where it is one."""

from __future__ import annotations

import os
from pathlib import Path

from cryodrgn_metric.errors import WorkdirError

__all__ = ["bytes_of", "require_file"]


def require_file(path: Path) -> None:
    """Refuse what is there but no file: a pipe would keep us waiting."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise WorkdirError(f"{path} cannot be read: it is not a file.")


def bytes_of(path: Path) -> bytes:
    """All that a file holds.

    Raises:
        WorkdirError: it is missing, unreadable, or no file.
    """
    require_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise WorkdirError(f"{path} cannot be read: {error.strerror}.") from error
