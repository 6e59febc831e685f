"""What each stage is asked to do: one frozen dataclass per stage, checked when it is made.

The command line builds these once (`options.py`); stages take their own config and never an
argparse.Namespace. All of them together are written to metric_embed.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from cryodrgn_metric.errors import ArgumentError

__all__ = [
    "ClusterConfig",
    "DistanceConfig",
    "DistanceNetConfig",
    "EmbedConfig",
    "EnsembleConfig",
    "LandmarkConfig",
    "MetricMapConfig",
    "VolumeConfig",
]

SAMPLINGS = ("kmeans", "random", "farthest", "active")
LOSSES = ("relative", "weighted")
DISTANCES = ("so3", "transport", "atoms")
MAPS = ("mlp", "flow")
DIMENSION = 2  # d', where it is not given; a flow's is that of z
SCALES = ("none", "unit")
RIGID_MOTIONS = ("so3", "se3")
ATOM_DISTANCES = ("rmsd", "drmsd")
PRECISIONS = ("float32", "bfloat16")
MOST_FOUND = 8  # dimensions, by --dim auto


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ArgumentError(message)


@dataclass(frozen=True)
class LandmarkConfig:
    """Which particles are decoded: how many, how they are drawn, and from which indices."""

    count: int = 500
    sampling: str = "kmeans"
    candidates_file: str | None = None  # --ind: a pickle of particle numbers

    def __post_init__(self) -> None:
        _require(self.count >= 10, f"--landmarks must be at least 10; got {self.count}.")
        _require(
            self.sampling in SAMPLINGS,
            f"--sampling must be one of {', '.join(SAMPLINGS)}; got {self.sampling!r}.",
        )


@dataclass(frozen=True)
class VolumeConfig:
    """How V(z) is decoded: box, resolution, mask; and how written volumes look."""

    downsample: int | None = None  # box in voxels; None: 64, or the model's box where smaller
    low_pass_in_angstroms: float | None = None
    apix_in_angstroms: float | None = None  # None: analyze's rule
    mask: str = "sphere"  # or the path of an .mrc file
    mask_radius: float = 0.85  # start of the window's fall-off, as a fraction of the half box
    flip: bool = False
    invert: bool = False
    precision: str = "float32"  # of the hidden layers, where volumes are compared

    def __post_init__(self) -> None:
        box = self.downsample
        _require(
            box is None or (box >= 8 and box % 2 == 0),
            f"-d/--downsample must be an even number of voxels >= 8; got {box}.",
        )
        low_pass = self.low_pass_in_angstroms
        _require(
            low_pass is None or 0 < low_pass < inf,
            f"--low-pass must be a positive resolution in Å; got {low_pass}.",
        )
        apix = self.apix_in_angstroms
        _require(apix is None or 0 < apix < inf, f"--Apix must be positive, in Å; got {apix}.")
        _require(
            0 < self.mask_radius <= 0.98,
            f"--mask-radius is a fraction of the half box in (0, 0.98]; got {self.mask_radius}.",
        )
        _require(
            self.precision in PRECISIONS,
            f"--precision must be one of {', '.join(PRECISIONS)}; got {self.precision!r}.",
        )


@dataclass(frozen=True)
class DistanceConfig:
    """How Delta is measured between landmark volumes."""

    distance: str = "so3"
    scale: str = "none"
    contour: float | None = None  # of transport: None: 3 standard deviations of the solvent
    rigid: str = "so3"  # what is taken out: rotations, or translations as well
    model: str | None = None  # a .pdb or .cif file; None: pseudo-atoms of the medoid's volume
    atom_distance: str = "rmsd"
    pairs_per_tile: int | None = None  # None: as the device likes
    pairs_per_block: int = 4096  # kept as one file: some seconds of work, and few enough files

    def __post_init__(self) -> None:
        _require(
            self.distance in DISTANCES,
            f"--distance must be one of {', '.join(DISTANCES)}; got {self.distance!r}.",
        )
        _require(
            self.atom_distance in ATOM_DISTANCES,
            f"--atom-distance must be rmsd or drmsd; got {self.atom_distance!r}.",
        )
        by_atoms = self.distance == "atoms"
        _require(
            by_atoms or self.model is None, "--model is for --distance atoms; type that as well."
        )
        _require(
            by_atoms or self.atom_distance == "rmsd",
            "--atom-distance is for --distance atoms; type that as well.",
        )
        _require(self.scale in SCALES, f"--scale must be none or unit; got {self.scale!r}.")
        transport = self.distance == "transport"
        _require(
            not (transport and self.scale == "unit"),
            "--scale unit has no meaning for --distance transport, which gives every volume the "
            "mass 1 anyway. Leave it out.",
        )
        _require(
            self.contour is None or transport,
            "--contour is for --distance transport only. Leave it out, or type both.",
        )
        _require(
            self.contour is None or 0 < self.contour < inf,
            "--contour must be a positive number of standard deviations of the solvent; got "
            f"{self.contour}.",
        )
        _require(
            self.rigid in RIGID_MOTIONS,
            f"--rigid must be one of {', '.join(RIGID_MOTIONS)}; got {self.rigid!r}.",
        )
        _require(
            self.distance == "so3" or self.rigid == "so3",
            f"--distance {self.distance} takes translations out anyway. Leave --rigid se3 out.",
        )
        sizes = self.pairs_per_tile, self.pairs_per_block
        _require(
            all(size is None or size >= 1 for size in sizes),
            f"pairs per tile and per block must be at least 1; got {sizes}.",
        )

    @property
    def of_volumes(self) -> DistanceConfig:
        """What the comparison of volumes depends on, whatever models are then fitted to them."""
        if self.distance != "atoms":
            return self
        return replace(self, distance="so3", model=None, atom_distance="rmsd")


@dataclass(frozen=True)
class DistanceNetConfig:
    """How h_psi is trained."""

    width: int = 128
    depth: int = 3
    max_epochs: int = 150  # of 10 steps
    learning_rate: float = 1e-2


@dataclass(frozen=True)
class EnsembleConfig:
    """How many nets say how far h_psi may be off; h_psi is the first of them."""

    members: int = 5  # 1: h_psi alone, without error bars

    def __post_init__(self) -> None:
        _require(self.members >= 1, f"--ensemble must be at least 1; got {self.members}.")


@dataclass(frozen=True)
class MetricMapConfig:
    """How f_xi is trained: d', the loss of Eq. 8 or Eq. 9, the network, the steps."""

    # None: 2, or that of z for a flow; "auto": as many as the motion needs
    dimension: int | str | None = None
    loss: str = "relative"
    width: int = 128
    depth: int = 3
    steps: int = 2000
    pairs_per_step: int = 8128  # all pairs of 128 particles
    learning_rate: float = 1e-2
    map: str = "mlp"
    amortized: bool = True  # on h_psi of all particles; else on the measured pairs of landmarks

    def __post_init__(self) -> None:
        found = self.dimension in (None, "auto")
        found = found or (type(self.dimension) is int and self.dimension >= 1)
        _require(found, f"--dim must be auto, or at least 1; got {self.dimension}.")
        _require(
            self.loss in LOSSES,
            f"--loss must be one of {', '.join(LOSSES)}; got {self.loss!r}.",
        )
        _require(self.map in MAPS, f"--map must be one of {', '.join(MAPS)}; got {self.map!r}.")

    def for_latents(self, columns: int) -> MetricMapConfig:
        """The same with d' filled in, for latents of so many columns."""
        default = columns if self.map == "flow" else DIMENSION
        return replace(self, dimension=default if self.dimension is None else self.dimension)

    @property
    def most_dimensions(self) -> int:
        """d', or the most that --dim auto may find; known since `for_latents`."""
        assert self.dimension is not None
        return MOST_FOUND if isinstance(self.dimension, str) else self.dimension


