"""Mathematics of rotations: expansion of volumes, their correlation over SO(3), its maximum."""

__all__ = [
    "conventions",
    "correlation",
    "expansion",
    "harmonics",
    "refine",
    "rotations",
    "search",
    "wigner",
]
