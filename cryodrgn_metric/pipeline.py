"""The story: workdir -> landmarks -> volumes -> distances -> h_psi -> f_xi -> z' -> report.

Each line of `embed` is one arrow of it: a stage that takes the previous result, and saves what it
made before the next one starts. No numerics here: they live in the modules it calls.
"""

from __future__ import annotations

import logging
import platform
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from cryodrgn_metric import __version__, artifacts
from cryodrgn_metric.active_sampling import learn_actively
from cryodrgn_metric.clusters import (
    Clusters,
    cluster_hdbscan,
    cluster_kmeans,
    describe_clusters,
    write_members,
)
from cryodrgn_metric.config import EmbedConfig
from cryodrgn_metric.distance_ensemble import DistanceEnsemble
from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.exploration import (
    explore_map,
    explore_particles,
    judge_spaces,
    read_rotations,
)
from cryodrgn_metric.folder_lock import locked
from cryodrgn_metric.frame import Frame, write_representatives
from cryodrgn_metric.hidden_rotation import striking_pairs
from cryodrgn_metric.learning import (
    estimate_dimension,
    learn_distance,
    learn_error_bars,
    learn_map,
    transform,
)
from cryodrgn_metric.measurement import Measured, measure_distances, pick_landmarks
from cryodrgn_metric.metric_folder import remove_other_clusters, volumes_in
from cryodrgn_metric.metric_map import MetricMap
from cryodrgn_metric.motion import write_motion
from cryodrgn_metric.overlay import (
    guest_folder,
    remove_guest_drafts,
    write_guests,
    write_overlay,
)
from cryodrgn_metric.pair_pictures import write_striking_pairs
from cryodrgn_metric.report.results import Results
from cryodrgn_metric.run import Run, prepare
from cryodrgn_metric.runlog import logged, peak_memory_in_bytes
from cryodrgn_metric.straight_motion import write_straight_motion
from cryodrgn_metric.threads import limited_to
from cryodrgn_metric.view import umap_view, view_of

__all__ = ["embed"]

logger = logging.getLogger("cryodrgn_metric.pipeline")


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
        run = prepare(config)
        with locked(run.folder.lock):
            log.write_to(run.folder.log)
            _begin(run)
            measured = _measure(run)
            net = learn_distance(run, measured)
            ensemble = learn_error_bars(run, measured, net)
            estimate = estimate_dimension(run, measured, net)
            metric_map = learn_map(run, measured, net, estimate)
            z_metric = transform(run, metric_map)
            judge_spaces(run, measured, net, ensemble, z_metric)
            clusters = _cluster(run, z_metric, measured)
            _explore(run, measured, net, ensemble, metric_map, z_metric, clusters)
            _join_cryodrgn(run, z_metric, clusters)
            _record(run)
            _report(run)
        logger.info("Finished in %.0f s. Results: %s", run.watch.total(), run.folder.path)
    return run.folder.path


def _begin(run: Run) -> None:
    """Clear away what a killed run left half-written; metric_embed.yaml marks a finished one."""
    artifacts.remove_drafts(run.folder.path)
    remove_guest_drafts(run.workdir)
    artifacts.remove_files([run.folder.parameters])
    if run.config.restart:
        run.cache.clear()
    logger.info("cryodrgn_metric %s: %s", __version__, run.workdir.path)


def _measure(run: Run) -> Measured:
    """Landmarks, their volumes, and Delta among them; in rounds with --sampling active."""
    if run.config.landmarks.sampling == "active":
        return learn_actively(run)
    landmarks = pick_landmarks(run)
    return measure_distances(run, landmarks)


def _cluster(run: Run, z_metric: np.ndarray, measured: Measured) -> Clusters:
    """k-means of z', and the volumes of its representatives in the medoid's frame; HDBSCAN."""
    count, folder = run.config.clusters.count, run.folder
    with run.watch.stage("clusters"):
        clusters = cluster_kmeans(z_metric, run.config.clusters, run.config.seed)
        artifacts.save_pickle(folder.cluster_labels(count), clusters.labels)
        latents = run.workdir.latents[clusters.centers_ind]
        artifacts.save_columns(folder.cluster_centers(count), latents)
        artifacts.save_columns(folder.cluster_center_indices(count), clusters.centers_ind)
        write_members(folder, count, clusters, run.workdir.particle_indices)
        densest = cluster_hdbscan(z_metric, run.config.seed)
        artifacts.save_pickle(folder.hdbscan_labels, densest)
    written: list[Path] = []
    if not run.config.clusters.skip_volumes:
        with run.watch.stage("representative volumes"):
            written = write_representatives(run, Frame.of(measured), clusters)
    artifacts.remove_files(set(volumes_in(folder.kmeans(count))) - set(written))
    remove_other_clusters(folder, count)
    return clusters


