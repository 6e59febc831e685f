"""The story: workdir -> landmarks -> volumes -> distances -> h_psi -> f_xi -> z' -> figures.

Each function below is one arrow of it. It takes its own config and the previous result, and saves
what it made before the next one starts. No numerics here: they live in the modules it calls.
"""

from __future__ import annotations

import logging
import platform
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from cryodrgn_metric import __version__, artifacts, fidelity
from cryodrgn_metric.artifacts import MetricFolder
from cryodrgn_metric.clusters import Clusters, cluster_kmeans
from cryodrgn_metric.config import EmbedConfig
from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.distances.base import PairwiseDistances
from cryodrgn_metric.distances.rotation import RotationDistance
from cryodrgn_metric.distances.streaming import (
    VolumeStream,
    calibrate,
    mask_anisotropy,
    stream_features,
)
from cryodrgn_metric.errors import ArgumentError, VolumeError
from cryodrgn_metric.landmarks import Landmarks, candidate_pool, choose_landmarks
from cryodrgn_metric.metric_map import MetricMap
from cryodrgn_metric.report import figures, gallery
from cryodrgn_metric.runlog import Stopwatch, logged, peak_memory_in_bytes
from cryodrgn_metric.safe_files import load_indices
from cryodrgn_metric.so3.conventions import mirrored, spherical_window
from cryodrgn_metric.threads import limited_to, one_thread
from cryodrgn_metric.volumes import read_mask, write_cluster_volumes
from cryodrgn_metric.workdir import Workdir, open_workdir

__all__ = ["embed"]

logger = logging.getLogger("cryodrgn_metric.pipeline")

DEFAULT_BOX = 64
MASK_WARNING = 0.10  # of the median Delta
EPSILON = 0.1  # floor of the weights of Eq. 8 and 9, of the median measured Delta


def embed(config: EmbedConfig) -> Path:
    """Learn z' for every particle of a workdir and write everything beside it.

    Arguments:
        config: What was asked for.

    Returns:
        The output folder, `WORKDIR/metric_embed.N` unless -o moved it.

    Raises:
        MetricError: The workdir, an option or a volume is refused; nothing heavy was done yet,
            or the message says which volume.

    Example:
        >>> embed(EmbedConfig("00_vae128", epoch=49)).name  # doctest: +SKIP
        'metric_embed.49'
    """
    with limited_to(config.threads), logged() as log:
        run = _prepare(config)
        log.write_to(run.folder.log)
        logger.info("cryodrgn_metric %s: %s", __version__, run.workdir.path)
        landmarks = _choose_landmarks(run)
        measured = _measure_distances(run, landmarks)
        net = _learn_distance(run, measured)
        z_metric = _learn_map(run, measured, net)
        clusters = _cluster(run, z_metric, measured)
        _judge(run, measured, net, z_metric)
        _draw(run, measured, net, z_metric, clusters)
        _record(run, measured)
        logger.info("Finished in %.0f s. Results: %s", run.watch.total(), run.folder.path)
    return run.folder.path


@dataclass
class _Run:
    """What every stage shares: the question, the workdir, where results go, the clock."""

    config: EmbedConfig
    workdir: Workdir
    folder: MetricFolder
    pool: np.ndarray  # particles that may be landmarks
    stream: VolumeStream
    distance: RotationDistance
    watch: Stopwatch = field(default_factory=Stopwatch)
    map_history: dict[str, list[float]] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Measured:
    """The landmarks, Delta among them, and what the medoid's frame needs later."""

    landmarks: Landmarks
    latents: np.ndarray
    pairs: PairwiseDistances
    features: torch.Tensor
    volume_norms: np.ndarray

    @property
    def medoid(self) -> int:
        """The landmark with the smallest sum of distances to all others."""
        return int(self.pairs.distances.sum(axis=1).argmin())


