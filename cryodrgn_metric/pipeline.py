"""The story: workdir -> landmarks -> volumes -> distances -> h_psi -> f_xi -> z' -> figures.

Each function below is one arrow of it. It takes its own config and the previous result, and saves
what it made before the next one starts. No numerics here: they live in the modules it calls.
"""

from __future__ import annotations

import logging
import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from cryodrgn_metric import __version__, artifacts, fidelity
from cryodrgn_metric.cache import Stage
from cryodrgn_metric.clusters import Clusters, cluster_kmeans
from cryodrgn_metric.config import EmbedConfig
from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.folder_lock import locked
from cryodrgn_metric.frame import Frame, write_representatives
from cryodrgn_metric.measurement import Measured, measure_distances, pick_landmarks
from cryodrgn_metric.metric_folder import remove_other_clusters, volumes_in
from cryodrgn_metric.metric_map import MetricMap
from cryodrgn_metric.reference_spaces import reference_spaces
from cryodrgn_metric.report import figures, gallery
from cryodrgn_metric.run import Run, prepare
from cryodrgn_metric.runlog import logged, peak_memory_in_bytes
from cryodrgn_metric.threads import limited_to

__all__ = ["embed"]

logger = logging.getLogger("cryodrgn_metric.pipeline")

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
        run = prepare(config)
        with locked(run.folder.lock):
            log.write_to(run.folder.log)
            _begin(run)
            landmarks = pick_landmarks(run)
            measured = measure_distances(run, landmarks)
            net = _learn_distance(run, measured)
            z_metric = _learn_map(run, measured, net)
            clusters = _cluster(run, z_metric, measured)
            _judge(run, measured, net, z_metric)
            _draw(run, measured, net, z_metric, clusters)
            _record(run)
        logger.info("Finished in %.0f s. Results: %s", run.watch.total(), run.folder.path)
    return run.folder.path


def _begin(run: Run) -> None:
    """Clear away what a killed run left half-written; metric_embed.yaml marks a finished one."""
    artifacts.remove_drafts(run.folder.path)
    artifacts.remove_files([run.folder.parameters])
    if run.config.restart:
        run.cache.clear()
    logger.info("cryodrgn_metric %s: %s", __version__, run.workdir.path)


def _learn_distance(run: Run, measured: Measured) -> DistanceNet:
    """Eq. 7: h_psi from the training landmarks, stopped by the validation ones."""
    stage = _distance_net_stage(run, measured)
    files = run.folder.model_files("h_psi")
    if stage.is_sealed(files):
        logger.info("h_psi: from an earlier run")
        run.reused.append("h_psi")
        return DistanceNet.load(run.folder.models, run.device)
    net = DistanceNet(**asdict(run.config.distance_net), seed=run.config.seed, device=run.device)
    with run.watch.stage("h_psi"):
        net.fit(
            measured.latents,
            measured.pairs.distances,
            train=measured.landmarks.train,
            validation=measured.landmarks.validation,
        )
    net.save(run.folder.models)
    stage.seal(files)
    stage.forget_others()
    return net


def _distance_net_stage(run: Run, measured: Measured) -> Stage:
    return run.cache.stage(
        "h_psi", distances=measured.key, config=run.config.distance_net, seed=run.config.seed
    )


def _learn_map(run: Run, measured: Measured, net: DistanceNet) -> np.ndarray:
    """Eq. 8 or 9: f_xi from random pairs of all particles; then z' of every particle."""
    metric_map = _fitted_map(run, measured, net)
    run.map_history = metric_map.history_
    with run.watch.stage("transform"):
        z_metric: np.ndarray = metric_map.transform(run.workdir.latents)
        artifacts.save_pickle(run.folder.z_metric, z_metric)
        artifacts.save_csv(
            run.folder.z_metric_csv, z_metric, [f"z_metric_{i}" for i in range(z_metric.shape[1])]
        )
    return z_metric


