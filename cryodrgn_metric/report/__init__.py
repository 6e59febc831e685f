"""What a run shows: its figures."""

__all__ = ["figures", "gallery"]
