"""Mathematics of rigid motions: volumes moved in Fourier space, their best superposition."""

__all__ = ["candidates", "motions", "points", "refine", "search"]
