"""Decoders of cryoDRGN's own class, fitted to known latents: `python tests/fitted_decoders.py`.

Remakes the workdirs in tests/data/decoders, minutes each, or those that are named. A molecule of
Gaussian atoms moves in a known way and turns by angles that the poses don't know; its latents are
an invertible warp of both, so that no coordinate of z is a motion. No encoder takes part: the
decoder sees analytic projections (central slices of the molecule's Fourier transform, in closed
form) at the true latents, and what it doesn't explain of the volumes is the only error.

    hinge        one arm swings                                  1 dimension
    two_hinges   two arms swing, each by an angle of its own     2
    circle       a domain turns all the way round                1, which needs 2 to embed
    rigid        nothing moves: the map only turns               0
"""

from __future__ import annotations

import argparse
import pickle
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from scipy.spatial.distance import squareform
from scipy.spatial.transform import Rotation

DATA = Path(__file__).parent / "data" / "decoders"
BOX = 24
SIGMA = 1.4  # of an atom, in voxels
PARTICLES = 2000
ZDIM = 4
EPOCH = 20  # in the names of files
STEPS, IMAGES, PIXELS = 4000, 48, 48  # of a step: so many projections, so many pixels of each
MATRIX_RATE, OTHER_RATE = 0.05, 5e-3
LANDMARKS = 250  # of the distances that are kept
SWING_IN_DEGREES = 45.0
TURN_IN_DEGREES = 12.0  # the most that the poses are off, about each axis

# name: the dimension of the motion, how many dimensions embed it
CASES = {"hinge": (1, 1), "two_hinges": (2, 2), "circle": (1, 2), "rigid": (0, 0)}


# -- the molecule


def _ellipsoid(count, semi_axes, centre, rng):
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    radii = rng.uniform(size=(count, 1)) ** (1 / 3)
    return directions * radii * semi_axes + centre


_RNG = np.random.default_rng(11)
_BODY = _ellipsoid(26, (4.0, 2.6, 2.2), (0.0, -2.0, 0.0), _RNG)
_ARM = _ellipsoid(26, (1.3, 2.9, 1.3), (0.0, 3.0, 0.0), _RNG)  # points up from its hinge
_DOMAIN = _ellipsoid(12, (2.6, 1.2, 1.4), (2.6, 1.2, 0.0), _RNG)  # to one side of the axis y
_FOOT = _ellipsoid(20, (2.6, 1.3, 1.3), (3.6, -3.4, 0.0), _RNG)  # or half a turn is nearly none
_HINGES = np.array([[-2.5, 0.8, 0.5], [2.5, 0.8, -0.5]])
_AXES = np.array([[1.0, 0.0, 0.3], [1.0, 0.0, -0.3]])
_TOP = np.array([0.0, 2.5, 0.0])


def atoms(case, motion):
    """(N, atoms, 3) positions x, y, z in voxels from the origin voxel; motion is (N, M) in -1..1.

    Of the circle, in whole turns: 2 pi of it is one turn in -1..1.
    """
    motion = np.atleast_2d(motion)
    parts = [np.broadcast_to(_BODY, (len(motion), *_BODY.shape))]
    if case == "circle":
        turns = Rotation.from_rotvec(np.pi * motion[:, :1] * [0.0, 1.0, 0.0]).as_matrix()
        parts.append(np.broadcast_to(_FOOT, (len(motion), *_FOOT.shape)))
        parts.append(np.einsum("nij,aj->nai", turns, _DOMAIN) + _TOP)
    for number in range({"hinge": 1, "two_hinges": 2, "circle": 0, "rigid": 2}[case]):
        moves = number < motion.shape[1]
        angle = np.deg2rad(SWING_IN_DEGREES) * (motion[:, [number]] if moves else 0.0)
        axis = _AXES[number] / np.linalg.norm(_AXES[number])
        turns = Rotation.from_rotvec(np.zeros((len(motion), 3)) + angle * axis).as_matrix()
        parts.append(np.einsum("nij,aj->nai", turns, _ARM) + _HINGES[number])
    return np.concatenate(parts, axis=1)


def transform(coords, frequencies):
    """The Fourier transform of unit Gaussians in closed form, (N, P, 2): real and imaginary.

    Arguments:
        coords: (N, atoms, 3), voxels. frequencies: (N, P, 3), cycles a voxel.
    """
    phases = -2 * np.pi * torch.einsum("npk,nak->npa", frequencies, coords)
    height = (2 * np.pi * SIGMA**2) ** 1.5
    falloff = torch.exp(-2 * (np.pi * SIGMA) ** 2 * frequencies.square().sum(-1))
    parts = torch.stack([phases.cos().sum(-1), phases.sin().sum(-1)], dim=-1)
    return height * falloff[..., None] * parts


def density(coords):
    """(box, box, box) [z, y, x] of atoms (atoms, 3)."""
    axis = np.arange(BOX) - BOX // 2
    x, y, z = (np.exp(-((axis - coords[:, i, None]) ** 2) / (2 * SIGMA**2)) for i in range(3))
    return np.einsum("az,ay,ax->zyx", z, y, x, optimize=True)


