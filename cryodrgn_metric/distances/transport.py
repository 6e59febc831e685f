r"""Optimal transport: how far the mass of one density must be carried to make the other.

The sliced Wasserstein distance of two densities of mass 1 compares their projections onto lines,
in every direction theta, by their quantile functions q(theta, p), 0 < p < 1:

    SW(V1, V2)^2 = 3 mean over theta, p of |q1(theta, p) - q2(theta, p)|^2

It is an L2 norm of functions on the sphere, and turning V turns theta: q_{R·V}(theta, p) =
q_V(R^T theta, p). So q is expanded in spherical harmonics, p plays the part of the shells, and
the search over all rotations is that of the L2 distance (`rotation.py`), unchanged. A translation
adds t·theta to every quantile: subtracting their mean removes it, exactly.

References:
    Bonneel, Rabin, Peyré, Pfister, "Sliced and Radon Wasserstein barycenters of measures",
    J. Math. Imaging Vis. 51, 2015, doi:10.1007/s10851-014-0506-3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import pi

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cryodrgn_metric.cache import NO_CACHE, PieceStore
from cryodrgn_metric.distances.base import PairwiseDistances
from cryodrgn_metric.distances.rotation import RotationDistance
from cryodrgn_metric.distances.slices import Slices
from cryodrgn_metric.distances.solvent import sd_below, solvent_level
from cryodrgn_metric.errors import ArgumentError, VolumeError
from cryodrgn_metric.so3.search import PairResults
from cryodrgn_metric.threads import one_thread

__all__ = ["CONTOUR_IN_SDS", "LMAX", "QUANTILES", "TransportDistance"]

CONTOUR_IN_SDS = 3.0
"""Density counts where it is above the solvent's level by so many of its standard deviations."""

LMAX = 8
QUANTILES = 48


@lru_cache(maxsize=4)
def _slices(
    box: int, lmax: int, quantiles: int, dtype: torch.dtype, device: torch.device
) -> Slices:
    return Slices.make(box, lmax, quantiles, dtype, device)