def _prepare(config: EmbedConfig) -> _Run:
    """Everything that can be refused is refused here, before anything is computed or written."""
    workdir = open_workdir(config.workdir, config.epoch)
    folder = MetricFolder(Path(config.outdir or workdir.outdir), workdir.epoch)
    folder.require_ours()
    candidates = config.landmarks.candidates_file
    pool = candidate_pool(
        None if candidates is None else load_indices(candidates), len(workdir.latents)
    )
    most = min(config.landmarks.count, len(pool)) - 1
    if config.metric_map.dimension > most:
        raise ArgumentError(
            f"--dim {config.metric_map.dimension} needs more landmarks than that; there are "
            f"{most + 1}. Type --dim {most} or less, or raise --landmarks."
        )
    stream = _volume_stream(config, workdir)
    distance = RotationDistance(
        box=stream.box,
        full_box=workdir.box_size,
        max_frequency=stream.max_frequency,
        pairs_per_tile=config.distances.pairs_per_tile,
        unit_norm=config.distances.scale == "unit",
        device=stream.decoder.device,
        progress=True,
    )
    return _Run(config, workdir, folder, pool, stream, distance)


def _volume_stream(config: EmbedConfig, workdir: Workdir) -> VolumeStream:
    options = config.volumes
    box = options.downsample or min(DEFAULT_BOX, workdir.box_size)
    if box > workdir.box_size:
        raise ArgumentError(
            f"-d {box} is larger than the model's box, {workdir.box_size}. "
            f"Type -d {workdir.box_size} or less."
        )
    window = spherical_window(box, options.mask_radius)
    if options.mask != "sphere":
        window = window * torch.from_numpy(read_mask(options.mask, box))
        if float(window.sum()) < 1:
            raise VolumeError(
                f"--mask {options.mask} leaves nothing within the soft sphere of --mask-radius "
                f"{options.mask_radius}. Centre the mask on the box."
            )
    decoder = Decoder.from_workdir(workdir, device=config.device)
    return VolumeStream(decoder, box, window, _max_frequency(config, workdir, box))


def _apix_at_box(config: EmbedConfig, workdir: Workdir, box: int) -> float:
    given = config.volumes.apix_in_angstroms
    return workdir.apix_at_box(box) if given is None else given * workdir.box_size / box


def _max_frequency(config: EmbedConfig, workdir: Workdir, box: int) -> float | None:
    """--low-pass in Å as a radius in the Fourier box: n · apix / resolution."""
    resolution = config.volumes.low_pass_in_angstroms
    if resolution is None:
        return None
    return box * _apix_at_box(config, workdir, box) / resolution


def _choose_landmarks(run: _Run) -> Landmarks:
    """A random test set, and a sketch of the latent space to learn from."""
    with run.watch.stage("landmarks"):
        return choose_landmarks(
            run.workdir.latents, run.config.landmarks, run.config.seed, run.pool
        )


def _measure_distances(run: _Run, landmarks: Landmarks) -> _Measured:
    """Decode the landmarks and compare all pairs of them."""
    latents = run.workdir.latents[landmarks.indices]
    _announce(run, len(latents))
    with run.watch.stage("volumes"):
        calibrate(run.stream, latents[landmarks.train], run.distance)
        features = stream_features(run.stream, latents, run.distance)
    is_train = np.zeros(len(latents), dtype=bool)
    is_train[landmarks.train] = True
    with run.watch.stage("distances"):
        found = run.distance.pairwise(features, fit_on=torch.from_numpy(is_train))
    pairs = PairwiseDistances(**{name: value.numpy() for name, value in vars(found).items()})
    norms = features.square().sum(dim=(0, 1)).sqrt().cpu().numpy()
    measured = _Measured(landmarks, latents, pairs, features, norms)
    _save_distances(run, measured)
    if run.config.volumes.mask != "sphere":
        _warn_of_mask(run, measured)
    return measured


def _announce(run: _Run, count: int) -> None:
    """Say how long decoding will take; without a GPU, say it loudly."""
    decoder = run.stream.decoder
    threads = torch.get_num_threads() if decoder.device.type == "cpu" else 1
    with one_thread():
        seconds = decoder.estimate_seconds(run.stream.box, count, run.stream.max_frequency)
    box = run.stream.box
    text = f"Decoding {count} landmarks at {box}^3 will take about {seconds / threads:.0f} s."
    if decoder.device.type == "cpu":
        logger.warning("NO GPU IS USED. %s", text)
    else:
        logger.info("%s", text)


def _save_distances(run: _Run, measured: _Measured) -> None:
    pairs = measured.pairs
    rotations = mirrored(pairs.rotations) if run.config.volumes.flip else pairs.rotations
    artifacts.save_npz(
        run.folder.distances,
        landmark_indices=measured.landmarks.indices,
        is_test=measured.landmarks.is_test,
        is_validation=measured.landmarks.is_validation,
        distances=pairs.distances,
        raw_distances=pairs.raw_distances,
        second_peak_gaps=pairs.second_peak_gaps,
        rotations=rotations,
        volume_norms=measured.volume_norms,
    )


