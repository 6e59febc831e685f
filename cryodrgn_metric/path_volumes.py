"""The volumes along a path through z': aligned, measured, and written as a movie."""

from __future__ import annotations

import logging
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cryodrgn_metric import artifacts
from cryodrgn_metric.frame import (
    AlignedVolumes,
    Frame,
    aligned_volumes,
    seen_file,
    seen_volume,
    write_aligned,
)
from cryodrgn_metric.metric_folder import volumes_in
from cryodrgn_metric.model_fits import distances_along
from cryodrgn_metric.path_folder import PathFolder
from cryodrgn_metric.paths import MetricPath
from cryodrgn_metric.projections import central_slices, projections
from cryodrgn_metric.run import Run
from cryodrgn_metric.se3.motions import composed
from cryodrgn_metric.so3.conventions import mirrored, mirrored_vectors
from cryodrgn_metric.threads import map_in_threads, one_thread
from cryodrgn_metric.volumes import write_movie

__all__ = ["PathSummary", "remove_path", "warn_of_unusable", "write_path", "write_volumes"]

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PathSummary:
    """What the report says of one path.

    Arguments:
        name: Of its folder, `pc1` or `path_3_7`.
        numbers: The component, or the labels of the two clusters.
        particles: How many volumes lie on it.
        first, last: The particles at its ends, by their numbers in the original stack.
        length: In z', along these particles.
        measured_length: Delta from volume to volume, summed.
        largest_step: The largest of these.
        end_to_end: Delta between the first and the last volume.
    """

    name: str
    numbers: tuple[int, ...]
    particles: int
    first: int
    last: int
    length: float
    measured_length: float
    largest_step: float
    end_to_end: float


def write_path(
    run: Run, frame: Frame, path: MetricPath, folder: PathFolder, z_metric: Array, box: int
) -> PathSummary | None:
    """Decode the volumes along a path, align them, measure Delta, write all of it.

    The volume nearest to the medoid is turned onto it, and from there every volume onto the one
    before it on the path, so that what differs between two pictures is structure. Turned onto the
    medoid one by one, volumes far from it turn against each other: on the demo, the raw distance
    from picture to picture was up to twice Delta; like this it is Delta, to 2 %.

    Projections, slices and Delta are of the box at which the run compares volumes. Like the .mrc
    files they obey --flip and --invert, and like those of distances.npz the rotations do.

    Arguments:
        run: What all stages share.
        frame: Of the medoid.
        path: The particles.
        folder: Where to write; what an earlier run left there is replaced.
        z_metric: z' of all particles.
        box: Of the .mrc files, in voxels.

    Returns:
        What the report says of it; None, and nothing written, if no volume can be compared.
    """
    volumes = aligned_volumes(run, frame, path.rows)
    rows = path.rows[volumes.is_usable]
    warn_of_unusable(run, folder.name, path.rows[~volumes.is_usable])
    return write_volumes(run, frame, volumes, folder, box, rows, z_metric[rows])


def write_volumes(
    run: Run,
    frame: Frame,
    volumes: AlignedVolumes,
    folder: PathFolder,
    box: int,
    rows: IntArray,
    points: Array,
    **more: npt.NDArray[np.floating],
) -> PathSummary | None:
    """Measure Delta among the volumes of a path, and write all of it.

    Arguments:
        run: What all stages share.
        frame: Of the medoid.
        volumes: Along the path, each turned onto the medoid.
        folder: Where to write.
        box: Of the .mrc files, in voxels.
        rows: Of z, of the particles at them or nearest to them. (P,)
        points: z' of the volumes. (P, d')
        more: Columns for path.npz. (P,)

    Returns:
        As `write_path`.
    """
    artifacts.remove_files([folder.table])  # which says that the others are there
    if not len(volumes):
        remove_path(folder)
        return None
    particles = run.workdir.particle_indices[rows]
    by_models = _measured_by_models(run, frame, volumes, particles, folder.name)
    volumes, distances = _aligned_along(run, volumes)
    distances = by_models.get("distances", distances)
    written = _write_movie(run, volumes, folder, box)
    artifacts.remove_files(set(volumes_in(folder.path)) - set(written))
    artifacts.save_columns(folder.z_values, volumes.latents)
    artifacts.save_columns(folder.indices, rows)
    turns, moves, flip = volumes.rotations, volumes.translations, run.config.volumes.flip
    translations = {}
    if moves is not None:
        translations["translations"] = mirrored_vectors(moves) if flip else moves
    flat, cut = _pictures(run, volumes, written if box == run.stream.box else [])
    artifacts.save_npz(
        folder.table,
        **{"distances": distances, **by_models},
        rows=rows,
        particles=particles,
        z_metric=points,
        rotations=mirrored(turns) if flip else turns,
        **translations,
        projections=flat,
        slices=cut,
        **more,
    )
    return _summary(folder, particles, points, distances)