@dataclass
class TransportDistance:
    r"""Sliced Wasserstein distance of densities, minimised over rotations and translations.

    .. math:: \Delta^2 = \min_R\; 3 \int_0^1 \frac{1}{4\pi} \int_{S^2}
        |q_1(\theta, p) - q_2(R^\top \theta, p)|^2 \, d\theta\, dp

    of :math:`\rho = \max(w (V - s) - t, 0)`, mass 1 and centroid 0: s the solvent's level of each
    volume (its median within the sphere; the mean of V is untrained), w the window, t one contour
    for all volumes. A distance of 1 is 1 Å by which mass has moved, root mean square: Delta <= W2,
    the Wasserstein distance, and where all of W2 is one translation, or one scaling, Delta = W2.

    Arguments:
        box: n of the volumes, in voxels, even.
        apix_in_angstroms: Size of their voxels; 1 for distances in voxels.
        contour_in_sds: What `calibrate` takes as t, in standard deviations of the solvent.
        contour: t in density, as `calibrate` finds it if None.
        lmax: Angular band limit.
        quantiles: How many, even, at Gauss-Legendre nodes.
        pairs_per_tile: Pairs that are worked on at once; bounds memory. None: as the device likes.
        pairs_per_block: Pairs kept together by the `store` of `pairwise`.
        dtype: torch.float32 or torch.float64.
        device: Where coefficients live and pairs are computed.
        progress: Show a progress bar.

    References:
        Bonneel et al., J. Math. Imaging Vis. 51, 2015, doi:10.1007/s10851-014-0506-3.
        Kovacs & Wriggers, Acta Cryst. D58, 2002, doi:10.1107/S0907444902009794.
    """

    box: int
    apix_in_angstroms: float = 1.0
    contour_in_sds: float = CONTOUR_IN_SDS
    contour: float | None = None
    lmax: int = LMAX
    quantiles: int = QUANTILES
    pairs_per_tile: int | None = None
    pairs_per_block: int = 4096
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    progress: bool = False

    def __post_init__(self) -> None:
        if self.contour is not None and not self.contour > 0:
            raise ArgumentError(f"contour must be a density above 0; got {self.contour}.")
        if self.quantiles < 2 or self.quantiles % 2:
            raise ArgumentError(f"quantiles must be even and at least 2; got {self.quantiles}.")
        if not self.apix_in_angstroms > 0:
            raise ArgumentError(
                f"apix_in_angstroms must be positive; got {self.apix_in_angstroms}."
            )
        self._typical_squared = 0.0

    def prepare(self, volumes: Tensor, window: Tensor) -> Tensor:
        """w (V - s): the solvent's level is 0, whatever was added to V.

        Arguments:
            volumes: (L, n, n, n), as decoded.
            window: (n, n, n), perhaps times a mask.
        """
        levels = torch.stack([solvent_level(volume) for volume in volumes])
        return window.to(volumes) * (volumes - levels[:, None, None, None])

    def full_features(self, volumes: Tensor) -> Tensor:
        """The prepared voxels themselves, for `calibrate`: (1, n^3, volumes)."""
        return volumes.flatten(1).mT[None]

    def calibrate(self, features: Tensor) -> None:
        """Choose the contour, and how much the radial basis may drop, on a few volumes.

        t is `contour_in_sds` standard deviations of the solvent, those of the voxels below its
        level; the median over the volumes. The basis may drop 1e-3 of the median Delta^2.

        Arguments:
            features: As from `full_features`.

        Raises:
            VolumeError: Nothing is above the contour.
        """
        volumes = features[0].mT
        if self.contour is None:
            sds = torch.stack([sd_below(one, one.new_zeros(())) for one in volumes])
            self.contour = self.contour_in_sds * float(sds.median())
        pairs = self._pairs()
        with one_thread():  # many small operations, for which threads would mostly wait
            coefficients = self.features(volumes.unflatten(1, 3 * (self.box,)))
        above = torch.isfinite(coefficients[0, 0])
        if not bool(above.any()):
            raise VolumeError(
                f"No density is above the contour, {self.contour:.3g}, in any of the volumes that "
                "were looked at first. Lower --contour."
            )
        pairs.calibrate(coefficients[..., above])
        self._typical_squared = float(pairs.calibration[1])

    @property
    def calibration(self) -> npt.NDArray[np.float64]:
        """What `calibrate` found, for `recall`: the contour, and the median Delta^2."""
        return np.array([self.contour or 0.0, self._typical_squared])

    def recall(self, calibration: npt.NDArray[np.float64]) -> None:
        """Take over what `calibrate` found in an earlier run."""
        self.contour, self._typical_squared = map(float, calibration)

    @property
    def settings(self) -> dict[str, float | None]:
        """What the distance rests on, for metric_embed.yaml."""
        return {"lmax": self.lmax, "quantiles": self.quantiles, "contour": self.contour}

    def features(self, volumes: Tensor) -> Tensor:
        """Coefficients ((lmax + 1)^2, quantiles / 2, volumes) of prepared volumes, in Å.

        Their norm is the radius of gyration. NaN where nothing is above the contour. As
        q(-theta, p) = -q(theta, 1 - p), the quantiles below 1/2 tell all of them.
        """
        if self.contour is None:
            raise ArgumentError("the contour is not known: call calibrate, or give contour=.")
        slices = self._slices()
        found = [
            slices.quantiles((volume.flatten() - self.contour).clamp(min=0)) for volume in volumes
        ]
        of_all = torch.stack(found).mT  # volumes, quantiles, directions
        low, high = of_all.chunk(2, dim=1)
        high = high.flip(1)
        scale = (3 * 2 * slices.weights[: low.shape[1]] / (4 * pi)).sqrt() * self.apix_in_angstroms
        parts = torch.stack([low - high, low + high]) / 2 * scale[:, None]
        packed = slices.sphere.analyse(parts.flatten(1, 2).to(self.dtype))
        coefficients: Tensor = packed.unflatten(1, (len(volumes), -1))
        return coefficients.mT.contiguous()

    def norms(self, features: Tensor) -> Tensor:
        """The radius of gyration of every volume, (volumes,) in Å."""
        return self._pairs().norms(features)

    def pairwise(
        self, features: Tensor, fit_on: Tensor | None = None, store: PieceStore = NO_CACHE
    ) -> PairwiseDistances:
        """Delta, rotation, raw distance and second-peak gap of every pair.

        Arguments:
            features: As from `features`, all volumes.
            fit_on: Which volumes the basis of the quantiles may look at, (L,) bool; all if None.
            store: Where finished blocks of pairs are kept, and found again.

        Returns:
            Tensors on the CPU; raw distances are turned by nothing, but moved onto each other.
        """
        return self._pairs().pairwise(features, fit_on, store)

    def onto(self, reference: Tensor, features: Tensor) -> PairResults:
        """Turn many volumes onto one: reference ≈ R·volume, up to a translation.

        Arguments:
            reference: Features of one volume, last axis 1.
            features: Features of the others.
        """
        return self._pairs().onto(reference, features)

    def _slices(self) -> Slices:
        return _slices(self.box, self.lmax, self.quantiles, self.dtype, torch.device(self.device))

    def _pairs(self) -> RotationDistance:
        """All that follows the coefficients is that of the L2 distance."""
        pairs = RotationDistance(
            self.box,
            lmax=self.lmax,
            pairs_per_tile=self.pairs_per_tile,
            pairs_per_block=self.pairs_per_block,
            dtype=self.dtype,
            device=self.device,
            progress=self.progress,
        )
        pairs.recall(np.array([self.lmax, self._typical_squared]))
        return pairs
