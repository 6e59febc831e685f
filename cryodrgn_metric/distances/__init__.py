"""Distances between volumes: one file per distance, all behind the protocol of base.py."""

__all__ = [
    "all_pairs",
    "api",
    "atoms",
    "base",
    "choice",
    "rigid",
    "rotation",
    "slices",
    "solvent",
    "streaming",
    "transport",
]
