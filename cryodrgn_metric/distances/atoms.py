r"""Delta between models of the same beads: how far they move, in Å, whatever their orientation.

    rmsd:  Delta(X, Y) = min over R, t of sqrt(mean over beads of |x_a - R y_a - t|^2)
    drmsd: Delta(X, Y) = sqrt(mean over pairs a < b of (|x_a - x_b| - |y_a - y_b|)^2)

Both are pseudometrics, zero for a model and its rotation: rmsd (reflections excluded) by
superposition, drmsd because it is the Euclidean distance of the tables of internal distances. That
of mirror images is 0 by drmsd, and not by rmsd.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cryodrgn_metric.distances.base import PairwiseDistances
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.superposition import centred, rotations_and_gains

__all__ = ["atom_distances"]

_TABLES_AT_ONCE = 1 << 24  # numbers of internal distances


def atom_distances(coordinates: Tensor, kind: str = "rmsd") -> PairwiseDistances:
    """Compare all pairs of fitted models.

    Arguments:
        coordinates: (L, A, 3), in Å, bead a of one model is bead a of every other.
        kind: "rmsd" or "drmsd".

    Returns:
        `PairwiseDistances` in Å, float64 tensors. Rotations are those of the superposition, X_i ≈
        R·X_j about the centroids. Raw distances are root mean square distances of the beads as
        they lie; by drmsd, which needs no superposition, Delta itself. Second-peak gaps are inf.

    Raises:
        ArgumentError: Another shape, or fewer than 3 beads.

    References:
        | Metric properties of the root-mean-square deviation of vector sets (Kaindl & Steipe,
          1997), doi:10.1107/S0108767397010325
        | A revised proof of the metric properties of optimally superimposed vector sets (Steipe,
          2002), doi:10.1107/S0108767302011637

    Example:
        >>> model = torch.eye(3) * torch.tensor([1.0, 2, 3])
        >>> turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
        >>> found = atom_distances(torch.stack([model, model @ turn.T + 5]))
        >>> bool(found.distances[0, 1] < 1e-6), bool(found.raw_distances[0, 1] > 5)
        (True, True)
    """
    if coordinates.ndim != 3 or coordinates.shape[1] < 3 or coordinates.shape[2] != 3:
        raise ArgumentError(
            f"expected coordinates (L, A, 3) of at least 3 beads; got {tuple(coordinates.shape)}."
        )
    models = coordinates.double()
    distances, rotations = _superposed(models)
    raw = _root_mean_square(models.flatten(1), models.shape[1])
    if kind == "drmsd":
        distances = raw = _internal(models)
    return PairwiseDistances(
        distances=distances,
        rotations=rotations,
        raw_distances=raw,
        second_peak_gaps=torch.full_like(distances, torch.inf),
    )


def _superposed(models: Tensor) -> tuple[Tensor, Tensor]:
    count, beads = models.shape[:2]
    lying = centred(models)
    covariances = torch.einsum("iax,jay->ijxy", lying, lying)
    rotations, gains = rotations_and_gains(covariances)
    sizes = lying.square().sum(dim=(1, 2))
    squared = (sizes[:, None] + sizes - 2 * gains).clamp(min=0) / beads
    upper = squared.triu(1).sqrt()
    turns = torch.eye(3, dtype=models.dtype, device=models.device).repeat(count, count, 1, 1)
    i, j = torch.triu_indices(count, count, offset=1, device=models.device)
    turns[i, j], turns[j, i] = rotations[i, j], rotations[i, j].mT
    return upper + upper.mT, turns


def _root_mean_square(rows: Tensor, count: int) -> Tensor:
    apart = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    typical: Tensor = apart / count**0.5
    return typical


def _internal(models: Tensor) -> Tensor:
    """In slices of pairs of beads: all of them would be gigabytes."""
    count, beads = models.shape[:2]
    first, second = torch.triu_indices(beads, beads, offset=1, device=models.device)
    squared = models.new_zeros(count, count)
    for some in torch.arange(len(first)).split(max(1, _TABLES_AT_ONCE // count)):
        tables = (models[:, first[some]] - models[:, second[some]]).norm(dim=-1)
        tables = tables - tables.mean(dim=0)  # of which nothing then cancels
        products = tables @ tables.mT
        sizes = products.diagonal()
        squared += sizes[:, None] + sizes - 2 * products
    upper: Tensor = (squared.clamp(min=0) / len(first)).triu(1).sqrt()
    return upper + upper.mT
