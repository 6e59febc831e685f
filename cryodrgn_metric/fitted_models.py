"""Models fitted to volumes: what is kept of them, in memory and in the output folder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cryodrgn_metric import artifacts
from cryodrgn_metric.atomic_model import AtomicModel, pseudo_residues, write_models
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.flexible_fitting import FlexibleFitting
from cryodrgn_metric.run import Run
from cryodrgn_metric.superposition import superposed

__all__ = [
    "LEAST_CORRELATION",
    "MOST_STRAIN",
    "FittedModels",
    "FrameModel",
    "fitting_of",
    "load_frame_model",
    "save_models",
]

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

# A model fits that explains the density without losing its local geometry. Of an enzyme's full
# swing the ends are strained by 0.14; by 0.2, and with correlations of 0.92, it is squeezed into
# volumes that lack a third of it.
LEAST_CORRELATION = 0.8
MOST_STRAIN = 0.18


@dataclass(frozen=True)
class FittedModels:
    """A model, fitted to volumes.

    Arguments:
        fitting: The model at rest in the reference volume.
        coordinates: x, y, z in Å from the origin voxel of each volume. (L, A, 3)
        correlations: With each volume. (L,)
        strains: By which share springs are longer or shorter than at rest, RMS. (L,)
        key: Of the stage.
    """

    fitting: FlexibleFitting
    coordinates: FloatArray
    correlations: FloatArray
    strains: FloatArray
    key: str

    @property
    def is_fitted(self) -> BoolArray:
        """Whether a model fits its volume, (L,)."""
        return (self.correlations >= LEAST_CORRELATION) & (self.strains <= MOST_STRAIN)


@dataclass(frozen=True)
class FrameModel:
    """The model in the frame of all written volumes.

    Arguments:
        fitting: The model at rest in the reference volume.
        coordinates: Of the model that is fitted to the medoid. (A, 3)
    """

    fitting: FlexibleFitting
    coordinates: FloatArray


def fitting_of(
    run: Run, rest: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], width: float
) -> FlexibleFitting:
    """What fits the run's model to its volumes.

    Arguments:
        run: What all stages share.
        rest: The model at rest, in Å from the origin voxel. (A, 3)
        weights: Of its beads. (A,)
        width: Of a bead, in voxels.
    """
    residues = pseudo_residues(len(rest)) if run.model is None else run.model.residues
    fitting = FlexibleFitting(
        AtomicModel(rest, weights, residues),
        run.apix_at_box(run.stream.box),
        run.stream.window,
        width,
        run.stream.max_frequency,
    )
    fitting.prepare()
    return fitting


def save_models(run: Run, models: FittedModels, rows: npt.NDArray[np.int64], medoid: int) -> None:
    """Write models_fitted.npz and models_fitted.pdb.

    Arguments:
        run: What all stages share.
        models: Of all landmarks that can be compared as volumes.
        rows: Of z, one a model.
        medoid: Among the models; all are laid on its.
    """
    particles = run.workdir.particle_indices[rows]
    model, fits = models.fitting.model, models.is_fitted
    chains, names, numbers = zip(*model.residues, strict=True)
    artifacts.save_npz(
        run.folder.models_fitted,
        coordinates=models.coordinates,
        correlations=models.correlations,
        strains=models.strains,
        is_fitted=fits,
        landmark_indices=particles,
        landmark_rows=rows,
        rest=model.positions,
        weights=model.weights,
        width_in_voxels=np.array([models.fitting.width_in_voxels]),
        chains=np.array(chains),
        residue_names=np.array(names),
        residue_numbers=np.array(numbers),
    )
    laid = torch.from_numpy(models.coordinates[fits]).double()
    laid = superposed(laid, torch.from_numpy(models.coordinates[medoid]).double().expand_as(laid))
    titles = [
        f"PARTICLE {particle}, CORRELATION {correlation:.3f}"
        for particle, correlation in zip(particles[fits], models.correlations[fits], strict=True)
    ]
    written = _as_written(run, laid.numpy())
    write_models(run.folder.models_fitted_pdb, written, model.residues, titles)


def _as_written(run: Run, coordinates: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """From the origin voxel of decoded volumes to the first voxel of .mrc files, in Å."""
    box = run.written_box
    apix = run.apix_at_box(box)
    found = coordinates + box // 2 * apix
    if run.config.volumes.flip:
        found[..., 2] = (box - 1) * apix - found[..., 2]
    return found


def load_frame_model(run: Run, row: int) -> FrameModel:
    """The model in the frame of an earlier run, from its models_fitted.npz.

    Arguments:
        run: Prepared from the same configuration.
        row: Of z, the medoid.

    Raises:
        ArgumentError: It isn't there, or of another version.
    """
    path = run.folder.models_fitted
    try:
        with np.load(path, allow_pickle=False) as saved:
            here = int(np.flatnonzero(saved["landmark_rows"] == row)[0])
            width = float(saved["width_in_voxels"][0])
            fitting = fitting_of(run, saved["rest"], saved["weights"], width)
            return FrameModel(fitting, saved["coordinates"][here])
    except (OSError, KeyError, IndexError, ValueError) as error:
        raise ArgumentError(
            f"{path} is not of a finished run of this version ({error}). Type `cryodrgn "
            f"metric_embed {run.workdir.path}` first."
        ) from error
