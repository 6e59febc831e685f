"""What a run finds out beside z' itself: its fidelity, hidden rotation, how f_xi stretches.

What takes a model, or long, is computed here (and in `path_volumes.py`) and saved: the report is
made from that alone.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from cryodrgn_metric import artifacts, fidelity
from cryodrgn_metric.contrast import contrast_of
from cryodrgn_metric.distance_ensemble import DistanceEnsemble
from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.error_bars import judge_error_bars, relative_error_bars
from cryodrgn_metric.hidden_rotation import pose_drift, rotation_share, unambiguous
from cryodrgn_metric.invertibility import invertibility_of
from cryodrgn_metric.local_geometry import local_geometry
from cryodrgn_metric.measurement import Measured, typical_norm
from cryodrgn_metric.metric_map import MetricMap
from cryodrgn_metric.reach import landmark_reach
from cryodrgn_metric.reference_maps import lowest_stress
from cryodrgn_metric.reference_spaces import reference_spaces
from cryodrgn_metric.run import Run
from cryodrgn_metric.so3.rotations import rotation_angle
from cryodrgn_metric.threads import limited_to

__all__ = ["explore_map", "explore_particles", "judge_spaces", "read_rotations"]

logger = logging.getLogger(__name__)


def judge_spaces(
    run: Run,
    measured: Measured,
    net: DistanceNet,
    ensemble: DistanceEnsemble | None,
    z_metric: np.ndarray,
) -> None:
    """fidelity.json and held_out.npz: every space, and h_psi, on pairs of test landmarks.

    Arguments:
        run: What all stages share; its `scores` are filled.
        measured: The landmarks and Delta among them.
        net: h_psi.
        ensemble: Its error bars, if there are any.
        z_metric: (N, d').
    """
    test = measured.landmarks.test
    truth = measured.pairs.distances[np.ix_(test, test)]
    with run.watch.stage("fidelity"):
        spaces = reference_spaces(
            run.workdir.latents,
            measured.landmarks.indices[test],
            z_metric.shape[1],
            run.config.seed,
            run.config.clusters.skip_umap,
        )
        spaces["z_metric"] = z_metric[measured.landmarks.indices[test]]
        scores = {name: fidelity.fidelity_of(points, truth) for name, points in spaces.items()}
        intervals = fidelity.intervals_of(spaces, truth, run.config.seed)
        predicted = net.predict_matrix(measured.latents[test])
        upper = np.triu_indices(len(test), 1)
        errors = fidelity.distance_errors(predicted[upper], truth[upper])
        lowest = lowest_stress(
            truth, z_metric.shape[1], run.config.metric_map.loss, run.config.seed
        )
        bars, more = _judge_bars(run, measured, ensemble)
    run.scores |= {
        **scores,
        "subsampling_intervals": intervals,
        "h_psi": {**errors, "error_bars": bars, "learning_curve": net.history_},
        "free_points": lowest,
        "test_landmarks": len(test),
        "median_distance": fidelity.median_distance(truth),
        "rms_volume_norm": typical_norm(run, measured),
    }
    artifacts.save_npz(run.folder.held_out, **spaces, measured=truth, predicted=predicted, **more)
    logger.info(
        "Held out: stress-1 z %.3f, z' %.3f; Spearman z %.3f, z' %.3f; h_psi error %.1f %%",
        scores["z"]["stress1"],
        scores["z_metric"]["stress1"],
        scores["z"]["spearman"],
        scores["z_metric"]["spearman"],
        100 * errors["median_relative_error"],
    )


def _judge_bars(
    run: Run, measured: Measured, ensemble: DistanceEnsemble | None
) -> tuple[dict[str, Any] | None, dict[str, np.ndarray]]:
    """What fidelity.json and held_out.npz say of error bars, of the half that calibrated none."""
    if ensemble is None:
        return None, {}
    calibrating, judging = measured.landmarks.halves_of_test(run.config.seed)
    truth = measured.pairs.distances[np.ix_(judging, judging)]
    found = judge_error_bars(ensemble, measured.latents[judging], truth, run.config.seed)
    coverage = found["coverage"]
    logger.info(
        "Error bars of h_psi: of those for 68 %% and 95 %% of the pairs, %.1f %% and %.1f %% hold",
        100 * coverage["0.68"],
        100 * coverage["0.95"],
    )
    test = measured.landmarks.test
    arrays = {
        "error_bars": ensemble.error_bar_matrix(measured.latents[test]),
        "is_calibration": np.isin(test, calibrating),
    }
    return {"members": ensemble.members, "calibrated_on": len(calibrating)} | found, arrays


def read_rotations(run: Run, measured: Measured) -> dict[str, Any]:
    """How much rotation there was among the landmarks, how well z knew it; and contrast.

    Arguments:
        run: What all stages share.
        measured: The landmarks, Delta and rotations among them.

    Returns:
        "rotation" and "contrast" of report.json.
    """
    pairs, norms = measured.pairs, measured.volume_norms
    upper = np.triu_indices(len(norms), 1)
    angles = torch.rad2deg(rotation_angle(torch.from_numpy(pairs.rotations[upper]).double()))
    medoid = measured.medoid
    clear = unambiguous(
        pairs.second_peak_gaps[:, medoid], pairs.distances[:, medoid], typical_norm(run, measured)
    )
    # small systems of equations: threads would mostly wait for each other
    with run.watch.stage("pose drift"), limited_to(1):
        drift = pose_drift(measured.latents, pairs.rotations[:, medoid], clear, run.config.seed)
    return {
        "rotation": {
            "share": _rotation_share(run, measured),
            "median_angle_in_degrees": float(angles.median()),
            "drift": vars(drift),
        },
        "contrast": _contrast(run, measured),
    }


def _rotation_share(run: Run, measured: Measured) -> float | None:
    """None by drmsd, which no rotation changes."""
    if run.config.distances.atom_distance == "drmsd":
        return None
    return rotation_share(measured.pairs.raw_distances, measured.pairs.distances)


def _contrast(run: Run, measured: Measured) -> dict[str, float] | None:
    """What norms add to Delta; None where they are divided out, or Delta is a length."""
    if run.config.distances.scale == "unit" or run.config.distances.distance != "so3":
        return None
    return vars(contrast_of(measured.pairs.distances, measured.volume_norms))


def explore_particles(
    run: Run,
    measured: Measured,
    net: DistanceNet,
    ensemble: DistanceEnsemble | None,
    metric_map: MetricMap,
) -> dict[str, Any]:
    """particles.npz: how f_xi stretches at every particle, how sure z' is, and who is far away.

    Arguments:
        run: What all stages share.
        measured: The landmarks.
        net: h_psi.
        ensemble: Its error bars, if there are any.
        metric_map: f_xi.

    Returns:
        "density" and "reach" of report.json.
    """
    workdir = run.workdir
    with run.watch.stage("local geometry"):
        found = local_geometry(metric_map, net, workdir.latents, workdir.latents_logvar)
        reach = landmark_reach(
            workdir.latents, measured.landmarks.indices[measured.landmarks.train]
        )
    columns = {
        "singular_values": found.singular_values,
        "stretch": found.stretch,
        "density_correction": found.density_correction,
        "landmark_distance": reach.distances,
        "is_outside": reach.is_outside,
    }
    if found.uncertainty is not None:
        columns["uncertainty"] = found.uncertainty
    if ensemble is not None:
        with run.watch.stage("error bars of particles"):
            training = measured.latents[measured.landmarks.train]
            columns["relative_error"] = relative_error_bars(ensemble, workdir.latents, training)
    artifacts.save_npz(run.folder.particles, **columns)
    low, high = np.percentile(found.density_correction, [5, 95])
    return {
        "density": {"directions": found.rank, "correction_5": low, "correction_95": high},
        "reach": {"limit": reach.limit, "outside_share": float(reach.is_outside.mean())},
    }


def explore_map(run: Run, metric_map: MetricMap) -> dict[str, Any]:
    """How f_xi was learned; of a flow, how far it moved latent space, and whether it goes back.

    Arguments:
        run: What all stages share.
        metric_map: f_xi.

    Returns:
        "f_xi" of report.json.
    """
    found: dict[str, Any] = {"learning_curve": metric_map.history_}
    if run.config.metric_map.map == "flow":
        with run.watch.stage("invertibility"):
            flow = invertibility_of(metric_map, run.workdir.latents, run.config.seed)
        found["flow"] = vars(flow)
        logger.info(
            "The flow moved z by %.2f (0: not at all); its inverse is exact to %.1e of std(z), "
            "the median condition number %.3g.",
            flow.moved,
            flow.round_trip,
            flow.condition_median,
        )
    return found
