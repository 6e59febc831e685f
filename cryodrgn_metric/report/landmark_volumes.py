"""What Delta was measured on: how well models fit the volumes, how strong the volumes are."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from cryodrgn_metric.contrast import unit_distances
from cryodrgn_metric.report.content import Picture, shown
from cryodrgn_metric.report.drawing import ACCENT, INK, diagonal, pair_cloud, panels
from cryodrgn_metric.report.results import Results

__all__ = ["contrast_in_words", "contrast_picture", "fits_in_words", "fits_picture"]


def fits_picture(results: Results) -> Picture:
    """How well the models fit, and what their springs gave for it.

    Arguments:
        results: Of a finished run that compared models.
    """
    return Picture(
        "fits",
        _fits(results),
        "How well the model, bent into each landmark's volume, explains its density (1: fully), "
        "and by how much its springs had to give for that. A cloud towards the lower right says "
        "that more than positions changes: a part that comes or goes, or becomes blurred.",
    )


def fits_in_words(results: Results) -> str:
    """What was compared instead of densities, and what did not fit.

    Arguments:
        results: Of a finished run that compared models.
    """
    fits = results.fidelity["fits"]
    rest = f"{fits['left_out']} that did not fit are left out" if fits["left_out"] else "all fit"
    return (
        f"Δ compares models, not densities, in Å: {fits['beads']} beads were fitted to every "
        f"landmark's volume, with a correlation of {shown(fits['median_correlation'])} (median; "
        f"least {shown(fits['least_correlation'])}); {rest}. A part of less than a third of the "
        "mass may be missing and the model fit all the same: look at the volumes, too. "
        "`models_fitted.pdb` opens in ChimeraX."
    )


def contrast_picture(results: Results) -> Picture:
    """Differences of norms beside Delta, and Delta without them.

    Arguments:
        results: Of a finished run that compared densities.
    """
    return Picture(
        "contrast",
        _contrast(results),
        "The part of Δ that only says that one volume is stronger than the other, and what "
        "--scale unit, which divides it out, would measure instead. A cloud far from a curve "
        "means that contrast or occupancy drifts through the latent space.",
    )


def contrast_in_words(contrast: dict[str, float | None]) -> str:
    """The share of norms in Delta squared, and whether it matters.

    Arguments:
        contrast: As in report.json.
    """
    return (
        f"{shown(contrast['norm_share'], '.1%')} of Δ² is a difference of the volumes' norms. "
        "Distances with the norms divided out (`--scale unit`) would rank the pairs with a "
        f"Spearman correlation of {shown(contrast['unit_spearman'])} to these."
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
