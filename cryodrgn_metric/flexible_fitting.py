r"""Flexible fitting: a model of beads bent into volumes, its local geometry kept by springs.

The correlation of the beads' density with the volume is maximised, minus a share of the energy of
an elastic network, over the amplitudes of the network's normal modes: first its softest modes
against blurred volumes, then more against less blurred ones, then all of them, which is every bead
by itself, against the volumes as they are. A soft mode takes long steps and a stiff one short
ones. Many volumes are fitted at once, each from a start of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cryodrgn_metric.atomic_model import AtomicModel
from cryodrgn_metric.bead_density import BlurredVolumes, correlation
from cryodrgn_metric.elastic_network import ElasticNetwork
from cryodrgn_metric.so3.rotations import matrix_from_rotation_vector
from cryodrgn_metric.superposition import optimal_rotations

__all__ = ["Fits", "FlexibleFitting"]

STIFFNESS = 0.2  # of the springs, beside a correlation of at most 1
STEP = 0.1  # voxels (RMS over the beads) that the softest mode may go at once


@dataclass(frozen=True)
class _Level:
    """Blur in spacings of the beads; how many modes (0: all), steps, and the softest stiffness."""

    blur: float
    modes: int
    steps: int
    floor: float


# By experiment: all beads from the start lag behind at the far end of a domain's swing.
LEVELS = (_Level(1.2, 30, 40, 1e-3), _Level(0.6, 90, 30, 1e-3), _Level(0.0, 0, 40, 1e-2))
RIGID_BLURS, RIGID_STEPS = (1.2, 0.6), 40


@dataclass(frozen=True)
class Fits:
    """Models fitted to volumes.

    Arguments:
        positions: (B, A, 3), x, y, z in Å from the origin voxel.
        correlations: With the volumes as they are, (B,).
        strains: By which share springs are longer or shorter than at rest, RMS, (B,). A model
            that has to explain a volume without one of its parts squeezes it into the others.
    """

    positions: Tensor
    correlations: Tensor
    strains: Tensor


@dataclass(frozen=True)
class FlexibleFitting:
    """Fits one model to many volumes.

    Arguments:
        model: At rest; its springs keep these distances.
        apix_in_angstroms: Size of a voxel.
        window: (n, n, n), of the volumes.
        width_in_voxels: Standard deviation of a bead.
        max_frequency: Radius of the ball of the volumes in Fourier voxels, if they are cut to one.

    References:
        | Normal mode based flexible fitting of high-resolution structure into low-resolution
          experimental data from cryo-EM (Tama, Miyashita & Brooks, 2004),
          doi:10.1016/j.jsb.2004.03.002
        | Combining efficient conformational sampling with a deformable elastic network model
          (Schröder, Brunger & Levitt, 2007), doi:10.1016/j.str.2007.09.021
    """

    model: AtomicModel
    apix_in_angstroms: float
    window: Tensor
    width_in_voxels: float
    max_frequency: float | None = None

    def fit(self, volumes: Tensor, starts: Tensor) -> Fits:
        """Bend the model into volumes.

        Arguments:
            volumes: (B, n, n, n), windowed; density of the model is positive.
            starts: (B, A, 3), in Å from the origin voxel.
        """
        positions = starts.to(volumes) / self.apix_in_angstroms
        for level in LEVELS:
            positions = self._bent(volumes, positions, level)
        return self.judged(volumes, positions * self.apix_in_angstroms)

    def fit_rigidly(self, volumes: Tensor, starts: Tensor) -> Fits:
        """Turn and shift the starts, each onto its volume, without bending them.

        Arguments:
            volumes, starts: As in `fit`.
        """
        positions = starts.to(volumes) / self.apix_in_angstroms
        for blur in RIGID_BLURS:
            positions = self._moved(volumes, positions, blur * self.spacing_in_voxels)
        return self.judged(volumes, positions * self.apix_in_angstroms)

    def judged(self, volumes: Tensor, positions: Tensor) -> Fits:
        """Models as they are, in Å, with their correlations and strains."""
        beads = positions / self.apix_in_angstroms
        found = correlation(
            beads,
            self._weights.to(volumes),
            self.width_in_voxels,
            volumes,
            self.window,
            self.max_frequency,
        )
        return Fits(positions, found, self._network.strains(_apart(beads)))

    @property
    def spacing_in_voxels(self) -> float:
        """The median distance of a bead to its nearest neighbour."""
        return self._network.spacing

    def prepare(self) -> None:
        """Compute what all fits share, before several threads need it."""
        self._spectrum  # noqa: B018

    def _bent(self, volumes: Tensor, starts: Tensor, level: _Level) -> Tensor:
        count = level.modes or 3 * len(self._weights)
        softness = 1 / (self._stiffnesses[:count] + level.floor).sqrt()
        scale = (softness / softness.max() * math.sqrt(len(self._weights))).to(volumes)
        modes = self._modes[:count].to(volumes) * scale[:, None]
        rest = torch.from_numpy(self._network.rest).to(volumes)
        turns = optimal_rotations(starts, rest.expand_as(starts))  # modes are those of the rest
        amplitudes = volumes.new_zeros(len(volumes), len(modes))

        def positions(amplitudes: Tensor) -> Tensor:
            moves = (amplitudes @ modes).unflatten(1, (-1, 3))
            bent: Tensor = starts + moves @ turns.mT
            return bent

        blurred = self._blurred(volumes, level.blur * self.spacing_in_voxels)
        return self._climbed(blurred, positions, amplitudes, level.steps)

    def _moved(self, volumes: Tensor, starts: Tensor, blur: float) -> Tensor:
        centres = starts.mean(dim=1, keepdim=True)
        size = (starts - centres).square().sum(dim=2).mean(dim=1).sqrt()[:, None]

        def positions(motion: Tensor) -> Tensor:
            turns = matrix_from_rotation_vector(motion[:, :3] / size)
            return (starts - centres) @ turns.mT + centres + motion[:, None, 3:]

        blurred = self._blurred(volumes, blur)
        return self._climbed(blurred, positions, volumes.new_zeros(len(volumes), 6), RIGID_STEPS)

    def _blurred(self, volumes: Tensor, blur: float) -> BlurredVolumes:
        return BlurredVolumes(volumes, self.window, self.width_in_voxels, blur)

    def _climbed(
        self,
        blurred: BlurredVolumes,
        positions: Callable[[Tensor], Tensor],
        start: Tensor,
        steps: int,
    ) -> Tensor:
        """Adam, its steps falling to nothing along a cosine."""
        free = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([free], lr=STEP, betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        weights = self._weights.to(start)
        with torch.enable_grad():
            for _ in range(steps):
                where = positions(free)
                apart = _apart(where)
                found = blurred.correlation(where, weights, apart)
                loss = STIFFNESS * self._network.energies(apart) - found
                (free.grad,) = torch.autograd.grad(loss.sum(), [free])
                optimizer.step()
                schedule.step()
        return positions(free.detach())

    @cached_property
    def _network(self) -> ElasticNetwork:
        return ElasticNetwork.of(self.model.positions / self.apix_in_angstroms)

    @cached_property
    def _weights(self) -> Tensor:
        return torch.from_numpy(self.model.weights)

    @property
    def _stiffnesses(self) -> Tensor:
        return self._spectrum[0]

    @property
    def _modes(self) -> Tensor:
        return self._spectrum[1]

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        values, modes = self._network.modes()
        return torch.from_numpy(values), torch.from_numpy(modes)


def _apart(positions: Tensor) -> Tensor:
    """Distances between beads, (B, A, A)."""
    apart: Tensor = torch.cdist(positions, positions, compute_mode="donot_use_mm_for_euclid_dist")
    return apart
