"""How sure the learned distance is: its error bars, and its error as landmarks were added."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cryodrgn_metric.report.content import Picture, shown
from cryodrgn_metric.report.drawing import ACCENT, INK, pair_cloud, panels
from cryodrgn_metric.report.results import Results

__all__ = ["error_bar_picture", "error_bars_in_words", "growth_picture"]

_BINS = 8


def error_bars_in_words(results: Results) -> str:
    """What the error bars of h_psi promise, and what they keep.

    Arguments:
        results: Of a finished run, with error bars.
    """
    bars = results.fidelity["h_psi"]["error_bars"]
    coverage = bars["coverage"]
    return (
        f"{bars['members']} nets give every predicted distance an error bar, calibrated on "
        f"{bars['calibrated_on']} of the test landmarks; on the {bars['pairs']:,} pairs of the "
        f"other {bars['landmarks']}, the bars for 68 % and 95 % hold "
        f"{shown(coverage['0.68'], '.0%')} and {shown(coverage['0.95'], '.0%')} of the errors."
    )


def error_bar_picture(results: Results) -> Picture:
    """The reliability diagram of the error bars.

    Arguments:
        results: Of a finished run, with error bars.
    """
    return Picture(
        "error_bars",
        _reliability(results),
        "Left: the share of errors of h_ψ that lie within their error bar against the share that "
        "should; on the line, bars are honest. Right: errors against the bars themselves, and "
        "the error that 68 % of the pairs with such a bar stay below: where it rises along the "
        "line, a long bar is a warning.",
    )


def growth_picture(results: Results) -> Picture:
    """The error of h_psi in each round of --sampling active.

    Arguments:
        results: Of a finished run with such rounds.
    """
    rounds = results.fidelity["active_sampling"]
    errors = [np.nan if error is None else 100 * error for error in rounds["held_out_error"]]
    figure, (axis,) = panels(1, "Error of h_ψ as landmarks were added", width=6.4, height=3.4)
    axis.plot(rounds["landmarks"], errors, "o-", color=INK)
    for count, error in zip(rounds["landmarks"], errors, strict=True):
        axis.annotate(f"{error:.1f} %", (count, error), (4, 5), textcoords="offset points")
    axis.set(xlabel="landmarks", ylabel="mean error, validation pairs (%)")
    axis.set_ylim(bottom=0)
    axis.margins(x=0.1)
    return Picture(
        "landmark_rounds",
        figure,
        "The error of h_ψ on pairs of validation landmarks in each round of --sampling active. "
        f"It ended because {rounds['stopped']}; a curve that is still steep at its end asks for "
        "more --landmarks.",
    )


def _reliability(results: Results) -> Figure:
    found = results.fidelity["h_psi"]["error_bars"]
    figure, (left, right) = panels(2, "Error bars of h_ψ, pairs of held-out landmarks")
    levels = [100 * float(level) for level in found["coverage"]]
    kept = [100 * share for share in found["coverage"].values()]
    left.plot([0, 100], [0, 100], color=ACCENT, lw=1.2, label="honest")
    left.plot(levels, kept, "o-", color=INK, label="measured")
    left.set(xlabel="errors that should be within (%)", ylabel="errors that are (%)")
    left.set(xlim=(40, 100), ylim=(40, 100))
    left.legend(frameon=False, loc="upper left")
    _errors_by_bar(right, results)
    return figure


def _errors_by_bar(axis: Axes, results: Results) -> None:
    judged = ~results.held_out["is_calibration"]
    upper = np.triu_indices(int(judged.sum()), 1)
    measured, predicted, bars = (
        results.held_out[name][np.ix_(judged, judged)][upper].astype(np.float64)
        for name in ("measured", "predicted", "error_bars")
    )
    errors = np.abs(predicted - measured)
    pair_cloud(axis, bars, errors, results.seed)
    groups = np.array_split(np.argsort(bars, kind="stable"), min(_BINS, max(len(bars) // 5, 1)))
    middles = [float(np.median(bars[group])) for group in groups]
    reached = [float(np.quantile(errors[group], 0.68)) for group in groups]
    axis.plot(middles, reached, "o-", color=INK, label="68 % of the errors are below")
    longest = float(np.quantile(bars, 0.99))
    axis.plot([0, longest], [0, longest], color=ACCENT, lw=1.2, label="error = bar")
    axis.set(xlim=(0, 1.1 * longest), ylim=(0, 2.5 * longest))
    axis.set(xlabel="error bar, 68 % (units of Δ)", ylabel="error of h_ψ (units of Δ)")
    axis.legend(frameon=False, loc="upper left")
