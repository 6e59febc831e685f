"""Molecules of which one part moves far: a domain that turns about a hinge, a ligand that travels.

Atoms (n, 3) in x, y, z, in voxels from the middle of a box of 32, for Gaussians of 1.3 voxels.
"""

import numpy as np
from gaussian_atoms import compact
from scipy.spatial.transform import Rotation

REACH = 10.0  # of the ligand, from the middle


def turning_domain(angle_in_degrees):
    """A club and an arm side by side, half as heavy, opened about the end where they meet.

    At 0 the arm lies along the club, at 180 degrees it points the other way.
    """
    generator = np.random.default_rng(5)
    along = np.linspace(0, 9, 36)
    club = np.stack([0 * along, 0 * along + 2.5, -along], axis=1)
    club += (0.5 + 0.12 * along[:, None]) * generator.normal(size=club.shape)
    arm = np.stack([0 * along, 0 * along - 2.5, -along], axis=1)[::2]
    arm += 0.5 * generator.normal(size=arm.shape)
    opened = Rotation.from_euler("y", angle_in_degrees, degrees=True).apply(arm)
    return np.concatenate([club, opened]) + [0.0, 0.0, 2.0]


def bound_ligand(displacement):
    """A molecule with a ligand of three atoms on its surface, so many voxels from a first site."""
    core = compact(60, 8.0, np.random.default_rng(0))
    turn = Rotation.from_rotvec(2 * np.arcsin(displacement / 2 / REACH) * np.array([0.6, 0.8, 0]))
    ligand = 0.6 * np.random.default_rng(1).normal(size=(3, 3)) + [0.0, 0.0, REACH]
    return np.concatenate([core, turn.apply(ligand)])
