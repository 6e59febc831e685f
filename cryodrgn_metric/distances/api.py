"""What users call with volumes in hand: all pairs by each distance, and one volume on another."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from cryodrgn_metric.distances.base import (
    PILOT_COUNT,
    Alignment,
    Array,
    PairwiseDistances,
    as_given,
    as_tensor,
    check_volumes,
    pilots,
)
from cryodrgn_metric.distances.rigid import RigidDistance
from cryodrgn_metric.distances.rotation import RotationDistance
from cryodrgn_metric.distances.transport import LMAX, QUANTILES, TransportDistance
from cryodrgn_metric.errors import ArgumentError, VolumeError
from cryodrgn_metric.so3.conventions import WINDOW_RADIUS, spherical_window, windowed
from cryodrgn_metric.so3.expansion import turned_volume
from cryodrgn_metric.threads import map_in_threads

__all__ = ["align", "pairwise_distances", "rigid_distances", "rotate", "transport_distances"]

_VOLUMES_AT_ONCE = 8


def pairwise_distances(
    volumes: Array,
    *,
    window: float | None = WINDOW_RADIUS,
    lmax: int | None = None,
    max_frequency: float | None = None,
    pairs_per_tile: int | None = None,
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
        pairs_per_tile: Pairs that are worked on at once; bounds memory. None: as the device likes.
        dtype: torch.float32 or torch.float64; None: as the input.
        device: For example "cuda".
        progress: Show a progress bar.

    Returns:
        `PairwiseDistances`, numpy arrays unless a tensor went in.

    Raises:
        VolumeError: A volume is not a cube, is constant, or holds NaN or Inf.
        ArgumentError: pairs_per_tile is less than 1.

    References:
        Kovacs & Wriggers, Acta Cryst. D58, 2002, doi:10.1107/S0907444902009794.

    Example:
        >>> import numpy as np
        >>> volume = np.random.default_rng(0).normal(size=(16, 16, 16))
        >>> found = pairwise_distances(np.stack([volume, volume]))
        >>> bool(found.distances.max() < 1e-6)
        True
    """
    distance = partial(
        RotationDistance,
        max_frequency=max_frequency,
        lmax=lmax,
        pairs_per_tile=pairs_per_tile,
        device=device,
        progress=progress,
    )
    return _compared(distance, volumes, window, dtype)


