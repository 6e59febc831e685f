"""One frame for all written volumes: that of the medoid landmark, to which they are turned."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from cryodrgn_metric.clusters import Clusters
from cryodrgn_metric.distances.streaming import stream_features, usable_columns
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.fitted_models import FrameModel, load_frame_model
from cryodrgn_metric.measurement import Measured
from cryodrgn_metric.run import Run
from cryodrgn_metric.se3.motions import translated
from cryodrgn_metric.so3.conventions import windowed
from cryodrgn_metric.volumes import write_cluster_volumes

__all__ = [
    "AlignedVolumes",
    "Frame",
    "aligned_latents",
    "aligned_volumes",
    "saved_frame",
    "seen_file",
    "seen_volume",
    "write_aligned",
    "write_representatives",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frame:
    """The orientation that all written volumes share: that of the medoid landmark's volume.

    Arguments:
        row: Of z, the medoid.
        features: What the distance keeps of its volume; the last axis is 1.
        model: Fitted to it, by which paths are measured (--distance atoms).
    """

    row: int
    features: Tensor
    model: FrameModel | None = None

    @classmethod
    def of(cls, measured: Measured) -> Frame:
        """The frame of a run that has just measured its landmarks."""
        here = measured.medoid
        row = int(measured.landmarks.indices[here])
        features = measured.features[:, :, here : here + 1]
        if measured.models is None:
            return cls(row, features)
        models = measured.models
        model = FrameModel(models.fitting, models.coordinates[models.is_fitted][here])
        return cls(row, features, model)


def saved_frame(run: Run) -> Frame:
    """The frame of an earlier run, from its distances.npz; `run.distance` compares as it did.

    Arguments:
        run: Prepared from the same configuration.

    Raises:
        ArgumentError: There is no distances.npz that a frame can be taken from.
    """
    try:
        with np.load(run.folder.distances, allow_pickle=False) as saved:
            rows, distances = saved["landmark_rows"], saved["distances"]
            run.distance.recall(saved["calibration"])
    except (OSError, KeyError, ValueError) as error:
        raise ArgumentError(
            f"{run.folder.distances} is not of a finished run of this version ({error}). Type "
            f"`cryodrgn metric_embed {run.workdir.path}` first."
        ) from error
    row = int(rows[distances.sum(axis=1).argmin()])
    latents = run.workdir.latents[[row]]
    features = stream_features(run.stream, latents, run.distance, desc=None)
    by_atoms = run.config.distances.distance == "atoms"
    return Frame(row, features, load_frame_model(run, row) if by_atoms else None)


@dataclass(frozen=True)
class AlignedVolumes:
    """Volumes that lie in the common frame once each is turned by its rotation.

    Arguments:
        is_usable: Whether a volume can be compared, of all that were asked for. (P,) bool
        latents: z of those that can. (U, d)
        features: What the distance keeps of them, not turned; the last axis counts volumes.
        rotations: R, with T_t R·V(z) in the frame. (U, 3, 3)
        distances: Delta to the medoid. (U,)
        translations: t, x, y, z in voxels of the box of the comparison, (U, 3); None where only
            rotations are taken out.
    """

    is_usable: npt.NDArray[np.bool_]
    latents: npt.NDArray[np.float32]
    features: Tensor
    rotations: npt.NDArray[np.float32]
    distances: npt.NDArray[np.float32]
    translations: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.latents)


def aligned_volumes(
    run: Run, frame: Frame, rows: npt.NDArray[np.int64], desc: str | None = None
) -> AlignedVolumes:
    """Decode volumes as they are compared, and find how each is turned into the frame.

    Arguments:
        run: What all stages share.
        frame: Where they are turned to.
        rows: Of z. (P,)
        desc: Of the progress bar; None shows none.
    """
    return aligned_latents(run, frame, run.workdir.latents[rows], desc)


def aligned_latents(
    run: Run, frame: Frame, latents: npt.NDArray[np.float32], desc: str | None = None
) -> AlignedVolumes:
    """As `aligned_volumes`, of any latents, (P, d)."""
    features = stream_features(run.stream, latents, run.distance, desc=desc)
    usable = usable_columns(features)
    features = features[..., torch.from_numpy(usable)]
    turns, distances = np.zeros((0, 3, 3), np.float32), np.zeros(0, np.float32)
    translations = None
    if usable.any():
        found = run.distance.onto(frame.features, features)
        turns, distances = found.rotations.cpu().numpy(), found.distances.cpu().numpy()
        if found.translations is not None:
            translations = found.translations.cpu().numpy()
    return AlignedVolumes(usable, latents[usable], features, turns, distances, translations)


def seen_volume(
    run: Run,
    latent: npt.NDArray[np.float32],
    rotation: npt.NDArray[np.float32] | None = None,
    translation: npt.NDArray[np.float32] | None = None,
) -> Tensor:
    """T_t R·V(z) as pictures show it: as it is compared, flipped and inverted as the files are.

    Arguments:
        run: What all stages share.
        latent: (d,).
        rotation: R, (3, 3); None turns nothing.
        translation: t, (3,) in voxels of the box of the comparison; None moves nothing.

    Returns:
        (1, n, n, n) at the box of the comparison.
    """
    turn = None if rotation is None else rotation[None]
    volume = run.stream.volumes(latent[None], turn)
    if translation is not None:
        volume = translated(volume, torch.from_numpy(translation[None]))
    volume = volume.flip(1) if run.config.volumes.flip else volume
    return -volume if run.config.volumes.invert else volume


def seen_file(run: Run, path: Path) -> Tensor:
    """The same of a volume that `write_aligned` wrote at that box."""
    flip = run.config.volumes.flip

    def seen(weights: Tensor) -> Tensor:
        return weights.cpu().flip(0) if flip else weights.cpu()

    window, level_from = run.stream.window, run.stream.level_from
    level_from = None if level_from is None else seen(level_from)
    return windowed(torch.from_numpy(mrcfile.read(path))[None], seen(window), level_from)


def write_aligned(
    run: Run,
    volumes: AlignedVolumes,
    paths: Sequence[Path],
    box: int,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write T_t R·V(z) of every volume, as --flip, --invert, --low-pass and --Apix ask for.

    Arguments:
        run: What all stages share.
        volumes: From `aligned_volumes`.
        paths: As many files.
        box: In voxels.
        progress: Called with 1 after each file.
    """
    options, moves = run.config.volumes, volumes.translations
    write_cluster_volumes(
        run.stream.decoder.as_dtype(torch.float32),
        volumes.latents,
        volumes.rotations,
        paths,
        box,
        run.apix_at_box(box),
        flip=options.flip,
        invert=options.invert,
        max_frequency=run.max_frequency_at_box(box),
        progress=progress,
        translations_in_voxels=None if moves is None else moves * (box / run.stream.box),
    )


def write_representatives(run: Run, frame: Frame, clusters: Clusters) -> list[Path]:
    """Write R·V(z) of every cluster's representative.

    Arguments:
        run: What all stages share.
        frame: Where they are turned to.
        clusters: k-means of z'.

    Returns:
        The files, vol_001.mrc for label 0; that of a volume that cannot be compared is missing.
    """
    volumes = aligned_volumes(run, frame, clusters.centers_ind, desc="Aligning representatives")
    for label in np.flatnonzero(~volumes.is_usable):
        logger.warning("The volume of cluster %d is constant or holds NaN: not written.", label)
    numbers = (np.flatnonzero(volumes.is_usable) + 1).tolist()
    paths = [run.folder.volume(run.config.clusters.count, number) for number in numbers]
    with tqdm(total=len(paths), unit="vol", desc="Writing representatives") as bar:
        write_aligned(run, volumes, paths, run.written_box, bar.update)
    return paths
