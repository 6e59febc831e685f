"""What a run learns, each kept once it is: h_psi (Eq. 7), the dimension, f_xi (Eq. 8 or 9)."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np

from cryodrgn_metric import artifacts, fidelity
from cryodrgn_metric.cache import Stage
from cryodrgn_metric.dimension import FEWEST_LANDMARKS, intrinsic_dimension
from cryodrgn_metric.dimension_checks import checks_version
from cryodrgn_metric.dimension_estimate import DimensionEstimate
from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.errors import VolumeError
from cryodrgn_metric.measurement import Measured, typical_norm
from cryodrgn_metric.metric_map import MetricMap
from cryodrgn_metric.run import Run
from cryodrgn_metric.threads import limited_to

__all__ = ["estimate_dimension", "learn_distance", "learn_map", "transform"]

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
        **_made_from_net(run, measured),
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
            norm=typical_norm(run, measured),
            error=fidelity.median_distance(np.abs(missed)),
        )
    for sentence in estimate.words:
        logger.info("%s", sentence)
    return estimate


def _read_dimension(file: Path) -> DimensionEstimate | None:
    saved = json.loads(file.read_text(encoding="utf-8"))
    return None if saved["dimension"] is None else DimensionEstimate.from_dict(saved)


def _made_from_net(run: Run, measured: Measured) -> dict[str, object]:
    """Of the key of a stage that uses h_psi."""
    return {
        "made_from": _distance_net_stage(run, measured).key,
        # and what came of it: on another device, other weights
        "h_psi": [artifacts.sha256_of(path) for path in run.folder.model_files("h_psi")],
    }


def learn_map(
    run: Run, measured: Measured, net: DistanceNet, estimate: DimensionEstimate | None
) -> MetricMap:
    """f_xi from random pairs of all particles.

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
        logger.info("--dim auto: %d", dimension)
    stage = run.cache.stage(
        "f_xi",
        **_made_from_net(run, measured),
        config=run.config.metric_map,
        dimension=dimension,
        epsilon=EPSILON,
    )
    files = run.folder.model_files("f_xi")
    if stage.is_sealed(files):
        logger.info("f_xi: from an earlier run")
        run.reused.append("f_xi")
        return MetricMap.load(run.folder.models, run.device)
    rows = measured.landmarks.train
    typical = fidelity.median_distance(measured.pairs.distances[np.ix_(rows, rows)])
    options = asdict(run.config.metric_map) | {"n_components": dimension}
    del options["dimension"]
    metric_map = MetricMap(
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


def transform(run: Run, metric_map: MetricMap) -> np.ndarray:
    """z' of every particle, as z_metric.pkl and z_metric.csv.

    Arguments:
        run: What all stages share.
        metric_map: f_xi.

    Returns:
        (N, d') float32.
    """
    with run.watch.stage("transform"):
        z_metric: np.ndarray = metric_map.transform(run.workdir.latents)
        artifacts.save_pickle(run.folder.z_metric, z_metric)
        names = [f"z_metric_{i}" for i in range(z_metric.shape[1])]
        artifacts.save_csv(run.folder.z_metric_csv, z_metric, names)
    return z_metric
