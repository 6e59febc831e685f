"""Distances between volumes: one file per distance, all behind the protocol of base.py."""

__all__ = ["base", "choice", "rotation", "slices", "solvent", "streaming", "transport"]
