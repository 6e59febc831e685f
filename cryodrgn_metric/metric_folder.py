"""The output folder of a run: the name of every file in it, and whose it is."""

from __future__ import annotations

import filecmp
import os
import re
from dataclasses import dataclass
from pathlib import Path

from cryodrgn_metric.artifacts import remove_files
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.path_folder import PathFolder

__all__ = ["MetricFolder", "remove_other_clusters", "volumes_in"]

_NAME_ANOTHER = "Name a new folder with -o."


def _suffix(epoch: int | None) -> str:
    return "" if epoch is None else f".{epoch}"


@dataclass(frozen=True)
class MetricFolder:
    """The paths inside one output folder; nothing is created by asking for them.

    Arguments:
        path: the folder, `WORKDIR/metric_embed.N` unless -o moved it.
        epoch: N of the file names; None for un-numbered files.

    Example:
        >>> folder = MetricFolder(Path("00_vae/metric_embed.49"), epoch=49)
        >>> folder.volume(20, 1).as_posix()
        '00_vae/metric_embed.49/analyze.49/kmeans20/vol_001.mrc'
    """

    path: Path
    epoch: int | None

    @classmethod
    def beside(cls, workdir: Path, epoch: int | None) -> MetricFolder:
        """The default folder of a workdir: a sibling of analyze.N and landscape.N."""
        return cls(workdir / f"metric_embed{_suffix(epoch)}", epoch)

    def require_ours(self, workdir: Path) -> None:
        """Refuse a folder in which something of the user's could be lost.

        Arguments:
            workdir: the workdir that is embedded.

        Raises:
            ArgumentError: It is not empty and was not made by an earlier run, it is the workdir or
                holds it, a folder in it is a link to elsewhere, or something that no run made
                lies where the overlay's links go.
        """
        real, inner = os.path.realpath(self.path), os.path.realpath(workdir)
        if os.path.commonpath([real, inner]) == real:
            raise ArgumentError(f"{self.path} is, or holds, the workdir. {_NAME_ANOTHER}")
        if os.path.lexists(self.path) and not os.path.isdir(self.path):
            raise ArgumentError(f"{self.path} is not a folder. {_NAME_ANOTHER}")
        if not os.path.isdir(self.path):
            return
        try:
            empty = not os.listdir(self.path)
        except OSError as error:
            raise ArgumentError(
                f"{self.path} cannot be read: {error.strerror}. {_NAME_ANOTHER}"
            ) from error
        if not empty and not self._is_ours():
            raise ArgumentError(
                f"{self.path} is not empty and was not made by metric_embed; nothing was written. "
                f"{_NAME_ANOTHER}"
            )
        self._require_own_folders()
        self._require_own_links(workdir)

    def _require_own_folders(self) -> None:
        inside = [self.cache, self.models, self.figures, self.analysis]
        inside += [self.landscape.parent, self.landscape, self.landscape / "full_clustering"]
        inside += [self.hdbscan_labels.parent, *self.analysis.glob("kmeans*")]
        for folder in (*inside, *self.analysis.glob("p*"), *self.analysis.glob("straight*")):
            if folder.is_symlink():
                raise ArgumentError(
                    f"{folder} is a link, and nothing is written through it. Remove the link, or "
                    "name another folder with -o."
                )

    def _require_own_links(self, workdir: Path) -> None:
        """A link to a file of its own name is ours; so is a copy, where there are no links.

        Replacing either loses nothing: the file that it leads to, or equals, stays.
        """
        for name in self.links:
            path = self.path / name
            if path.is_symlink():
                ours = os.path.basename(os.readlink(path)) == name
            else:
                ours = not os.path.lexists(path) or _same_bytes(path, workdir / name)
            if not ours:
                raise ArgumentError(
                    f"{path} was not made by metric_embed, which puts a link to the workdir's "
                    f"own {name} there; nothing was written. Move it away, or name another "
                    "folder with -o."
                )

    def _is_ours(self) -> bool:
        """By the beginning of a file that every run writes, first or last."""
        if self.lock.is_file() and self.lock.stat().st_size == 0:
            return True  # a first run was killed, or found the disk full, before it could sign
        marks = {self.lock: b"process ", self.parameters: b"version: "}
        for path, mark in marks.items():
            if path.is_file():
                with path.open("rb") as file:
                    if file.read(len(mark)) == mark:
                        return True
        return False

    @property
    def config(self) -> Path:
        """The overlay's copy of config.yaml, with absolute paths."""
        return self.path / "config.yaml"

    @property
    def links(self) -> list[str]:
        """Names of the workdir's files that the overlay has, too, as links to them."""
        if self.epoch is None:
            return []  # cryoDRGN's tools need a numbered epoch: there is no overlay
        return [*(f"{name}.{self.epoch}.pkl" for name in ("z", "weights", "pose")), "run.log"]

    @property
    def parameters(self) -> Path:
        """Every parameter, seed, version, and the hashes of the inputs."""
        return self.path / "metric_embed.yaml"

    @property
    def log(self) -> Path:
        """What the run said."""
        return self.path / "metric_embed.log"

    @property
    def cache(self) -> Path:
        """The folder of finished pieces, from which a killed run goes on; it may be removed."""
        return self.path / "cache"

    @property
    def lock(self) -> Path:
        """Held by the run that writes here; names the last that did."""
        return self.path / "metric_embed.lock"

    @property
    def z_metric(self) -> Path:
        """z' of every particle, (N, d') float32, one pickle."""
        return self.path / "z_metric.pkl"

    @property
    def z_metric_csv(self) -> Path:
        """The same numbers as text."""
        return self.path / "z_metric.csv"

    @property
    def z_metric_umap(self) -> Path:
        """UMAP of z', (N, 2) float32; without it where that was skipped, or d' is 1."""
        return self.path / "z_metric_umap.pkl"

    @property
    def distances(self) -> Path:
        """Measured distances and rotations of the landmarks."""
        return self.path / "distances.npz"

    @property
    def models_fitted(self) -> Path:
        """The beads fitted to every landmark, and how well they fit (--distance atoms)."""
        return self.path / "models_fitted.npz"

    @property
    def models_fitted_pdb(self) -> Path:
        """Those that fit, laid on the medoid's, one model a landmark."""
        return self.path / "models_fitted.pdb"

    @property
    def fidelity(self) -> Path:
        """The held-out numbers."""
        return self.path / "fidelity.json"

    @property
    def intrinsic_dimension(self) -> Path:
        """How many dimensions the motion has, and what that was read from."""
        return self.path / "intrinsic_dimension.json"

    @property
    def summary(self) -> Path:
        """The numbers behind the report, other than those of fidelity.json."""
        return self.path / "report.json"

    @property
    def held_out(self) -> Path:
        """The test landmarks in every space, and h_psi's prediction of their distances."""
        return self.path / "held_out.npz"

    @property
    def particles(self) -> Path:
        """What is known of every particle: stretch, uncertainty, reach; (N,) arrays."""
        return self.path / "particles.npz"

    @property
    def striking_pairs(self) -> Path:
        """Landmark pairs that z misjudges most, with projections of their volumes."""
        return self.path / "striking_pairs.npz"

    @property
    def page(self) -> Path:
        """The report, one self-contained file."""
        return self.path / "report.html"

    @property
    def notebook(self) -> Path:
        """The executed notebook."""
        return self.path / "cryoDRGN_metric_embed.ipynb"

    @property
    def models(self) -> Path:
        """The folder of h_psi and f_xi."""
        return self.path / "models"

    def model_files(self, name: str) -> list[Path]:
        """Weights and settings of h_psi or f_xi."""
        return [self.models / f"{name}.safetensors", self.models / f"{name}.yaml"]

    @property
    def figures(self) -> Path:
        """The folder of the figures."""
        return self.path / "figures"

    def figure(self, name: str) -> Path:
        """One figure of the run."""
        return self.figures / f"{name}.png"

    @property
    def analysis(self) -> Path:
        """The overlay's own analyze.N."""
        return self.path / f"analyze{_suffix(self.epoch)}"

    def kmeans(self, count: int) -> Path:
        """The folder of the k-means of z' with `count` clusters."""
        return self.analysis / f"kmeans{count}"

    def cluster_labels(self, count: int) -> Path:
        """(N,) cluster numbers from 0, one pickle, as `cryodrgn analyze` writes them."""
        return self.kmeans(count) / "labels.pkl"

    def cluster_centers(self, count: int) -> Path:
        """(count, zdim) latents of the representatives, as text."""
        return self.kmeans(count) / "centers.txt"

    def cluster_center_indices(self, count: int) -> Path:
        """(count,) particle numbers of the representatives, as text."""
        return self.kmeans(count) / "centers_ind.txt"

    def cluster_members(self, count: int, label: int) -> Path:
        """The particles labelled so, numbered and saved as `cryodrgn filter` does."""
        return self.kmeans(count) / f"ind_cluster{label}.pkl"

    @property
    def umap(self) -> Path:
        """(N, 2) float32: what cryoDRGN's tools plot as UMAP1 and UMAP2."""
        return self.analysis / "umap.pkl"

    @property
    def landscape(self) -> Path:
        """What the dashboard's 3-D page of `analyze_landscape_full` reads."""
        return self.path / f"landscape{_suffix(self.epoch)}" / "landscape_full"

    @property
    def hdbscan_labels(self) -> Path:
        """(N,) cluster numbers by density from 0, -1 where there is none, one pickle."""
        return self.analysis / "hdbscan" / "labels.pkl"

    def principal_path(self, component: int) -> PathFolder:
        """The path along one principal component of z', numbered from 1."""
        return PathFolder(self.analysis / f"pc{component}")

    def straight_path(self, component: int) -> PathFolder:
        """The straight line between the ends of a component's path, numbered from 1."""
        return PathFolder(self.analysis / f"straight{component}")

    def cluster_path(self, first: int, second: int) -> PathFolder:
        """The path from one k-means cluster to another, by their labels."""
        return PathFolder(self.analysis / f"path_{first}_{second}")

    def paths(self) -> list[PathFolder]:
        """All that were written: principal components, on the data and straight; of clusters."""
        groups = [
            [PathFolder(path) for path in self.analysis.glob(pattern) if path.is_dir()]
            for pattern in ("pc*", "straight*", "path_*")
        ]
        return [
            path
            for group in groups
            for path in sorted(group, key=lambda one: one.numbers)
            if path.numbers and path.table.is_file()
        ]

    def volume(self, count: int, number: int) -> Path:
        """The volume of one representative; numbered from 1."""
        return self.kmeans(count) / f"vol_{number:03d}.mrc"


def remove_other_clusters(folder: MetricFolder, count: int) -> None:
    """Remove the k-means of earlier runs with other --ksample: labels of an older z'.

    Arguments:
        folder: the output folder of the run that writes there now.
        count: the number of clusters of this run.
    """
    for kmeans in folder.analysis.glob("kmeans*"):
        if not re.fullmatch(r"kmeans\d+", kmeans.name) or kmeans == folder.kmeans(count):
            continue
        names = ("labels.pkl", "centers.txt", "centers_ind.txt")
        members = [p for p in kmeans.glob("*") if re.fullmatch(r"ind_cluster\d+\.pkl", p.name)]
        remove_files([*(kmeans / name for name in names), *members, *volumes_in(kmeans)])
        if kmeans.is_dir() and not any(kmeans.iterdir()):  # something of the user's may be there
            kmeans.rmdir()


def _same_bytes(path: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(path, other, shallow=False)
    except OSError:  # a folder, or one of them is not there
        return False


def volumes_in(folder: Path) -> list[Path]:
    """The files of a folder that are named as representatives are: vol_001.mrc, and on."""
    return [path for path in folder.glob("vol_*.mrc") if re.fullmatch(r"\d{3,}", path.stem[4:])]
