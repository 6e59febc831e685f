"""Can z' be trusted: distances of held-out landmarks in every space, h_psi, contrast, reach."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.spatial.distance import pdist

from cryodrgn_metric.contrast import unit_distances
from cryodrgn_metric.report.content import Picture, Section, Table, shown
from cryodrgn_metric.report.drawing import (
    ACCENT,
    INK,
    FloatArray,
    diagonal,
    pair_cloud,
    panels,
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
    scores = results.fidelity
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
    reach, contrast = results.summary["reach"], results.summary["contrast"]
    if contrast is not None:
        pictures.insert(3, _contrast_picture(results))
    has_bars = results.fidelity["h_psi"].get("error_bars") is not None
    if has_bars:
        pictures.insert(3, error_bar_picture(results))
    if results.by_models:
        pictures.insert(3, _fits_picture(results))
    count = len(results.held_out["measured"])
    pairs = count * (count - 1) // 2
    paragraphs = [
        f"Distances here are those of {scores['test_landmarks']} test landmarks, drawn at random "
        f"from the particles and kept from every model; their {pairs:,} pairs were measured "
        "exactly. Contrast is of all landmarks, reach and uncertainty of every particle.",
        _fits_in_words(results)
        if results.by_models
        else results.wording.of_contrast
        if contrast is None
        else _contrast_in_words(contrast),
        f"{100 * reach['outside_share']:.1f} % of the particles lie outside the landmarks' reach "
        "(is_outside in particles.npz).",
    ]
    if "free_points" in scores:  # not of an older version
        paragraphs.insert(1, _lowest_in_words(scores["free_points"], results.dimension))
    if has_bars:
        paragraphs.insert(1, error_bars_in_words(results))
    if "active_sampling" in scores:
        pictures.append(growth_picture(results))
    return Section("fidelity", "Can z' be trusted?", paragraphs, pictures, [_table(results)])


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


def _fits_picture(results: Results) -> Picture:
    return Picture(
        "fits",
        _fits(results),
        "How well the model, bent into each landmark's volume, explains its density (1: fully), "
        "and by how much its springs had to give for that. A cloud towards the lower right says "
        "that more than positions changes: a part that comes or goes, or becomes blurred.",
    )


def _fits_in_words(results: Results) -> str:
    fits = results.fidelity["fits"]
    rest = f"{fits['left_out']} that did not fit are left out" if fits["left_out"] else "all fit"
    return (
        f"Δ compares models, not densities, in Å: {fits['beads']} beads were fitted to every "
        f"landmark's volume, with a correlation of {shown(fits['median_correlation'])} (median; "
        f"least {shown(fits['least_correlation'])}); {rest}. A part of less than a third of the "
        "mass may be missing and the model fit all the same: look at the volumes, too. "
        "`models_fitted.pdb` opens in ChimeraX."
    )


def _fits(results: Results) -> Figure:
    correlations, fits = results.landmarks["fit_correlations"], results.fidelity["fits"]
    figure, (left, right) = panels(2, "Models fitted to landmark volumes", height=3.4)
    left.hist(correlations, bins=np.linspace(fits["least_allowed"], 1, 41), color=INK)
    left.set(xlabel="correlation with the volume", ylabel="landmarks")
    strains = 100 * results.landmarks["fit_strains"]
    right.plot(strains, correlations, "o", ms=3, color=INK)
    right.axvline(100 * fits["most_strain_allowed"], color=ACCENT, lw=1.2, label="accepted up to")
    right.set(xlabel="change of the springs' lengths (%, RMS)", ylabel="correlation")
    right.set_xlim(left=0)
    right.legend(frameon=False)
    return figure


def _contrast_picture(results: Results) -> Picture:
    return Picture(
        "contrast",
        _contrast(results),
        "The part of Δ that only says that one volume is stronger than the other, and what "
        "--scale unit, which divides it out, would measure instead. A cloud far from a curve "
        "means that contrast or occupancy drifts through the latent space.",
    )


def _contrast_in_words(contrast: dict[str, float | None]) -> str:
    return (
        f"{shown(contrast['norm_share'], '.1%')} of Δ² is a difference of the volumes' norms. "
        "Distances with the norms divided out (`--scale unit`) would rank the pairs with a "
        f"Spearman correlation of {shown(contrast['unit_spearman'])} to these."
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


def _contrast(results: Results) -> Figure:
    norms = results.landmarks["volume_norms"].astype(np.float64)
    distances = results.landmarks["distances"].astype(np.float64)
    unit = unit_distances(distances, norms)[results.upper]
    measured = distances[results.upper]
    of_norms = np.abs(norms[:, None] - norms)[results.upper]
    figure, (left, right) = panels(2, "Contrast: what is only a difference of norms")
    pair_cloud(left, measured, of_norms, results.seed)
    diagonal(left, float(measured.max()), "all of Δ")
    left.set(xlabel="measured Δ (density units)", ylabel="difference of norms (density units)")
    contrast = results.summary["contrast"]
    left.set_title(f"{shown(contrast['norm_share'], '.1%')} of Δ² over all pairs", fontsize=10)
    pair_cloud(right, measured, unit, results.seed)
    right.set(xlabel="measured Δ (density units)", ylabel="Δ with --scale unit (of |V|)")
    right.set_title(f"Spearman {shown(contrast['unit_spearman'])}", fontsize=10)
    right.set_xlim(left=0)
    right.set_ylim(bottom=0)
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
