"""What every distance between landmark volumes offers, and the results it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cryodrgn_metric.cache import NO_CACHE, PieceStore
from cryodrgn_metric.errors import VolumeError
from cryodrgn_metric.so3.search import PairResults

__all__ = [
    "PILOT_COUNT",
    "Alignment",
    "Array",
    "PairwiseDistances",
    "VolumeDistance",
    "as_given",
    "as_tensor",
    "check_volumes",
    "pilots",
    "unusable_volumes",
]

Array: TypeAlias = npt.NDArray[Any] | Tensor
"""What users hand in and get back: results are numpy arrays unless tensors went in."""

PILOT_COUNT = 10
"""Volumes that `calibrate` looks at."""

_MARGIN = 1e3  # its square is: second derivatives are up to lmax^2 times the squared norm


@dataclass(frozen=True)
class Alignment:
    """How a volume lies on a reference: volume ≈ R·reference.

    Arguments:
        distance: min over R of ||volume - R·reference||.
        rotation: That R, (3, 3).
        raw_distance: ||volume - reference||, nothing turned.
        second_peak_gap: (delta_2 - delta) / RMS norm, with delta_2 the best local optimum at least
            20 degrees away; inf if there is none. Near 0 the rotation is ambiguous.
    """

    distance: float
    rotation: Any
    raw_distance: float
    second_peak_gap: float


@dataclass(frozen=True)
class PairwiseDistances:
    """All pairs of L volumes, as numpy arrays or, if tensors went in, tensors.

    Arguments:
        distances: (L, L), Delta.
        rotations: (L, L, 3, 3), V_i ≈ rotations[i, j]·V_j.
        raw_distances: (L, L), nothing turned.
        second_peak_gaps: (L, L), as in `Alignment`.
        translations: (L, L, 3), V_i ≈ T_t rotations[i, j]·V_j with t = translations[i, j], x, y, z
            in voxels of these volumes; translations[j, i] = -rotations[j, i] translations[i, j].
            None where only rotations are taken out.
    """

    distances: Any
    rotations: Any
    raw_distances: Any
    second_peak_gaps: Any
    translations: Any = None

    def numpy(self) -> PairwiseDistances:
        """The same as numpy arrays, where it holds tensors."""
        arrays = {name: None if one is None else one.numpy() for name, one in vars(self).items()}
        return PairwiseDistances(**arrays)


class VolumeDistance(Protocol):
    """A distance between volumes, in steps so that voxels can be streamed.

    `prepare` windows decoded volumes, `calibrate` looks at the `full_features` of a few of them,
    `features` is called on batches and keeps what one volume needs (its last axis counts volumes;
    `norms` are those of the volumes, in units of the distance), `pairwise` compares all of them
    and hands each finished block of pairs to `store`; `onto` turns a few onto one. `calibration`
    is what `calibrate` found, as numbers that `recall` takes; `settings` says it in words for
    metric_embed.yaml.
    """

    progress: bool

    def prepare(self, volumes: Tensor, window: Tensor) -> Tensor: ...

    def full_features(self, volumes: Tensor) -> Tensor: ...

    def calibrate(self, features: Tensor) -> None: ...

    @property
    def calibration(self) -> npt.NDArray[np.float64]: ...

    def recall(self, calibration: npt.NDArray[np.float64]) -> None: ...

    @property
    def settings(self) -> dict[str, float | None]: ...

    def features(self, volumes: Tensor) -> Tensor: ...

    def norms(self, features: Tensor) -> Tensor: ...

    def pairwise(
        self, features: Tensor, fit_on: Tensor | None = None, store: PieceStore = NO_CACHE
    ) -> PairwiseDistances: ...

    def onto(self, reference: Tensor, features: Tensor) -> PairResults: ...


def pilots(count: int) -> Tensor:
    """Up to `PILOT_COUNT` indices, evenly spread over range(count)."""
    evenly = torch.linspace(0, count - 1, PILOT_COUNT, dtype=torch.float64)
    chosen: Tensor = evenly.round().long().unique()
    return chosen


def as_tensor(values: Array, dtype: torch.dtype | None) -> Tensor:
    """float32 stays float32 and float64 float64, unless a dtype is asked for."""
    # A flipped numpy view has negative strides, which torch refuses.
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    if dtype is None:
        dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return tensor.to(dtype)


def as_given(result: PairwiseDistances, volumes: Array) -> PairwiseDistances:
    """Numpy arrays, unless the volumes were a tensor."""
    return result if isinstance(volumes, Tensor) else result.numpy()


def unusable_volumes(volumes: Tensor) -> dict[int, str]:
    """Which volumes cannot be compared, and why.

    Arguments:
        volumes: (L, n, n, n).

    Returns:
        Index to "holds NaN, Inf or values too large to square" or "is constant", for those alone.
    """
    flat = volumes.flatten(1)
    broken = ~torch.isfinite((_MARGIN * flat).square().sum(dim=1))
    constant = flat.amin(dim=1) == flat.amax(dim=1)
    found = {int(index): "is constant" for index in constant.nonzero()}
    return found | {
        int(index): "holds NaN, Inf or values too large to square" for index in broken.nonzero()
    }


def check_volumes(volumes: Tensor, name: str = "volumes") -> None:
    """Refuse what cannot be compared: wrong shape, odd box, NaN or Inf, constant volumes.

    Arguments:
        volumes: (L, n, n, n).
        name: How the message calls them.

    Raises:
        VolumeError: With the first offending volume named.
    """
    if volumes.ndim != 4 or len(set(volumes.shape[1:])) != 1 or volumes.shape[-1] % 2:
        raise VolumeError(
            f"{name} must be cubes of an even box, shape (L, n, n, n); got {tuple(volumes.shape)}."
        )
    for index, reason in sorted(unusable_volumes(volumes).items()):
        raise VolumeError(f"{name}[{index}] {reason}: there is nothing to compare. Leave it out.")
