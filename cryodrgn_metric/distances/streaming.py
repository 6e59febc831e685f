"""From latents to distances without ever holding more than a batch of voxels.

Decode, window, expand, drop: only what a distance needs of each volume is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from cryodrgn_metric.cache import NO_CACHE, PieceStore
from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.distances.base import VolumeDistance, pilots, unusable_volumes
from cryodrgn_metric.errors import VolumeError
from cryodrgn_metric.so3.conventions import windowed
from cryodrgn_metric.threads import map_in_threads

__all__ = [
    "VolumeStream",
    "calibrate",
    "mask_anisotropy",
    "stream_features",
    "usable_columns",
]

BoolArray = npt.NDArray[np.bool_]

VOLUMES_PER_BATCH = 8
"""Decoded together by one thread: enough to share the positional encoding, few to hold."""

_MASK_PROBES = 20


@dataclass(frozen=True)
class VolumeStream:
    """V(z) as it is compared: decoded at one box and resolution, windowed, perhaps masked.

    Arguments:
        decoder: Of the workdir.
        box: Voxels along a side.
        window: (box, box, box), the soft sphere times the mask, if there is one.
        max_frequency: Radius of the Fourier ball in 1/box; None: the whole ball.
        level_from: As `windowed` takes it.
    """

    decoder: Decoder
    box: int
    window: Tensor
    max_frequency: float | None = None
    level_from: Tensor | None = None

    def volumes(
        self,
        latents: np.ndarray,
        rotations: np.ndarray | None = None,
        prepare: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Windowed volumes (B, box, box, box), turned by `rotations` (B, 3, 3) if given.

        What is compared is windowed by the distance's own `prepare`. A volume that is constant or
        holds NaN becomes NaN all over.
        """
        decoded = self.decoder.decode(latents, self.box, rotations, self.max_frequency)
        decoded[list(unusable_volumes(decoded))] = torch.nan
        if prepare is None:
            return windowed(decoded, self.window, self.level_from)
        return prepare(decoded, self.window)


def calibrate(
    stream: VolumeStream,
    latents: np.ndarray,
    distance: VolumeDistance,
    store: PieceStore = NO_CACHE,
) -> None:
    """Let the distance see up to ten volumes, evenly spread over `latents`.

    Raises:
        VolumeError: Fewer than two of them can be compared.
    """
    chosen = pilots(len(latents)).numpy()
    found = store.load(0)
    if found is not None:
        distance.recall(found)
    else:
        distance.calibrate(_pilot_features(stream, latents[chosen], distance))
        store.save(0, distance.calibration)
    # builds the tables once, before several threads need them
    side, device = stream.box, stream.decoder.device
    distance.features(torch.zeros(1, side, side, side, device=device))


def _pilot_features(stream: VolumeStream, latents: np.ndarray, distance: VolumeDistance) -> Tensor:
    pilots = [
        stream.volumes(latents[row : row + 1], prepare=distance.prepare)
        for row in range(len(latents))
    ]
    usable = [pilot for pilot in pilots if not unusable_volumes(pilot)]
    if len(usable) < 2:
        raise VolumeError(
            f"{len(pilots) - len(usable)} of {len(pilots)} volumes that were decoded first are "
            "constant or hold NaN: the decoder is not trained. Choose another epoch."
        )
    return torch.cat([distance.full_features(pilot) for pilot in usable], dim=-1)


def stream_features(
    stream: VolumeStream,
    latents: np.ndarray,
    distance: VolumeDistance,
    desc: str | None = "Volumes",
    store: PieceStore = NO_CACHE,
    announce: Callable[[int], object] | None = None,
) -> Tensor:
    """What the distance keeps of every volume; the last axis counts volumes.

    Arguments:
        stream: How volumes are decoded.
        latents: (L, d).
        distance: Calibrated.
        desc: Of the progress bar; None shows none.
        store: Where finished batches are kept, and found again.
        announce: Called with the number of volumes that are to be decoded, if there are any.

    Returns:
        Features; all NaN for a volume that cannot be compared (`usable_columns`).
    """
    starts = range(0, len(latents), VOLUMES_PER_BATCH)
    parts = {number: _kept_part(store, number, stream) for number in range(len(starts))}
    missing = [number for number, part in parts.items() if part is None]

    def expand(number: int) -> Tensor:
        chosen = slice(starts[number], starts[number] + VOLUMES_PER_BATCH)
        volumes = stream.volumes(latents[chosen], prepare=distance.prepare)
        return _features_or_nan(volumes, distance)

    done = sum(part.shape[-1] for part in parts.values() if part is not None)
    if missing and announce is not None:
        announce(len(latents) - done)
    with tqdm(total=len(latents), unit="vol", desc=desc, disable=desc is None) as bar:
        bar.update(done)
        found = map_in_threads(expand, missing, stream.decoder.device)
        for number, part in zip(missing, found, strict=True):
            store.save(number, part.cpu().numpy())
            parts[number] = part
            bar.update(part.shape[-1])
    return torch.cat([part for part in parts.values() if part is not None], dim=-1)


def _kept_part(store: PieceStore, number: int, stream: VolumeStream) -> Tensor | None:
    piece = store.load(number)
    return None if piece is None else torch.from_numpy(piece).to(stream.decoder.device)


def _features_or_nan(volumes: Tensor, distance: VolumeDistance) -> Tensor:
    unusable = list(unusable_volumes(volumes))
    volumes[unusable] = 0.0
    features = distance.features(volumes)
    features[..., unusable] = torch.nan
    return features


def usable_columns(features: Tensor) -> BoolArray:
    """Which volumes of `stream_features` can be compared, (L,) bool."""
    return np.asarray(torch.isfinite(features[0, 0]).cpu().numpy())


def mask_anisotropy(
    stream: VolumeStream, latents: np.ndarray, rotations: np.ndarray, distance: VolumeDistance
) -> float:
    """Median delta(M·V, M·(R·V)): what a mask that doesn't turn adds to a pure rotation.

    Arguments:
        stream: With the mask in its window.
        latents: (L, d), of the landmarks.
        rotations: (L, L, 3, 3), the run's own optimal rotations.
        distance: The calibrated distance.

    Returns:
        The median over up to 20 landmarks, in units of Delta. A sphere gives next to 0.
    """
    rows = np.unique(np.linspace(0, len(latents) - 1, _MASK_PROBES).round().astype(int))
    turns = rotations[rows[0], rows].astype(np.float64)
    found = []
    for row, turn in zip(rows, turns, strict=True):
        latent = latents[row : row + 1]
        still = distance.features(stream.volumes(latent, prepare=distance.prepare))
        moved = distance.features(stream.volumes(latent, turn[None], distance.prepare))
        found.append(distance.onto(still, moved).distances)
    return float(torch.cat(found).median())
