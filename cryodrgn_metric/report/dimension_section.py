"""How many dimensions the motion has: where the volume drops, and the answer by scale."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from cryodrgn_metric.report.content import Picture, Section
from cryodrgn_metric.report.drawing import ACCENT, INK, NONE, panels
from cryodrgn_metric.report.results import Results

__all__ = ["dimension_section", "draw_dimension"]


def dimension_section(results: Results) -> Section:
    """The estimated dimension, in words and one figure.

    Arguments:
        results: Of a finished run.
    """
    found = results.intrinsic
    pictures = []
    if found["dimension"] is not None:
        pictures = [
            Picture(
                "intrinsic_dimension",
                draw_dimension(found, results.wording.unit),
                "What neighbouring landmarks fill of the last of d' dimensions (left), and the "
                "answer for neighbourhoods of other sizes (right). The motion has the last "
                "dimension above the line; an answer that changes within the shaded range is an "
                "uncertain one.",
            )
        ]
    title = "How many dimensions does the motion have?"
    return Section("dimension", title, list(found["words"]), pictures)


def draw_dimension(found: dict[str, Any], unit: str) -> Figure:
    """The drop of the volume, and the answer against the scale.

    Arguments:
        found: intrinsic_dimension.json, of an answer.
        unit: Of Delta.
    """
    figure, (left, right) = panels(2, "Dimensions of the motion", height=3.6)
    half = [0.5 * share for share in found["even_variance"]]
    left.plot(found["dimensions"], found["even_variance"], "--", color=NONE, label="filled evenly")
    left.plot(found["dimensions"], half, color=ACCENT, lw=1.2, label="half of that")
    left.plot(found["dimensions"], found["last_variance"], "o-", color=INK, label="landmarks")
    left.set(xlabel="d'", ylabel="variance of the last local component", ylim=(0, None))
    left.set_title(f"{found['dimension']}{_between(found['interval'])}", fontsize=10)
    left.legend(frameon=False)
    low, high = sorted(found["scale_window"])
    right.axvspan(low, high, color=NONE, alpha=0.3, lw=0, label="trusted scales")
    right.plot(found["scales"], found["dimension_by_scale"], "o-", color=INK)
    right.axvline(found["scale"], color=ACCENT, lw=1.2, label="where it was read")
    most = max(found["dimension_by_scale"])
    right.set(xlabel=f"median Δ of neighbours ({unit})", ylabel="dimension")
    right.set(xlim=(0, None), ylim=(0, most + 1))
    right.yaxis.get_major_locator().set_params(integer=True)
    right.legend(frameon=False)
    return figure


def _between(interval: list[int]) -> str:
    low, high = interval
    return "" if low == high else f" ({low} to {high})"
