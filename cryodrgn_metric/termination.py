"""SIGTERM, which batch systems send before a time limit, as an exception."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Terminated", "terminable"]


class Terminated(BaseException):
    """SIGTERM has come. No Exception, so that no handler of errors takes it for one."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` in the block when SIGTERM comes; a second one changes nothing.

    Only a program's main thread gets signals; in any other thread nothing is changed.

    Example:
        >>> import os
        >>> with terminable():
        ...     os.kill(os.getpid(), signal.SIGTERM)
        Traceback (most recent call last):
        cryodrgn_metric.termination.Terminated: SIGTERM
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise_once(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the clean-up must not be interrupted
    raise Terminated("SIGTERM")