def warn_of_unusable(run: Run, name: str, rows: IntArray) -> None:
    """Say which volumes of a path are left out, by their particles."""
    if len(rows):
        logger.warning(
            "%s: the volumes of particles %s are constant or hold NaN; they are left out.",
            name,
            ", ".join(map(str, run.workdir.particle_indices[rows])),
        )


def remove_path(folder: PathFolder) -> None:
    """Remove what we wrote there, and the folder if nothing else is in it."""
    ours = [folder.table, folder.z_values, folder.indices, folder.movie]
    artifacts.remove_files([*ours, *volumes_in(folder.path)])
    if folder.path.is_dir() and not any(folder.path.iterdir()):
        folder.path.rmdir()


def _aligned_along(run: Run, volumes: AlignedVolumes) -> tuple[AlignedVolumes, Array]:
    """Rotations carried along the path from the volume nearest to the medoid; Delta (P, P)."""
    if len(volumes) == 1:
        return volumes, np.zeros((1, 1), np.float32)
    distance = copy(run.distance)
    distance.progress = False  # there is a bar for all paths
    with one_thread():  # few volumes: threads would mostly wait for each other
        found = distance.pairwise(volumes.features)
    between = found.rotations.double().numpy()  # V_i ≈ between[i, j]·V_j
    turns = volumes.rotations.astype(np.float64)
    moves = None if volumes.translations is None else volumes.translations.astype(np.float64)
    start = int(volumes.distances.argmin())
    onwards = [(here, here - 1) for here in range(start + 1, len(turns))]
    backwards = [(here, here + 1) for here in reversed(range(start))]
    for here, before in onwards + backwards:
        step = between[before, here]
        if moves is not None and found.translations is not None:
            shift = found.translations[before, here].numpy()
            _, moves[here] = composed((turns[before], moves[before]), (step, shift))
        turns[here] = turns[before] @ step
    aligned = replace(
        volumes,
        rotations=turns.astype(np.float32),
        translations=None if moves is None else moves.astype(np.float32),
    )
    return aligned, found.distances.numpy()


def _measured_by_models(
    run: Run, frame: Frame, volumes: AlignedVolumes, particles: IntArray, name: str
) -> dict[str, Array]:
    """With --distance atoms, Delta of models fitted to the volumes, and how well they fit."""
    if frame.model is None:
        return {}
    distances, models = distances_along(run, frame.model, volumes.latents, volumes.rotations)
    poor = particles[~models.is_fitted]
    if len(poor):
        logger.warning(
            "%s: the model does not fit the volumes of particles %s; Delta to them is not to be "
            "trusted.",
            name,
            ", ".join(map(str, poor)),
        )
    return {"distances": distances, "fit_correlations": models.correlations}


def _write_movie(run: Run, volumes: AlignedVolumes, folder: PathFolder, box: int) -> list[Path]:
    if run.config.clusters.skip_volumes:
        artifacts.remove_files([folder.movie])
        return []
    paths = [folder.volume(number) for number in range(1, len(volumes) + 1)]
    write_aligned(run, volumes, paths, box)
    write_movie(folder.movie, paths, folder.name)
    return paths


def _pictures(run: Run, volumes: AlignedVolumes, files: list[Path]) -> tuple[Array, Array]:
    """Projections and central slices of the turned volumes, (P, 3, n, n) each.

    Decoded again, unless there are files of their box.
    """

    def pictures(number: int) -> tuple[Tensor, Tensor]:
        if files:
            volume = seen_file(run, files[number])
        else:
            moves = volumes.translations
            move = None if moves is None else moves[number]
            turn = volumes.rotations[number]
            volume = seen_volume(run, volumes.latents[number], turn, move)
        return projections(volume), central_slices(volume)

    found = map_in_threads(pictures, range(len(volumes)), run.stream.decoder.device)
    flat, cut = zip(*found, strict=True)
    return torch.cat(flat).cpu().numpy(), torch.cat(cut).cpu().numpy()


def _summary(
    folder: PathFolder, particles: IntArray, z_metric: Array, distances: Array
) -> PathSummary:
    steps = np.diagonal(distances, 1).astype(np.float64)
    summary = PathSummary(
        name=folder.name,
        numbers=folder.numbers,
        particles=len(particles),
        first=int(particles[0]),
        last=int(particles[-1]),
        length=float(np.linalg.norm(np.diff(z_metric, axis=0), axis=1).sum()),
        measured_length=float(steps.sum()),
        largest_step=float(steps.max(initial=0.0)),
        end_to_end=float(distances[0, -1]),
    )
    lengths = summary.length, summary.measured_length
    logger.info(
        "%s: %d volumes, %.4g in z', %.4g by Delta.", folder.name, len(steps) + 1, *lengths
    )
    return summary
