"""Trained workdirs to measure on: of the default size, and one that cryoDRGN trained."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
import torch
import yaml
from conftest import project_blobs, quiet, random_rotations, run_cryodrgn

from benchmarks.volumes import HINGES, LIGAND_ATOMS, SIGMA, molecule
from cryodrgn_metric.artifacts import save_pickle

APIX = 3.0
TRAINED = "trained"  # a file that is written when a workdir in the cache is complete


# -- D = 128, cryoDRGN's default decoder


@dataclass(frozen=True)
class Size:
    """Of a decoder: cryoDRGN's defaults."""

    box: int = 128
    zdim: int = 8
    layers: int = 3
    width: int = 1024
    steps: int = 1200  # of the fit
    points: int = 2048  # in a step


def default_workdir(folder: Path, size: Size) -> Path:
    """A train_dec workdir whose decoder knows a molecule: two of its latents differ as in life.

    To train it from images would take hours on a CPU. The speed of a decoder doesn't depend on its
    weights, but what a coarser arithmetic does to Delta does: so it is fitted to the transform of
    the molecule itself, at random points of the ball and random z.
    """
    if (folder / TRAINED).exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = _config_of(size)
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    generator = np.random.default_rng(0)
    save_pickle(folder / "z.1.pkl", generator.standard_normal((500, size.zdim), np.float32))
    with quiet():
        from cryodrgn import models

        torch.manual_seed(0)
        model, _ = models.load_decoder(config)
    _fit(model, size, generator)
    torch.save({"epoch": 1, "model_state_dict": model.state_dict()}, folder / "weights.1.pkl")
    (folder / TRAINED).touch()
    return folder


def _config_of(size: Size) -> dict:
    return {
        "dataset_args": {"ctf": None, "norm": [0.0, 1.0], "poses": "poses.pkl", "ind": None},
        "lattice_args": {"D": size.box + 1, "extent": 0.5, "ignore_DC": True},
        "model_args": {
            "layers": size.layers,
            "dim": size.width,
            "zdim": size.zdim,
            "pe_type": "gaussian",
            "feat_sigma": 0.5,
            "pe_dim": None,
            "domain": "fourier",
            "activation": "relu",
        },
    }


def _fit(model, size: Size, generator: np.random.Generator) -> None:
    """Mean squares on the transform at points within the ball of half the box, 8 z a step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=size.steps + 1)
    for _ in range(size.steps):
        points, latents, values = _examples(size, 8, generator)
        inputs = torch.cat([points, latents], dim=1)
        loss = (model.decode(inputs) - values).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _examples(size: Size, count: int, generator: np.random.Generator):
    """Points (P, 3) in 1/voxel, a latent for each, and (Re F, Im F) there."""
    each = size.points // count
    coordinates, latents, values = [], [], []
    for _ in range(count):
        z = generator.standard_normal(size.zdim)
        k = generator.normal(size=(each, 3))
        radius = 0.25 * generator.uniform(size=(each, 1)) ** (1 / 3)
        k *= radius / np.linalg.norm(k, axis=1, keepdims=True)
        coordinates.append(k)
        latents.append(np.tile(z, (each, 1)))
        values.append(_transform(z, k, size.box))
    return tuple(
        torch.from_numpy(np.concatenate(parts)).float() for parts in (coordinates, latents, values)
    )


def _transform(z: np.ndarray, k: np.ndarray, box: int) -> np.ndarray:
    """(P, 2): the molecule whose hinges stand at 10 degrees times z, its ligand bound by z."""
    atoms = box * molecule(10 * z[:HINGES])
    weights = np.ones(len(atoms))
    weights[-LIGAND_ATOMS:] = 1 / (1 + np.exp(-4 * z[HINGES]))
    phases = 2 * np.pi * (k @ atoms.T)
    envelope = np.exp(-2 * (np.pi * SIGMA * box) ** 2 * (k**2).sum(axis=1))
    scale = envelope / np.sqrt(len(atoms))
    return np.stack([scale * (np.cos(phases) @ weights), -scale * (np.sin(phases) @ weights)], 1)


# -- D = 64, trained by cryoDRGN from images


def trained_workdir(folder: Path, images: int, epochs: int, width: int) -> Path:
    """train_vae at D = 64 on images of the hinged molecule; kept in `folder` for later runs."""
    workdir = folder / "workdir"
    if (folder / TRAINED).exists():
        return workdir
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _simulate(folder, images, box=64)
    torch.manual_seed(0)
    size = ["--enc-dim", width, "--dec-dim", width, "--zdim", 8]
    inputs = ["--poses", folder / "poses.pkl", "--ctf", folder / "ctf.pkl"]
    how = ["-n", epochs, "-b", 8, "--lr", 3e-4, "--no-amp", "--no-analysis", "--seed", 0]
    stack = folder / "particles.mrcs"
    run_cryodrgn("train_vae", stack, *inputs, *size, *how, "-o", workdir)
    (folder / TRAINED).touch()
    return workdir


def _simulate(folder: Path, count: int, box: int) -> None:
    """particles.mrcs, poses.pkl, ctf.pkl; a CTF of -1 all over, so that nothing is modulated."""
    generator = np.random.default_rng(1)
    angles = generator.uniform(-25, 25, (count, HINGES))
    ligands = generator.uniform(size=count) < 0.5
    rotations = random_rotations(count, generator)
    images = [
        project_blobs(box * molecule(motion, bool(ligand))[None], turn[None], box)[0]
        for motion, ligand, turn in zip(angles, ligands, rotations, strict=True)
    ]
    stack = np.stack(images)
    stack += stack.std() * generator.standard_normal(stack.shape)
    with mrcfile.new(folder / "particles.mrcs") as mrc:
        mrc.set_data(stack.astype(np.float32))
    save_pickle(folder / "poses.pkl", (rotations.astype(np.float32), np.zeros((count, 2), "f4")))
    row = [box, APIX, 1e1, 1e1, 0.0, 300.0, 0.0, 1.0, 0.0]
    save_pickle(folder / "ctf.pkl", np.tile(row, (count, 1)).astype(np.float32))


def with_particles(workdir: Path, folder: Path, count: int, epoch: int) -> Path:
    """A copy whose z holds `count` particles, drawn from the old ones with a small jitter.

    It names no poses, and the old CTF file, of which only the pixel size is needed. Where the old
    one has no logvar (an autodecoder's), it has none.
    """
    folder.mkdir(parents=True)
    for name in (f"z.{epoch}.pkl", f"weights.{epoch}.pkl", "config.yaml"):
        shutil.copy(workdir / name, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    config["dataset_args"]["poses"] = None
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with open(workdir / f"z.{epoch}.pkl", "rb") as file:
        mean = pickle.load(file)
        logvar = pickle.load(file) if file.peek(1) else None
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, len(mean), count)
    jitter = 0.05 * mean.std(axis=0) * generator.standard_normal((count, mean.shape[1]))
    with open(folder / f"z.{epoch}.pkl", "wb") as file:
        pickle.dump((mean[drawn] + jitter).astype(np.float32), file)
        if logvar is not None:
            pickle.dump(logvar[drawn], file)
    return folder
