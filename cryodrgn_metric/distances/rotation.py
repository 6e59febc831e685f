"""Delta: the voxel L2 distance of two volumes, minimised over all rotations of one of them.

    Delta(V1, V2) = min over R in SO(3) of ||V1 - R·V2||                               (Eq. 1-3)

Each volume is expanded once; each pair is then searched exhaustively at a coarse degree and its
best candidates refined by Newton steps at the full one. See docs/distance.md.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from cryodrgn_metric.cache import NO_CACHE, PieceStore
from cryodrgn_metric.distances.base import (
    Alignment,
    Array,
    PairwiseDistances,
    as_given,
    as_tensor,
    check_volumes,
)
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.se3.motions import inverted
from cryodrgn_metric.so3.conventions import (
    WINDOW_EDGE,
    WINDOW_RADIUS,
    spherical_window,
    windowed,
)
from cryodrgn_metric.so3.expansion import (
    RadialBasis,
    ShellExpansion,
    full_band_limit,
    turned_volume,
)
from cryodrgn_metric.so3.pairs import Pairs
from cryodrgn_metric.so3.search import (
    PairResults,
    RotationSearch,
    converged_degree,
    residual_by_degree,
)
from cryodrgn_metric.threads import map_in_threads, one_thread

__all__ = [
    "Alignment",
    "PairSearch",
    "PairwiseDistances",
    "RotationDistance",
    "align",
    "compared",
    "pairwise_distances",
    "rotate",
    "spread",
]

logger = logging.getLogger(__name__)

PILOT_COUNT = 10
"""Volumes compared at the full band limit to find the one at which Delta is converged."""

_EXPANSION_BATCH = 8


class PairSearch(Protocol):
    """What compares pairs of volumes: on rotations, or on rigid motions."""

    @property
    def count(self) -> int: ...

    def compare(self, pairs: Pairs) -> PairResults: ...


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
        pairs_per_tile: Pairs that one thread works on at once; bounds its memory.
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
    pairs_per_tile: int = 1024
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
        shares = residual_by_degree(blocks, self._search(blocks).rotations)
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
        """Delta, rotation, raw distance and second-peak gap of every pair.

        Arguments:
            features: As from `features`, all volumes.
            fit_on: Which volumes the radial basis may look at, (L,) bool; all if None.
            store: Where finished blocks of pairs are kept, and found again.

        Returns:
            Tensors on the CPU.
        """
        return self._search(self._compress(features, fit_on), store)

    def onto(self, reference: Tensor, features: Tensor) -> PairResults:
        """Turn many volumes onto one: reference ≈ R·volume.

        Arguments:
            reference: Features of one volume, last axis 1.
            features: Features of the others.

        Returns:
            `PairResults`, one pair per volume.
        """
        together = torch.cat([reference, features], dim=2)
        columns = torch.arange(1, together.shape[2])
        with one_thread():  # few volumes: threads would mostly wait for each other
            blocks = self._compress(together, None)
            search = RotationSearch(blocks, self.dtype, torch.device(self.device))
            return search.compare(Pairs(torch.zeros_like(columns), columns))

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

    def _search(
        self, coefficients: list[Tensor], store: PieceStore = NO_CACHE
    ) -> PairwiseDistances:
        search = RotationSearch(coefficients, self.dtype, torch.device(self.device))
        return self._compare_all(search, self._empty_result(search.count), store)

    def _compare_all(
        self, search: PairSearch, result: PairwiseDistances, store: PieceStore
    ) -> PairwiseDistances:
        """Fill in the result, block by block, those that are kept first."""
        everything = Pairs(*torch.triu_indices(search.count, search.count, offset=1))
        blocks = dict(enumerate(everything.split(self.pairs_per_block)))
        kept = {number: piece for number in blocks if (piece := store.load(number)) is not None}
        for number, piece in kept.items():
            _store_block(result, blocks.pop(number), torch.from_numpy(piece))
        self._announce(search, blocks.values())
        with tqdm(
            total=len(everything), unit="pair", desc="Distances", disable=not self.progress
        ) as bar:
            bar.update(len(everything) - sum(map(len, blocks.values())))

            def compare(tile: Pairs) -> Tensor:
                return _as_table(search.compare(tile)).cpu()

            tiles = {
                number: [*block.split(self.pairs_per_tile)] for number, block in blocks.items()
            }
            tables = map_in_threads(compare, chain(*tiles.values()), torch.device(self.device))
            for number, block in blocks.items():
                rows = []
                for tile in tiles[number]:
                    rows.append(next(tables))
                    bar.update(len(tile))
                table = torch.cat(rows)
                store.save(number, table.numpy())
                _store_block(result, block, table)
        return result

    def _announce(self, search: PairSearch, blocks: Collection[Pairs]) -> None:
        """Say how long these will take, where that is minutes: not here."""

    def _empty_result(self, count: int) -> PairwiseDistances:
        return PairwiseDistances(
            distances=torch.zeros(count, count, dtype=self.dtype),
            rotations=torch.eye(3, dtype=self.dtype).repeat(count, count, 1, 1),
            raw_distances=torch.zeros(count, count, dtype=self.dtype),
            second_peak_gaps=torch.full((count, count), torch.inf, dtype=self.dtype),
        )


def _as_table(found: PairResults) -> Tensor:
    """Results as (pairs, 12): distance, raw distance, second-peak gap, rotation.

    And the translation, if there is one, which makes it 15.
    """
    numbers = torch.stack([found.distances, found.raw_distances, found.second_peak_gaps], dim=1)
    moves = [] if found.translations is None else [found.translations]
    return torch.cat([numbers, found.rotations.flatten(1), *moves], dim=1)


def _store_block(result: PairwiseDistances, pairs: Pairs, table: Tensor) -> None:
    """Write pairs and their mirror images: rotations[j, i] = rotations[i, j]^T, and so on."""
    rows, columns = pairs.rows, pairs.columns
    for number, name in enumerate(("distances", "raw_distances", "second_peak_gaps")):
        matrix = getattr(result, name)
        matrix[rows, columns] = matrix[columns, rows] = table[:, number]
    rotations = table[:, 3:12].reshape(-1, 3, 3)
    result.rotations[rows, columns] = rotations
    result.rotations[columns, rows] = rotations.mT
    if result.translations is not None:
        translations = table[:, 12:]
        result.translations[rows, columns] = translations
        result.translations[columns, rows] = inverted(rotations, translations)[1]


def pairwise_distances(
    volumes: Array,
    *,
    window: float | None = WINDOW_RADIUS,
    lmax: int | None = None,
    max_frequency: float | None = None,
    pairs_per_tile: int = 1024,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> PairwiseDistances:
    """Rotation-free distances between all pairs of volumes.

    Delta(i, j) = min over R of ||V_i - R·V_j||, with (R·V)(x) = V(R^T x), over a soft spherical
    window and the Fourier ball |k| <= max_frequency.

    Arguments:
        volumes: (L, n, n, n) density [z, y, x], numpy array or tensor, n even.
        window: Start of the window's fall-off as a fraction of the half box; None: volumes are
            windowed already.
        lmax: Angular band limit; None: chosen so that Delta is converged.
        max_frequency: In 1/box; None: n/2 - 1.
        pairs_per_tile: Pairs that one thread works on at once; bounds its memory.
        dtype: torch.float32 or torch.float64; None: as the input.
        device: For example "cuda".
        progress: Show a progress bar.

    Returns:
        `PairwiseDistances`, numpy arrays unless a tensor went in.

    Raises:
        VolumeError: A volume is not a cube, is constant, or holds NaN or Inf.

    References:
        Kovacs & Wriggers, Acta Cryst. D58, 2002, doi:10.1107/S0907444902009794.

    Example:
        >>> import numpy as np
        >>> volume = np.random.default_rng(0).normal(size=(16, 16, 16))
        >>> found = pairwise_distances(np.stack([volume, volume]))
        >>> bool(found.distances.max() < 1e-6)
        True
    """
    return compared(
        volumes,
        lambda box, of_input: RotationDistance(
            box=box,
            max_frequency=max_frequency,
            lmax=lmax,
            pairs_per_tile=pairs_per_tile,
            dtype=of_input,
            device=device,
            progress=progress,
        ),
        window,
        dtype,
    )


def compared(
    volumes: Array,
    make: Callable[[int, torch.dtype], RotationDistance],
    window: float | None,
    dtype: torch.dtype | None,
) -> PairwiseDistances:
    """All pairs of volumes by a distance that is calibrated on some of them.

    Arguments:
        volumes: (L, n, n, n), numpy array or tensor.
        make: The distance, from the box and the dtype.
        window, dtype: As in `pairwise_distances`.

    Returns:
        `PairwiseDistances`, numpy arrays unless a tensor went in.

    Raises:
        VolumeError: A volume is not a cube, is constant, or holds NaN or Inf.
    """
    tensor = as_tensor(volumes, dtype)
    check_volumes(tensor)
    distance = make(tensor.shape[-1], tensor.dtype)
    prepared = tensor
    if window is not None:
        prepared = distance.prepare(tensor, spherical_window(tensor.shape[-1], window))
    check_volumes(prepared, "within the window, volumes")
    if len(tensor) > PILOT_COUNT and distance.lmax is None:
        distance.calibrate(distance.full_features(prepared[spread(len(tensor), PILOT_COUNT)]))
    return as_given(distance.pairwise(distance.features(prepared)), volumes)


def spread(count: int, picks: int) -> Tensor:
    """`picks` indices evenly spread over range(count)."""
    return torch.linspace(0, count - 1, picks, dtype=torch.float64).round().long()


def align(
    volume: Array,
    reference: Array,
    *,
    window: float | None = WINDOW_RADIUS,
    lmax: int | None = None,
    max_frequency: float | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Alignment:
    """The rotation that lays a reference on a volume: volume ≈ R·reference.

    Arguments:
        volume: (n, n, n) density [z, y, x], numpy array or tensor, n even.
        reference: The same box; it is the one that is turned.
        window, lmax, max_frequency, dtype, device: As in `pairwise_distances`.

    Returns:
        `Alignment`; its rotation is a numpy array unless tensors went in.

    Raises:
        VolumeError: The boxes differ, or a volume is constant or holds NaN or Inf.

    Example:
        >>> import numpy as np
        >>> volume = np.random.default_rng(0).normal(size=(16, 16, 16))
        >>> align(volume, volume).distance < 1e-6
        True
    """
    first, second = as_tensor(volume, dtype), as_tensor(reference, dtype)
    if first.shape != second.shape:
        raise ArgumentError(
            f"volume and reference must have one box; got {tuple(first.shape)} and "
            f"{tuple(second.shape)}. Resample one of them first."
        )
    found = pairwise_distances(
        torch.stack([first, second]),
        window=window,
        lmax=lmax,
        max_frequency=max_frequency,
        dtype=dtype,
        device=device,
    )
    rotation = found.rotations[0, 1]
    tensors = isinstance(volume, Tensor) or isinstance(reference, Tensor)
    return Alignment(
        distance=float(found.distances[0, 1]),
        rotation=rotation if tensors else rotation.numpy(),
        raw_distance=float(found.raw_distances[0, 1]),
        second_peak_gap=float(found.second_peak_gaps[0, 1]),
    )


def rotate(volume: Array, rotation: Array, *, window: float | None = WINDOW_RADIUS) -> Array:
    """Turn a volume without interpolation error: (R·V)(x) = V(R^T x), within the Fourier ball.

    F_{R·V}(k) = F_V(R^T k) is evaluated by a NUFFT on the turned grid, |k| < n/2.

    Arguments:
        volume: (n, n, n) density [z, y, x], numpy array or tensor, n even.
        rotation: (3, 3), active, acting on (x, y, z).
        window: As in `pairwise_distances`; None: windowed already.

    Returns:
        The windowed, turned volume, of the input's kind.

    Example:
        >>> import numpy as np
        >>> volume = np.random.default_rng(0).normal(size=(16, 16, 16))
        >>> rotate(volume, np.eye(3)).shape
        (16, 16, 16)
    """
    tensor = as_tensor(volume, None)
    check_volumes(tensor[None], "volume")
    matrix = as_tensor(rotation, torch.float64)
    if window is not None:
        tensor = windowed(tensor, spherical_window(tensor.shape[-1], window))
    result = turned_volume(tensor, matrix)
    return result if isinstance(volume, Tensor) else result.numpy()
