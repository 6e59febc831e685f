"""Delta without translation as well: minimised over rigid motions of one of the volumes.

    Delta(V1, V2) = min over R in SO(3), |t| <= 10 % of the box, of ||V1 - T_t R·V2||

with (T_t R·V)(x) = V(R^T (x - t)). Volumes are windowed once, about the middle of the box, as a
part of V; they are moved by phases, as if zero-padded, so nothing is cut off and every motion is
an isometry. Before, V's level at the window's edge is taken away. See docs/distance.md.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from math import pi
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cryodrgn_metric.distances.all_pairs import PairSearch
from cryodrgn_metric.distances.rotation import RotationDistance
from cryodrgn_metric.se3.motions import MOST_TRANSLATION, energy_centroids
from cryodrgn_metric.se3.search import CentredVolumes, RigidSearch
from cryodrgn_metric.so3.conventions import edge_of, windowed
from cryodrgn_metric.so3.pairs import Pairs
from cryodrgn_metric.so3.search import PairResults
from cryodrgn_metric.threads import one_thread

__all__ = ["RigidDistance", "RigidSearchInVoxels"]

logger = logging.getLogger(__name__)

_TIMED_PAIRS = 64  # as many as make the work of one volume, done once for its pairs, small
_AXES = 3  # rows of the features that hold where a volume's middle lies


@dataclass
class RigidDistance(RotationDistance):
    """Delta = min over rigid motions of the L2 distance, for all pairs of many volumes.

    Each volume is expanded twice: about the middle of the box, for the distance over rotations
    alone, which is an upper bound, and about its own middle (`energy_centroids`), which makes
    the search and the band limit blind to where the volume lies. `features` holds both, and the
    middle: ((lmax + 1)^2 + (lmax' + 1)^2 + 3, shells, volumes).

    Arguments: as `RotationDistance`. Translations are x, y, z in voxels of `box`.

    References:
        Rotation first, then translation, is the order of molecular replacement:
        Tong, Rossmann & Arnold, International Tables for Crystallography B, ch. 2.3, 2010,
        doi:10.1107/97809553602060000765.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        options = {name: getattr(self, name) for name in RotationDistance.__dataclass_fields__}
        reach = self.reach + MOST_TRANSLATION
        self._centred = RotationDistance(**{**options, "reach": reach, "progress": False})

    def prepare(self, volumes: Tensor, window: Tensor) -> Tensor:
        """Window them; what they are at the window's edge is removed first (`edge_of`)."""
        return windowed(volumes, window, edge_of(window))

    def calibrate(self, features: Tensor) -> None:
        """Choose lmax and the radial tolerance of both expansions, on a few volumes.

        Arguments:
            features: As from `full_features`.
        """
        about_box, centred, _ = self._parts(features, full=True)
        super().calibrate(about_box)
        self._centred.calibrate(centred)

    @property
    def calibration(self) -> npt.NDArray[np.float64]:
        """What `calibrate` found, for `recall`: as `RotationDistance`, for both expansions."""
        return np.concatenate([super().calibration, self._centred.calibration])

    def recall(self, calibration: npt.NDArray[np.float64]) -> None:
        """Take over what `calibrate` found in an earlier run."""
        super().recall(calibration[:2])
        self._centred.recall(calibration[2:])

    def full_features(self, volumes: Tensor, middles: Tensor | None = None) -> Tensor:
        """Both expansions at the full band limit, for `calibrate`."""
        middles = energy_centroids(volumes) if middles is None else middles
        about_box, centred = super().full_features(volumes), self._centred
        return _joined(about_box, centred.full_features(volumes, middles), middles)

    def features(self, volumes: Tensor, middles: Tensor | None = None) -> Tensor:
        """Both expansions of windowed volumes, and where their middles lie."""
        middles = energy_centroids(volumes) if middles is None else middles
        about_box, centred = super().features(volumes), self._centred
        return _joined(about_box, centred.features(volumes, middles), middles)

    def norms(self, features: Tensor) -> Tensor:
        """|V| of every volume, (volumes,)."""
        return super().norms(self._parts(features)[0])

    def search(self, features: Tensor, fit_on: Tensor | None = None) -> RigidSearchInVoxels:
        """What compares these volumes, in any pairs.

        Arguments:
            features, fit_on: As for `pairwise`.
        """
        about_box, centred, middles = self._parts(features)
        centred = self._centred._normalised(centred)
        basis = self._centred._basis(centred, fit_on)
        volumes = CentredVolumes(
            blocks=basis.project(centred),
            directions=basis.directions,
            frequencies=torch.from_numpy(self._centred._expansion(basis.lmax).frequencies),
            centroids=middles * (2 * pi / self.box),
        )
        blocks = self._compress(about_box, fit_on)
        search = RigidSearch(blocks, volumes, self.dtype, torch.device(self.device))
        return RigidSearchInVoxels(search, self.box)

    def _parts(self, features: Tensor, full: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients about the box, about the middles, and the middles in voxels (B, 3)."""
        lmax = self._full_lmax if full or self.lmax is None else self.lmax
        rows = [(lmax + 1) ** 2, len(features) - (lmax + 1) ** 2 - _AXES, _AXES]
        about_box, centred, middles = features.split(rows)
        return about_box, centred, middles[:, 0].mT

    def _announce(self, search: PairSearch, blocks: Collection[Pairs]) -> None:
        """Say how long these will take: more than ten times as long as rotations alone."""
        count = sum(map(len, blocks))
        if not self.progress or count <= 2 * _TIMED_PAIRS:
            return
        block = next(iter(blocks))
        with one_thread():
            search.compare(block.at(slice(0, 2)))  # wakes threads and kernels up
            start = time.perf_counter()
            search.compare(block.at(slice(0, _TIMED_PAIRS)))
            seconds = (time.perf_counter() - start) / _TIMED_PAIRS * count
        threads = torch.get_num_threads() if torch.device(self.device).type == "cpu" else 1
        logger.info(
            "Superposing %d pairs of volumes will take about %.0f s.", count, seconds / threads
        )


def _joined(about_box: Tensor, centred: Tensor, middles: Tensor) -> Tensor:
    rows = about_box.new_zeros(_AXES, *about_box.shape[1:])
    rows[:, 0] = middles.mT.to(rows)
    return torch.cat([about_box, centred, rows])


@dataclass(frozen=True)
class RigidSearchInVoxels:
    """A search whose translations are in voxels; those of `search` are in 2 pi / box."""

    search: RigidSearch
    box: int
    translates: ClassVar[bool] = True

    @property
    def count(self) -> int:
        return self.search.count

    def compare(self, pairs: Pairs) -> PairResults:
        found = self.search.compare(pairs)
        assert found.translations is not None
        return replace(found, translations=found.translations * (self.box / (2 * pi)))
