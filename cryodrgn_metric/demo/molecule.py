"""The demo's molecule: Gaussian atoms in a body, an arm on a hinge, and a part that comes off.

    motion   0 .. MOTION_LEVELS - 1: the arm swings evenly from FIRST_ANGLE to LAST_ANGLE degrees
    state    0 or 1: the part is missing or there

Coordinates are (x, y, z) in voxels from the origin voxel n//2; every atom is an isotropic
Gaussian of standard deviation SIGMA and height 1. Conventions are those of design.md section 2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

__all__ = [
    "ARM",
    "BODY",
    "BOX",
    "MOTION_LEVELS",
    "PART",
    "SIGMA",
    "STATES",
    "arm_angle_in_degrees",
    "atoms",
    "density",
    "sections",
]

BOX = 32
SIGMA = 1.3
MOTION_LEVELS = 80
STATES = 2
FIRST_ANGLE, LAST_ANGLE = -10.0, 100.0
HINGE = np.array([0.0, 1.0, 0.0])
HINGE_AXIS = np.array([1.0, 0.0, 1.0]) / np.sqrt(2.0)


def _ellipsoid(
    rng: np.random.Generator,
    count: int,
    semi_axes: ArrayLike,
    centre: ArrayLike,
    separation: float,
) -> NDArray[np.float64]:
    """Random atoms inside an ellipsoid, no two closer than `separation` voxels."""
    points: list[NDArray[np.float64]] = []
    while len(points) < count:
        direction = rng.uniform(-1.0, 1.0, 3)
        if direction @ direction > 1.0:
            continue
        point = direction * np.asarray(semi_axes) + np.asarray(centre)
        if all(np.linalg.norm(point - other) > separation for other in points):
            points.append(point)
    return np.array(points)


_RNG = np.random.default_rng(7)
BODY = _ellipsoid(_RNG, 44, (5.0, 4.0, 3.0), (-1.0, -3.5, 0.0), 1.1)
ARM = _ellipsoid(_RNG, 22, (1.8, 4.0, 1.8), (0.0, 4.2, 0.0), 0.9) + np.array([0.0, 1.5, 0.0])
PART = _ellipsoid(_RNG, 12, (2.0, 2.0, 2.0), (6.5, -5.5, 2.5), 0.9)


def arm_angle_in_degrees(motion: int) -> float:
    """Turn of the arm about its hinge at one motion level."""
    return FIRST_ANGLE + (LAST_ANGLE - FIRST_ANGLE) * motion / (MOTION_LEVELS - 1)


def sections(state: int) -> dict[str, slice]:
    """Which rows of `atoms` are the body, the arm, and (in state 1) the part."""
    arm_start, part_start = len(BODY), len(BODY) + len(ARM)
    found = {"body": slice(0, arm_start), "arm": slice(arm_start, part_start)}
    return found | ({"part": slice(part_start, part_start + len(PART))} if state else {})


def atoms(motion: int, state: int) -> NDArray[np.float64]:
    """Atom positions of one conformation.

    Arguments:
        motion: motion level, 0 to MOTION_LEVELS - 1
        state: 1 if the part is there, else 0

    Returns:
        (n, 3) positions (x, y, z) in voxels; rows as in `sections`.
    """
    turn = Rotation.from_rotvec(np.deg2rad(arm_angle_in_degrees(motion)) * HINGE_AXIS)
    arm = turn.apply(ARM - HINGE) + HINGE
    return np.concatenate([BODY, arm, PART] if state else [BODY, arm])


def density(coords: ArrayLike, box: int = BOX) -> NDArray[np.float64]:
    """Noise-free volume [z, y, x] of atoms at `coords`, origin at voxel box//2.

    Arguments:
        coords: (n, 3) atom positions (x, y, z) in voxels
        box: number of voxels along each side
    """
    grid = np.arange(box) - box // 2
    offsets = grid[None, :, None] - np.asarray(coords, dtype=float)[:, None, :]
    x, y, z = np.moveaxis(np.exp(-(offsets**2) / (2.0 * SIGMA**2)), 2, 0)
    return np.asarray(np.einsum("az,ay,ax->zyx", z, y, x, optimize=True))
