"""What earlier runs in a folder have finished, so that a run which was killed can go on.

A finished piece of work (the coefficients of eight volumes, a block of distances) is one .npy file
whose name ends in a digest of the piece's *key* and of the file's bytes. The key is a digest of
everything the piece was made from: inputs, parameters, the key of the stage before, and the source
of this package. A file is believed only if its name fits, so a stale, damaged, renamed or foreign
one is never used: the piece is made again.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from cryodrgn_metric import __version__
from cryodrgn_metric.artifacts import atomic_path, keep_only, plain, sha256_of

__all__ = ["NO_CACHE", "PieceStore", "Stage", "StageCache"]

logger = logging.getLogger(__name__)

DIGITS = 32  # of a digest in a file's name: 128 bits


class PieceStore(Protocol):
    """Where a stage keeps its finished pieces, by number."""

    def load(self, number: int) -> np.ndarray | None: ...

    def save(self, number: int, piece: np.ndarray) -> None: ...


class _Nowhere:
    """Remembers nothing: for whoever computes outside a run."""

    def load(self, number: int) -> np.ndarray | None:
        return None

    def save(self, number: int, piece: np.ndarray) -> None:
        pass


NO_CACHE = _Nowhere()


class StageCache:
    """The finished pieces of all stages in one output folder.

    Arguments:
        folder: `metric_embed.N/cache`; nothing is created by asking.
        restart: Believe nothing that is there.

    Example:
        >>> import tempfile
        >>> cache = StageCache(Path(tempfile.mkdtemp()))
        >>> cache.stage("volumes", box=64).save(0, np.arange(3))
        >>> cache.stage("volumes", box=64).load(0)
        array([0, 1, 2])
        >>> cache.stage("volumes", box=32).load(0) is None
        True
    """

    def __init__(self, folder: Path, restart: bool = False) -> None:
        self._folder = folder
        self._restart = restart

    def stage(self, name: str, **made_from: object) -> Stage:
        """One stage, with everything its result depends on.

        Arguments:
            name: Of the stage; its files lie in a folder of that name.
            made_from: Parameters, digests of inputs, and keys of earlier stages, as values that
                `artifacts.plain` knows.
        """
        ours = {"version": __version__, "source": _digest_of_this_package()}
        parts = {"stage": name, **ours, **made_from}
        text = json.dumps(plain(parts), sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        return Stage(self._folder / name, key, self._restart)


class Stage:
    """The finished pieces of one stage: a `PieceStore` in a folder.

    Arguments:
        folder: Where the pieces lie.
        key: Digest of everything they were made from; later stages are made from it.
        restart: Load nothing that this object has not saved itself.

    Attributes:
        loaded, saved: How many pieces were found, and how many were added.
    """

    def __init__(self, folder: Path, key: str, restart: bool = False) -> None:
        self.key = key
        self.loaded = 0
        self.saved = 0
        self._folder = folder
        self._restart = restart
        self._names: list[str] = []

    def load(self, number: int) -> np.ndarray | None:
        """A piece that was saved under this key, or None."""
        data = self._read(f"{number:05d}", ".npy")
        if data is None:
            return None
        self.loaded += 1
        piece: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
        return piece

    def save(self, number: int, piece: np.ndarray) -> None:
        """Keep a finished piece, atomically.

        Raises:
            OutputError: It cannot be written.
        """
        buffer = io.BytesIO()
        np.save(buffer, piece, allow_pickle=False)
        self._write(f"{number:05d}", ".npy", buffer.getvalue())
        self.saved += 1

    def seal(self, files: Iterable[Path]) -> None:
        """Remember that these output files, as they are now, are what this stage makes."""
        self._write("files", ".json", json.dumps(_digests(files)).encode())

    def is_sealed(self, files: Iterable[Path]) -> bool:
        """Whether these output files are, to the byte, what this stage makes."""
        data = self._read("files", ".json")
        return data is not None and json.loads(data) == _digests(files)

    def forget_others(self) -> None:
        """Remove what this run neither loaded nor saved: pieces of other parameters."""
        keep_only(self._folder, self._names, "*")

    def _read(self, stem: str, suffix: str) -> bytes | None:
        if self._restart:
            return None
        for path in sorted(self._folder.glob(f"{stem}-*{suffix}")):
            try:
                data = path.read_bytes()
            except OSError as error:
                logger.warning("%s cannot be read (%s): making it again.", path, error.strerror)
                continue
            if path.name == self._name(stem, suffix, data):
                self._names.append(path.name)
                return data
        return None

    def _write(self, stem: str, suffix: str, data: bytes) -> None:
        name = self._name(stem, suffix, data)
        with atomic_path(self._folder / name) as draft:
            draft.write_bytes(data)
        self._names.append(name)

    def _name(self, stem: str, suffix: str, data: bytes) -> str:
        digest = hashlib.sha256(f"{self.key} {stem}{suffix} ".encode() + data).hexdigest()
        return f"{stem}-{digest[:DIGITS]}{suffix}"


def _digests(files: Iterable[Path]) -> dict[str, str]:
    return {path.name: sha256_of(path) if path.is_file() else "" for path in files}


@lru_cache(maxsize=1)
def _digest_of_this_package() -> str:
    """Our version, to the letter: also where the source changes without a new number."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in sorted(here.rglob("*.py")):
        digest.update(path.relative_to(here).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
