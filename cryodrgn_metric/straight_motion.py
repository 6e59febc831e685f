"""Straight lines through z', decoded: what only a map that can be inverted can show."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from tqdm import tqdm

from cryodrgn_metric.frame import Frame, aligned_latents
from cryodrgn_metric.measurement import Measured
from cryodrgn_metric.metric_map import MetricMap
from cryodrgn_metric.path_volumes import PathSummary, warn_of_unusable, write_volumes
from cryodrgn_metric.paths import ALONG_PATH
from cryodrgn_metric.run import Run

__all__ = ["StraightSummary", "write_straight_motion"]

logger = logging.getLogger(__name__)

BEYOND = 0.5  # of the range of z along each axis, outside of which nothing is decoded


@dataclass(frozen=True)
class StraightSummary:
    """What the report says of one straight line.

    Arguments:
        path: As of any path; its particles at the ends are those nearest to them.
        farthest_from_particles: The largest distance, in z', from a volume on the line to the
            nearest particle: what is far from all particles is extrapolated.
    """

    path: PathSummary
    farthest_from_particles: float


def write_straight_motion(
    run: Run, measured: Measured, metric_map: MetricMap, z_metric: npt.NDArray[np.float32]
) -> list[StraightSummary]:
    """Volumes V(f_xi^-1(z')) along the straight line between the ends of each component's path.

    The path along a component (`motion.write_motion`, which has written it) follows the particles
    from one end to the other; the line between the same two particles takes equal steps of z',
    also where there are none. Volumes are aligned, measured and written alike. Where the line
    leaves the range of z by more than half of it, there is no volume: a decoder was never asked
    for anything near, and what it answers can be of any size.

    Arguments:
        run: What all stages share.
        measured: The landmarks, whose medoid gives the frame.
        metric_map: A fitted flow.
        z_metric: z' of all particles, (N, d').

    Returns:
        One summary a line, for report.json.
    """
    frame, particles = Frame.of(measured), cKDTree(z_metric)
    found = []
    paths = [path for path in run.folder.paths() if not path.is_straight]
    lines = [path for path in paths if len(path.numbers) == 1]
    for along in tqdm(lines, unit="line", desc="Volumes along straight lines"):
        with np.load(along.table, allow_pickle=False) as table:
            first, last = z_metric[table["rows"][[0, -1]]].astype(np.float64)
        folder = run.folder.straight_path(along.numbers[0])
        points = np.linspace(first, last, ALONG_PATH)
        latents = metric_map.inverse(points).astype(np.float32)
        near = _in_range(latents, run.workdir.latents)
        if not near.all():
            logger.info(
                "%s: %d of %d volumes left out, far from any z.",
                folder.name,
                (~near).sum(),
                len(near),
            )
        if near.sum() < 2:
            continue
        points, latents = points[near], latents[near]
        nearest, rows = particles.query(points)
        volumes = aligned_latents(run, frame, latents)
        kept = volumes.is_usable
        warn_of_unusable(run, folder.name, rows[~kept])
        path = write_volumes(
            run,
            frame,
            volumes,
            folder,
            run.written_box,
            rows[kept],
            points[kept].astype(np.float32),
            distance_to_particles=nearest[kept],
        )
        if path is not None:
            found.append(StraightSummary(path, float(nearest[kept].max())))
    return found


def _in_range(
    latents: npt.NDArray[np.float32], particles: npt.NDArray[np.float32]
) -> npt.NDArray[np.bool_]:
    low, high = particles.min(axis=0), particles.max(axis=0)
    reach = BEYOND * (high - low)
    return np.asarray(((latents >= low - reach) & (latents <= high + reach)).all(axis=1))
