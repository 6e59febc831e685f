"""What a run learns, each kept once it is: h_psi (Eq. 7), the dimension, f_xi (Eq. 8 or 9)."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import numpy as np

from cryodrgn_metric import artifacts, fidelity
from cryodrgn_metric.cache import Stage
from cryodrgn_metric.dimension import FEWEST_LANDMARKS, intrinsic_dimension
from cryodrgn_metric.dimension_checks import checks_version
from cryodrgn_metric.dimension_estimate import DimensionEstimate
from cryodrgn_metric.distance_ensemble import DistanceEnsemble
from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.errors import VolumeError
from cryodrgn_metric.measurement import Measured, typical_norm
from cryodrgn_metric.metric_map import MetricMap
from cryodrgn_metric.run import Run
from cryodrgn_metric.threads import limited_to

__all__ = [
    "estimate_dimension",
    "learn_distance",
    "learn_error_bars",
    "learn_map",
    "transform",
]

logger = logging.getLogger(__name__)

EPSILON = 0.1  # floor of the weights of Eq. 8 and 9, of the median measured Delta


def learn_distance(run: Run, measured: Measured) -> DistanceNet:
    """h_psi from the training landmarks, stopped by the validation ones.

    Arguments:
        run: What all stages share.
        measured: The landmarks and Delta among them.
    """
    stage = _distance_net_stage(run, measured)
    files = run.folder.model_files("h_psi")
    if stage.is_sealed(files):
        _tell_reuse(run, "h_psi", stage)
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
    _seal(run, stage, files)
    return net


def _distance_net_stage(run: Run, measured: Measured) -> Stage:
    return run.cache.stage(
        "h_psi", distances=measured.key, config=run.config.distance_net, seed=run.config.seed
    )


def _tell_reuse(run: Run, name: str, stage: Stage) -> None:
    """Unless this very run has made it, in a round of active sampling."""
    if stage.key not in run.trained:
        logger.info("%s: from an earlier run", name)
        run.reused.append(name)


def _seal(run: Run, stage: Stage, files: list[Path]) -> None:
    stage.seal(files)
    stage.forget_others()
    run.trained.add(stage.key)


def learn_error_bars(run: Run, measured: Measured, net: DistanceNet) -> DistanceEnsemble | None:
    """Further nets beside h_psi, and what their differences are worth on half the test landmarks.

    Arguments:
        run: What all stages share.
        measured: The landmarks and Delta among them.
        net: h_psi, which stays as it is.

    Returns:
        None where --ensemble is 1.
    """
    files, members = run.folder.model_files("h_psi_ensemble"), run.config.ensemble.members
    if members == 1:
        artifacts.remove_files(files)
        return None
    stage = run.cache.stage(
        "h_psi_ensemble",
        made_from=_distance_net_stage(run, measured).key,
        h_psi=_digests_of_h_psi(run),
        config=run.config.ensemble,
    )
    if stage.is_sealed(files):
        _tell_reuse(run, "h_psi_ensemble", stage)
        return DistanceEnsemble.load(run.folder.models, run.device)
    rows, distances = measured.landmarks, measured.pairs.distances
    half, _ = rows.halves_of_test(run.config.seed)
    with run.watch.stage("error bars"):
        ensemble = DistanceEnsemble(members, net)
        ensemble.fit(measured.latents, distances, train=rows.train, validation=rows.validation)
        ensemble.calibrate(measured.latents[half], distances[np.ix_(half, half)])
    ensemble.save(run.folder.models)
    _seal(run, stage, files)
    return ensemble


def _digests_of_h_psi(run: Run) -> list[str]:
    """What came of its training: on another device, other weights."""
    return [artifacts.sha256_of(path) for path in run.folder.model_files("h_psi")]


def estimate_dimension(run: Run, measured: Measured, net: DistanceNet) -> DimensionEstimate | None:
    """How many dimensions the motion of the landmarks has, as intrinsic_dimension.json.

    Arguments:
        run: What all stages share.
        measured: The landmarks and Delta among them.
        net: h_psi, whose error on test landmarks is the noise below which nothing is believed.

    Returns:
        None where there are too few landmarks to tell.

    Raises:
        VolumeError: There are too few for --dim auto, as some could not be compared.
    """
    file = run.folder.intrinsic_dimension
    stage = run.cache.stage(
        "dimension",
        made_from=_distance_net_stage(run, measured).key,
        h_psi=_digests_of_h_psi(run),
        seed=run.config.seed,
        scale=run.config.distances.scale,
        scikit_dimension=checks_version(),
    )
    if stage.is_sealed([file]):
        logger.info("dimension: from an earlier run")
        run.reused.append("dimension")
        return _read_dimension(file)
    with run.watch.stage("dimension"):
        estimate = _estimated(run, measured, net)
        reason = f"{len(measured.latents)} landmarks are too few: {FEWEST_LANDMARKS} are needed."
        unknown = {"dimension": None, "words": [reason]}
        artifacts.save_json(file, unknown if estimate is None else estimate.as_dict())
    stage.seal([file])
    stage.forget_others()
    return estimate


def _estimated(run: Run, measured: Measured, net: DistanceNet) -> DimensionEstimate | None:
    if len(measured.latents) < FEWEST_LANDMARKS:
        if run.config.metric_map.dimension == "auto":
            raise VolumeError(f"--dim auto needs {FEWEST_LANDMARKS} landmarks; too few are left.")
        return None
    test = measured.landmarks.test
    missed = net.predict_matrix(measured.latents[test])
    missed = missed - measured.pairs.distances[np.ix_(test, test)]
    with limited_to(1):  # many small systems: threads would wait for each other
        estimate = intrinsic_dimension(
            measured.latents,
            measured.pairs.distances,
            seed=run.config.seed,
            norm=_norm_of_volumes(run, measured),
            error=fidelity.median_distance(np.abs(missed)),
        )
    for sentence in estimate.words:
        logger.info("%s", sentence)
    return estimate


def _norm_of_volumes(run: Run, measured: Measured) -> float | None:
    """What Delta is a fraction of; a length, as of transport, is a fraction of nothing."""
    return typical_norm(run, measured) if run.config.distances.distance == "so3" else None


def _read_dimension(file: Path) -> DimensionEstimate | None:
    saved = json.loads(file.read_text(encoding="utf-8"))
    return None if saved["dimension"] is None else DimensionEstimate.from_dict(saved)


def learn_map(
    run: Run, measured: Measured, net: DistanceNet, estimate: DimensionEstimate | None
) -> MetricMap:
    """f_xi from random pairs of all particles; with --no-amortization, from measured pairs.

    Arguments:
        run: What all stages share.
        measured: The landmarks and Delta among them.
        net: h_psi.
        estimate: Of the dimension, which --dim auto takes: enough to embed it, at least 1.
    """
    dimension = run.config.metric_map.dimension
    if isinstance(dimension, str):
        assert estimate is not None  # or the run was refused
        dimension = max(1, estimate.embedding_dimension)
        if run.config.metric_map.map == "flow":  # it has no more than z has
            dimension = min(dimension, run.workdir.latents.shape[1])
        logger.info("--dim auto: %d", dimension)
    stage = run.cache.stage("f_xi", **_made_from(run, measured), dimension=dimension)
    files = run.folder.model_files("f_xi")
    if stage.is_sealed(files):
        _tell_reuse(run, "f_xi", stage)
        return MetricMap.load(run.folder.models, run.device)
    rows = measured.landmarks.train
    delta = measured.pairs.distances[np.ix_(rows, rows)]
    options = asdict(run.config.metric_map) | {"n_components": dimension}
    amortized = options.pop("amortized")
    del options["dimension"]
    metric_map = MetricMap(
        **options,
        epsilon=EPSILON * fidelity.median_distance(delta) or None,  # all alike: it chooses its own
        seed=run.config.seed,
        device=run.device,
    )
    with run.watch.stage("f_xi"):
        if amortized:
            metric_map.fit(run.workdir.latents, net)
        else:
            metric_map.fit(measured.latents[rows], delta, particles=run.workdir.latents)
    metric_map.save(run.folder.models)
    _seal(run, stage, files)
    return metric_map


def _made_from(run: Run, measured: Measured) -> dict[str, object]:
    """All that f_xi depends on."""
    config = run.config.metric_map
    parts: dict[str, object] = {"config": config, "epsilon": EPSILON}
    if config.map == "flow":
        parts["zuko"] = metadata.version("zuko")
    if not config.amortized:
        return parts | {"made_from": measured.key, "z": run.digests["z"], "seed": run.config.seed}
    return parts | {
        "made_from": _distance_net_stage(run, measured).key,
        "h_psi": _digests_of_h_psi(run),
    }


def transform(run: Run, metric_map: MetricMap) -> np.ndarray:
    """z' of every particle, as z_metric.pkl and z_metric.csv.

    Arguments:
        run: What all stages share.
        metric_map: f_xi.

    Returns:
        (N, d') float32.
    """
    with run.watch.stage("transform"):
        z_metric = np.asarray(metric_map.transform(run.workdir.latents), dtype=np.float32)
        artifacts.save_pickle(run.folder.z_metric, z_metric)
        names = [f"z_metric_{i}" for i in range(z_metric.shape[1])]
        artifacts.save_csv(run.folder.z_metric_csv, z_metric, names)
    return z_metric
