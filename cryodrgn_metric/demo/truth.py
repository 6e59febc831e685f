"""The true distances of the demo: noise-free densities, superposed as well as any rotation can.

    truth(A, B)^2 = min over R of ||rho_A - R . rho_B||^2 - DC
    <rho_A, R . rho_B> = (sqrt(pi) sigma)^3 sum_ab exp(-|x_a - R x_b|^2 / (4 sigma^2))

The overlap of two Gaussians is known in closed form, so nothing is put on a grid and none of
this package's rotation code is used: a scipy optimiser climbs from superpositions (Kabsch) of
atoms that both conformations have, and from the best of a fixed scatter of rotations, since
conformations far apart may overlap best with the arm of one on the body of the other.

Decoded volumes are compared after V <- w (V - c) inside a soft spherical window (design.md
section 2). For molecules inside the window that takes the same amount off the squared distance
at every rotation, DC = s^2 (2/sum w - sum w^2/(sum w)^2) with s the difference of the total
densities; so does the truth.

`python -m cryodrgn_metric.demo.truth FILE` remakes data/truth.npz in a quarter of an hour.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from multiprocessing import get_context

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from cryodrgn_metric.demo import molecule, simulate

__all__ = [
    "Superposition",
    "conformation",
    "distance_table",
    "kabsch",
    "load_truth",
    "save_truth",
    "self_overlap",
    "superpose",
    "true_distances",
]

Array = NDArray[np.float64]
_WINDOW = (0.85, 0.99)  # of the half box, as the package's own


@dataclass(frozen=True)
class Superposition:
    """The best superposition found: distance in voxel L2 units, and R with A ≈ R . B."""

    distance: float
    rotation: Array


def kabsch(target: ArrayLike, source: ArrayLike) -> Array:
    """Rotation R about the origin that minimises sum |target - R source|^2."""
    u, _, vt = np.linalg.svd(np.asarray(target).T @ np.asarray(source))
    return np.asarray(u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt)


def self_overlap(coords: Array) -> float:
    """<rho, rho> of one set of atoms."""
    return _overlap(coords, coords, np.eye(3))[0]


def superpose(a: Array, b: Array, starts: list[Array], dc: float = 0.0) -> Superposition:
    """Least L2 distance between two sets of Gaussian atoms over all rotations about the origin.

    Arguments:
        a, b: (n, 3) and (m, 3) atom positions in voxels
        starts: rotations (R with a ≈ R b) from which the optimiser climbs; the best end counts
        dc: amount taken off the squared distance (see `_dc_share`)
    """
    found = [_climb(a, b, start) for start in starts]
    overlap, rotation = max(found, key=lambda pair: pair[0])
    squared = self_overlap(a) + self_overlap(b) - 2.0 * overlap - dc
    return Superposition(float(np.sqrt(max(squared, 0.0))), rotation)


def conformation(motion_a: int, state_a: int, motion_b: int, state_b: int) -> Superposition:
    """True distance of two conformations, from natural superpositions and a scatter of others."""
    a, b = molecule.atoms(motion_a, state_a), molecule.atoms(motion_b, state_b)
    count = min(len(a), len(b))  # the part comes last: the rows before it are in both
    rows = molecule.sections(0)
    choices = [slice(0, count), *rows.values()]
    starts = [np.eye(3), *(kabsch(a[choice], b[choice]) for choice in choices)]
    starts += _promising(a, b)
    return superpose(a, b, starts, dc=_dc_share(len(a) - len(b)))


def distance_table(processes: int = 1) -> Array:
    """(160, 160) true distances; row motion + MOTION_LEVELS * state. Minutes."""
    size = molecule.MOTION_LEVELS * molecule.STATES
    table: Array = np.zeros((size, size))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for row, values in enumerate(pool.map(partial(_row, size=size), range(size))):
            table[row, row + 1 :] = values
    return np.asarray(table + table.T)


def save_truth(file: str, table: Array, count: int = simulate.PARTICLES, seed: int = 0) -> None:
    """Write the table, and what was drawn for every particle, in the types that ship."""
    particles, _ = simulate.draw(count, seed)
    np.savez_compressed(
        file,
        distances=table.astype(np.float32),
        motion=particles.motion.astype(np.uint8),
        state=particles.state.astype(np.uint8),
        nuisance=particles.nuisance_in_degrees.astype(np.float32),
    )


def load_truth() -> dict[str, NDArray[np.generic]]:
    """The arrays of data/truth.npz: distances, and motion, state, nuisance of every particle."""
    with resources.as_file(resources.files("cryodrgn_metric.demo") / "data/truth.npz") as path:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def true_distances(i: ArrayLike, j: ArrayLike) -> Array:
    """True distances between shipped particles i and j (arrays that broadcast)."""
    truth = load_truth()
    row = truth["motion"].astype(int) + molecule.MOTION_LEVELS * truth["state"].astype(int)
    table = truth["distances"].astype(float)
    return np.asarray(table[row[np.asarray(i)], row[np.asarray(j)]])


@cache
def _scatter(count: int = 500) -> Array:
    """Uniformly random rotations, the same ones every time."""
    quaternions = np.random.default_rng(0).normal(size=(count, 4))
    return np.asarray(Rotation.from_quat(quaternions).as_matrix())


def _promising(a: Array, b: Array, count: int = 8, apart_in_degrees: float = 30.0) -> list[Array]:
    """The scattered rotations of largest overlap, one for each neighbourhood."""
    rotations = _scatter()
    inner = np.einsum("ai,rij,bj->rab", a, rotations, b, optimize=True)
    gap = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2.0 * inner
    order = np.argsort(-np.exp(-gap / (4.0 * molecule.SIGMA**2)).sum((1, 2)))
    largest_trace = 1.0 + 2.0 * np.cos(np.deg2rad(apart_in_degrees))
    chosen: list[Array] = []
    for candidate in rotations[order]:
        if all(np.sum(candidate * other) < largest_trace for other in chosen):
            chosen.append(candidate)
        if len(chosen) == count:
            break
    return chosen


def _row(row: int, size: int) -> list[float]:
    state, motion = divmod(row, molecule.MOTION_LEVELS)
    others = (divmod(column, molecule.MOTION_LEVELS) for column in range(row + 1, size))
    return [conformation(motion, state, level, other).distance for other, level in others]


def _overlap(a: Array, b: Array, rotation: Array) -> tuple[float, Array]:
    """<rho_a, R . rho_b> and its gradient for R -> exp(w) R at w = 0."""
    turned = b @ rotation.T
    gap = (a**2).sum(1)[:, None] + (turned**2).sum(1)[None, :] - 2.0 * a @ turned.T
    weights = np.exp(-gap / (4.0 * molecule.SIGMA**2)) * (np.sqrt(np.pi) * molecule.SIGMA) ** 3
    # d/dw of a . (w x b) is b x a, summed over pairs with their weights
    moments = np.einsum("ai,aj->ij", weights @ turned, a)
    torque = np.array([np.sum(_LEVI_CIVITA[k] * moments) for k in range(3)])
    return float(weights.sum()), torque / (2.0 * molecule.SIGMA**2)


def _climb(a: Array, b: Array, start: Array) -> tuple[float, Array]:
    """Local maximum of the overlap, reached from one starting rotation."""

    def objective(vector: Array) -> tuple[float, Array]:
        value, torque = _overlap(a, b, _turn(vector) @ start)
        return -value / scale, -(_left_jacobian(vector).T @ torque) / scale

    scale = self_overlap(b)
    found = minimize(objective, np.zeros(3), jac=True, method="BFGS", options={"gtol": 1e-6})
    return -float(found.fun) * scale, _turn(found.x) @ start


def _turn(vector: Array) -> Array:
    return np.asarray(Rotation.from_rotvec(vector).as_matrix())


def _left_jacobian(vector: Array) -> Array:
    """J with exp(w + d) = exp(J d) exp(w) to first order in d."""
    angle = float(np.linalg.norm(vector))
    cross = np.einsum("kij,k->ij", -_LEVI_CIVITA, vector)
    if angle < 1e-6:
        return np.asarray(np.eye(3) + cross / 2.0)
    first, second = (1 - np.cos(angle)) / angle**2, (angle - np.sin(angle)) / angle**3
    return np.asarray(np.eye(3) + first * cross + second * cross @ cross)


def _levi_civita() -> Array:
    symbol = np.zeros((3, 3, 3))
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        symbol[i, j, k], symbol[i, k, j] = 1.0, -1.0
    return symbol


_LEVI_CIVITA = _levi_civita()


@cache
def _dc_share(extra_atoms: int, box: int = molecule.BOX) -> float:
    """What removing the mean in the window takes off the squared distance (see above)."""
    grid = np.arange(box) - box // 2
    radius = np.sqrt(sum(axis**2.0 for axis in np.meshgrid(grid, grid, grid))) / (box / 2)
    start, end = _WINDOW
    window = 0.5 * (1 + np.cos(np.pi * np.clip((radius - start) / (end - start), 0.0, 1.0)))
    surplus = extra_atoms * (2.0 * np.pi * molecule.SIGMA**2) ** 1.5
    total = window.sum()
    return float(surplus**2 * (2.0 / total - (window**2).sum() / total**2))


def _main() -> None:
    parser = argparse.ArgumentParser(description="Remake data/truth.npz.")
    parser.add_argument("file", help="Output (.npz)")
    parser.add_argument("--processes", type=int, default=2, help="(default: %(default)s)")
    args = parser.parse_args()
    save_truth(args.file, distance_table(args.processes))


if __name__ == "__main__":
    _main()