@dataclass(frozen=True)
class ClusterConfig:
    """The k-means of z' and its representative volumes."""

    count: int = 20
    skip_volumes: bool = False
    skip_umap: bool = False

    def __post_init__(self) -> None:
        _require(self.count >= 1, f"--ksample must be at least 1; got {self.count}.")


@dataclass(frozen=True)
class EmbedConfig:
    """Everything `cryodrgn metric_embed` was asked to do."""

    workdir: str
    epoch: int = -1
    outdir: str | None = None
    seed: int = 0
    device: str | None = None
    threads: int | None = None
    restart: bool = False  # believe nothing that an earlier run has finished
    skip_report: bool = False
    landmarks: LandmarkConfig = field(default_factory=LandmarkConfig)
    volumes: VolumeConfig = field(default_factory=VolumeConfig)
    distances: DistanceConfig = field(default_factory=DistanceConfig)
    distance_net: DistanceNetConfig = field(default_factory=DistanceNetConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    metric_map: MetricMapConfig = field(default_factory=MetricMapConfig)
    clusters: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        _require(
            0 <= self.seed < 2**32, f"--seed must be a number from 0 to 2^32 - 1; got {self.seed}."
        )
        _require(
            self.landmarks.sampling != "active" or self.ensemble.members > 1,
            "--sampling active adds landmarks where several nets disagree: it needs --ensemble 2 "
            f"or more; got {self.ensemble.members}.",
        )

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> EmbedConfig:
        """The question that an earlier run answered, from `config` of metric_embed.yaml.

        Raises:
            ArgumentError: It is not what this version saves.
        """
        stages = {
            "landmarks": LandmarkConfig,
            "volumes": VolumeConfig,
            "distances": DistanceConfig,
            "distance_net": DistanceNetConfig,
            "ensemble": EnsembleConfig,
            "metric_map": MetricMapConfig,
            "clusters": ClusterConfig,
        }
        try:
            parts = {name: stage(**saved[name]) for name, stage in stages.items()}
            return cls(**{**saved, **parts})
        except (KeyError, TypeError) as error:
            raise ArgumentError(
                f"metric_embed.yaml is not of this version ({error}); run metric_embed again."
            ) from error
