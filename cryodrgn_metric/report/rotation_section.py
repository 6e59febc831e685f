"""Where rotation was hiding: what turning takes away, and how much of the pose z knew."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cryodrgn_metric.report.content import Picture, Section, Table, shown
from cryodrgn_metric.report.drawing import ACCENT, INK, NONE, diagonal, pair_cloud, panels, tiles
from cryodrgn_metric.report.results import Results

__all__ = ["rotation_section"]

_STORIES = {
    "far_in_z": "Farthest apart in z for the smallest Δ",
    "near_in_z": "Closest in z for the largest Δ",
}
_ALIKE = 0.5  # of the median Delta: pairs nearer than that are one structure, near enough
_INTERNAL = (
    "Δ compares distances within each model, which no rotation changes: there is no raw distance "
    "to set beside it. Of the models' superposition, the median "
)
_COLUMNS = ("first", "second", "second, turned", "difference")


def rotation_section(results: Results) -> Section:
    """Figures and numbers of the rotations that were taken out.

    Arguments:
        results: Of a finished run.
    """
    rotation, words = results.summary["rotation"], results.wording
    pictures = [
        Picture(
            "raw_distance",
            _raw_distance(results),
            f"Each point is a pair of landmark volumes: their distance {words.as_they_are} "
            f"against Δ, their distance after the best {words.motion}. Points far below the line "
            "became much more alike by it.",
        ),
        Picture(
            "rotation_angles",
            _angles(results),
            "By how many degrees the second volume of a pair had to be turned to lie on the "
            "first. Angles of a few degrees are usual; a broad distribution means that the "
            "model describes poses with its latent variable; grey pairs have a second rotation "
            "that fits as well.",
        ),
    ]
    by_drmsd = results.by_models and rotation["share"] is None
    if by_drmsd:
        del pictures[0]
    if rotation["drift"]["score"] is not None:
        pictures.append(_drift_picture(results))
    stories = [name for name in _STORIES if len(results.striking[name])]
    pictures += [_pairs_picture(results, name) for name in stories]
    drift = rotation["drift"]
    median = f"rotation is {rotation['median_angle_in_degrees']:.1f} degrees."
    paragraphs = [
        _INTERNAL + median
        if by_drmsd
        else f"{shown(rotation['share'], '.1%')} of the squared distance between landmark volumes "
        f"is pure {words.motion} (1 - ΣΔ² / Σ raw²); the median {median}",
        _drift_in_words(drift),
    ]
    if "translations" in results.landmarks:
        paragraphs.insert(1, _translations_in_words(results))
    tables = [_table(results, name) for name in stories]
    return Section("rotation", "Where was rotation hiding?", paragraphs, pictures, tables)


def _translations_in_words(results: Results) -> str:
    lengths = np.linalg.norm(results.landmarks["translations"][results.upper], axis=-1)
    low, high = np.percentile(lengths, [50, 95])
    return (
        "Translations are taken out as well (--rigid se3), so that here and below rotation means "
        f"rigid motion: the median is {low:.2g}, the 95th percentile {high:.2g} voxels of the "
        "volumes that are compared (-d)."
    )


def _drift_in_words(drift: dict[str, Any]) -> str:
    if drift["score"] is None:
        return f"Pose drift was not measured: {drift['reason']}."
    return (
        f"From z alone a landmark's orientation can be predicted with a score of "
        f"{drift['score']:.3f} (1: z tells it exactly; 0: no better than the mean orientation; "
        f"with the orientations shuffled: {drift['shuffled_score']:+.3f}), cross-validated on "
        f"{drift['landmarks']} landmarks whose rotation is unambiguous; they are turned by "
        f"{drift['rms_angle_in_degrees']:.1f} degrees (RMS) about the mean, and the prediction "
        f"misses by {drift['rms_error_in_degrees']:.1f}."
    )


def _raw_distance(results: Results) -> Figure:
    raw = results.landmarks["raw_distances"][results.upper]
    distances = results.landmarks["distances"][results.upper]
    words = results.wording
    title = f"{words.motion.capitalize()} taken out: raw distance against Δ"
    figure, (axis,) = panels(1, title, width=5.6)
    pair_cloud(axis, raw, distances, results.seed)
    diagonal(axis, float(raw.max()), "nothing to turn")
    share = shown(results.summary["rotation"]["share"], ".1%")
    axis.set_title(f"{share} of the squared raw distance is {words.motion}", fontsize=10)
    axis.set(xlabel=words.raw, ylabel=words.turned)
    return figure


def _angles(results: Results) -> Figure:
    title = "How far landmarks are turned against each other"
    figure, (axis,) = panels(1, title, width=5.6, height=3.4)
    angles, edges = results.angles_in_degrees[results.upper], np.linspace(0, 180, 61)
    axis.hist(angles, bins=edges, color=NONE, log=True, label="all pairs")
    clear = "pairs with one clear best rotation"
    axis.hist(angles[results.is_unambiguous], bins=edges, color=INK, log=True, label=clear)
    axis.axvline(float(np.median(angles)), color=ACCENT, lw=1.2, label="median of all")
    axis.set(xlabel="angle of the optimal rotation (degrees)", ylabel="landmark pairs (log scale)")
    axis.set_ylim(top=20 * axis.get_ylim()[1])  # the legend lies above the bars
    axis.legend(frameon=False)
    return figure


def _pose_drift(results: Results) -> Figure:
    drift = results.summary["rotation"]["drift"]
    figure, (axis,) = panels(1, "Does z know the pose?", width=5.6, height=3.4)
    angles, errors = drift["angles_in_degrees"], drift["errors_in_degrees"]
    edges = np.linspace(0, max(*angles, *errors), 41)
    axis.hist(angles, bins=edges, color=INK, alpha=0.6, label="turned from the mean orientation")
    axis.hist(errors, bins=edges, color=ACCENT, alpha=0.6, label="missed by the prediction from z")
    axis.set(xlabel="degrees", ylabel="landmarks")
    shuffled = drift["shuffled_score"]
    axis.set_title(f"score {drift['score']:.3f} (shuffled: {shuffled:+.3f})", fontsize=10)
    axis.legend(frameon=False)
    return figure


def _drift_picture(results: Results) -> Picture:
    return Picture(
        "pose_drift",
        _pose_drift(results),
        "How far each landmark is turned from the mean orientation, and how far a regression "
        "from z alone misses that rotation, on landmarks it has not seen. If the misses are much "
        "smaller than the angles, z is partly a pose.",
    )


def _pairs_picture(results: Results, name: str) -> Picture:
    distances = results.landmarks["distances"]
    typical = float(np.median(distances[results.upper]))
    share = float(np.median(distances[tuple(results.striking[name].T)])) / max(typical, 1e-30)
    relation = f"their median Δ is {100 * share:.0f} % of that of all pairs"
    if name == "far_in_z":
        verdict = (
            "so turned onto each other they are nearly one structure: z told poses apart, or noise"
            if share < _ALIKE
            else "so they do differ: z misjudges none of its pairs by much"
        )
        caption = (
            "The ten pairs that z separates most for how little they differ, one a row, seen "
            f"along the z axis of the volumes. Here {relation}, {verdict}."
        )
    else:
        caption = (
            "The ten pairs that z puts close together for how much they differ; the last column "
            f"shows where, once both lie in one frame. Here {relation}."
        )
    return Picture(name, _pairs(results, name), caption)


def _pairs(results: Results, name: str) -> Figure:
    """Projections along z: both volumes, the second turned, and what is left between them."""
    images = results.striking[f"images_{name.partition('_')[0]}"][:, :, 0]
    left = (images[:, 0] - images[:, 2])[:, None]
    reach = max(float(np.percentile(np.abs(left), 99.8)), 1e-30)
    low, high = np.percentile(images, [1, 99.8])
    count = len(images)
    figure = Figure(figsize=(7.2, 1.4 * count + 0.7), layout="constrained")
    figure.suptitle(_STORIES[name])
    axis = figure.subplots()
    tiles(axis, images, [(low, high)] * count, "gray")
    tiles(axis, left, [(-reach, reach)] * count, "RdBu_r", left=images.shape[1])
    axis.set_xticks(np.arange(len(_COLUMNS)) + 0.5, _COLUMNS)
    numbers = results.landmarks["landmark_indices"]
    axis.set_yticks(
        np.arange(count) + 0.5,
        [
            f"{numbers[first]}, {numbers[second]}\nΔ "
            f"{results.landmarks['distances'][first, second]:.3g}"
            for first, second in results.striking[name]
        ],
    )
    axis.set_ylabel("particles, and Δ between them")
    return figure


def _table(results: Results, name: str) -> Table:
    pairs = results.striking[name]
    z = results.workdir.latents[results.landmarks["landmark_rows"]]
    rows: list[list[Any]] = []
    for first, second in pairs:
        raw = float(results.landmarks["raw_distances"][first, second])
        distance = float(results.landmarks["distances"][first, second])
        angle = float(results.angles_in_degrees[first, second])
        apart = float(np.linalg.norm(z[first] - z[second]))
        numbers = results.landmarks["landmark_indices"]
        rows.append([int(numbers[first]), int(numbers[second]), apart, raw, distance, angle])
    header = ["particle", "particle", "distance in z", "raw distance", "Δ", "rotation (degrees)"]
    return Table(_STORIES[name], header, rows)
