"""Pairs of landmarks that z misjudges, as pictures: each volume, and one turned onto the other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cryodrgn_metric import artifacts
from cryodrgn_metric.frame import seen_volume
from cryodrgn_metric.measurement import Measured
from cryodrgn_metric.projections import projections
from cryodrgn_metric.run import Run
from cryodrgn_metric.threads import map_in_threads

__all__ = ["write_striking_pairs"]

Positions = npt.NDArray[np.int64]
Images = npt.NDArray[np.float32]


def write_striking_pairs(
    run: Run, measured: Measured, far_in_z: Positions, near_in_z: Positions
) -> None:
    """Write projections of pairs of volumes, before and after the second is turned.

    Arguments:
        run: What all stages share.
        measured: The landmarks and their rotations.
        far_in_z, near_in_z: Positions among the landmarks, (K, 2).
    """
    artifacts.save_npz(
        run.folder.striking_pairs,
        far_in_z=far_in_z,
        near_in_z=near_in_z,
        images_far=_images(run, measured, far_in_z),
        images_near=_images(run, measured, near_in_z),
    )


def _images(run: Run, measured: Measured, pairs: Positions) -> Images:
    """(K, 3, 3, n, n): first, second, second turned onto the first; along z, y, x."""

    def of_pair(pair: Positions) -> Tensor:
        first, second = measured.latents[pair]
        turn = measured.pairs.rotations[pair[0], pair[1]]
        moves = measured.pairs.translations
        move = None if moves is None else moves[pair[0], pair[1]]
        volumes = ((first, None, None), (second, None, None), (second, turn, move))
        return torch.cat([projections(seen_volume(run, *one)) for one in volumes])

    box = run.stream.box
    found = map_in_threads(of_pair, pairs, run.stream.decoder.device)
    images = [one.cpu().numpy() for one in found]
    return np.array(images, dtype=np.float32).reshape(len(pairs), 3, 3, box, box)
