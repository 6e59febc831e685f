"""Landmarks that can't be used: few are left out, many end the run."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from cryodrgn_metric.errors import VolumeError
from cryodrgn_metric.landmarks import Landmarks
from cryodrgn_metric.run import Run

__all__ = ["leave_out"]

logger = logging.getLogger(__name__)

MOST_NAMED = 10  # particles


def leave_out(
    run: Run,
    landmarks: Landmarks,
    usable: npt.NDArray[np.bool_],
    fault: str,
    most: float,
    meaning: str,
) -> None:
    """Say which landmarks are left out, and refuse a run in which they are many.

    Arguments:
        run: What all stages share.
        landmarks: All of them.
        usable: Which can be used. (L,)
        fault: What is wrong with the others, with `{}` for how many they are.
        most: Of all landmarks, the largest share that may be left out.
        meaning: What more than that means, and what to type then.

    Raises:
        VolumeError: More are to be left out, or too few would remain to embed.
    """
    particles = run.workdir.particle_indices[landmarks.indices[~usable]]
    if not len(particles):
        return
    named = ", ".join(map(str, particles[:MOST_NAMED]))
    more = ", ..." if len(particles) > MOST_NAMED else ""
    counted = fault.format(f"{len(particles)} of {len(landmarks)}")
    text = f"{counted}; particles {named}{more}."
    if len(particles) > most * len(landmarks):
        raise VolumeError(f"{text} More than {100 * most:.0f} % means that {meaning}")
    if run.config.metric_map.most_dimensions > len(landmarks) - len(particles) - 1:
        raise VolumeError(f"{text} Too few are left for --dim {run.config.metric_map.dimension}.")
    logger.warning("%s They are left out.", text)
