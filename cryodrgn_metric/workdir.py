"""Read a trained cryoDRGN workdir: latents, numbering, box, kind; nothing in it is executed.

All files are read by `safe_files/`; those that config.yaml names, in `training_inputs.py`.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cryodrgn_metric.errors import WorkdirError, brief
from cryodrgn_metric.metric_folder import MetricFolder
from cryodrgn_metric.safe_files.pickles import load_pickle, load_pickles
from cryodrgn_metric.safe_files.yaml_files import load_yaml
from cryodrgn_metric.training_inputs import (
    apix_in_angstroms,
    particle_indices,
    require_row_count,
)

__all__ = [
    "Workdir",
    "load_latents",
    "open_workdir",
]

logger = logging.getLogger(__name__)

SECTIONS = ("dataset_args", "lattice_args", "model_args")
LARGEST_BOX = 4096  # far above any training's; cryoDRGN's lattice takes memory by its square
KINDS_WITHOUT_LATENTS = ("train_nn", "abinit_homo_old", "abinit --zdim 0")


@dataclass(frozen=True, eq=False)
class Workdir:
    """A trained cryoDRGN run at one epoch, as `open_workdir` found it.

    Arguments:
        path: the workdir.
        epoch: N of the file names; None if only z.pkl and weights.pkl exist.
        latents: (N, zdim) float32, one row per particle (z_mu where there is an encoder).
        latents_logvar: (N, zdim) float32 for train_vae and abinit_het_old, else None.
        particle_indices: (N,) int64, the number of each row's particle in the stack that the run
            was given: 0 to N - 1 unless it was trained with --ind. Of a tilt series, particles
            are numbered, not their images.
        box_size: voxels along a side of V(z); cryoDRGN's lattice D is one more.
        apix_in_angstroms: size of a voxel at `box_size`.
        kind: the cryoDRGN command that made it: "train_vae", "train_dec", "abinit_het_old", or
            "abinit" (DRGN-AI).
        domain: "fourier" or "hartley", what the network gives.
        norm: (mean, standard deviation) that the images' transforms were normalised by.
        config: config.yaml as a dictionary.
        config_path, z_path, weights_path: the files that were chosen.
    """

    path: Path
    epoch: int | None
    latents: np.ndarray = field(repr=False)
    latents_logvar: np.ndarray | None = field(repr=False)
    particle_indices: np.ndarray = field(repr=False)
    box_size: int
    apix_in_angstroms: float
    kind: str
    domain: str
    norm: tuple[float, float]
    config: dict[str, Any] = field(repr=False)
    config_path: Path
    z_path: Path
    weights_path: Path

    @property
    def outdir(self) -> Path:
        """Where results go unless -o says otherwise: metric_embed.N, or metric_embed."""
        return MetricFolder.beside(self.path, self.epoch).path

    @property
    def apix(self) -> float:
        """`apix_in_angstroms`, by the name that cryoDRGN uses."""
        return self.apix_in_angstroms

    def apix_at_box(self, box: int) -> float:
        """The size in Å of a voxel of V(z) decoded at `box`: apix * box_size / box."""
        return self.apix_in_angstroms * self.box_size / box


def open_workdir(path: str | Path, epoch: int = -1) -> Workdir:
    """Read the latents and the description of a trained cryoDRGN workdir.

    Arguments:
        path: the folder that `cryodrgn train_vae`, `train_dec`, `abinit` or `abinit_het_old`
            wrote.
        epoch: N as in z.N.pkl; -1 takes the largest N with both z.N.pkl and weights.N.pkl, or
            the un-numbered z.pkl and weights.pkl where no such N exists.

    Returns:
        a frozen `Workdir`.

    Raises:
        WorkdirError: not a workdir, an epoch that is missing, a kind without latents, a
            malformed file.
        UnsafeFileError: a file would execute code when read.

    Example:
        >>> workdir = open_workdir("00_vae128", epoch=49)  # doctest: +SKIP
        >>> workdir.latents.shape, workdir.box_size  # doctest: +SKIP
        ((131899, 8), 128)
    """
    folder = Path(path)
    config_path = _config_path(folder)
    config = _load_config(config_path)
    kind = _require_latents(_kind(config, config_path), config_path)
    number, z_path, weights_path = _choose_epoch(folder, epoch)
    if kind == "abinit" and number == 0:
        logger.warning("%s: epoch 0 of abinit is pretraining: its latents are noise.", folder)
    zdim = _integer(config, "model_args", "zdim", config_path, 1)
    latents, logvar = _read_latents(z_path, zdim)
    require_row_count(config, folder, z_path, len(latents))
    return Workdir(
        path=folder,
        epoch=number,
        latents=latents,
        latents_logvar=logvar,
        particle_indices=particle_indices(config, folder, len(latents)),
        box_size=_box_size(config, config_path),
        apix_in_angstroms=apix_in_angstroms(config, config_path, _box_size(config, config_path)),
        kind=kind,
        domain=_domain(config, config_path),
        norm=_norm(config, config_path),
        config=config,
        config_path=config_path,
        z_path=z_path,
        weights_path=weights_path,
    )


# -- config.yaml


def _config_path(folder: Path) -> Path:
    if not os.path.isdir(folder):  # a name too long for the system is no folder, either
        raise WorkdirError(f"Expected a cryoDRGN workdir, but {folder} is not a folder.")
    config_path = folder / "config.yaml"
    if os.path.isfile(config_path):
        return config_path
    hint = (
        "it holds config.pkl of an old cryoDRGN; write that as config.yaml first"
        if os.path.exists(folder / "config.pkl")
        else "give the folder that `cryodrgn train_vae -o` wrote"
    )
    raise WorkdirError(f"{folder} is not a cryoDRGN workdir: it has no config.yaml; {hint}.")


def _load_config(path: Path) -> dict[str, Any]:
    config = load_yaml(path)
    absent = [name for name in SECTIONS if not isinstance(config.get(name), dict)]
    if absent:
        raise WorkdirError(
            f"{path} is not a cryoDRGN config: expected the sections {', '.join(SECTIONS)}; "
            f"missing: {', '.join(absent)}."
        )
    return config


def _kind(config: dict[str, Any], path: Path) -> str:
    """Name the command behind a config, by the keys that only it writes (host.md 1.1, 1.3)."""
    model = config["model_args"]
    if "data_norm_mean" in config:
        return "abinit" if model.get("zdim") else "abinit --zdim 0"
    if "players" in model:
        return "train_vae" if "poses" in config["dataset_args"] else "abinit_het_old"
    if "zdim" in model and "layers" in model:
        return "train_dec"
    if "layers" in model:
        return "train_nn"
    if "qlayers" in model:
        return "abinit_homo_old"
    keys = sorted(map(str, model))
    raise WorkdirError(f"{path}: no cryoDRGN command writes model_args with {brief(keys)}.")


def _require_latents(kind: str, path: Path) -> str:
    if kind in KINDS_WITHOUT_LATENTS:
        raise WorkdirError(
            f"{path} belongs to `{kind}`, one structure without latents: there is nothing to "
            "embed. Train a heterogeneous model, e.g. with `cryodrgn train_vae`."
        )
    return kind


def _integer(
    config: dict[str, Any], section: str, key: str, path: Path, lowest: int, highest: int = 1 << 30
) -> int:
    value = config[section].get(key)
    if type(value) is not int or not lowest <= value <= highest:
        raise WorkdirError(
            f"{path}: {section}.{key} must be an integer from {lowest} to {highest}; "
            f"got {brief(value)}."
        )
    return value


def _box_size(config: dict[str, Any], path: Path) -> int:
    size = _integer(config, "lattice_args", "D", path, 3, LARGEST_BOX + 1)
    if size % 2 == 0:
        raise WorkdirError(f"{path}: lattice_args.D must be an odd number of pixels; got {size}.")
    return size - 1


def _domain(config: dict[str, Any], path: Path) -> str:
    domain = config["model_args"].get("domain")
    if domain not in ("fourier", "hartley"):
        raise WorkdirError(
            f"{path}: model_args.domain must be fourier or hartley; got {brief(domain)}."
        )
    return str(domain)


def _norm(config: dict[str, Any], path: Path) -> tuple[float, float]:
    key, norm = "dataset_args.norm", config["dataset_args"].get("norm")
    if "data_norm_mean" in config:
        key = "data_norm_mean and data_norm_std"
        norm = [config["data_norm_mean"], config.get("data_norm_std")]
    if not isinstance(norm, list) or len(norm) != 2 or not all(map(_is_number, norm)):
        raise WorkdirError(f"{path}: {key} must be two finite numbers; got {brief(norm)}.")
    return float(norm[0]), float(norm[1])


def _is_number(value: Any) -> bool:
    """Whether a value of YAML is a number that float32 can hold."""
    return type(value) in (int, float) and bool(abs(value) <= np.finfo(np.float32).max)


# -- the epoch


def _choose_epoch(folder: Path, epoch: int) -> tuple[int | None, Path, Path]:
    there = _epochs(folder)
    if epoch < -1:
        raise WorkdirError(f"--epoch must be -1 (the latest) or N as in z.N.pkl; got {epoch}.")
    if epoch == -1 and not there:
        pair = folder / "z.pkl", folder / "weights.pkl"
        if all(path.is_file() for path in pair):
            return None, *pair
        raise WorkdirError(
            f"{folder} has neither z.N.pkl with weights.N.pkl nor z.pkl with weights.pkl: "
            "training has not written an epoch yet."
        )
    number = there[-1] if epoch == -1 else epoch
    if number not in there:
        raise WorkdirError(_missing_epoch(folder, number, there))
    return number, folder / f"z.{number}.pkl", folder / f"weights.{number}.pkl"


def _epochs(folder: Path) -> list[int]:
    try:
        names = set(os.listdir(folder))
    except OSError as error:
        raise WorkdirError(f"{folder} cannot be read: {error.strerror}.") from error
    found = (re.fullmatch(r"z\.(\d+)\.pkl", name) for name in names)
    numbers = {int(match.group(1)) for match in found if match}
    return sorted(n for n in numbers if {f"z.{n}.pkl", f"weights.{n}.pkl"} <= names)


def _missing_epoch(folder: Path, epoch: int, there: list[int]) -> str:
    wanted = f"{folder} has no z.{epoch}.pkl with weights.{epoch}.pkl"
    if not there:
        return f"{wanted}, nor any other epoch; leave --epoch out to use z.pkl and weights.pkl."
    nearest = min(there, key=lambda number: abs(number - epoch))
    listed = ", ".join(map(str, there))
    return f"{wanted}; there are epochs {listed}. Type e.g. --epoch {nearest}."


# -- latents


def load_latents(path: str | Path) -> np.ndarray:
    """Read (N, zdim) latents from the first pickle of a z file, as float32.

    Arguments:
        path: z.N.pkl, or any pickle of one two-dimensional array.

    Returns:
        (N, zdim) float32.

    Raises:
        WorkdirError: not an array of finite numbers with two dimensions.
        UnsafeFileError: the file would execute code.
    """
    return _checked_latents(load_pickle(path), Path(path))


def _read_latents(path: Path, zdim: int) -> tuple[np.ndarray, np.ndarray | None]:
    values = load_pickles(path, 2)
    latents = _checked_latents(values[0], path)
    if latents.shape[1] != zdim:
        raise WorkdirError(
            f"{path}: expected (N, {zdim}) latents, as config.yaml says; got {latents.shape}."
        )
    if len(values) == 1:
        return latents, None
    logvar = _checked_latents(values[1], path)
    if logvar.shape != latents.shape:
        raise WorkdirError(
            f"{path}: its two arrays should have one shape; got {latents.shape}, {logvar.shape}."
        )
    return latents, logvar


def _checked_latents(value: object, path: Path) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.dtype.kind not in "fiu":
        came = getattr(value, "shape", type(value).__name__)
        raise WorkdirError(f"{path}: expected an (N, zdim) array of numbers; got {came}.")
    if 0 in value.shape:
        raise WorkdirError(f"{path}: expected an (N, zdim) array; got an empty {value.shape}.")
    with np.errstate(over="ignore", invalid="ignore"):  # infinite or NaN, which comes next
        latents = value.astype(np.float32)
    bad = int((~np.isfinite(latents)).any(axis=1).sum())
    if bad:
        raise WorkdirError(
            f"{path}: {bad} of {len(latents)} particles have NaN or infinite latents; training "
            "diverged. Choose an earlier epoch with --epoch."
        )
    return latents
