"""What a run says, and how long each of its stages takes."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Stopwatch", "logged_to", "logging_kept", "peak_memory_in_bytes"]

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
        """Time the block, and log it."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        logger.info("%s: %.1f s", name, self.seconds[name])

    def total(self) -> float:
        return sum(self.seconds.values())


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Log the package to a file as well as to the terminal."""
    package = logging.getLogger("cryodrgn_metric")
    style = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
    path.parent.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [
        logging.StreamHandler(sys.stdout),
        logging.FileHandler(path, encoding="utf-8"),
    ]
    level, propagate = package.level, package.propagate
    for handler in handlers:
        handler.setFormatter(style)
        package.addHandler(handler)
    package.setLevel(logging.INFO)
    for name, known in list(package.manager.loggerDict.items()):
        if name.startswith("cryodrgn_metric") and isinstance(known, logging.Logger):
            known.disabled = False  # whoever imported cryoDRGN after us has silenced them
    package.propagate = False  # cryoDRGN's root logger prints to the terminal, too
    try:
        yield
    finally:
        package.setLevel(level)
        package.propagate = propagate
        for handler in handlers:
            package.removeHandler(handler)
            handler.close()


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
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