def _warn_of_mask(run: _Run, measured: _Measured) -> None:
    added = mask_anisotropy(run.stream, measured.latents, measured.pairs.rotations, run.distance)
    share = added / max(fidelity.median_distance(measured.pairs.distances), 1e-30)
    logger.info("The mask adds %.1f %% of the median Delta to a pure rotation.", 100 * share)
    if share > MASK_WARNING:
        logger.warning(
            "The mask doesn't turn with the volume: above %.0f %%, distances are no longer blind "
            "to rotation. Use a rounder mask, or --mask sphere.",
            100 * MASK_WARNING,
        )


def _learn_distance(run: _Run, measured: _Measured) -> DistanceNet:
    """Eq. 7: h_psi from the training landmarks, stopped by the validation ones."""
    net = DistanceNet(
        **asdict(run.config.distance_net),
        seed=run.config.seed,
        device=str(run.stream.decoder.device),
    )
    with run.watch.stage("h_psi"):
        net.fit(
            measured.latents,
            measured.pairs.distances,
            train=measured.landmarks.train,
            validation=measured.landmarks.validation,
        )
    net.save(run.folder.models)
    return net


def _learn_map(run: _Run, measured: _Measured, net: DistanceNet) -> np.ndarray:
    """Eq. 8 or 9: f_xi from random pairs of all particles; then z' of every particle."""
    rows = measured.landmarks.train
    typical = fidelity.median_distance(measured.pairs.distances[np.ix_(rows, rows)])
    options = asdict(run.config.metric_map)
    metric_map = MetricMap(
        n_components=options.pop("dimension"),
        **options,
        epsilon=EPSILON * typical or None,  # all volumes alike: the map chooses its own
        seed=run.config.seed,
        device=str(run.stream.decoder.device),
    )
    with run.watch.stage("f_xi"):
        metric_map.fit(run.workdir.latents, net)
    metric_map.save(run.folder.models)
    run.map_history = metric_map.history_
    with run.watch.stage("transform"):
        z_metric: np.ndarray = metric_map.transform(run.workdir.latents)
        artifacts.save_pickle(run.folder.z_metric, z_metric)
        artifacts.save_csv(
            run.folder.z_metric_csv, z_metric, [f"z_metric_{i}" for i in range(z_metric.shape[1])]
        )
    return z_metric


def _cluster(run: _Run, z_metric: np.ndarray, measured: _Measured) -> Clusters:
    """k-means of z', and the volumes of its representatives in the medoid's frame."""
    with run.watch.stage("clusters"):
        clusters = cluster_kmeans(z_metric, run.config.clusters, run.config.seed)
        count = run.config.clusters.count
        representatives = run.workdir.latents[clusters.centers_ind]
        artifacts.save_pickle(run.folder.cluster_labels(count), clusters.labels)
        artifacts.save_columns(run.folder.cluster_centers(count), representatives)
        artifacts.save_columns(run.folder.cluster_center_indices(count), clusters.centers_ind)
    written = range(0 if run.config.clusters.skip_volumes else len(clusters))
    artifacts.keep_only(
        run.folder.kmeans(count),
        [run.folder.volume(count, i + 1).name for i in written],
        "vol_*.mrc",
    )
    if written:
        with run.watch.stage("representative volumes"):
            _write_representatives(run, representatives, measured)
    return clusters


def _write_representatives(run: _Run, latents: np.ndarray, measured: _Measured) -> None:
    medoid = measured.features[:, :, measured.medoid : measured.medoid + 1]
    features = stream_features(run.stream, latents, run.distance, desc="Aligning representatives")
    onto_medoid = run.distance.onto(medoid, features).rotations.cpu().numpy()
    box = run.config.volumes.downsample or run.workdir.box_size
    with tqdm(total=len(latents), unit="vol", desc="Writing representatives") as bar:
        write_cluster_volumes(
            run.stream.decoder,
            latents,
            onto_medoid,
            run.folder.kmeans(run.config.clusters.count),
            box,
            _apix_at_box(run.config, run.workdir, box),
            flip=run.config.volumes.flip,
            invert=run.config.volumes.invert,
            max_frequency=_max_frequency(run.config, run.workdir, box),
            progress=bar.update,
        )


