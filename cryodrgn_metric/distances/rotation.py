"""Delta: the voxel L2 distance of two volumes, minimised over all rotations of one of them.

    Delta(V1, V2) = min over R in SO(3) of ||V1 - R·V2||                               (Eq. 1-3)

Each volume is expanded once; each pair is then searched exhaustively at a coarse degree and its
best candidates refined by Newton steps at the full one. See docs/distance.md.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cryodrgn_metric.cache import NO_CACHE, PieceStore
from cryodrgn_metric.distances.all_pairs import AllPairs, PairSearch
from cryodrgn_metric.distances.base import PairwiseDistances
from cryodrgn_metric.so3.conventions import WINDOW_EDGE, windowed
from cryodrgn_metric.so3.expansion import RadialBasis, ShellExpansion, full_band_limit
from cryodrgn_metric.so3.pairs import Pairs
from cryodrgn_metric.so3.search import (
    PairResults,
    RotationSearch,
    converged_degree,
    residual_by_degree,
)
from cryodrgn_metric.threads import one_thread

__all__ = ["RotationDistance"]

logger = logging.getLogger(__name__)

_EXPANSION_BATCH = 8


@lru_cache(maxsize=8)
def _expansion(
    box: int,
    lmax: int,
    full_box: int,
    max_frequency: float | None,
    dtype: torch.dtype,
    device: torch.device,
    reach: float,
) -> ShellExpansion:
    return ShellExpansion(
        box,
        lmax,
        full_box=full_box,
        max_frequency=max_frequency,
        dtype=dtype,
        device=device,
        reach=reach,
    )


@dataclass
class RotationDistance:
    """Delta = min over rotations of the L2 distance, for all pairs of many volumes.

    Arguments:
        box: n of the volumes, in voxels, even.
        full_box: D, the box whose voxel norm is meant (the model's); n if None.
        max_frequency: Radius of the Fourier ball, 1/box; n/2 - 1 at most, and if None.
        lmax: Angular band limit; None: found by `calibrate`, so that Delta is converged.
        pairs_per_tile: Pairs that are worked on at once; bounds memory. None: as the device likes.
        pairs_per_block: Pairs kept together by the `store` of `pairwise`.
        unit_norm: Divide each volume by its norm first (contrast drift).
        dtype: torch.float32 or torch.float64.
        device: Where coefficients live and pairs are computed.
        progress: Show a progress bar.
        reach: How far volumes reach from where they are expanded about, in boxes.

    References:
        Kovacs & Wriggers, Acta Cryst. D58, 2002, doi:10.1107/S0907444902009794.
    """

    box: int
    full_box: int | None = None
    max_frequency: float | None = None
    lmax: int | None = None
    pairs_per_tile: int | None = None
    pairs_per_block: int = 4096
    unit_norm: bool = False
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    progress: bool = False
    reach: float = WINDOW_EDGE / 2

    def __post_init__(self) -> None:
        self._full_lmax = full_band_limit(self.box, self.max_frequency, self.reach)
        self._typical_squared: float | None = None

    def prepare(self, volumes: Tensor, window: Tensor) -> Tensor:
        """Window them; their mean under the window is removed first."""
        return windowed(volumes, window)

    def calibrate(self, features: Tensor) -> None:
        """Choose lmax and the radial tolerance on a few volumes, at the full band.

        lmax is the smallest degree that holds 99.75 % of Delta for the median pair and 99 % for
        the worst one in a hundred; the radial basis may drop 1e-3 of the median Delta^2.

        Arguments:
            features: As from `full_features`.
        """
        features = self._normalised(features)
        energy = float(features.square().sum(dim=(0, 1)).mean())
        basis = RadialBasis.fit(features, 1e-6 * energy)
        blocks = basis.project(features)
        turned = self._all_pairs().compare(self._rotations_of(blocks))
        shares = residual_by_degree(blocks, turned.rotations)
        squared = shares.sum(dim=0)
        self._typical_squared = float(squared.median())
        if self.lmax is None:
            energies = torch.stack([b.square().sum(dim=(0, 1)).mean() for b in blocks])
            self.lmax = converged_degree(shares, energies)

    @property
    def calibration(self) -> npt.NDArray[np.float64]:
        """What `calibrate` found, for `recall`: lmax, and the median Delta^2 of its volumes."""
        return np.array([self.lmax or 0, self._typical_squared or 0.0])

    def recall(self, calibration: npt.NDArray[np.float64]) -> None:
        """Take over what `calibrate` found in an earlier run."""
        self.lmax, self._typical_squared = int(calibration[0]), float(calibration[1])

    @property
    def settings(self) -> dict[str, float | None]:
        """What the distance rests on, for metric_embed.yaml."""
        return {"lmax": self.lmax}

    def full_features(self, volumes: Tensor, middles: Tensor | None = None) -> Tensor:
        """Coefficients at the full band limit, for `calibrate`."""
        return self._expand(volumes, self._full_lmax, middles)

    def features(self, volumes: Tensor, middles: Tensor | None = None) -> Tensor:
        """Coefficients ((lmax + 1)^2, shells, volumes) of windowed volumes.

        Arguments:
            volumes: (volumes, n, n, n).
            middles: What they are expanded about, as `ShellExpansion` takes it.
        """
        return self._expand(volumes, self._full_lmax if self.lmax is None else self.lmax, middles)

    def norms(self, features: Tensor) -> Tensor:
        """|V| of every volume, (volumes,)."""
        return features.square().sum(dim=(0, 1)).sqrt()

    def pairwise(
        self, features: Tensor, fit_on: Tensor | None = None, store: PieceStore = NO_CACHE
    ) -> PairwiseDistances:
        """Delta, rotation (and translation), raw distance and second-peak gap of every pair.

        Arguments:
            features: As from `features`, all volumes.
            fit_on: Which volumes the radial basis may look at, (L,) bool; all if None.
            store: Where finished blocks of pairs are kept, and found again.

        Returns:
            Tensors on the CPU.
        """
        return self._all_pairs().compare(self.search(features, fit_on), store, self._announce)

    def onto(self, reference: Tensor, features: Tensor) -> PairResults:
        """Superpose many volumes on one: reference ≈ R·volume, or T_t R·volume.

        Arguments:
            reference: Features of one volume, last axis 1.
            features: Features of the others.

        Returns:
            `PairResults`, one pair per volume.
        """
        together = torch.cat([reference, features], dim=2)
        others = torch.arange(1, together.shape[2])
        with one_thread():  # few volumes: threads would mostly wait for each other
            return self.search(together).compare(Pairs(torch.zeros_like(others), others))

    def search(self, features: Tensor, fit_on: Tensor | None = None) -> PairSearch:
        """What compares these volumes, in any pairs.

        Arguments:
            features, fit_on: As for `pairwise`.
        """
        return self._rotations_of(self._compress(features, fit_on))

    def _rotations_of(self, blocks: list[Tensor]) -> RotationSearch:
        return RotationSearch(blocks, self.dtype, torch.device(self.device))

    def _all_pairs(self) -> AllPairs:
        return AllPairs(
            self.pairs_per_tile,
            self.pairs_per_block,
            self.dtype,
            torch.device(self.device),
            self.progress,
        )

    def _announce(self, search: PairSearch, blocks: Collection[Pairs]) -> None:
        """Say how long these will take, where that is minutes: not here."""

    def _expansion(self, lmax: int) -> ShellExpansion:
        return _expansion(
            self.box,
            lmax,
            self.full_box or self.box,
            self.max_frequency,
            self.dtype,
            torch.device(self.device),
            self.reach,
        )

    def _expand(self, volumes: Tensor, lmax: int, middles: Tensor | None) -> Tensor:
        expand = self._expansion(lmax)
        batches = volumes.split(_EXPANSION_BATCH)
        about = [None] * len(batches) if middles is None else middles.split(_EXPANSION_BATCH)
        return torch.cat([expand(*both) for both in zip(batches, about, strict=True)], dim=2)

    def _normalised(self, features: Tensor) -> Tensor:
        if not self.unit_norm:
            return features
        return features / features.square().sum(dim=(0, 1)).sqrt()

    def _compress(self, features: Tensor, fit_on: Tensor | None) -> list[Tensor]:
        features = self._normalised(features)
        return self._basis(features, fit_on).project(features)

    def _basis(self, features: Tensor, fit_on: Tensor | None) -> RadialBasis:
        sample = features if fit_on is None else features[:, :, fit_on.to(features.device)]
        energy = float(sample.square().sum(dim=(0, 1)).mean())
        # Two dropped parts differ by at most 2 (|a|^2 + |b|^2): a quarter of 1e-3 for each.
        typical = self._typical_squared or 0.0
        basis = RadialBasis.fit(sample, max(0.25e-3 * typical, 1e-9 * energy))
        logger.debug("Radial basis: %d numbers a volume.", basis.rank)
        return basis
