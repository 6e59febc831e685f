r"""An elastic network: springs between near beads, which keep local geometry while a model bends.

    E(X) = 1/(2 A) sum over springs of (s/d_ab)^2 ((|x_a - x_b| - d_ab) / s)^2

with d_ab the distances in the model at rest and s the spacing of its beads. Far neighbours pull
less (Yang, Song & Jernigan 2009). Its normal modes of lowest frequency are the model's own hinges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import pdist, squareform
from torch import Tensor

__all__ = ["ElasticNetwork"]

FloatArray = npt.NDArray[np.float64]

REACH = 2.5  # of a spring, in spacings


@dataclass(frozen=True)
class ElasticNetwork:
    """Springs of a model at rest.

    Arguments:
        rest: Positions at rest. (A, 3)
        spacing: The median distance of a bead to its nearest neighbour, in the same unit.
        lengths: Distances at rest. (A, A)
        stiffness: 0 where there is no spring. (A, A)

    References:
        | Large amplitude elastic motions in proteins from a single-parameter, atomic analysis
          (Tirion, 1996), doi:10.1103/PhysRevLett.77.1905
        | Protein elastic network models and the ranges of cooperativity (Yang, Song & Jernigan,
          2009), doi:10.1073/pnas.0902159106
    """

    rest: FloatArray
    spacing: float
    lengths: FloatArray
    stiffness: FloatArray

    @classmethod
    def of(cls, rest: npt.ArrayLike) -> ElasticNetwork:
        """Springs between all beads within 2.5 spacings, and those that make it one piece.

        Arguments:
            rest: (A, 3), A >= 4.

        Example:
            >>> line = np.column_stack([np.arange(6.0), np.zeros(6), np.zeros(6)])
            >>> network = ElasticNetwork.of(line)
            >>> network.spacing, int((network.stiffness[0] > 0).sum())
            (1.0, 2)
        """
        positions = np.asarray(rest, dtype=np.float64)
        lengths = squareform(pdist(positions))
        apart = lengths + np.diag(np.full(len(lengths), np.inf))
        spacing = float(np.median(apart.min(axis=1)))
        joined = apart < REACH * spacing
        tree = minimum_spanning_tree(lengths).toarray() > 0
        springs = joined | tree | tree.T
        stiffness = np.zeros_like(lengths)
        stiffness[springs] = (spacing / lengths[springs]) ** 2
        return cls(positions, spacing, lengths, stiffness)

    def energies(self, apart: Tensor) -> Tensor:
        """E of models whose beads are `apart`, without unit, (B,).

        Arguments:
            apart: Distances between beads. (B, A, A)
        """
        stretch = (apart - torch.from_numpy(self.lengths).to(apart)) / self.spacing
        stiffness = torch.from_numpy(self.stiffness).to(apart)
        return (stiffness * stretch.square()).sum(dim=(1, 2)) / (4 * apart.shape[-1])

    def strains(self, apart: Tensor) -> Tensor:
        """By which share springs are longer or shorter than at rest, RMS, (B,).

        Arguments:
            apart: As in `energies`.
        """
        joined = torch.from_numpy(self.stiffness > 0).to(apart.device)
        rest = torch.from_numpy(self.lengths).to(apart)[joined]
        strain: Tensor = ((apart[:, joined] - rest) / rest).square().mean(dim=1).sqrt()
        return strain

    def modes(self) -> tuple[FloatArray, FloatArray]:
        """Normal modes of the network at rest, softest first.

        Returns:
            Eigenvalues of the Hessian (3 A,), the first six 0 (the model as a rigid body), and the
            modes as orthonormal rows (3 A, 3 A), coordinates in the order of `rest`.
        """
        count = len(self.rest)
        rows, columns = np.nonzero(self.stiffness)
        along = (self.rest[rows] - self.rest[columns]) / self.lengths[rows, columns, None]
        blocks = self.stiffness[rows, columns, None, None] * along[:, :, None] * along[:, None]
        hessian = np.zeros((count, count, 3, 3))
        hessian[rows, columns] = -blocks
        np.add.at(hessian, (rows, rows), blocks)
        flat = hessian.transpose(0, 2, 1, 3).reshape(3 * count, 3 * count)
        values, vectors = np.linalg.eigh(flat)
        return np.maximum(values, 0.0), np.ascontiguousarray(vectors.T)
