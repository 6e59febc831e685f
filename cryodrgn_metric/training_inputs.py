"""The files that config.yaml names: CTF, poses, --ind; found also where the workdir has moved."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cryodrgn_metric.errors import UnsafeFileError, WorkdirError, brief
from cryodrgn_metric.safe_files.pickles import load_indices, load_pickle

__all__ = ["apix_in_angstroms", "find_input", "particle_indices", "require_row_count"]

logger = logging.getLogger(__name__)


def find_input(
    written: str | Path,
    workdir: str | Path,
    is_it: Callable[[Path], bool] = os.path.isfile,
) -> Path | None:
    """Find a file that config.yaml names: as written, beside the workdir's files, in its parent.

    Arguments:
        written: the path in config.yaml; absolute, relative or stale.
        workdir: the workdir.
        is_it: what a candidate must be; os.path.isdir for --datadir.

    Returns:
        the first of the candidates that is a file, else None.
    """
    # not absolute(), which keeps `..`: its parent would be the folder that it leads out of
    named, folder = Path(written), Path(os.path.abspath(workdir))
    candidates = [named]
    for base in (folder, folder.parent):
        candidates += [base / named, base / named.name]
    return next((path for path in candidates if is_it(path)), None)


# -- the particles


def particle_indices(config: dict[str, Any], folder: Path, count: int) -> np.ndarray:
    """What --ind of the training chose, in the order of z: cryoDRGN keeps its order.

    Arguments:
        config: config.yaml.
        folder: the workdir.
        count: rows of z, N.

    Returns:
        (N,) int64 numbers in the original stack; 0 to N - 1 where there was no --ind, or where its
        file is missing or of another length, which is said loudly.

    Raises:
        UnsafeFileError: the file would execute code.
    """
    written = config["dataset_args"].get("ind")
    found: np.ndarray | str = np.arange(count)
    if written is not None:
        found = _chosen_particles(written, folder, count)
    if isinstance(found, str):
        logger.warning(
            "PARTICLES ARE NUMBERED BY THE ROWS OF Z, not as in the original stack: %s. Put the "
            "file that the run was trained with (--ind) into %s or its parent.",
            found,
            folder,
        )
        found = np.arange(count)
    return found.astype(np.int64)


def _chosen_particles(written: object, folder: Path, count: int) -> np.ndarray | str:
    """The numbers in the --ind of config.yaml, or what is wrong with it."""
    path = None if isinstance(written, int) else find_input(str(written), folder)
    if path is None:
        # DRGN-AI also takes a number, the first so many particles, which may have become a path
        if Path(str(written)).name == str(count):
            return np.arange(count)
        return f"the --ind {brief(written)} of config.yaml is not there"
    try:
        numbers = load_indices(path)
    except UnsafeFileError:
        raise
    except WorkdirError as error:
        return str(error)
    fine = numbers.shape == (count,) and numbers.dtype.kind in "iu"
    if not fine or (numbers.astype(np.int64) < 0).any():  # also what int64 cannot hold
        return f"{path} should hold {count} particle numbers, one for each row of z"
    return numbers


def require_row_count(config: dict[str, Any], folder: Path, z_path: Path, count: int) -> None:
    """A row of z for each row of poses and CTF, where the run took all images, one a particle.

    Arguments:
        config: config.yaml.
        folder: the workdir.
        z_path: named in the message.
        count: rows of z.

    Raises:
        WorkdirError: the poses of config.yaml are there, and of another number of particles.
    """
    if config["dataset_args"].get("ind") is not None or _is_tilt(config):
        return
    for name in ("poses", "ctf"):
        written = config["dataset_args"].get(name)
        path = find_input(written, folder) if isinstance(written, str) and written else None
        rows = None if path is None else _row_count(path)
        if rows in (None, count):
            continue
        text = f"{z_path} holds {count} particles, but {path} {rows}"
        # of the CTF only a pixel size is needed; a file found elsewhere may be another's
        if name == "ctf" or str(path) != written:
            logger.warning("%s: is that the file of this training?", text)
            continue
        raise WorkdirError(
            f"{text}. One of them is of another training: put the right one in its place, or "
            "choose another --epoch."
        )


def _is_tilt(config: dict[str, Any]) -> bool:
    return bool(config["model_args"].get("encode_mode") == "tilt")


def _row_count(path: Path) -> int | None:
    """Rows of ctf.pkl, an array, or of poses.pkl, rotations and perhaps translations."""
    table = _read_unless_damaged(path)
    first = table[0] if isinstance(table, tuple) and table else table
    return len(first) if isinstance(first, np.ndarray) and first.ndim else None


def _read_unless_damaged(path: Path) -> object:
    """What a file holds that is of use, but not needed; None if it cannot be read."""
    try:
        return load_pickle(path)
    except UnsafeFileError:
        raise
    except WorkdirError as error:
        logger.warning("%s", error)
        return None


# -- pixel size


def apix_in_angstroms(config: dict[str, Any], config_path: Path, box_size: int) -> float:
    """The pixel size by the rule of `cryodrgn analyze`, with its fallbacks to 1 Å.

    apix = Apix of the CTF file · its box / box_size, rounded to 6 digits.

    Arguments:
        config: config.yaml.
        config_path: where it lies.
        box_size: voxels along a side of V(z).

    Returns:
        the size in Å of a voxel of V(z); 1.0 where the file is missing, damaged, or names several.

    Raises:
        WorkdirError: config.yaml holds something else than a path.
        UnsafeFileError: the file would execute code.
    """
    written = config["dataset_args"].get("ctf")
    if not written:
        logger.info("No CTF file in config.yaml: using 1.0 Å per pixel (--Apix sets it).")
        return 1.0
    if not isinstance(written, str):
        raise WorkdirError(
            f"{config_path}: dataset_args.ctf must be a path; got {brief(written)}."
        )
    path = find_input(written, config_path.parent)
    if path is None:
        logger.warning(
            "The CTF file %s is not there, nor in the workdir or its parent: using 1.0 Å per "
            "pixel (--Apix sets it).",
            written,
        )
        return 1.0
    return _apix_from_ctf(_read_unless_damaged(path), path, box_size)


def _apix_from_ctf(ctf: object, path: Path, box_size: int) -> float:
    readable = isinstance(ctf, np.ndarray) and ctf.dtype.kind in "fiu"
    with np.errstate(over="ignore", invalid="ignore"):
        table = np.asarray(ctf, np.float64) if readable else np.empty(0)
    if table.ndim != 2 or table.shape[1] < 2 or not len(table):
        logger.warning("%s holds no CTF table: using 1.0 Å per pixel (--Apix sets it).", path)
        return 1.0
    sizes, pixel_sizes = set(table[:, 0].tolist()), set(table[:, 1].tolist())
    if len(pixel_sizes) > 1:
        logger.info("%s holds several pixel sizes: using 1.0 Å (--Apix sets it).", path)
        return 1.0
    size = next(iter(sizes))
    if len(sizes) > 1:
        logger.info("%s holds several box sizes: using the first found, %g.", path, size)
    apix = round(float(pixel_sizes.pop() * size / box_size), 6)
    if not np.isfinite(apix) or apix <= 0:
        logger.warning("%s gives no pixel size: using 1.0 Å (--Apix sets it).", path)
        return 1.0
    return apix
