"""Volumes on disk: .mrc files with the right pixel size, masks, one per cluster, movies."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, cast

import mrcfile
import numpy as np
import torch
from mrcfile.mrcinterpreter import MrcInterpreter
from mrcfile.utils import data_dtype_from_header
from torch import Tensor

from cryodrgn_metric.artifacts import atomic_path, save_text
from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.errors import ArgumentError, VolumeError
from cryodrgn_metric.se3.motions import translated
from cryodrgn_metric.threads import map_in_threads

__all__ = ["read_mask", "write_cluster_volumes", "write_movie", "write_volume"]

# Resampled soft masks overshoot [0, 1] by about this much; more is not a mask.
MASK_OVERSHOOT = 0.05
# Of the .mrc format (MRC2014), in bytes.
HEADER_BYTES = 1024
EXTENDED = slice(92, 96)  # where the header says how long the extended header is
MAP_ID = slice(208, 212)
VOLUME_STACKS = range(401, 631)  # space groups of files that hold several volumes
MOST_EXTENDED = 1 << 26
SHOWN_SHARE = 0.01  # of a map's voxels lie within the contour that ChimeraX chooses for it


def write_volume(
    path: str | os.PathLike[str],
    volume: np.ndarray | Tensor,
    apix_in_angstroms: float,
    flip: bool = False,
    invert: bool = False,
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> None:
    """Write a volume as a float32 .mrc file, atomically, with the header cryoDRGN writes.

    Equal volumes give equal files: the header holds no time and no label.

    Arguments:
        path: the .mrc file.
        volume: (n, n, n) [z, y, x].
        apix_in_angstroms: size of a voxel of this very volume (after any downsampling).
        flip: mirror the handedness, by reversing z as `cryodrgn analyze --flip` does.
        invert: write -volume.
        origin: (x, y, z) in Å of the header; cryoDRGN's is 0.

    Raises:
        VolumeError: not a cube of finite numbers.
        ArgumentError: a pixel size that is not positive.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "vol_001.mrc"
        >>> write_volume(path, np.zeros((8, 8, 8)), apix_in_angstroms=2.5)
        >>> float(mrcfile.read(path).sum())
        0.0
    """
    if not apix_in_angstroms > 0:
        raise ArgumentError(f"--Apix must be positive, in Å; got {apix_in_angstroms}.")
    data = _cube(volume)
    data = data[::-1] if flip else data
    data = -data if invert else data
    with atomic_path(path) as draft, mrcfile.new(draft) as mrc:
        mrc.set_data(np.ascontiguousarray(data))
        mrc.voxel_size = apix_in_angstroms
        mrc.header.origin = origin
        mrc.header.nlabl = 0
        mrc.header.label = b""


def _cube(volume: np.ndarray | Tensor) -> np.ndarray:
    values = volume.detach().cpu().numpy() if isinstance(volume, Tensor) else np.asarray(volume)
    if values.ndim != 3 or len(set(values.shape)) != 1 or not values.size:
        raise VolumeError(f"a volume must be (n, n, n); got {values.shape}.")
    data = values.astype(np.float32)
    if not np.isfinite(data).all():
        raise VolumeError("a volume holds NaN or infinite voxels; it was not written.")
    return data


def read_mask(path: str | os.PathLike[str], box: int) -> np.ndarray:
    """Read an .mrc mask that fits volumes of one box.

    Arguments:
        path: the .mrc file, 1 inside, 0 outside, soft edges in between; also .mrc.gz, .mrc.bz2.
        box: voxels along a side of the volumes it will multiply.

    Returns:
        (box, box, box) float32 [z, y, x] in [0, 1].

    Raises:
        VolumeError: not an .mrc file, another box, NaN, all zero, or far outside [0, 1].
    """
    try:
        values = _read_cube(Path(path), box)
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise VolumeError(f"--mask {path} is not a readable .mrc file: {error}") from error
    _require_mask(values, path)
    return values.clip(0.0, 1.0)


def _read_cube(path: Path, box: int) -> np.ndarray:
    """Read no more than a volume of this box takes, whatever the header or a gzip file claims."""
    with _opened(path) as stream:
        head = bytearray(stream.read(HEADER_BYTES))
        extended, head[EXTENDED] = head[EXTENDED], bytes(4)  # mrcfile would make room for it
        header = MrcInterpreter(io.BytesIO(head), header_only=True).header
        dtype = data_dtype_from_header(header)
        shape = tuple(int(header[name]) for name in ("nz", "ny", "nx"))
        if shape != (box, box, box):
            raise VolumeError(
                f"--mask {path}: expected {(box, box, box)} voxels, the box of the decoded "
                f"volumes (-d); got {shape}. Resample the mask, or compare at its box with -d."
            )
        skipped = int(np.frombuffer(extended, header["nsymbt"].dtype)[0])
        if dtype.kind not in "fiu" or not 0 <= skipped <= MOST_EXTENDED:
            raise ValueError(f"voxels of {dtype} behind {skipped} bytes of extended header")
        if int(header["ispg"]) in VOLUME_STACKS:
            raise ValueError("a stack of volumes")
        stream.read(skipped)
        data = stream.read(box**3 * dtype.itemsize)
        # the checksum of a compressed file is compared where it ends
        if stream.read(1) and not isinstance(stream, io.BufferedReader):
            raise ValueError("it goes on behind its voxels")
    return np.frombuffer(data, dtype).reshape(shape).astype(np.float32)


def _opened(path: Path) -> IO[bytes]:
    if path.exists() and not path.is_file():  # a pipe would keep us waiting
        raise OSError("it is not a file")
    with path.open("rb") as file:
        start = file.read(HEADER_BYTES)
    if b"MAP" not in start[MAP_ID]:
        for magic, opener in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open)):
            if start.startswith(magic):
                return cast("IO[bytes]", opener(path))
    return path.open("rb")


def _require_mask(values: np.ndarray, path: str | os.PathLike[str]) -> None:
    if not np.isfinite(values).all():
        raise VolumeError(f"--mask {path}: it holds NaN or infinite voxels.")
    if not (values > 0).any():
        raise VolumeError(f"--mask {path}: it is empty; no voxel is above 0.")
    low, high = float(values.min()), float(values.max())
    if low < -MASK_OVERSHOOT or high > 1 + MASK_OVERSHOOT:
        raise VolumeError(
            f"--mask {path}: expected values from 0 to 1; got {low:g} to {high:g}. Make one "
            "with `cryodrgn_utils gen_mask`."
        )


def write_cluster_volumes(
    decoder: Decoder,
    latents: np.ndarray | Tensor,
    rotations: np.ndarray | Tensor | None,
    paths: Sequence[Path],
    box: int,
    apix_in_angstroms: float,
    flip: bool = False,
    invert: bool = False,
    max_frequency: float | None = None,
    progress: Callable[[int], object] | None = None,
    translations_in_voxels: np.ndarray | None = None,
) -> None:
    """Write T_t R·V(z) of every cluster's representative.

    Each volume is decoded on rotated lattice coordinates, so nothing is interpolated, and has
    the amplitude of `eval_volume`. Memory holds two volumes a thread.

    Arguments:
        decoder: of the workdir.
        latents: (K, zdim).
        rotations: (K, 3, 3) that turn each volume into the common frame; None turns none.
        paths: the K files; their folders are made if they are missing.
        box: voxels along a side.
        apix_in_angstroms: size of a voxel at `box`, as `Workdir.apix_at_box` gives it.
        flip, invert: as for `write_volume`; they change the files only.
        max_frequency: radius, in Fourier voxels, beyond which the volume is zero.
        progress: called with 1 after each file, e.g. a tqdm bar's `update`.
        translations_in_voxels: t, (K, 3), x, y, z in voxels of `box`, applied by phases: what
            leaves the box comes back on the other side; None moves none.
    """

    def decode(row: int) -> Tensor:
        turn = None if rotations is None else rotations[row : row + 1]
        volumes = decoder.decode(latents[row : row + 1], box, turn, max_frequency)
        if translations_in_voxels is not None:
            move = torch.from_numpy(translations_in_voxels[row : row + 1])
            volumes = translated(volumes, move)
        return volumes[0]

    volumes = map_in_threads(decode, range(len(latents)), decoder.device)
    for path, volume in zip(paths, volumes, strict=True):
        write_volume(path, volume, apix_in_angstroms, flip, invert)
        if progress is not None:
            progress(1)


def write_movie(script: Path, volumes: Sequence[Path], title: str) -> None:
    """Write a ChimeraX script that plays volumes there and back, at one contour level.

    The level is the median of those that enclose 1 % of each volume's voxels. ChimeraX runs a
    script in the folder it lies in, so the folder may be moved as a whole.

    Arguments:
        script: The .cxc file, in the folder of the volumes.
        volumes: .mrc files of one box, in the order of the movie.
        title: Of the path, for the script's first line.

    References:
        https://www.cgl.ucsf.edu/chimerax/docs/user/commands/vseries.html
    """
    levels = [np.quantile(mrcfile.read(path), 1 - SHOWN_SHARE) for path in volumes]
    names = " ".join(path.name for path in volumes)
    series = len(volumes) > 1
    lines = [
        f"# {title}: {len(volumes)} aligned volumes. Open this file in UCSF ChimeraX.",
        f"open {names} vseries true" if series else f"open {names}",
        f"volume #1 style surface step 1 level {np.median(levels):.6g} color cornflowerblue",
        "set bgColor white",
        "lighting soft",
        "view",
    ]
    if series:
        lines.append("vseries play #1 loop true direction oscillate maxFrameRate 5 cacheFrames 20")
    save_text(script, "\n".join(lines) + "\n")
