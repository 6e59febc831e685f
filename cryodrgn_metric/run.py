"""What every stage of a run shares, and all that can be refused before anything is computed."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryodrgn_metric.artifacts import require_space, sha256_of
from cryodrgn_metric.atomic_model import MOST_BEADS, AtomicModel, read_model
from cryodrgn_metric.cache import Stage, StageCache
from cryodrgn_metric.config import EmbedConfig
from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.dimension import FEWEST_LANDMARKS
from cryodrgn_metric.distances.base import VolumeDistance
from cryodrgn_metric.distances.choice import distance_of
from cryodrgn_metric.distances.streaming import VolumeStream
from cryodrgn_metric.errors import ArgumentError, VolumeError, WorkdirError
from cryodrgn_metric.flow import require_flow
from cryodrgn_metric.landmark_candidates import candidate_pool, rows_of_particles
from cryodrgn_metric.metric_folder import MetricFolder
from cryodrgn_metric.paths import ALONG_PATH, LARGEST_CLUSTERS
from cryodrgn_metric.runlog import Stopwatch
from cryodrgn_metric.safe_files.pickles import load_indices
from cryodrgn_metric.so3.conventions import edge_of, spherical_window
from cryodrgn_metric.volumes import read_mask
from cryodrgn_metric.workdir import Workdir, open_workdir

__all__ = ["Run", "prepare"]

logger = logging.getLogger(__name__)

DEFAULT_BOX = 64
FEWEST_SHELLS = 2  # of Fourier voxels that --low-pass must leave


@dataclass
class Run:
    """What every stage shares: the question, the workdir, where results go, the clock.

    Arguments:
        config: What was asked for.
        workdir: What it was asked of.
        folder: Where results go.
        cache: What earlier runs in that folder have finished.
        inputs: The files it is made from, by what they are: config, z, weights, mask, ind,
            model.
        digests: Their SHA-256, by the same names.
        pool: Rows of z that may be landmarks.
        stream: How volumes are decoded.
        distance: How they are compared, or with --distance atoms laid on each other.
        model: What --model names, in the hand of the volumes as they are decoded.
    """

    config: EmbedConfig
    workdir: Workdir
    folder: MetricFolder
    cache: StageCache
    inputs: dict[str, Path]
    digests: dict[str, str]
    pool: np.ndarray
    stream: VolumeStream
    distance: VolumeDistance
    model: AtomicModel | None = None
    watch: Stopwatch = field(default_factory=Stopwatch)
    map_history: dict[str, list[float]] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    reused: list[str] = field(default_factory=list)  # stages that an earlier run has made
    trained: set[str] = field(default_factory=set)  # keys of the models that this run has made

    @property
    def device(self) -> str:
        """Where to compute, as torch names it."""
        return str(self.stream.decoder.device)

    def note_reuse(self, name: str, pieces: str, stage: Stage, *earlier: Stage) -> None:
        """Say what of a stage was not computed again; drop what belongs to other parameters.

        Arguments:
            name: Of the stage.
            pieces: What its pieces are.
            stage: Where they are kept; of growing landmarks the last part counts, as this run
                may have made the earlier ones itself.
            earlier: Stages of these, which are still needed.
        """
        if stage.loaded:
            self.reused.append(name)
            total = stage.loaded + stage.saved
            logger.info("%s: %d of %d %s from an earlier run", name, stage.loaded, total, pieces)
        stage.forget_others(*earlier)

    @property
    def written_box(self) -> int:
        """The box of volumes that are written: the model's, unless -d was given."""
        return self.config.volumes.downsample or self.workdir.box_size

    def apix_at_box(self, box: int) -> float:
        """The size in Å of a voxel of V(z) decoded at `box`; --Apix has the first word."""
        return _apix_at_box(self.config, self.workdir, box)

    def max_frequency_at_box(self, box: int) -> float | None:
        """--low-pass in Å as a radius in Fourier voxels of `box`: n · apix / resolution."""
        return _max_frequency(self.config, self.workdir, box)