def rigid_distances(
    volumes: Array,
    *,
    window: float | None = WINDOW_RADIUS,
    lmax: int | None = None,
    max_frequency: float | None = None,
    pairs_per_tile: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> PairwiseDistances:
    """Distances between all pairs of volumes, blind to rotation and to translation.

    Delta(i, j) = min over R and |t| <= n/10 of ||V_i - T_t R·V_j||, with (T_t R·V)(x) =
    V(R^T (x - t)), over a soft spherical window and the Fourier ball |k| <= max_frequency.
    The window is about the middle of the box, before volumes are moved: what it cuts off a volume
    that lies off the middle stays off. The constant that is taken away first is what V is at the
    window's edge (`so3.conventions.edge_of`), not its mean as for `pairwise_distances`: so a
    volume may lie anywhere within the window.

    Arguments:
        volumes, window, lmax, max_frequency, pairs_per_tile, dtype, device, progress: As for
            `pairwise_distances`.

    Returns:
        `PairwiseDistances` with `translations` (L, L, 3), x, y, z in voxels of these volumes;
        numpy arrays unless a tensor went in.

    Raises:
        VolumeError: A volume is not a cube, is constant, or holds NaN or Inf.

    References:
        Tong, Rossmann & Arnold, International Tables for Crystallography B, ch. 2.3, 2010,
        doi:10.1107/97809553602060000765.

    Example:
        >>> import numpy as np
        >>> volume = np.random.default_rng(0).normal(size=(16, 16, 16))
        >>> found = rigid_distances(np.stack([volume, volume]))
        >>> bool(found.distances.max() < 1e-6), found.translations.shape
        (True, (2, 2, 3))
    """
    distance = partial(
        RigidDistance,
        max_frequency=max_frequency,
        lmax=lmax,
        pairs_per_tile=pairs_per_tile,
        device=device,
        progress=progress,
    )
    return _compared(distance, volumes, window, dtype)


def transport_distances(
    volumes: Array,
    *,
    apix_in_angstroms: float = 1.0,
    contour: float | None = None,
    window: float = WINDOW_RADIUS,
    lmax: int = LMAX,
    quantiles: int = QUANTILES,
    pairs_per_tile: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> PairwiseDistances:
    r"""How far mass must be carried between all pairs of volumes, after the best rotation.

    The sliced Wasserstein distance (`TransportDistance`), minimised over rotations and
    translations. Where L2 says that a part has moved, this says how far.

    Arguments:
        volumes: (L, n, n, n) density [z, y, x], numpy array or tensor, n even.
        apix_in_angstroms: Size of a voxel; 1 for distances in voxels.
        contour: t, the density above the solvent's level that counts as mass. None: 3 standard
            deviations of the solvent.
        window: Start of the window's fall-off as a fraction of the half box.
        lmax: Angular band limit.
        quantiles: How many of every projection, even.
        pairs_per_tile: Pairs that are worked on at once; bounds memory. None: as the device likes.
        dtype: torch.float32 or torch.float64; None: as the input.
        device: For example "cuda".
        progress: Show a progress bar.

    Returns:
        `PairwiseDistances` in Å, numpy arrays unless a tensor went in.

    Raises:
        VolumeError: A volume is not a cube, is constant, holds NaN or Inf, or nothing in it is
            above the contour.

    References:
        Bonneel et al., J. Math. Imaging Vis. 51, 2015, doi:10.1007/s10851-014-0506-3.

    Example:
        >>> import numpy as np
        >>> volume = np.zeros((16, 16, 16)) + np.random.default_rng(0).normal(size=(16, 16, 16))
        >>> found = transport_distances(np.stack([volume, 2 * volume]), contour=1.0)
        >>> found.distances.shape
        (2, 2)
    """
    tensor = as_tensor(volumes, dtype)
    check_volumes(tensor)
    distance = TransportDistance(
        tensor.shape[-1],
        apix_in_angstroms,
        contour=contour,
        lmax=lmax,
        quantiles=quantiles,
        pairs_per_tile=pairs_per_tile,
        dtype=tensor.dtype,
        device=device,
        progress=progress,
    )
    soft = spherical_window(tensor.shape[-1], window)

    def features_of(batch: Tensor) -> Tensor:
        return distance.features(distance.prepare(batch.to(device), soft))

    looked_at = tensor[pilots(len(tensor))].to(device)
    distance.calibrate(distance.full_features(distance.prepare(looked_at, soft)))
    batches = tensor.split(_VOLUMES_AT_ONCE)
    features = torch.cat([*map_in_threads(features_of, batches, torch.device(device))], dim=-1)
    empty = (~torch.isfinite(features[0, 0])).nonzero().flatten().tolist()
    if empty:
        raise VolumeError(
            f"volumes[{empty[0]}] has no density above the contour, {distance.contour:.3g}. "
            "Leave it out, or give a lower contour."
        )
    return as_given(distance.pairwise(features), volumes)


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


def _compared(
    kind: Callable[..., RotationDistance],
    volumes: Array,
    window: float | None,
    dtype: torch.dtype | None,
) -> PairwiseDistances:
    """All pairs of volumes by a distance that is calibrated on some of them.

    Arguments:
        kind: The distance, but for box and dtype.
        volumes: (L, n, n, n), numpy array or tensor.
        window, dtype: As in `pairwise_distances`.

    Returns:
        `PairwiseDistances`, numpy arrays unless a tensor went in.

    Raises:
        VolumeError: A volume is not a cube, is constant, or holds NaN or Inf.
    """
    tensor = as_tensor(volumes, dtype)
    check_volumes(tensor)
    distance = kind(box=tensor.shape[-1], dtype=tensor.dtype)
    prepared = tensor
    if window is not None:
        prepared = distance.prepare(tensor, spherical_window(tensor.shape[-1], window))
    check_volumes(prepared, "within the window, volumes")
    if len(tensor) > PILOT_COUNT and distance.lmax is None:
        distance.calibrate(distance.full_features(prepared[pilots(len(tensor))]))
    return as_given(distance.pairwise(distance.features(prepared)), volumes)
