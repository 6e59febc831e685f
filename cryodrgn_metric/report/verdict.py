"""The verdict: three plain sentences computed from the numbers, by the thresholds written here.

docs/report.md repeats the thresholds; tests/report/test_verdict.py holds both together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cryodrgn_metric.report.content import shown
from cryodrgn_metric.report.results import Results

__all__ = ["THRESHOLDS", "Judgement", "judge"]

THRESHOLDS = {
    "stress-1 of z'": (0.15, 0.30),
    "median error of h_psi": (0.08, 0.20),
    "share of rotation": (0.05, 0.30),
    "median Delta / |V|": (0.10, 0.05),
    "median Delta / Rg": (0.02, 0.01),
    "median Delta in voxels": (0.5, 0.25),
    "outside the landmarks' reach": (0.02, 0.10),
}
"""Up to the first value (for Delta: from it on) a number is good, up to the second it is fair.

A number that is undefined, as of volumes that are all alike, is poor.
"""

_ENOUGH = 0.9  # of the variance of z'


@dataclass(frozen=True)
class Judgement:
    """One sentence, and "good", "fair" or "poor"."""

    sentence: str
    grade: str


def judge(results: Results) -> list[Judgement]:
    """Can z' be trusted, what did rotation do to z, and what moves.

    Arguments:
        results: Of a finished run.

    Returns:
        Three judgements, in this order.
    """
    return [_trust(results), _rotation(results), _motion(results)]


def _grade(name: str, value: float | None) -> str:
    first, second = THRESHOLDS[name]
    if value is None:
        return "poor"
    if first > second:  # more is better
        value, first, second = -value, -first, -second
    return "good" if value <= first else "fair" if value <= second else "poor"


def _worse(*grades: str) -> str:
    return max(grades, key=("good", "fair", "poor").index)


def _trust(results: Results) -> Judgement:
    ours, z = results.fidelity["z_metric"], results.fidelity["z"]
    error = results.fidelity["h_psi"]["median_relative_error"]
    stress = ours["stress1_unscaled"]
    grade = _worse(_grade("stress-1 of z'", stress), _grade("median error of h_psi", error))
    opening = {
        "good": "Distances in z' can be read off the plot",
        "fair": "Distances in z' are roughly right",
        "poor": "Distances in z' cannot be trusted",
    }[grade]
    numbers = (
        "on volumes that no model has seen they differ from the measured Δ by "
        f"{shown(stress, '.0%')} (stress-1) and rank pairs with a Spearman correlation of "
        f"{shown(ours['spearman'], '.2f')} (z: {shown(z['spearman'], '.2f')})"
    )
    return Judgement(f"{opening}: {numbers}{_advice(results, grade, error)}.", grade)


def _advice(results: Results, grade: str, error: float | None) -> str:
    if grade == "good" or error is None:
        return ""
    if not results.is_amortized:
        return "; it was learned from measured pairs alone, so try without --no-amortization"
    if _grade("median error of h_psi", error) == "good":
        if results.flow is not None and results.dimension == len(results.flow["variance_shares"]):
            return ""  # a flow has no more dimensions than z
        return f"; h_ψ is fine ({shown(error, '.1%')}), so try --dim {results.dimension + 1}"
    return f"; h_ψ itself is {shown(error, '.0%')} off, so try more --landmarks"


def _rotation(results: Results) -> Judgement:
    rotation = results.summary["rotation"]
    share, drift, motion = rotation["share"], rotation["drift"], results.wording.motion
    grade = _grade("share of rotation", share)
    if share is None and "fits" in results.fidelity:
        angle = rotation["median_angle_in_degrees"]
        return Judgement(
            f"Δ compares distances within models, and no rotation enters it (the median angle of "
            f"their superposition is {angle:.1f} degrees).",
            "good",
        )
    if share is None:
        return Judgement("Nothing turned: the volumes are all alike.", "good")
    opening = {
        "good": f"{motion.capitalize()} was hardly hiding in z",
        "fair": f"Some {motion} was hiding in z",
        "poor": f"Much of what z shows is {motion}",
    }[grade]
    text = (
        f"{opening}: {shown(share, '.0%')} of the squared distance between volumes goes away when "
        f"they are {results.wording.moved} (median angle "
        f"{rotation['median_angle_in_degrees']:.1f} degrees)"
    )
    if drift["score"] is not None:
        known = max(drift["score"], 0.0)
        text += f", and z predicts {shown(known, '.0%')} of how they are turned"
    closing = "" if grade == "good" else "; read distances in z', not in z"
    return Judgement(f"{text}{closing}.", grade)


def _size(results: Results) -> tuple[str, str]:
    """How much volumes or models differ, in words, and its grade."""
    fits = results.fidelity.get("fits")
    if fits is None:
        size, words = results.relative_distance, results.wording
        grade = _grade(f"median Delta / {words.size_symbol}", size)
        if grade == "poor":
            return f"{100 * size:.1f} % of a volume's {words.size}", grade
        return f"{100 * size:.{words.size_digits}f} % of their {words.size}", grade
    moved = results.fidelity["median_distance"] or 0.0
    voxels = moved / fits["voxel_in_angstroms"]
    return f"{moved:.1f} Å ({voxels:.1f} voxels)", _grade("median Delta in voxels", voxels)


def _motion(results: Results) -> Judgement:
    size, grade = _size(results)
    if grade == "poor" or results.intrinsic["dimension"] == 0:
        return Judgement(
            f"The volumes hardly differ once they are turned: the median Δ is {size}, so what z' "
            "shows may be noise, and f_ξ is not to be interpreted unless a replicate shows the "
            "same.",
            "poor",
        )
    shares = results.components[1]
    count = int(np.searchsorted(np.cumsum(shares), _ENOUGH) + 1)
    islands = int(results.densest.max()) + 1
    outside = results.summary["reach"]["outside_share"]
    part = f" ({100 * shares[:count].sum():.0f} % of its variance)"
    text = (
        f"The volumes differ by a median of {size}; {_dimensions_in_words(results)} "
        f"{count} of the {results.dimension} dimensions of z'"
        f"{part if count < results.dimension else ''}, and particles form "
        f"{_islands_in_words(islands)}; {shown(outside, '.1%')} of them lie where no landmark is "
        "near."
    )
    return Judgement(text, _worse(grade, _grade("outside the landmarks' reach", outside)))


def _dimensions_in_words(results: Results) -> str:
    found = results.intrinsic["dimension"]
    if found is None:
        return "the motion takes"
    low, high = results.intrinsic["interval"]
    between = "" if low == high else f" ({low} to {high})"
    return f"the motion has {found} dimension{'' if found == 1 else 's'}{between}, takes"


def _islands_in_words(count: int) -> str:
    if count == 0:
        return "no dense islands"
    return "one dense island" if count == 1 else f"{count} dense islands"
