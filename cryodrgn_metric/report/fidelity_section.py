"""Can z' be trusted: distances of held-out landmarks in every space, h_psi, reach."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.spatial.distance import pdist

from cryodrgn_metric.report.content import Picture, Section, Table, shown
from cryodrgn_metric.report.drawing import (
    ACCENT,
    INK,
    FloatArray,
    diagonal,
    pair_cloud,
    panels,
)
from cryodrgn_metric.report.landmark_volumes import (
    contrast_in_words,
    contrast_picture,
    fits_in_words,
    fits_picture,
)
from cryodrgn_metric.report.results import Results
from cryodrgn_metric.report.uncertainty import (
    error_bar_picture,
    error_bars_in_words,
    growth_picture,
)

__all__ = ["SPACES", "fidelity_section"]

SPACES = {"z": "z", "pca": "PCA of z", "umap": "UMAP of z", "z_metric": "z'"}
"""Names in fidelity.json, and how they are shown."""

_MEASURES = {
    "stress1": "stress-1 (0 is best)",
    "sammon": "Sammon stress (0 is best)",
    "spearman": "Spearman (1 is best)",
    "trustworthiness": "trustworthiness (1 is best)",
    "continuity": "continuity (1 is best)",
}


def fidelity_section(results: Results) -> Section:
    """Figures and numbers of held-out landmarks.

    Arguments:
        results: Of a finished run.
    """
    return Section(
        "fidelity",
        "Can z' be trusted?",
        _paragraphs(results),
        _pictures(results),
        [_table(results)],
    )


def _pictures(results: Results) -> list[Picture]:
    """Those of every run, and those of what this one has done, in the order of the page."""
    pictures = [
        Picture(
            "shepard",
            _shepard(results),
            "Each point is a pair of landmark volumes that no model was trained on: its measured "
            "distance Δ against its distance in that space. The narrower the cloud, the better "
            "distances can be read off; in z' they should lie on the line itself.",
        ),
        Picture(
            "fidelity",
            _scores(results),
            "The same pairs in five numbers, each space in one line; bars are intervals over the "
            "choice of landmarks. z' should lead in stress and Spearman; trustworthiness and "
            "continuity tell whether neighbours stay neighbours.",
        ),
        Picture(
            "h_psi",
            _distance_net(results),
            "What h_ψ predicts for these pairs against what was measured, and its relative error. "
            f"{_use_of_net(results)}",
        ),
    ]
    if results.by_models:
        pictures.append(fits_picture(results))
    if _has_bars(results):
        pictures.append(error_bar_picture(results))
    if results.summary["contrast"] is not None:
        pictures.append(contrast_picture(results))
    pictures += [
        Picture(
            "reach",
            _reach(results),
            "How far each particle's z is from the nearest landmark that h_ψ was trained on; "
            "right of the line z' is a guess. Where the workdir knows how sure z is, the right "
            "panel shows what that means for z'.",
        ),
        Picture(
            "learning_curves",
            _learning_curves(results),
            "Training of both networks. Curves that still fall at their end ask for more steps, a "
            "validation error that rises for more landmarks.",
        ),
    ]
    if "active_sampling" in results.fidelity:
        pictures.append(growth_picture(results))
    return pictures


def _paragraphs(results: Results) -> list[str]:
    scores, count = results.fidelity, len(results.held_out["measured"])
    said = [
        f"Distances here are those of {scores['test_landmarks']} test landmarks, drawn at random "
        f"from the particles and kept from every model; their {count * (count - 1) // 2:,} pairs "
        "were measured exactly. Contrast is of all landmarks, reach and uncertainty of every "
        "particle."
    ]
    if _has_bars(results):
        said.append(error_bars_in_words(results))
    if "free_points" in scores:  # not of an older version
        said.append(_lowest_in_words(scores["free_points"], results.dimension))
    contrast = results.summary["contrast"]
    if results.by_models:
        said.append(fits_in_words(results))
    elif contrast is None:
        said.append(results.wording.of_contrast)
    else:
        said.append(contrast_in_words(contrast))
    outside = 100 * results.summary["reach"]["outside_share"]
    said.append(
        f"{outside:.1f} % of the particles lie outside the landmarks' reach "
        "(is_outside in particles.npz)."
    )
    return said


def _has_bars(results: Results) -> bool:
    return results.fidelity["h_psi"].get("error_bars") is not None


def _use_of_net(results: Results) -> str:
    if results.is_amortized:
        return "z' learns from h_ψ, and inherits what is wrong with it."
    return "z' was learned from measured pairs (--no-amortization): its errors are not h_ψ's."


def _lowest_in_words(lowest: dict[str, Any], dimension: int) -> str:
    """What z' could reach at best in its dimensions, whatever the map."""
    return (
        f"{lowest['points']} points placed freely in {dimension} "
        f"dimension{'s' if dimension > 1 else ''}, bound to no map from z, reach a stress-1 of "
        f"{shown(lowest['stress1'])} on these pairs (SMACOF), and "
        f"{shown(lowest['stress1_same_loss'])} where they minimise what z' was trained by. Near "
        "the second, z' is as good as its dimension and loss allow: a lower stress takes a higher "
        "`--dim`, or another map."
    )


def _spaces(results: Results) -> dict[str, FloatArray]:
    return {name: results.held_out[name] for name in SPACES if name in results.held_out}


