"""Mathematics of rigid motions: volumes moved in Fourier space, their best superposition."""

__all__ = ["motions", "points", "refine", "search"]