# -- what is drawn of every particle


@dataclass(frozen=True)
class Particles:
    """The truth: motion (N, M) in -1..1, turns (N, 3) as rotation vectors, latents (N, 4)."""

    motion: np.ndarray
    turns: np.ndarray
    latents: np.ndarray


def draw(case, count, seed):
    """Draw particles evenly over motion and turns."""
    rng = np.random.default_rng(seed)
    motions = {"hinge": 1, "two_hinges": 2, "circle": 1, "rigid": 0}[case]
    coordinates = rng.uniform(-1, 1, (count, ZDIM))
    motion = coordinates[:, :motions]
    turning = coordinates[:, motions : motions + 3]
    if case == "circle":
        around = np.pi * motion[:, 0]
        turning = coordinates[:, 1:3]
        coordinates = np.column_stack([np.cos(around), np.sin(around), turning])
    turns = np.zeros((count, 3))
    turns[:, : turning.shape[1]] = np.deg2rad(TURN_IN_DEGREES) * turning
    return Particles(motion, turns, warp(coordinates))


def warp(coordinates):
    """(N, 4) -> (N, 4), one to one: the residual's Lipschitz constant is below 1."""
    mix = Rotation.random(2, random_state=5).as_matrix()
    left, right = np.eye(4), np.eye(4)
    left[:3, :3], right[1:, 1:] = mix
    bent = coordinates + 0.3 * np.sin(2.5 * coordinates @ left) @ right
    return (bent @ right @ left).astype(np.float32)


def turned_atoms(case, particles):
    """(N, atoms, 3) as the poses see them: after the turn they don't know."""
    turns = Rotation.from_rotvec(particles.turns).as_matrix()
    return np.einsum("nij,naj->nai", turns, atoms(case, particles.motion))


# -- the fit