def prepare(config: EmbedConfig) -> Run:
    """Read the workdir and refuse whatever can be refused; nothing is written.

    Arguments:
        config: What was asked for.

    Returns:
        The run, before its first stage.

    Raises:
        MetricError: The workdir, an option, a mask or the output folder is refused.
    """
    workdir = open_workdir(config.workdir, config.epoch)
    _require_spread(workdir)
    config = _with_dimension(config, workdir)
    folder = MetricFolder(Path(config.outdir or workdir.outdir), workdir.epoch)
    inputs = _input_files(config, workdir)
    digests = {name: _digest_of(path) for name, path in inputs.items()}
    folder.require_ours(workdir.path)
    pool = _candidates(config, workdir)
    require_space(folder.path, _needed_space_in_bytes(config, workdir, len(pool)))
    model = _model(config, workdir)
    stream = _volume_stream(config, workdir)
    apix_in_angstroms = _apix_at_box(config, workdir, stream.box)
    distance = distance_of(config, stream, workdir.box_size, apix_in_angstroms)
    if digests != {name: _digest_of(path) for name, path in inputs.items()}:
        raise WorkdirError(
            f"A file of {workdir.path} has changed while it was read. Is it still being trained? "
            "Type the same again when that has ended."
        )
    cache = StageCache(folder.cache)
    return Run(config, workdir, folder, cache, inputs, digests, pool, stream, distance, model)


def _require_spread(workdir: Workdir) -> None:
    latents = workdir.latents
    if len(latents) < 2 or (latents == latents[0]).all():
        raise WorkdirError(
            f"{workdir.z_path}: expected particles with different latents; got {len(latents)}, "
            "all alike: there is no heterogeneity to embed. Choose another --epoch, or train with "
            "a smaller --beta."
        )


def _with_dimension(config: EmbedConfig, workdir: Workdir) -> EmbedConfig:
    """With --dim filled in, once the map is known to be possible."""
    columns = workdir.latents.shape[1]
    metric_map = config.metric_map.for_latents(columns)
    if metric_map.map == "flow":
        # of what --dim auto finds, a flow keeps as much as there is
        asked = metric_map.dimension
        require_flow(columns, asked if isinstance(asked, int) else columns)
    return replace(config, metric_map=metric_map)


def _candidates(config: EmbedConfig, workdir: Workdir) -> np.ndarray:
    candidates = config.landmarks.candidates_file
    allowed = None
    if candidates is not None:
        allowed = rows_of_particles(load_indices(candidates), workdir.particle_indices)
    pool = candidate_pool(allowed, len(workdir.latents))
    count, dimension = min(config.landmarks.count, len(pool)), config.metric_map.dimension
    if dimension == "auto" and count < FEWEST_LANDMARKS:
        raise ArgumentError(
            f"--dim auto needs at least {FEWEST_LANDMARKS} landmarks; there are {count}. Type "
            "--dim 2, or raise --landmarks."
        )
    if config.metric_map.most_dimensions > count - 1:
        raise ArgumentError(
            f"--dim {dimension} needs more landmarks than that; there are {count}. Type --dim "
            f"{count - 1} or less, or raise --landmarks."
        )
    return pool


def _model(config: EmbedConfig, workdir: Workdir) -> AtomicModel | None:
    path = config.distances.model
    if path is None:
        return None
    model = read_model(path)
    box = _compared_box(config, workdir)
    half_box = box * _apix_at_box(config, workdir, box) / 2
    if model.radius_in_angstroms > half_box:
        raise ArgumentError(
            f"--model {path} does not fit into the box: it reaches "
            f"{model.radius_in_angstroms:.0f} Å from its centre, and the box {half_box:.0f} Å. Is "
            "it of another molecule, or are pixels larger (--Apix)?"
        )
    return model.mirrored() if config.volumes.flip else model


