"""The folder of one path through z': the name of every file in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PathFolder"]


@dataclass(frozen=True)
class PathFolder:
    """The files of one path through z': `analyze.N/pc1`, `.../straight1` or `.../path_3_7`."""

    path: Path

    @property
    def name(self) -> str:
        """`pc1`, `straight1` or `path_3_7`."""
        return self.path.name

    @property
    def numbers(self) -> tuple[int, ...]:
        """The component, or the labels of the two clusters; empty for a folder of another name."""
        found = re.fullmatch(r"pc(\d+)|straight(\d+)|path_(\d+)_(\d+)", self.name)
        return tuple(int(text) for text in found.groups() if text) if found else ()

    @property
    def is_straight(self) -> bool:
        """Whether it is a straight line in z', which need not pass through particles."""
        return self.name.startswith("straight")

    @property
    def table(self) -> Path:
        """Particles, z', Delta among the volumes, their projections and slices."""
        return self.path / "path.npz"

    @property
    def z_values(self) -> Path:
        """Latents z of the volumes on it, as text, for `cryodrgn eval_vol --zfile`."""
        return self.path / "z_values.txt"

    @property
    def indices(self) -> Path:
        """Rows of z of the particles on it (of a straight one: nearest to it), as text."""
        return self.path / "ind.txt"

    @property
    def movie(self) -> Path:
        """A ChimeraX script that opens the volumes as a movie."""
        return self.path / "movie.cxc"

    def volume(self, number: int) -> Path:
        """One volume along it, aligned; numbered from 1."""
        return self.path / f"vol_{number:03d}.mrc"
