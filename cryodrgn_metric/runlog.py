"""What a run says, and how long each of its stages takes."""

from __future__ import annotations

import logging
import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

from cryodrgn_metric.errors import OutputError

__all__ = ["RunLog", "Stopwatch", "logged", "logging_kept", "peak_memory_in_bytes"]

logger = logging.getLogger(__name__)


class Stopwatch:
    """Seconds of wall time per stage.

    Example:
        >>> watch = Stopwatch()
        >>> with watch.stage("volumes"):
        ...     pass
        >>> list(watch.seconds)
        ['volumes']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block, and log its beginning and its end."""
        logger.info("%s ...", name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        logger.info("%s: %.1f s", name, self.seconds[name])

    def total(self) -> float:
        return sum(self.seconds.values())


class _LogFile(logging.FileHandler):
    """A log file whose full disk is reported once, and by the results that don't fit either."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
        elif not self._reported:
            self._reported = True
            print(f"{self.baseFilename}: {sys.exc_info()[1]}", file=sys.stderr)

    _reported = False


class _Terminal(logging.StreamHandler):  # type: ignore[type-arg]
    """A terminal that may be closed, as by `| head`: the run and its file go on."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)


class RunLog:
    """The package's log, on the terminal at once and in a file as soon as there is one.

    What is said before `write_to` is kept for the file, so that a run that is refused leaves none.
    """

    def __init__(self) -> None:
        style = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
        self._terminal = _Terminal(sys.stdout)
        self._file = MemoryHandler(capacity=1 << 20, flushLevel=logging.CRITICAL + 1)
        self._style = style
        self._terminal.setFormatter(style)
        self.handlers: tuple[logging.Handler, ...] = (self._terminal, self._file)

    def write_to(self, path: Path) -> None:
        """Open the file, and write what was said so far and whatever follows.

        Raises:
            OutputError: It cannot be opened.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            target = _LogFile(path, encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written: {error.strerror}. Name a folder of your own with -o."
            ) from error
        target.setFormatter(self._style)
        self._file.setTarget(target)
        self._file.capacity = 1
        self._file.flush()

    def close(self) -> None:
        target = self._file.target
        self._file.close()
        if target is not None:
            target.close()


@contextmanager
def logged() -> Iterator[RunLog]:
    """Log the package to the terminal, and to a file once the block calls `write_to`."""
    package = logging.getLogger("cryodrgn_metric")
    log = RunLog()
    level, propagate = package.level, package.propagate
    for name, known in list(package.manager.loggerDict.items()):
        if name.startswith("cryodrgn_metric") and isinstance(known, logging.Logger):
            known.disabled = False  # whoever imported cryoDRGN after us has silenced them
    for handler in log.handlers:
        package.addHandler(handler)
    package.setLevel(logging.INFO)
    package.propagate = False  # cryoDRGN's root logger prints to the terminal, too
    try:
        yield log
    except BaseException as error:
        package.error("Stopped by %s: %s", type(error).__name__, error)
        raise
    finally:
        package.setLevel(level)
        package.propagate = propagate
        for handler in log.handlers:
            package.removeHandler(handler)
        log.close()


@contextmanager
def logging_kept() -> Iterator[None]:
    """Undo what `import cryodrgn` does to logging: it silences every logger made before it.

    Every import of cryoDRGN in this package stands inside such a block. Where cryoDRGN has been
    imported already (its own command line), nothing changes.
    """
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    known = [item for item in root.manager.loggerDict.values() if isinstance(item, logging.Logger)]
    disabled = [item.disabled for item in known]
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
        for item, was_disabled in zip(known, disabled, strict=True):
            item.disabled = was_disabled


def peak_memory_in_bytes() -> int:
    """Largest resident memory of this process so far.

    On Linux as the kernel tells it of this program alone: getrusage also counts what the parent
    held when it started this process.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        status = ""
    if found := re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE):
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