def _fitted_map(run: Run, measured: Measured, net: DistanceNet) -> MetricMap:
    stage = run.cache.stage(
        "f_xi",
        made_from=_distance_net_stage(run, measured).key,
        # and what came of it: on another device, other weights
        h_psi=[artifacts.sha256_of(path) for path in run.folder.model_files("h_psi")],
        config=run.config.metric_map,
        epsilon=EPSILON,
    )
    files = run.folder.model_files("f_xi")
    if stage.is_sealed(files):
        logger.info("f_xi: from an earlier run")
        run.reused.append("f_xi")
        return MetricMap.load(run.folder.models, run.device)
    rows = measured.landmarks.train
    typical = fidelity.median_distance(measured.pairs.distances[np.ix_(rows, rows)])
    options = asdict(run.config.metric_map)
    metric_map = MetricMap(
        n_components=options.pop("dimension"),
        **options,
        epsilon=EPSILON * typical or None,  # all volumes alike: the map chooses its own
        seed=run.config.seed,
        device=run.device,
    )
    with run.watch.stage("f_xi"):
        metric_map.fit(run.workdir.latents, net)
    metric_map.save(run.folder.models)
    stage.seal(files)
    stage.forget_others()
    return metric_map


def _cluster(run: Run, z_metric: np.ndarray, measured: Measured) -> Clusters:
    """k-means of z', and the volumes of its representatives in the medoid's frame."""
    with run.watch.stage("clusters"):
        clusters = cluster_kmeans(z_metric, run.config.clusters, run.config.seed)
        count = run.config.clusters.count
        representatives = run.workdir.latents[clusters.centers_ind]
        artifacts.save_pickle(run.folder.cluster_labels(count), clusters.labels)
        artifacts.save_columns(run.folder.cluster_centers(count), representatives)
        artifacts.save_columns(run.folder.cluster_center_indices(count), clusters.centers_ind)
    written: list[Path] = []
    if not run.config.clusters.skip_volumes:
        with run.watch.stage("representative volumes"):
            written = write_representatives(run, Frame.of(measured), clusters)
    stale = set(volumes_in(run.folder.kmeans(count))) - set(written)
    artifacts.remove_files(stale)
    remove_other_clusters(run.folder, count)
    return clusters


def _judge(run: Run, measured: Measured, net: DistanceNet, z_metric: np.ndarray) -> None:
    """fidelity.json: every space, and h_psi, on pairs of test landmarks."""
    test = measured.landmarks.test
    truth = measured.pairs.distances[np.ix_(test, test)]
    with run.watch.stage("fidelity"):
        spaces = reference_spaces(
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
    run.scores |= {
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
    run: Run, measured: Measured, net: DistanceNet, z_metric: np.ndarray, clusters: Clusters
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
        stale = set(gallery.FIGURES) - set(drawn)
        artifacts.remove_files(run.folder.figure(name) for name in stale)


def _record(run: Run) -> None:
    """fidelity.json, now that all timings are known, and metric_embed.yaml."""
    run.scores |= {
        "timings_in_seconds": run.watch.seconds,
        # of those that this run has measured; a run that found all of them has no such number
        "pairs_per_second": run.scores.get("pairs_per_second"),
        "peak_memory_in_bytes": peak_memory_in_bytes(),
    }
    artifacts.save_json(run.folder.fidelity, run.scores)
    artifacts.save_yaml(
        run.folder.parameters,
        {
            "version": __version__,
            "epoch": run.workdir.epoch,
            "config": run.config,
            "box": run.stream.box,
            "apix_in_angstroms": run.apix_at_box(run.stream.box),
            "max_frequency": run.stream.max_frequency,
            "lmax": run.distance.lmax,
            "device": run.device,
            "threads": torch.get_num_threads(),
            "reused_from_an_earlier_run": run.reused,
            "versions": {
                "python": platform.python_version(),
                "cryodrgn": metadata.version("cryodrgn"),
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
            "sha256": {run.inputs[name].name: digest for name, digest in run.digests.items()},
        },
    )
