"""Tiny trained workdirs, made by cryoDRGN's own commands in this process; tolerances."""

import argparse
import contextlib
import importlib
import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

# Before numpy and torch read it: with `pytest -n 2`, threads of one process would wait, busily,
# for those of the other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import matplotlib
import mrcfile
import numpy as np
import pytest
import torch

from cryodrgn_metric.artifacts import save_pickle
from cryodrgn_metric.runlog import logging_kept

matplotlib.use("Agg")

# The one table: relative error that rounding alone explains, by dtype.
TOLERANCES = {"float32": 1e-5, "float64": 1e-11}

PARTICLES = 200
BOX = 24
APIX = 3.0


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests go to one process: they share what its fixtures have trained."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session")
def tolerance():
    """Relative tolerances by the name of a dtype."""
    return TOLERANCES


@pytest.fixture
def generator():
    """A seeded numpy generator, new for every test."""
    return np.random.default_rng(0)


# -- a simulated particle stack


@dataclass(frozen=True)
class Stack:
    """Paths of a simulated data set: images, poses, CTF parameters (none is applied)."""

    particles: Path
    poses: Path
    ctf: Path


def random_rotations(count, generator):
    """(count, 3, 3) uniform rotation matrices, from normalised quaternions."""
    w, x, y, z = np.moveaxis(generator.standard_normal((count, 4)), 1, 0)
    norm = np.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w / norm, x / norm, y / norm, z / norm
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), 2, 0)


def project_blobs(centers, rotations, box):
    """Project Gaussian blobs at (N, blobs, 3) voxels, turned by (N, 3, 3), onto (N, box, box)."""
    turned = np.einsum("nij,nbj->nbi", rotations, centers)
    axis = np.arange(box) - box // 2
    x, y = (np.exp(-((axis - turned[..., i, None]) ** 2) / (2 * 1.2**2)) for i in (0, 1))
    return np.einsum("nby,nbx->nyx", y, x)


@pytest.fixture(scope="session")
def stack(tmp_path_factory):
    """A body of blobs, one of which moves along an arc; noise of a tenth of the signal."""
    folder, generator = tmp_path_factory.mktemp("stack"), np.random.default_rng(1)
    body = generator.uniform(-BOX / 5, BOX / 5, (6, 3))
    angle = generator.uniform(0, np.pi, PARTICLES)
    arm = BOX / 4 * np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)
    centers = np.concatenate([np.broadcast_to(body, (PARTICLES, 6, 3)), arm[:, None]], 1)
    rotations = random_rotations(PARTICLES, generator)
    images = project_blobs(centers, rotations, BOX)
    images += 0.1 * images.std() * generator.standard_normal(images.shape)
    paths = Stack(folder / "particles.mrcs", folder / "poses.pkl", folder / "ctf.pkl")
    with mrcfile.new(paths.particles) as mrc:
        mrc.set_data(images.astype(np.float32))
    save_pickle(paths.poses, (rotations.astype(np.float32), np.zeros((PARTICLES, 2), np.float32)))
    # defocus 1 nm, amplitude contrast 1: a CTF of -1 all over, so that nothing is modulated
    row = [BOX, APIX, 1e1, 1e1, 0.0, 300.0, 0.0, 1.0, 0.0]
    save_pickle(paths.ctf, np.tile(row, (PARTICLES, 1)).astype(np.float32))
    return paths


# -- cryoDRGN, in this process


@contextlib.contextmanager
def quiet():
    """Keep cryoDRGN's output and warnings out of the tests, and its hands off our loggers."""
    with contextlib.redirect_stdout(None), warnings.catch_warnings(), logging_kept():
        warnings.simplefilter("ignore")
        yield


def run_cryodrgn(command, *arguments):
    """Run `cryodrgn COMMAND ARGUMENTS` in this process."""
    _run_module(f"cryodrgn.commands.{command}", arguments)


def run_cryodrgn_utils(command, *arguments):
    """Run `cryodrgn_utils COMMAND ARGUMENTS` in this process."""
    _run_module(f"cryodrgn.commands_utils.{command}", arguments)


def _run_module(name, arguments):
    with quiet():
        module = importlib.import_module(name)
        logging.getLogger().setLevel(logging.ERROR)
        parser = argparse.ArgumentParser()
        module.add_args(parser)
        module.main(parser.parse_args([str(argument) for argument in arguments]))


