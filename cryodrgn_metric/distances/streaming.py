"""From latents to distances without ever holding more than a batch of voxels.

Decode, window, expand, drop: only what a distance needs of each volume is kept.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.distances.base import check_volumes
from cryodrgn_metric.distances.rotation import PILOT_COUNT, RotationDistance
from cryodrgn_metric.so3.conventions import windowed
from cryodrgn_metric.threads import map_in_threads

__all__ = ["VolumeStream", "calibrate", "mask_anisotropy", "stream_features"]

logger = logging.getLogger(__name__)

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
    """

    decoder: Decoder
    box: int
    window: Tensor
    max_frequency: float | None = None

    def volumes(self, latents: np.ndarray, rotations: np.ndarray | None = None) -> Tensor:
        """Windowed volumes (B, box, box, box), turned by `rotations` (B, 3, 3) if given.

        Raises:
            VolumeError: A decoded volume is constant or holds NaN.
        """
        decoded = self.decoder.decode(latents, self.box, rotations, self.max_frequency)
        check_volumes(decoded, "decoded volumes")
        return windowed(decoded, self.window)


def calibrate(stream: VolumeStream, latents: np.ndarray, distance: RotationDistance) -> None:
    """Let the distance see up to ten volumes, evenly spread over `latents`."""
    chosen = np.unique(np.linspace(0, len(latents) - 1, PILOT_COUNT).round().astype(int))
    pilots = [stream.volumes(latents[row : row + 1]) for row in chosen]
    distance.calibrate(torch.cat([distance.full_features(pilot) for pilot in pilots], dim=-1))
    distance.features(pilots[0])  # builds the tables once, before several threads need them


def stream_features(
    stream: VolumeStream,
    latents: np.ndarray,
    distance: RotationDistance,
    desc: str | None = "Volumes",
) -> Tensor:
    """What the distance keeps of every volume; the last axis counts volumes."""

    def expand(start: int) -> Tensor:
        return distance.features(stream.volumes(latents[start : start + VOLUMES_PER_BATCH]))

    starts = range(0, len(latents), VOLUMES_PER_BATCH)
    parts = []
    with tqdm(total=len(latents), unit="vol", desc=desc, disable=desc is None) as bar:
        for part in map_in_threads(expand, starts, stream.decoder.device):
            parts.append(part)
            bar.update(part.shape[-1])
    return torch.cat(parts, dim=-1)


def mask_anisotropy(
    stream: VolumeStream, latents: np.ndarray, rotations: np.ndarray, distance: RotationDistance
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
        still = distance.features(stream.volumes(latents[row : row + 1]))
        moved = distance.features(stream.volumes(latents[row : row + 1], turn[None]))
        found.append(distance.onto(still, moved).distances)
    return float(torch.cat(found).median())
