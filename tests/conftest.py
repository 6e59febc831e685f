"""Tiny trained workdirs, made by cryoDRGN's own commands in this process; tolerances."""

import argparse
import contextlib
import importlib
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

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
    with quiet():
        module = importlib.import_module(f"cryodrgn.commands.{command}")
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
