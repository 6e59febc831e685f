"""Molecules of Gaussian atoms: rendered, turned by their coordinates, compared in closed form.

Nothing here uses the package: these are the independent routes that it must agree with.
"""

import numpy as np
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation


def compact(count, reach, generator):
    """Atoms (count, 3) in x, y, z, asymmetric, the farthest at `reach` voxels from the origin."""
    atoms = generator.normal(size=(count, 3)) * [1.0, 0.8, 0.6] + [0.2, 0.0, -0.1]
    return atoms * (reach / np.linalg.norm(atoms, axis=1).max())


def render(atoms, box, sigma):
    """Density [z, y, x] of unit Gaussians at atoms in voxels from the origin voxel box // 2."""
    axis = np.arange(box) - box // 2
    z, y, x = (np.exp(-((axis[:, None] - atoms[:, k]) ** 2) / (2 * sigma**2)) for k in (2, 1, 0))
    return np.einsum("za,ya,xa->zyx", z, y, x)


def hinged(atoms, moving, angle):
    """Turn the first `moving` atoms by `angle` radians about an axis through the origin."""
    turn = Rotation.from_rotvec(angle * np.array([0.6, 0.8, 0.0])).as_matrix()
    return np.concatenate([atoms[:moving] @ turn.T, atoms[moving:]])


def overlap(first, second, sigma):
    """Integral of the product of two densities: sum of exp(-|a - b|^2 / (4 sigma^2))."""
    squared = ((first[:, None] - second[None]) ** 2).sum(-1)
    return (np.sqrt(np.pi) * sigma) ** 3 * np.exp(-squared / (4 * sigma**2)).sum()


def least_distance(first, second, sigma, starts):
    """min over R of ||V1 - R V2|| in closed form: all starts scored, the best ten refined."""

    def negative(vector):
        return -overlap(first, second @ Rotation.from_rotvec(vector).as_matrix().T, sigma)

    vectors = starts.as_rotvec()
    best = np.argsort([negative(vector) for vector in vectors])[:10]
    highest = -min(minimize(negative, vectors[i], method="BFGS").fun for i in best)
    own = overlap(first, first, sigma) + overlap(second, second, sigma)
    return np.sqrt(max(own - 2 * highest, 0.0))
