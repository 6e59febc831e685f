"""Which distance a run compares its volumes by."""

from __future__ import annotations

from cryodrgn_metric.config import EmbedConfig
from cryodrgn_metric.distances.rigid import RigidDistance
from cryodrgn_metric.distances.rotation import RotationDistance
from cryodrgn_metric.distances.streaming import VolumeStream

__all__ = ["distance_of"]


def distance_of(config: EmbedConfig, stream: VolumeStream, full_box: int) -> RotationDistance:
    """Make the distance that was asked for, not yet calibrated.

    Arguments:
        config: What was asked for.
        stream: How volumes are decoded.
        full_box: D, the model's box.
    """
    kind = RigidDistance if config.distances.rigid == "se3" else RotationDistance
    return kind(
        box=stream.box,
        full_box=full_box,
        max_frequency=stream.max_frequency,
        pairs_per_tile=config.distances.pairs_per_tile,
        pairs_per_block=config.distances.pairs_per_block,
        unit_norm=config.distances.scale == "unit",
        device=stream.decoder.device,
        progress=True,
    )
