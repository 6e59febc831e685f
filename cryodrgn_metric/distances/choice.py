"""Which distance a run compares its volumes by."""

from __future__ import annotations

from cryodrgn_metric.config import EmbedConfig
from cryodrgn_metric.distances.base import VolumeDistance
from cryodrgn_metric.distances.rigid import RigidDistance
from cryodrgn_metric.distances.rotation import RotationDistance
from cryodrgn_metric.distances.streaming import VolumeStream
from cryodrgn_metric.distances.transport import CONTOUR_IN_SDS, TransportDistance

__all__ = ["distance_of"]


def distance_of(
    config: EmbedConfig, stream: VolumeStream, full_box: int, apix_in_angstroms: float
) -> VolumeDistance:
    """Make the distance that was asked for, not yet calibrated.

    Arguments:
        config: What was asked for.
        stream: How volumes are decoded.
        full_box: D, the model's box.
        apix_in_angstroms: Size of a voxel of the stream.
    """
    options = config.distances
    if options.distance == "transport":
        return TransportDistance(
            stream.box,
            apix_in_angstroms,
            CONTOUR_IN_SDS if options.contour is None else options.contour,
            pairs_per_tile=options.pairs_per_tile,
            pairs_per_block=options.pairs_per_block,
            device=stream.decoder.device,
            progress=True,
        )
    kind = RigidDistance if options.rigid == "se3" else RotationDistance
    return kind(
        box=stream.box,
        full_box=full_box,
        max_frequency=stream.max_frequency,
        pairs_per_tile=options.pairs_per_tile,
        pairs_per_block=options.pairs_per_block,
        unit_norm=options.scale == "unit",
        device=stream.decoder.device,
        progress=True,
    )
