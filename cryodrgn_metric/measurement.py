"""From landmarks to all their distances: the stages that cost, each kept as it is finished."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cryodrgn_metric import artifacts, fidelity
from cryodrgn_metric.cache import Stage
from cryodrgn_metric.distances.atoms import atom_distances
from cryodrgn_metric.distances.base import PairwiseDistances
from cryodrgn_metric.distances.streaming import mask_anisotropy, usable_columns
from cryodrgn_metric.fitted_models import FittedModels, save_models
from cryodrgn_metric.landmark_features import landmark_features
from cryodrgn_metric.landmarks import Landmarks, choose_landmarks
from cryodrgn_metric.left_out import leave_out
from cryodrgn_metric.model_fits import fit_landmarks, require_fits
from cryodrgn_metric.run import Run
from cryodrgn_metric.so3.conventions import mirrored, mirrored_vectors

__all__ = ["Measured", "measure_distances", "pick_landmarks", "typical_norm"]

logger = logging.getLogger(__name__)

MASK_WARNING = 0.10  # of the median Delta
MOST_UNUSABLE = 0.05  # of the landmarks; above, the decoder is not to be trusted at all


@dataclass(frozen=True)
class Measured:
    """The landmarks, Delta among them, and what the medoid's frame needs later.

    Arguments:
        landmarks: Those whose volumes can be compared.
        latents: (L, d).
        pairs: Distances and rotations, numpy arrays.
        features: What the distance keeps of each volume; the last axis counts volumes.
        volume_norms: (L,), in units of Delta.
        key: Of the stage, for the stages that are made from it.
        models: Fitted to all of the landmarks, those left out as well (--distance atoms).
    """

    landmarks: Landmarks
    latents: np.ndarray
    pairs: PairwiseDistances
    features: torch.Tensor
    volume_norms: np.ndarray
    key: str
    models: FittedModels | None = None

    @property
    def medoid(self) -> int:
        """The landmark with the smallest sum of distances to all others."""
        return int(self.pairs.distances.sum(axis=1).argmin())


def pick_landmarks(run: Run) -> Landmarks:
    """Choose a random test set, and a sketch of the latent space to learn from.

    Arguments:
        run: What all stages share.
    """
    stage = _landmark_stage(run)
    with run.watch.stage("landmarks"):
        kept = stage.load(0)
        if kept is None:
            landmarks = choose_landmarks(
                run.workdir.latents, run.config.landmarks, run.config.seed, run.pool
            )
            stage.save(0, landmarks.as_table())
        else:
            landmarks = Landmarks.from_table(kept)
    stage.forget_others()
    return landmarks


def _landmark_stage(run: Run) -> Stage:
    return run.cache.stage(
        "landmarks",
        z=run.digests["z"],
        pool=artifacts.sha256_of_array(run.pool),  # of --ind, and of that of the training
        count=run.config.landmarks.count,
        sampling=run.config.landmarks.sampling,
        seed=run.config.seed,
    )


def measure_distances(
    run: Run, landmarks: Landmarks, decoded_before: Sequence[int] = ()
) -> Measured:
    """Decode the landmarks, compare all pairs of them, and write distances.npz.

    Arguments:
        run: What all stages share.
        landmarks: As from `pick_landmarks`.
        decoded_before: Where landmarks grow in rounds: how many the first of them had, the
            second, ... Only the volumes of the last are decoded now, as the others are kept.

    Raises:
        VolumeError: More than 5 % of the volumes are constant or hold NaN, or with --distance
            atoms the model doesn't fit more than 10 % of them.
        OutputError: The disk is full.
    """
    features, key = landmark_features(run, landmarks, [*decoded_before, len(landmarks)])
    usable = usable_columns(features)
    _leave_out(run, landmarks, usable)
    landmarks, features = landmarks.only(usable), features[..., torch.from_numpy(usable)]
    measured = _by_volumes(run, landmarks, features, key)
    if run.config.volumes.mask != "sphere":
        _warn_of_mask(run, measured)
    if run.config.distances.distance == "atoms":
        measured = _by_models(run, measured)
    _save_distances(run, measured)
    return measured


def typical_norm(run: Run, measured: Measured) -> float:
    """RMS norm of the volumes, in units of Delta; --scale unit has made it 1.

    That of transport is the radius of gyration, in Å.

    Arguments:
        run: What all stages share.
        measured: The landmarks' norms.
    """
    if run.config.distances.scale == "unit":
        return 1.0
    return float(np.sqrt(np.mean(measured.volume_norms**2)))


def _by_volumes(run: Run, landmarks: Landmarks, features: torch.Tensor, key: str) -> Measured:
    """The landmarks, compared by their volumes."""
    is_train = torch.zeros(len(landmarks), dtype=torch.bool)
    is_train[landmarks.train] = True
    stage = run.cache.stage("distances", volumes=key, config=run.config.distances.of_volumes)
    before = run.watch.seconds.get("distances", 0.0)
    with run.watch.stage("distances"):
        found = run.distance.pairwise(features, fit_on=is_train, store=stage)
    run.note_reuse("distances", "blocks of pairs", stage)
    pairs = found.numpy()
    norms = run.distance.norms(features).cpu().numpy()
    latents = run.workdir.latents[landmarks.indices]
    measured = Measured(landmarks, latents, pairs, features, norms, stage.key)
    if stage.saved_rows:
        seconds = run.watch.seconds["distances"] - before
        run.scores["pairs_per_second"] = stage.saved_rows / seconds
    return measured


def _by_models(run: Run, measured: Measured) -> Measured:
    """The landmarks that a model fits, compared by these models."""
    medoid, kind = measured.medoid, run.config.distances.atom_distance
    turns = measured.pairs.rotations[:, medoid]
    models = fit_landmarks(run, measured.latents, turns, medoid, measured.key)
    fits = models.is_fitted
    require_fits(run, measured.landmarks, models)
    found = atom_distances(torch.from_numpy(models.coordinates[fits]), kind)
    arrays = {
        name: None if value is None else value.astype(np.float32)
        for name, value in vars(found.numpy()).items()
    }
    compared = Measured(
        landmarks=measured.landmarks.only(fits),
        latents=measured.latents[fits],
        pairs=PairwiseDistances(**arrays),
        features=measured.features[..., torch.from_numpy(fits)],
        volume_norms=measured.volume_norms[fits],
        key=run.cache.stage("atom_distances", models=models.key, kind=kind).key,
        models=models,
    )
    frame = int(np.flatnonzero(fits)[compared.medoid])
    save_models(run, models, measured.landmarks.indices, frame)
    return compared


def _leave_out(run: Run, landmarks: Landmarks, usable: np.ndarray) -> None:
    fault = "are constant or hold NaN"
    if run.config.distances.distance == "transport":
        fault = "are constant, or hold NaN, or nothing above --contour"
    meaning = (
        f"the decoder in {run.workdir.weights_path} is not trained, or diverged. "
        "Choose another epoch."
    )
    leave_out(run, landmarks, usable, f"{{}} decoded volumes {fault}", MOST_UNUSABLE, meaning)


def _save_distances(run: Run, measured: Measured) -> None:
    pairs = measured.pairs
    flip = run.config.volumes.flip
    rotations = mirrored(pairs.rotations) if flip else pairs.rotations
    more = {}
    if pairs.translations is not None:  # in voxels of the box of the comparison
        more["translations"] = mirrored_vectors(pairs.translations) if flip else pairs.translations
    models = measured.models
    if models is not None:
        fits = models.is_fitted
        more["fit_correlations"], more["fit_strains"] = (
            values[fits] for values in (models.correlations, models.strains)
        )
    else:
        stale = [run.folder.models_fitted, run.folder.models_fitted_pdb]
        artifacts.remove_files(stale)
    artifacts.save_npz(
        run.folder.distances,
        landmark_indices=run.workdir.particle_indices[measured.landmarks.indices],
        landmark_rows=measured.landmarks.indices,
        is_test=measured.landmarks.is_test,
        is_validation=measured.landmarks.is_validation,
        distances=pairs.distances,
        raw_distances=pairs.raw_distances,
        second_peak_gaps=pairs.second_peak_gaps,
        rotations=rotations,
        volume_norms=measured.volume_norms,
        calibration=run.distance.calibration,  # with which volumes can be compared later
        **more,
    )


def _warn_of_mask(run: Run, measured: Measured) -> None:
    added = mask_anisotropy(run.stream, measured.latents, measured.pairs.rotations, run.distance)
    share = added / max(fidelity.median_distance(measured.pairs.distances), 1e-30)
    logger.info("The mask adds %.1f %% of the median Delta to a pure rotation.", 100 * share)
    if share > MASK_WARNING:
        logger.warning(
            "The mask doesn't turn with the volume: above %.0f %%, distances are no longer blind "
            "to rotation. Use a rounder mask, or --mask sphere.",
            100 * MASK_WARNING,
        )