def _explore(
    run: Run,
    measured: Measured,
    net: DistanceNet,
    ensemble: DistanceEnsemble | None,
    metric_map: MetricMap,
    z_metric: np.ndarray,
    clusters: Clusters,
) -> None:
    """Everything else that the report shows: rotation, local geometry, motion; report.json."""
    summary = read_rotations(run, measured)
    summary |= explore_particles(run, measured, net, ensemble, metric_map)
    with run.watch.stage("motion"):
        far, near = striking_pairs(measured.latents, measured.pairs.distances)
        write_striking_pairs(run, measured, far, near)
        summary["paths"] = write_motion(run, measured, z_metric, clusters)
        if run.config.metric_map.map == "flow":
            straight = write_straight_motion(run, measured, metric_map, z_metric)
            summary["straight_paths"] = straight
    summary["clusters"] = describe_clusters(z_metric, clusters, run.workdir.particle_indices)
    summary["f_xi"] = explore_map(run, metric_map)
    artifacts.save_json(run.folder.summary, summary)


def _join_cryodrgn(run: Run, z_metric: np.ndarray, clusters: Clusters) -> None:
    """The output folder becomes a workdir for cryoDRGN's tools; guests go to its analyze.N."""
    with run.watch.stage("overlay"):
        view = _flat_view(run, z_metric)
        write_overlay(run.folder, run.workdir, z_metric, view, clusters.labels, run.config.seed)
        if guest_folder(run.workdir, run.folder):
            write_guests(run.workdir, z_metric, clusters.labels)


def _flat_view(run: Run, z_metric: np.ndarray) -> np.ndarray:
    """z_metric_umap.pkl, and what cryoDRGN's tools show as UMAP: that, or z' where it is flat."""
    dimension, seed = z_metric.shape[1], run.config.seed
    if run.config.clusters.skip_umap or dimension == 1:
        artifacts.remove_files([run.folder.z_metric_umap])
        return view_of(z_metric)
    umap = umap_view(z_metric, seed)
    artifacts.save_pickle(run.folder.z_metric_umap, umap)
    return umap if dimension > 2 else view_of(z_metric)


def _report(run: Run) -> None:
    """Figures, report.html and the notebook, from what is saved by now."""
    # takes a second to import, which whoever skips it, or is refused, is spared
    from cryodrgn_metric.report.writing import remove_report, write_report

    if run.config.skip_report:
        remove_report(run.folder)
        return
    with run.watch.stage("report"):
        write_report(
            Results.load(run.workdir, run.folder),
            guest=guest_folder(run.workdir, run.folder),
            threads=run.config.threads,
        )
    _record(run)  # the seconds of the report, too


def _record(run: Run) -> None:
    """fidelity.json, now that all timings are known, and metric_embed.yaml."""
    run.scores |= {
        "timings_in_seconds": run.watch.seconds,
        # of those that this run has measured; a run that found all of them has no such number
        "pairs_per_second": run.scores.get("pairs_per_second"),
        "peak_memory_in_bytes": peak_memory_in_bytes(),
    }
    artifacts.save_json(run.folder.fidelity, run.scores)
    artifacts.save_yaml(run.folder.parameters, _parameters(run))


def _parameters(run: Run) -> dict[str, object]:
    """All that metric_embed.yaml says."""
    return {
        "version": __version__,
        "epoch": run.workdir.epoch,
        "config": run.config,
        "box": run.stream.box,
        "apix_in_angstroms": run.apix_at_box(run.stream.box),
        "max_frequency": run.stream.max_frequency,
        **run.distance.settings,
        "device": run.device,
        "threads": torch.get_num_threads(),
        **({"active_sampling": rounds} if (rounds := run.scores.get("active_sampling")) else {}),
        "reused_from_an_earlier_run": run.reused,
        "versions": {
            "python": platform.python_version(),
            "cryodrgn": metadata.version("cryodrgn"),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "sha256": {run.inputs[name].name: digest for name, digest in run.digests.items()},
    }
