"""Fitting a run's model: into the medoid's volume first, from there into every other."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from cryodrgn_metric.cache import NO_CACHE, PieceStore, Stage
from cryodrgn_metric.distances.atoms import atom_distances
from cryodrgn_metric.distances.streaming import VOLUMES_PER_BATCH
from cryodrgn_metric.errors import VolumeError
from cryodrgn_metric.fitted_models import (
    LEAST_CORRELATION,
    MOST_STRAIN,
    FittedModels,
    FrameModel,
    fitting_of,
)
from cryodrgn_metric.flexible_fitting import FlexibleFitting
from cryodrgn_metric.landmarks import Landmarks
from cryodrgn_metric.left_out import leave_out
from cryodrgn_metric.model_placement import place_model
from cryodrgn_metric.run import Run
from cryodrgn_metric.superposition import superposed
from cryodrgn_metric.threads import limited_to, map_in_threads

__all__ = ["distances_along", "fit_landmarks", "require_fits"]

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float32]

MOST_UNFITTED = 0.10  # of the landmarks


def fit_landmarks(
    run: Run, latents: npt.NDArray[np.float32], rotations: FloatArray, reference: int, key: str
) -> FittedModels:
    """Place the run's model in the reference volume, and fit it to all from there.

    Arguments:
        run: What all stages share.
        latents: Of the landmarks. (L, d)
        rotations: V_i ≈ R·V_reference. (L, 3, 3)
        reference: The medoid by L2, a row of both.
        key: Of the stage that found the rotations.

    Raises:
        VolumeError: The model doesn't fit the reference volume.
    """
    made_from = {
        "distances": key,
        "model": run.digests.get("model"),
        "apix": run.apix_at_box(run.stream.box),
        "seed": run.config.seed,
        "flip": run.config.volumes.flip and run.model is not None,
        "invert": run.config.volumes.invert,
    }
    with run.watch.stage("models"):
        stage = run.cache.stage("reference_model", **made_from)
        fitting = _reference(run, latents[reference], stage)
        stage.forget_others()
        stage = run.cache.stage("models", **made_from)
        starts = _turned(fitting.model.positions, rotations)
        found = _fitted(run, fitting, latents, starts, stage, "Models")
    run.note_reuse("models", "batches of fits", stage)
    return replace(found, key=stage.key)


def _reference(run: Run, latent: npt.NDArray[np.float32], stage: Stage) -> FlexibleFitting:
    """The model in the reference volume; kept as a table.

    Width of a bead, correlation and strain in its first row; x, y, z and weight of the beads.
    """
    table = stage.load(0)
    if table is None:
        table = _placed(run, latent)
        stage.save(0, table)
    fitting = fitting_of(run, table[1:, :3], table[1:, 3], float(table[0, 0]))
    logger.info(
        "%d beads, %.1f Å apart, stand for the molecule; correlation with the reference %.3f.",
        len(fitting.model),
        fitting.spacing_in_voxels * fitting.apix_in_angstroms,
        table[0, 1],
    )
    _require_placed(run, *map(float, table[0, 1:3]))
    return fitting


def _placed(run: Run, latent: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    volume = _volumes(run, latent[None])[0]
    _require_contrast(run, volume)
    with limited_to(1):  # the k-means of pseudo-atoms then adds up in one order
        fitting, found = place_model(
            run.model,
            volume,
            run.stream.window,
            run.apix_at_box(run.stream.box),
            run.stream.max_frequency,
            run.config.seed,
        )
    beads = np.column_stack([fitting.model.positions, fitting.model.weights])
    head = [fitting.width_in_voxels, float(found.correlations[0]), float(found.strains[0]), 0.0]
    return np.concatenate([[head], beads])


def _require_contrast(run: Run, volume: Tensor) -> None:
    """A molecule is a small dense part of its box."""
    if float((volume - volume.mean()).pow(3).mean()) > 0:
        return
    advice = "Leave out --invert." if run.config.volumes.invert else "Type --invert."
    raise VolumeError(
        f"The molecule's density is negative in the landmark in the middle, where atoms are "
        f"positive. {advice}"
    )


def _require_placed(run: Run, correlation: float, strain: float) -> None:
    if correlation >= LEAST_CORRELATION and strain <= MOST_STRAIN:
        return
    if run.model is None:
        advice = "Type --invert if density is negative, or --distance so3."
    else:
        advice = (
            "Is it the whole molecule? Is the pixel size right (--Apix), and the hand (--flip)? "
            "Is density negative (--invert)? Is it finer than one bead a residue can show "
            "(--low-pass 6)? Without --model one is made from the volume."
        )
    raise VolumeError(
        f"The model does not fit the landmark in the middle: correlation {correlation:.2f}, its "
        f"springs changed by {100 * strain:.0f} %; expected at least {LEAST_CORRELATION:g}, and "
        f"at most {100 * MOST_STRAIN:.0f} %. {advice}"
    )


def _turned(positions: npt.NDArray[np.float64], rotations: FloatArray) -> Tensor:
    """R·X about the origin voxel, (L, A, 3)."""
    turns = torch.from_numpy(np.ascontiguousarray(rotations)).double()
    return torch.from_numpy(positions) @ turns.mT


def _volumes(run: Run, latents: npt.NDArray[np.float32]) -> Tensor:
    volumes = run.stream.volumes(latents).float()
    return -volumes if run.config.volumes.invert else volumes


def _fitted(
    run: Run,
    fitting: FlexibleFitting,
    latents: npt.NDArray[np.float32],
    starts: Tensor,
    store: PieceStore = NO_CACHE,
    desc: str | None = None,
) -> FittedModels:
    """Batch by batch, each kept as a table: correlation, strain, then x, y, z of all beads."""
    numbers = range(-(-len(latents) // VOLUMES_PER_BATCH))
    parts = {number: store.load(number) for number in numbers}
    missing = [number for number, part in parts.items() if part is None]

    def fit(number: int) -> FloatArray:
        chosen = slice(number * VOLUMES_PER_BATCH, (number + 1) * VOLUMES_PER_BATCH)
        found = fitting.fit(_volumes(run, latents[chosen]), starts[chosen])
        quality = torch.stack([found.correlations, found.strains], dim=1)
        rows = torch.cat([quality, found.positions.flatten(1)], dim=1)
        return np.asarray(rows.cpu().numpy(), dtype=np.float32)

    with tqdm(total=len(numbers), unit="batch", desc=desc, disable=desc is None) as bar:
        bar.update(len(numbers) - len(missing))
        found = map_in_threads(fit, missing, run.stream.decoder.device)
        for number, part in zip(missing, found, strict=True):
            store.save(number, part)
            parts[number] = part
            bar.update(1)
    table = np.concatenate([part for part in parts.values() if part is not None])
    coordinates = table[:, 2:].reshape(len(table), -1, 3)
    return FittedModels(fitting, coordinates, table[:, 0], table[:, 1], key="")


def require_fits(run: Run, landmarks: Landmarks, models: FittedModels) -> None:
    """Say which volumes no bent model explains, and refuse a run in which they are many.

    Arguments:
        run: What all stages share; its `scores` are filled.
        landmarks: One a model.
        models: Fitted to them.

    Raises:
        VolumeError: More than 10 % don't fit, or too few are left.
    """
    correlations, fits = models.correlations, models.is_fitted
    middle, least = float(np.median(correlations)), float(correlations.min())
    run.scores["fits"] = {
        "beads": len(models.fitting.model),
        "median_correlation": middle,
        "least_correlation": least,
        "least_allowed": LEAST_CORRELATION,
        "median_strain": float(np.median(models.strains)),
        "most_strain_allowed": MOST_STRAIN,
        "left_out": int((~fits).sum()),
        "voxel_in_angstroms": models.fitting.apix_in_angstroms,
    }
    logger.info("Models fit with a correlation of %.3f (median; least %.3f).", middle, least)
    fault = (
        f"The model does not fit {{}} volumes (correlation below {LEAST_CORRELATION:g}, or "
        f"squeezed by more than {100 * MOST_STRAIN:.0f} %)"
    )
    meaning = (
        "moving atoms cannot express how these volumes differ: a part that is there in some and "
        "not in others, or noise. Type --distance so3, --low-pass with a coarser resolution, or "
        "--ind with particles of one composition."
    )
    leave_out(run, landmarks, fits, fault, MOST_UNFITTED, meaning)


def distances_along(
    run: Run, model: FrameModel, latents: npt.NDArray[np.float32], rotations: FloatArray
) -> tuple[FloatArray, FittedModels]:
    """Fit the model to the volumes of a path, and compare these models.

    Arguments:
        run: What all stages share.
        model: In the frame.
        latents: Of the volumes. (P, d)
        rotations: R, with R·V(z) in the frame. (P, 3, 3)

    Returns:
        Delta in Å (P, P), and how the models fit; a path keeps those that don't.
    """
    rest = torch.from_numpy(model.fitting.model.positions)
    start = superposed(rest, torch.from_numpy(model.coordinates).double()).numpy()
    starts = _turned(start, rotations.swapaxes(1, 2))
    models = _fitted(run, model.fitting, latents, starts)
    coordinates = torch.from_numpy(models.coordinates)
    found = atom_distances(coordinates, run.config.distances.atom_distance)
    return found.distances.numpy().astype(np.float32), models
