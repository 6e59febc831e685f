"""What earlier runs in a folder have finished, so that a run which was killed can go on.

A finished piece of work (the coefficients of eight volumes, a block of distances) is one .npy file
whose name ends in a digest of the piece's *key* and of the file's bytes. The key is a digest of
everything the piece was made from: inputs, parameters, the key of the stage before, the source of
this package and the versions of those it relies on. A file is believed only if its name fits, so a
stale, damaged, renamed or foreign one is never used: the piece is made again.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
from collections.abc import Iterable
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Protocol

import numpy as np

from cryodrgn_metric import __version__
from cryodrgn_metric.artifacts import atomic_path, plain, sha256_of
from cryodrgn_metric.termination import raise_if_terminated

__all__ = ["NO_CACHE", "PieceStore", "Stage", "StageCache"]

logger = logging.getLogger(__name__)

DIGITS = 32  # of a digest in a file's name: 128 bits
LIBRARIES = ("cryodrgn", "finufft", "numpy", "scikit-learn", "scipy", "torch")
_PIECE = re.compile(rf"(\d{{5,}}|files)-[0-9a-f]{{{DIGITS}}}\.(npy|json)")


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

    Example:
        >>> import tempfile
        >>> cache = StageCache(Path(tempfile.mkdtemp()))
        >>> cache.stage("volumes", box=64).save(0, np.arange(3))
        >>> cache.stage("volumes", box=64).load(0)
        array([0, 1, 2])
        >>> cache.stage("volumes", box=32).load(0) is None
        True
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def stage(self, name: str, **made_from: object) -> Stage:
        """One stage, with everything its result depends on.

        Arguments:
            name: Of the stage; its files lie in a folder of that name.
            made_from: Parameters, digests of inputs, and keys of earlier stages, as values that
                `artifacts.plain` knows.
        """
        raise_if_terminated()
        parts = {"stage": name, "made by": _makers(), **made_from}
        text = json.dumps(plain(parts), sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        return Stage(self._folder / name, key)

    def clear(self) -> None:
        """Forget all pieces of all stages (--restart)."""
        for path in self._folder.glob("*/*"):
            _remove_piece(path)


class Stage:
    """The finished pieces of one stage: a `PieceStore` in a folder.

    Arguments:
        folder: Where the pieces lie.
        key: Digest of everything they were made from; later stages are made from it.

    Attributes:
        loaded, saved: How many pieces were found, and how many were added.
        saved_rows: How many rows the added ones have together.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.key = key
        self.loaded = 0
        self.saved = 0
        self.saved_rows = 0
        self._folder = folder
        self._names: set[str] = set()
        self._there: dict[str, list[Path]] | None = None  # by stem; listed once: folders are slow

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
        raise_if_terminated()
        buffer = io.BytesIO()
        np.save(buffer, piece, allow_pickle=False)
        self._write(f"{number:05d}", ".npy", buffer.getvalue())
        self.saved += 1
        self.saved_rows += len(piece)

    def seal(self, files: Iterable[Path]) -> None:
        """Remember that these output files, as they are now, are what this stage makes."""
        self._write("files", ".json", json.dumps(_digests(files)).encode())

    def is_sealed(self, files: Iterable[Path]) -> bool:
        """Whether these output files are, to the byte, what this stage makes."""
        data = self._read("files", ".json")
        return data is not None and json.loads(data) == _digests(files)

    def forget_others(self, *relatives: Stage) -> None:
        """Remove what this run neither loaded nor saved: pieces of other parameters.

        Arguments:
            relatives: Stages of the same name whose pieces stay as well.
        """
        kept = self._names.union(*(stage._names for stage in relatives))
        for path in self._folder.glob("*"):
            if path.name not in kept:
                _remove_piece(path)

    def _read(self, stem: str, suffix: str) -> bytes | None:
        for path in self._listed().get(stem, []):
            try:
                data = path.read_bytes()
            except OSError as error:
                logger.warning("%s cannot be read (%s): making it again.", path, error.strerror)
                continue
            if path.name == self._name(stem, suffix, data):
                self._names.add(path.name)
                return data
        return None

    def _listed(self) -> dict[str, list[Path]]:
        if self._there is None:
            self._there = {}
            for path in sorted(self._folder.glob("*-*")):
                self._there.setdefault(path.name.partition("-")[0], []).append(path)
        return self._there

    def _write(self, stem: str, suffix: str, data: bytes) -> None:
        name = self._name(stem, suffix, data)
        with atomic_path(self._folder / name) as draft:
            draft.write_bytes(data)
        self._names.add(name)
        self._listed().setdefault(stem, []).append(self._folder / name)

    def _name(self, stem: str, suffix: str, data: bytes) -> str:
        digest = hashlib.sha256(f"{self.key} {stem}{suffix} ".encode() + data).hexdigest()
        return f"{stem}-{digest[:DIGITS]}{suffix}"


def _digests(files: Iterable[Path]) -> dict[str, str]:
    return {path.name: sha256_of(path) if path.is_file() else "" for path in files}


def _remove_piece(path: Path) -> None:
    """Only what is named as a piece: the folder is ours, but who knows what else lies there."""
    if _PIECE.fullmatch(path.name) and path.is_file():
        path.unlink()


def _makers() -> dict[str, str]:
    """This package, and those whose classes and numbers it relies on."""
    versions = {name: _version_of(name) for name in LIBRARIES}
    return {"version": __version__, "source": _digest_of_this_package(), **versions}


def _version_of(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # a build of a cluster's own, without its metadata
        return "unknown"


@lru_cache(maxsize=1)
def _digest_of_this_package() -> str:
    """Our version, to the letter: also where the source changes without a new number."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in sorted(here.rglob("*.py")):
        digest.update(path.relative_to(here).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