def _shepard(results: Results) -> Figure:
    spaces = _spaces(results)
    measured = results.held_out["measured"]
    measured = measured[np.triu_indices(len(measured), 1)]
    figure, axes = panels(
        2, "Shepard diagrams, pairs of held-out landmarks", rows=(len(spaces) + 1) // 2
    )
    for axis, (name, points) in zip(axes, spaces.items(), strict=False):
        apart = pdist(points)
        pair_cloud(axis, measured, apart)
        scale = float(apart @ measured) / max(float(apart @ apart), 1e-30)
        ours = name == "z_metric"
        label = "distance = Δ" if ours else "best scale"
        diagonal(axis, float(measured.max()), label, 1.0 if ours else 1 / max(scale, 1e-30))
        scores = results.fidelity[name]
        axis.set_title(
            f"{SPACES[name]}: stress-1 {shown(scores['stress1'])}, "
            f"Spearman {shown(scores['spearman'])}",
            fontsize=10,
        )
        unit = results.wording.unit_of_z_metric if ours else "its own units"
        axis.set(
            xlabel=f"measured Δ ({results.wording.unit})",
            ylabel=f"distance in {SPACES[name]} ({unit})",
        )
    for axis in axes[len(spaces) :]:
        axis.set_axis_off()
    return figure


def _scores(results: Results) -> Figure:
    names = [name for name in SPACES if name in results.fidelity]
    figure, axes = panels(3, rows=2, width=3.0, height=2.4)
    axes[-1].set_axis_off()
    for axis, (measure, title) in zip(axes[:-1], _MEASURES.items(), strict=True):
        for place, name in enumerate(reversed(names)):
            value = results.fidelity[name][measure]
            interval = results.fidelity["subsampling_intervals"][name].get(measure)
            color = ACCENT if name == "z_metric" else INK
            if interval is not None and None not in interval:
                axis.plot(interval, [place, place], color=color, lw=2, alpha=0.5)
            if value is not None:
                axis.plot(value, place, "o", color=color, ms=6)
        axis.set_yticks(range(len(names)), [SPACES[name] for name in reversed(names)])
        axis.set_ylim(-0.6, len(names) - 0.4)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
    return figure


def _distance_net(results: Results) -> Figure:
    upper = np.triu_indices(len(results.held_out["measured"]), 1)
    measured = results.held_out["measured"][upper]
    predicted = results.held_out["predicted"][upper]
    errors = results.fidelity["h_psi"]
    figure, (left, right) = panels(2, "h_ψ on pairs of held-out landmarks")
    pair_cloud(left, measured, predicted)
    diagonal(left, float(measured.max()), "predicted = measured")
    unit = results.wording.unit
    left.set(xlabel=f"measured Δ ({unit})", ylabel=f"predicted h_ψ ({unit})")
    left.set_title(f"median error {shown(errors['median_relative_error'], '.1%')}", fontsize=10)
    relative = 100 * (predicted - measured) / np.maximum(measured, 1e-30)
    pair_cloud(right, measured, relative)
    right.axhline(0, color=ACCENT, lw=1.2)
    bound = float(np.clip(np.percentile(np.abs(relative), 99), 1, 200))
    right.set(xlabel=f"measured Δ ({unit})", ylabel="error (%)", ylim=(-bound, bound))
    p90 = shown(errors["percentile_90_relative_error"], ".1%")
    right.set_title(f"90 % of pairs within {p90}", fontsize=10)
    return figure


def _reach(results: Results) -> Figure:
    distances = results.particles["landmark_distance"]
    uncertainty = results.particles.get("uncertainty")
    figure, axes = panels(1 if uncertainty is None else 2, height=3.4)
    limit = results.summary["reach"]["limit"]
    edge = max(float(np.percentile(distances, 99.9)), 1.2 * limit)
    axes[0].hist(distances, bins=np.linspace(0, edge, 61), color=INK, log=True)
    axes[0].axvline(limit, color=ACCENT, lw=1.2, label="reach of the landmarks")
    axes[0].set(xlabel="distance to the nearest landmark (standardised z)", ylabel="particles")
    axes[0].legend(frameon=False)
    if uncertainty is not None:
        median = results.fidelity["median_distance"]
        share = 100 * uncertainty / max(median or 0.0, 1e-30)
        axes[1].hist(share, bins=np.linspace(0, float(np.percentile(share, 99.9)), 61), color=INK)
        axes[1].set(xlabel="uncertainty of z' (% of the median Δ)", ylabel="particles")
        axes[1].set_title(f"median {np.median(share):.1f} %, from z_logvar", fontsize=10)
    return figure


def _learning_curves(results: Results) -> Figure:
    net = results.fidelity["h_psi"]["learning_curve"]
    metric_map = results.summary["f_xi"]["learning_curve"]
    figure, (left, right) = panels(2, "Learning curves", height=3.4)
    left.semilogy(net["epoch"], net["train"], color=INK, label="training loss")
    validation = "relative error, validation landmarks"
    left.semilogy(net["epoch"], net["validation"], color=ACCENT, label=validation)
    left.set(xlabel="epoch", ylabel="loss, relative error", title="h_ψ")
    left.legend(frameon=False)
    right.semilogy(metric_map["step"], metric_map["loss"], color=INK)
    right.set(xlabel="step", ylabel="loss", title="f_ξ")
    return figure


def _table(results: Results) -> Table:
    names = [name for name in SPACES if name in results.fidelity]
    measures = [title.partition(" (")[0] for title in _MEASURES.values()]
    header = ["space", "dimensions", *measures, "stress-1 as it is"]
    rows: list[list[Any]] = []
    for name in names:
        scores = results.fidelity[name]
        values = [shown(scores[measure]) for measure in (*_MEASURES, "stress1_unscaled")]
        rows.append([SPACES[name], int(results.held_out[name].shape[1]), *values])
    return Table("Fidelity on pairs of held-out landmarks", header, rows)