def _judge(run: _Run, measured: _Measured, net: DistanceNet, z_metric: np.ndarray) -> None:
    """fidelity.json: every space, and h_psi, on pairs of test landmarks."""
    test = measured.landmarks.test
    truth = measured.pairs.distances[np.ix_(test, test)]
    with run.watch.stage("fidelity"):
        spaces = fidelity.reference_spaces(
            run.workdir.latents,
            measured.landmarks.indices[test],
            run.config.metric_map.dimension,
            run.config.seed,
            run.config.clusters.skip_umap,
        )
        spaces["z_metric"] = z_metric[measured.landmarks.indices[test]]
        scores = {name: fidelity.fidelity_of(points, truth) for name, points in spaces.items()}
        intervals = fidelity.intervals_of(spaces, truth, run.config.seed)
        predicted = net.predict_matrix(measured.latents[test])
        upper = np.triu_indices(len(test), 1)
        errors = fidelity.distance_errors(predicted[upper], truth[upper])
    run.scores = {
        **scores,
        "subsampling_intervals": intervals,
        "h_psi": {**errors, "learning_curve": net.history_},
        "test_landmarks": len(test),
        "median_distance": fidelity.median_distance(truth),
        "rms_volume_norm": float(np.sqrt(np.mean(measured.volume_norms**2))),
    }
    logger.info(
        "Held out: stress-1 z %.3f, z' %.3f; Spearman z %.3f, z' %.3f; h_psi error %.1f %%",
        scores["z"]["stress1"],
        scores["z_metric"]["stress1"],
        scores["z"]["spearman"],
        scores["z_metric"]["spearman"],
        100 * errors["median_relative_error"],
    )


def _draw(
    run: _Run, measured: _Measured, net: DistanceNet, z_metric: np.ndarray, clusters: Clusters
) -> None:
    """All figures of the run, as PNG."""
    with run.watch.stage("figures"):
        drawn = gallery.held_out_figures(
            run.workdir.latents[measured.landmarks.indices],
            z_metric[measured.landmarks.indices],
            measured.pairs.distances,
            measured.landmarks.test,
            net,
            run.scores,
        )
        drawn |= gallery.training_figures(net.history_, run.map_history)
        drawn |= gallery.rotation_figures(measured.pairs)
        drawn |= gallery.landscape_figures(
            z_metric, clusters, run.config.seed, run.config.clusters.skip_umap
        )
        for name, figure in drawn.items():
            figures.save_figure(run.folder.figure(name), figure)
        artifacts.keep_only(run.folder.figures, [f"{name}.png" for name in drawn])


def _record(run: _Run, measured: _Measured) -> None:
    """fidelity.json, now that all timings are known, and metric_embed.yaml."""
    pairs = len(measured.landmarks) * (len(measured.landmarks) - 1) // 2
    run.scores |= {
        "timings_in_seconds": run.watch.seconds,
        "pairs_per_second": pairs / max(run.watch.seconds["distances"], 1e-9),
        "peak_memory_in_bytes": peak_memory_in_bytes(),
    }
    artifacts.save_json(run.folder.fidelity, run.scores)
    inputs = [run.workdir.config_path, run.workdir.z_path, run.workdir.weights_path]
    inputs += [Path(name) for name in _optional_inputs(run.config)]
    artifacts.save_yaml(
        run.folder.parameters,
        {
            "version": __version__,
            "epoch": run.workdir.epoch,
            "config": run.config,
            "box": run.stream.box,
            "apix_in_angstroms": _apix_at_box(run.config, run.workdir, run.stream.box),
            "max_frequency": run.stream.max_frequency,
            "lmax": run.distance.lmax,
            "device": run.stream.decoder.device,
            "threads": torch.get_num_threads(),
            "versions": {
                "python": platform.python_version(),
                "cryodrgn": metadata.version("cryodrgn"),
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
            "sha256": {path.name: artifacts.sha256_of(path) for path in inputs},
        },
    )


def _optional_inputs(config: EmbedConfig) -> list[str]:
    mask = [] if config.volumes.mask == "sphere" else [config.volumes.mask]
    candidates = config.landmarks.candidates_file
    return mask if candidates is None else [*mask, candidates]
