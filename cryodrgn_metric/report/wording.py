"""What the report must say differently for each distance: units, and what was taken out."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["WORDINGS", "Wording"]


@dataclass(frozen=True)
class Wording:
    """How the report speaks of one `--distance`, or of `--rigid se3`.

    Arguments:
        unit: Of Delta.
        unit_of_z_metric: Of z', the same.
        raw: The axis of distances that nothing was turned for.
        turned: The axis of Delta beside it.
        as_they_are: Of those raw distances.
        size: What Delta is set in relation to: the root mean square of it over the landmarks.
        size_symbol: The same, short.
        size_digits: Of Delta in percent of it.
        of_contrast: What Delta says of contrast where it was not measured.
        motion: What is taken out of Delta.
        moved: By which volumes are laid on each other.
    """

    unit: str
    unit_of_z_metric: str
    raw: str
    turned: str
    as_they_are: str
    size: str
    size_symbol: str
    size_digits: int
    of_contrast: str
    motion: str = "rotation"
    moved: str = "turned"


WORDINGS = {
    "so3": Wording(
        unit="density units",
        unit_of_z_metric="units of Δ",
        raw="||V₁ - V₂|| (density units)",
        turned="Δ = min over R of ||V₁ - R·V₂||",
        as_they_are="as they are",
        size="norm",
        size_symbol="|V|",
        size_digits=0,
        of_contrast="Norms were divided out (--scale unit): Δ says nothing of contrast.",
    ),
    "transport": Wording(
        unit="Å",
        unit_of_z_metric="Å",
        raw="before turning, centred (Å)",
        turned="Δ, after the best rotation (Å)",
        as_they_are="centred on each other",
        size="radius of gyration",
        size_symbol="Rg",
        size_digits=1,
        of_contrast="Δ is how far mass has moved (--distance transport), in Å, root mean square. "
        "Every volume has the mass 1: Δ says nothing of contrast.",
    ),
    "atoms": Wording(
        unit="Å",
        unit_of_z_metric="Å",
        raw="RMSD as the models lie (Å)",
        turned="Δ = RMSD, superposed (Å)",
        as_they_are="as they lie",
        size="norm",
        size_symbol="|V|",
        size_digits=0,
        of_contrast="Δ compares models, not densities: it says nothing of contrast.",
    ),
}
"""By the choices of --distance, and `se3`."""

WORDINGS["se3"] = replace(
    WORDINGS["so3"],
    turned="Δ = min over R, t of ||V₁ - T·R·V₂||",
    motion="rigid motion",
    moved="turned and shifted",
)
