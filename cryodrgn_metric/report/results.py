"""What a run has saved, read back: all that a report is made from. No model is evaluated."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cryodrgn_metric.artifacts import sha256_of
from cryodrgn_metric.errors import MetricError
from cryodrgn_metric.hidden_rotation import unambiguous
from cryodrgn_metric.metric_folder import MetricFolder
from cryodrgn_metric.path_folder import PathFolder
from cryodrgn_metric.reference_spaces import principal_components
from cryodrgn_metric.report.wording import WORDINGS, Wording
from cryodrgn_metric.safe_files.pickles import load_pickle
from cryodrgn_metric.safe_files.yaml_files import load_yaml
from cryodrgn_metric.workdir import Workdir

__all__ = ["MeasuredPath", "Results"]

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class MeasuredPath:
    """One path through z', as `path.npz` holds it.

    Arguments:
        folder: Where its volumes lie.
        numbers: The principal component, from 1, or the labels of two clusters.
        arrays: rows, particles, z_metric, distances, projections, slices; of a straight line
            rows of the nearest particles, and distance_to_particles.
    """

    folder: PathFolder
    numbers: tuple[int, ...]
    arrays: Arrays = field(repr=False)

    @property
    def title(self) -> str:
        """In words."""
        if self.folder.is_straight:
            return f"straight line between the ends of pc{self.numbers[0]}"
        if len(self.numbers) == 1:
            return f"path along principal component {self.numbers[0]} of z'"
        return f"path from cluster {self.numbers[0]} to cluster {self.numbers[1]}"

    @property
    def steps(self) -> npt.NDArray[np.float64]:
        """Measured Delta from each volume to the next, (P - 1,)."""
        return np.diagonal(self.arrays["distances"], 1).astype(np.float64)


@dataclass(frozen=True)
class Results:
    """A finished run, from its files.

    Arguments:
        workdir: The workdir that was embedded.
        folder: The output folder.
        parameters: metric_embed.yaml.
        fidelity: fidelity.json.
        summary: report.json.
        intrinsic: intrinsic_dimension.json.
        z_metric: (N, d') float32.
        view: (N, 2), umap.pkl of the overlay.
        umap: (N, 2), UMAP of z'; None where it was skipped.
        labels: k-means, (N,).
        densest: HDBSCAN, (N,); -1 where there is none.
        landmarks: distances.npz.
        held_out: held_out.npz.
        particles: particles.npz.
        striking: striking_pairs.npz.
        paths: In the order they are shown.
    """

    workdir: Workdir
    folder: MetricFolder
    parameters: dict[str, Any] = field(repr=False)
    fidelity: dict[str, Any] = field(repr=False)
    summary: dict[str, Any] = field(repr=False)
    intrinsic: dict[str, Any] = field(repr=False)
    z_metric: npt.NDArray[np.float32] = field(repr=False)
    view: npt.NDArray[np.float32] = field(repr=False)
    umap: npt.NDArray[np.float32] | None = field(repr=False)
    labels: npt.NDArray[np.int32] = field(repr=False)
    densest: npt.NDArray[np.int32] = field(repr=False)
    landmarks: Arrays = field(repr=False)
    held_out: Arrays = field(repr=False)
    particles: Arrays = field(repr=False)
    striking: Arrays = field(repr=False)
    paths: list[MeasuredPath] = field(repr=False)

    @classmethod
    def load(cls, workdir: Workdir, folder: MetricFolder) -> Results:
        """Read what `cryodrgn metric_embed` has written.

        Arguments:
            workdir: The workdir, opened.
            folder: Its metric_embed.N, or where -o put that.

        Raises:
            MetricError: A file is missing, as the run was not finished or is of an older version,
                or the latents are not those that it embedded.
        """
        for path in _needed(folder):
            if not path.is_file():
                raise MetricError(
                    f"{path} is missing: that run is not finished, or an older version made it. "
                    f"Type `cryodrgn metric_embed {workdir.path}` first; it takes up what is "
                    "there."
                )
        parameters = load_yaml(folder.parameters)
        if parameters["sha256"].get(workdir.z_path.name) != sha256_of(workdir.z_path):
            raise MetricError(
                f"{workdir.z_path} is not what {folder.path} was made from: it has changed since. "
                f"Type `cryodrgn metric_embed {workdir.path}` again."
            )
        return cls(
            workdir=workdir,
            folder=folder,
            parameters=parameters,
            fidelity=_json(folder.fidelity),
            summary=_json(folder.summary),
            intrinsic=_json(folder.intrinsic_dimension),
            z_metric=_array(folder.z_metric),
            view=_array(folder.umap),
            umap=_array(folder.z_metric_umap) if folder.z_metric_umap.is_file() else None,
            labels=_array(folder.cluster_labels(parameters["config"]["clusters"]["count"])),
            densest=_array(folder.hdbscan_labels),
            landmarks=_arrays(folder.distances),
            held_out=_arrays(folder.held_out),
            particles=_arrays(folder.particles),
            striking=_arrays(folder.striking_pairs),
            paths=[
                MeasuredPath(path, path.numbers, _arrays(path.table)) for path in folder.paths()
            ],
        )

    @property
    def cluster_count(self) -> int:
        """K as it was asked for, which the folder of the k-means is named by."""
        return int(self.parameters["config"]["clusters"]["count"])

    @property
    def centers(self) -> npt.NDArray[np.int64]:
        """Rows of the representatives, (K,)."""
        return np.array([cluster["medoid_row"] for cluster in self.summary["clusters"]])

    @property
    def wording(self) -> Wording:
        """How to speak of the distance that was measured."""
        options = self.parameters["config"]["distances"]
        return WORDINGS["se3" if options["rigid"] == "se3" else options["distance"]]

    @property
    def by_models(self) -> bool:
        """Whether Delta compares models that were fitted to the volumes (--distance atoms)."""
        return "fits" in self.fidelity

    @property
    def relative_distance(self) -> float:
        """The median Delta of held-out pairs, of a volume's typical size (`wording`)."""
        size = self.fidelity["median_distance"] or 0.0
        return float(size / max(self.fidelity["rms_volume_norm"], 1e-30))

    @property
    def seed(self) -> int:
        """Of the run; samples in figures are drawn by it, too."""
        return int(self.parameters["config"]["seed"])

    @property
    def dimension(self) -> int:
        """d'."""
        return int(self.z_metric.shape[1])

    @property
    def is_amortized(self) -> bool:
        """Whether z' was learned from h_psi rather than from measured pairs alone."""
        return bool(self.parameters["config"]["metric_map"].get("amortized", True))

    @property
    def flow(self) -> dict[str, Any] | None:
        """What is known of a map that can be inverted (--map flow); None of any other."""
        found: dict[str, Any] | None = self.summary["f_xi"].get("flow")
        return found

    @cached_property
    def components(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """z' along its principal axes, (N, d'), and the share of variance of each, (d',)."""
        return principal_components(self.z_metric)

    @cached_property
    def upper(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Rows and columns of all pairs of landmarks."""
        return np.triu_indices(len(self.landmarks["distances"]), 1)

    @cached_property
    def angles_in_degrees(self) -> npt.NDArray[np.float64]:
        """Of the optimal rotation of every pair of landmarks, (L, L).

        As `so3.rotations.rotation_angle`, without torch, which takes a second to import.
        """
        turns = self.landmarks["rotations"].astype(np.float64)
        chords = np.linalg.norm(turns - np.eye(3), axis=(-2, -1)) / np.sqrt(8)
        return np.asarray(np.degrees(2 * np.arcsin(np.minimum(chords, 1))))

    @cached_property
    def is_unambiguous(self) -> npt.NDArray[np.bool_]:
        """Whether one rotation is clearly the best, for every pair of landmarks."""
        gaps, distances = self.landmarks["second_peak_gaps"], self.landmarks["distances"]
        typical = self.fidelity["rms_volume_norm"]
        return unambiguous(gaps[self.upper], distances[self.upper], typical)


def _needed(folder: MetricFolder) -> list[Path]:
    return [
        folder.parameters,
        folder.fidelity,
        folder.summary,
        folder.intrinsic_dimension,
        folder.z_metric,
        folder.umap,
        folder.hdbscan_labels,
        folder.distances,
        folder.held_out,
        folder.particles,
        folder.striking_pairs,
    ]


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _array(path: Path) -> npt.NDArray[Any]:
    found = load_pickle(path)
    if not isinstance(found, np.ndarray):
        raise MetricError(f"{path}: expected an array; got {type(found).__name__}.")
    return found


def _arrays(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