def _volume_stream(config: EmbedConfig, workdir: Workdir) -> VolumeStream:
    options = config.volumes
    box = _compared_box(config, workdir)
    window = spherical_window(box, options.mask_radius)
    if options.mask != "sphere":
        window = window * torch.from_numpy(read_mask(options.mask, box))
        if float(window.sum()) < 1:
            raise VolumeError(
                f"--mask {options.mask} leaves nothing within the soft sphere of --mask-radius "
                f"{options.mask_radius}. Centre the mask on the box."
            )
    dtype: torch.dtype = getattr(torch, options.precision)
    decoder = Decoder.from_workdir(workdir, config.device, dtype, as_trained=True)
    level_from = edge_of(window) if config.distances.rigid == "se3" else None
    max_frequency = _max_frequency(config, workdir, box)
    return VolumeStream(decoder, box, window, max_frequency, level_from)


def _compared_box(config: EmbedConfig, workdir: Workdir) -> int:
    box = config.volumes.downsample or min(DEFAULT_BOX, workdir.box_size)
    if box > workdir.box_size:
        raise ArgumentError(
            f"-d {box} is larger than the model's box, {workdir.box_size}. "
            f"Type -d {workdir.box_size} or less."
        )
    return box


def _apix_at_box(config: EmbedConfig, workdir: Workdir, box: int) -> float:
    given = config.volumes.apix_in_angstroms
    return workdir.apix_at_box(box) if given is None else given * workdir.box_size / box


def _max_frequency(config: EmbedConfig, workdir: Workdir, box: int) -> float | None:
    resolution = config.volumes.low_pass_in_angstroms
    if resolution is None:
        return None
    length_in_angstroms = box * _apix_at_box(config, workdir, box)
    if length_in_angstroms < FEWEST_SHELLS * resolution:
        raise ArgumentError(
            f"--low-pass {resolution:g} leaves nothing to compare: the box is "
            f"{length_in_angstroms:.0f} Å wide. Type --low-pass "
            f"{length_in_angstroms / FEWEST_SHELLS:.0f} or less, or correct --Apix."
        )
    return length_in_angstroms / resolution


def _input_files(config: EmbedConfig, workdir: Workdir) -> dict[str, Path]:
    found = {"config": workdir.config_path, "z": workdir.z_path, "weights": workdir.weights_path}
    if config.volumes.mask != "sphere":
        found["mask"] = Path(config.volumes.mask)
    if config.landmarks.candidates_file is not None:
        found["ind"] = Path(config.landmarks.candidates_file)
    if config.distances.model is not None:
        found["model"] = Path(config.distances.model)
    return found


def _digest_of(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError:  # whoever reads it says what is wrong
        return ""


def _needed_space_in_bytes(config: EmbedConfig, workdir: Workdir, candidates: int) -> int:
    """About what the run writes: coefficients, pairs, volumes, z' twice, and small things."""
    count, radius = min(config.landmarks.count, candidates), _compared_box(config, workdir) // 2
    expansions = 2 if config.distances.rigid == "se3" else 1
    coefficients = expansions * count * 4 * (radius + 1) ** 2 * radius
    pairs = count**2 * (48 + 24)  # the matrices, and the blocks they are made from
    side = config.volumes.downsample or workdir.box_size
    components = config.metric_map.most_dimensions
    lines = 2 if config.metric_map.map == "flow" else 1  # on the data, and straight
    large = config.clusters.count + lines * ALONG_PATH * components
    small = ALONG_PATH * (LARGEST_CLUSTERS - 1)
    volumes = 0 if config.clusters.skip_volumes else 4 * (large * side**3 + small * 8 * radius**3)
    # z' twice; particles.npz, overlay
    particles = len(workdir.latents) * (4 + 18 * components + 60 + 8 * components)
    report = 0 if config.skip_report else 40_000_000  # the page, its figures, two notebooks
    if config.distances.distance == "atoms":
        pairs += count * MOST_BEADS * (12 + 12 + 81)  # kept, written as numbers, and as text
    return coefficients + pairs + volumes + particles + report + 3_000_000