def _trained(folder, stack, command, *arguments):
    torch.manual_seed(0)
    inputs = [
        stack.particles,
        "--poses",
        stack.poses,
        "--ctf",
        stack.ctf,
        "--zdim",
        3,
        "-o",
        folder,
    ]
    how = ["-n", 2, "-b", 20, "--no-amp", "--no-analysis", "--seed", 0]
    run_cryodrgn(command, *inputs, *how, *arguments)
    return folder


VAE_SIZE = ["--enc-dim", 32, "--enc-layers", 1, "--dec-dim", 32, "--dec-layers", 2, "--pe-dim", 8]


@pytest.fixture(scope="session")
def vae_workdir(tmp_path_factory, stack):
    """train_vae --domain fourier, two epochs; read only: copy it to change it."""
    folder = tmp_path_factory.mktemp("vae") / "workdir"
    return _trained(folder, stack, "train_vae", *VAE_SIZE)


@pytest.fixture(scope="session")
def hartley_workdir(tmp_path_factory, stack):
    """train_vae --domain hartley, two epochs; read only: copy it to change it."""
    folder = tmp_path_factory.mktemp("hartley") / "workdir"
    return _trained(folder, stack, "train_vae", *VAE_SIZE, "--domain", "hartley")


@pytest.fixture(scope="session")
def dec_workdir(tmp_path_factory, stack):
    """train_dec, two epochs; read only: copy it to change it."""
    folder = tmp_path_factory.mktemp("dec") / "workdir"
    size = ["--dim", 32, "--layers", 2, "--pe-dim", 8]
    return _trained(folder, stack, "train_dec", *size)


# -- a simulated tilt series, and a workdir of every kind


@dataclass(frozen=True)
class TiltSeries:
    """A star file that names the tilts of every particle; poses and CTF count tilts."""

    star: Path
    poses: Path
    ctf: Path


@pytest.fixture(scope="session")
def tilt_series(tmp_path_factory):
    """The same body and arm as in `stack`, seen at three tilts each."""
    folder, generator = tmp_path_factory.mktemp("tilts"), np.random.default_rng(2)
    body = generator.uniform(-BOX / 5, BOX / 5, (6, 3))
    angle = np.repeat(generator.uniform(0, np.pi, TILT_PARTICLES), TILTS)
    arm = BOX / 4 * np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)
    centers = np.concatenate([np.broadcast_to(body, (len(angle), 6, 3)), arm[:, None]], 1)
    tilt = np.tile(np.radians([0.0, 20.0, -20.0]), TILT_PARTICLES)
    zero, one = 0 * tilt, 0 * tilt + 1
    cosine, sine = np.cos(tilt), np.sin(tilt)
    about_y = np.array([[cosine, zero, sine], [zero, one, zero], [-sine, zero, cosine]])
    poses = np.repeat(random_rotations(TILT_PARTICLES, generator), TILTS, axis=0)
    rotations = np.moveaxis(about_y, 2, 0) @ poses
    images = project_blobs(centers, rotations, BOX)
    images += 0.1 * images.std() * generator.standard_normal(images.shape)
    paths = TiltSeries(folder / "tilts.star", folder / "poses.pkl", folder / "ctf.pkl")
    with mrcfile.new(folder / "tilts.mrcs") as mrc:
        mrc.set_data(images.astype(np.float32))
    columns = ["_rlnImageName", "_rlnGroupName", "_rlnCtfScalefactor"]
    rows = [
        f"{number + 1:06d}@tilts.mrcs particle_{number // TILTS} {1 - 0.1 * (number % TILTS)}"
        for number in range(len(images))
    ]
    header = ["", "data_", "", "loop_"] + [f"{c} #{i + 1}" for i, c in enumerate(columns)]
    paths.star.write_text("\n".join([*header, *rows, ""]))
    shifts = np.zeros((len(images), 2), np.float32)
    save_pickle(paths.poses, (rotations.astype(np.float32), shifts))
    row = [BOX, APIX, 1e1, 1e1, 0.0, 300.0, 0.0, 1.0, 0.0]
    save_pickle(paths.ctf, np.tile(row, (len(images), 1)).astype(np.float32))
    return paths


