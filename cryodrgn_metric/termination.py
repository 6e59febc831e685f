"""SIGTERM, which batch systems send before a time limit, as an exception."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["EXIT_UNFINISHED", "Terminated", "raise_if_terminated", "terminable"]

EXIT_UNFINISHED = 75  # EX_TEMPFAIL of sysexits.h: type the same again

_came = threading.Event()


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
    _came.clear()
    before = signal.signal(signal.SIGTERM, _raise_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _came.clear()


def raise_if_terminated() -> None:
    """Raise `Terminated` if SIGTERM has come within `terminable`.

    Python swallows what is raised within `__del__` and callbacks: where the signal hit there, this
    call, between two pieces of work, is what ends the run.
    """
    if _came.is_set():
        raise Terminated("SIGTERM")


def _raise_once(number: int, frame: FrameType | None) -> None:
    if _came.is_set():  # the clean-up must not be interrupted
        return
    _came.set()
    raise Terminated("SIGTERM")