def fit(case, folder, steps=STEPS, seed=0):
    """Fit one decoder and write its workdir.

    Returns:
        The share of the volumes' variance that the decoder explains, as from `explained`.
    """
    started = time.monotonic()
    model, lattice, scale = _new_model(case, seed)
    optimizers, schedules = _optimizers(model, steps)
    pixels = lattice.coords[lattice.get_circular_mask(lattice.D // 2)]
    pixels = pixels[: len(pixels) // 2]  # the other half are their complex conjugates
    drawn_as_often = torch.exp(-((np.pi * SIGMA) ** 2) * pixels.square().sum(1)) + 0.02
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        particles = draw(case, IMAGES, [seed, 1, step])
        poses = Rotation.random(IMAGES, random_state=step).as_matrix()
        chosen = torch.multinomial(drawn_as_often, PIXELS, generator=generator)
        points = pixels[chosen] @ torch.from_numpy(poses).float()
        coords = torch.from_numpy(turned_atoms(case, particles)).float()
        wanted = transform(coords, points) / scale
        z = torch.from_numpy(particles.latents)[:, None].expand(-1, PIXELS, -1)
        loss = (model.decode(torch.cat([points, z], dim=-1)) - wanted).square().mean()
        model.zero_grad()
        loss.backward()
        for each in (*optimizers, *schedules):
            each.step()
    _write(case, Path(folder), model, lattice, scale, seed)
    share = explained(case, folder)
    print(f"{case}: {share:.5f} explained, {time.monotonic() - started:.0f} s")
    return share


def _optimizers(model, steps):
    """Muon for hidden matrices, which gets as far as Adam in a tenth of the steps."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim == 2 and len(p) > 2]
    others = [p for p in trained if p.ndim == 1 or len(p) == 2]
    optimizers = (
        torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.0),
        torch.optim.Adam(others, lr=OTHER_RATE),
    )

    def rate(step):  # a quick rise, half a cosine down
        return min(1, step / (0.05 * steps + 1)) * (1 + np.cos(np.pi * step / steps)) / 2

    return optimizers, [torch.optim.lr_scheduler.LambdaLR(each, rate) for each in optimizers]


def _new_model(case, seed):
    from cryodrgn import models
    from cryodrgn.lattice import Lattice

    lattice = Lattice(BOX + 1, extent=0.5)
    torch.manual_seed(seed)
    model = models.get_decoder(
        3 + ZDIM, BOX + 1, 2, 128, "fourier", "gaussian", None, torch.nn.ReLU, 0.5
    )
    mean = torch.from_numpy(atoms(case, np.zeros((1, 2)))).float()
    scale = float(transform(mean, lattice.coords[None]).square().mean().sqrt())
    return model, lattice, scale


def _write(case, folder, model, lattice, scale, seed):
    """The files of `cryodrgn train_dec`; the optimiser's state is that before its first step."""
    folder.mkdir(parents=True, exist_ok=True)
    norm = [0.0, scale]
    config = {
        "cmd": ["cryodrgn", "train_dec"],
        "dataset_args": {
            "particles": "particles.mrcs",
            "norm": norm,
            "invert_data": False,
            "ind": None,
            "window": True,
            "window_r": 0.85,
            "datadir": None,
            "ctf": None,
            "poses": "poses.pkl",
            "do_pose_sgd": False,
        },
        "lattice_args": {"D": lattice.D, "extent": 0.5, "ignore_DC": True},
        "model_args": {
            "layers": 2,
            "dim": 128,
            "zdim": ZDIM,
            "pe_type": "gaussian",
            "feat_sigma": 0.5,
            "pe_dim": None,
            "domain": "fourier",
            "activation": "relu",
        },
        "seed": seed,
        "version": "4.3.1",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    particles = draw(case, PARTICLES, [seed, 0])
    checkpoint = {
        "norm": norm,
        "epoch": EPOCH,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": torch.optim.Adam(model.parameters()).state_dict(),
    }
    torch.save(checkpoint, folder / f"weights.{EPOCH}.pkl")
    with open(folder / f"z.{EPOCH}.pkl", "wb") as file:
        pickle.dump(particles.latents, file)


def truth(case, seed=0):
    """What was drawn of every particle of a workdir in tests/data/decoders."""
    return draw(case, PARTICLES, [seed, 0])


def explained(case, folder, count=64, seed=0):
    """1 - ||V(z) - V||^2 / ||V||^2 over particles that were not fitted, means removed.

    Decoded by cryoDRGN itself; V is the analytic density.
    """
    particles = draw(case, count, [seed, 2])
    left = total = 0.0
    decoded = _decoded(folder, particles.latents)
    for found, coords in zip(decoded, turned_atoms(case, particles), strict=True):
        wanted = density(coords)
        wanted -= wanted.mean()
        left += ((found - found.mean() - wanted) ** 2).sum()
        total += (wanted**2).sum()
    return 1 - left / total


def _decoded(folder, latents):
    """Volumes of a workdir, by cryoDRGN itself."""
    from cryodrgn import models
    from cryodrgn.lattice import Lattice

    norm = yaml.safe_load(Path(folder, "config.yaml").read_text())["dataset_args"]["norm"]
    saved = torch.load(Path(folder, f"weights.{EPOCH}.pkl"), weights_only=True)
    lattice = Lattice(BOX + 1, extent=0.5)
    model = models.get_decoder(
        3 + ZDIM, BOX + 1, 2, 128, "fourier", "gaussian", None, torch.nn.ReLU, 0.5
    )
    model.load_state_dict(saved["model_state_dict"])
    model.eval()
    for z in latents:
        yield model.eval_volume(lattice.coords, lattice.D, 0.5, norm, z).numpy()


# -- what is measured of it


def measure(folder):
    """Compare landmarks of a workdir, and keep their distances in it.

    distances.npz: rows of the landmarks, the upper triangle of Delta, the volumes' RMS norm, and
    h_psi's median error on held-out pairs.
    """
    import cryodrgn_metric as cm
    from cryodrgn_metric.config import LandmarkConfig
    from cryodrgn_metric.landmarks import choose_landmarks
    from cryodrgn_metric.so3.conventions import spherical_window

    latents = cm.open_workdir(str(folder), -1).latents
    marks = choose_landmarks(latents, LandmarkConfig(LANDMARKS), seed=0)
    z = latents[marks.indices]
    volumes = np.stack([*_decoded(folder, z)])
    distances = cm.pairwise_distances(volumes).distances
    net = cm.DistanceNet(device="cpu", progress=False)
    net.fit(z, distances, train=marks.train, validation=marks.validation)
    test = marks.test
    missed = np.abs(net.predict_matrix(z[test]) - distances[np.ix_(test, test)])
    window = spherical_window(BOX, 0.85).numpy()
    means = (window * volumes).sum((1, 2, 3), keepdims=True) / window.sum()
    norms = np.linalg.norm((window * (volumes - means)).reshape(len(z), -1), axis=1)
    np.savez_compressed(
        Path(folder, "distances.npz"),
        rows=marks.indices.astype(np.int32),
        upper=distances[np.triu_indices(len(z), 1)].astype(np.float32),
        norm=np.sqrt((norms**2).mean()),
        error=np.median(missed[np.triu_indices(len(test), 1)]),
    )


@dataclass(frozen=True)
class MeasuredCase:
    """What `measure` has kept: z of the landmarks (L, 4), Delta (L, L), and two numbers."""

    z: np.ndarray
    distances: np.ndarray
    norm: float
    error: float


def measured(case):
    """Of one of CASES."""
    with np.load(DATA / case / "distances.npz") as saved:
        distances = squareform(saved["upper"].astype(np.float64))
        z = truth(case).latents[saved["rows"]]
        return MeasuredCase(z, distances, float(saved["norm"]), float(saved["error"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), help="(default: all)")
    parser.add_argument("--outdir", default=DATA, type=Path)
    parser.add_argument("--steps", default=STEPS, type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for case in args.cases:
        fit(case, args.outdir / case, args.steps)
        measure(args.outdir / case)


if __name__ == "__main__":
    main()