TILT_PARTICLES, TILTS = 70, 3
# A shuffled subset with gaps: a row of z is the particle of another number.
CHOSEN = np.random.default_rng(3).permutation(PARTICLES)[:150]
CHOSEN_TILTED = np.random.default_rng(4).permutation(TILT_PARTICLES)[:60]
DEC_SIZE = ["--dim", 32, "--layers", 2, "--pe-dim", 8]
EPOCHS = ["-n", 2, "--no-amp", "--seed", 0]
BATCHES = ["-b", 20, *EPOCHS]
TILTED = [*VAE_SIZE, "--encode-mode", "tilt", "--ntilts", TILTS, "--dose-per-tilt", 3]
TILTED += ["--tdim", 16, "--tlayers", 1, "--t-emb-dim", 8]
# A pose search that finds nothing, but writes every file: coarse, of few frequencies and shifts.
SEARCH = ["--l-start", 4, "--l-end", 6, "--niter", 1, "--base-healpy", 1, "--nkeptposes", 2]
SEARCH += ["--t-ngrid", 3, "--t-extent", 2]
AI = [*EPOCHS, *DEC_SIZE, *SEARCH, "--epochs-pose-search", 1, "--n-imgs-pretrain", 50]
AI += ["--num-workers", 0, "--batch-size-hps", 20, "--batch-size-sgd", 20]

# name: (command, its inputs, zdim or None, further arguments)
KINDS = {
    "ind": ("train_vae", "posed", 3, [*BATCHES, *VAE_SIZE, "--ind", "CHOSEN"]),
    "pose_sgd": (
        "train_vae",
        "posed",
        3,
        [*BATCHES, *VAE_SIZE, "--do-pose-sgd", "--domain", "hartley"],
    ),
    "tilt": ("train_vae", "tilted", 3, [*BATCHES, *TILTED]),
    "tilt_ind": ("train_vae", "tilted", 3, [*BATCHES, *TILTED, "--ind", "CHOSEN_TILTED"]),
    "zdim_1": ("train_vae", "posed", 1, [*BATCHES, *VAE_SIZE]),
    "zdim_2": ("train_vae", "posed", 2, [*BATCHES, *VAE_SIZE]),
    "dec": ("train_dec", "posed", 3, [*BATCHES, *DEC_SIZE]),
    "dec_ind": ("train_dec", "posed", 3, [*BATCHES, *DEC_SIZE, "--ind", "CHOSEN"]),
    "abinit_het_old": ("abinit_het_old", "unposed", 3, [*BATCHES, *VAE_SIZE, *SEARCH]),
    "abinit": ("abinit", "unposed", 3, AI),
    "abinit_ind": ("abinit", "unposed", 2, [*AI, "--ind", "CHOSEN"]),
    "abinit_geom": ("abinit", "unposed", 1, [*AI, "--pe-type-conf", "geom", "--max-freq", 10]),
    "train_nn": ("train_nn", "posed", None, [*BATCHES, *DEC_SIZE]),
    "abinit_homo_old": ("abinit_homo_old", "unposed", None, [*BATCHES, *DEC_SIZE, *SEARCH]),
    "abinit_zdim_0": ("abinit", "unposed", 0, AI),
}
WITHOUT_LATENTS = ("train_nn", "abinit_homo_old", "abinit_zdim_0")


@pytest.fixture(scope="session")
def workdir_of(tmp_path_factory, stack, tilt_series):
    """workdir_of(name): a workdir of one of KINDS, made once; read only: copy it to change it."""
    root = tmp_path_factory.mktemp("kinds")
    for name, numbers in {"CHOSEN": CHOSEN, "CHOSEN_TILTED": CHOSEN_TILTED}.items():
        save_pickle(root / f"{name}.pkl", numbers)
    inputs = {
        "unposed": [stack.particles, "--ctf", stack.ctf],
        "posed": [stack.particles, "--ctf", stack.ctf, "--poses", stack.poses],
        "tilted": [tilt_series.star, "--ctf", tilt_series.ctf, "--poses", tilt_series.poses],
    }

    def made(name):
        folder = root / name / "workdir"
        if not folder.exists():
            command, source, zdim, options = KINDS[name]
            options = [root / f"{o}.pkl" if str(o).startswith("CHOSEN") else o for o in options]
            options += [] if zdim is None else ["--zdim", zdim]
            options += [] if zdim is None or command == "train_nn" else ["--no-analysis"]
            options += ["--pretrain", 20] if command.endswith("_old") else []
            torch.manual_seed(0)
            run_cryodrgn(command, *inputs[source], "-o", folder, *options)
        return folder

    return made
