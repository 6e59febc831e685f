"""Which pairs are computed together: row tiles of the upper triangle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["RowTile", "row_tiles"]


@dataclass(frozen=True)
class RowTile:
    """One landmark `row` against the landmarks start .. stop - 1, all after it."""

    row: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def row_tiles(count: int, pairs_per_tile: int) -> Iterator[RowTile]:
    """All pairs i < j of `count` items as row tiles of at most `pairs_per_tile` pairs.

    Arguments:
        count: Number of landmarks.
        pairs_per_tile: Bounds the memory of whoever works on a tile.

    Example:
        >>> [(tile.row, tile.start, tile.stop) for tile in row_tiles(4, 2)]
        [(0, 1, 3), (0, 3, 4), (1, 2, 4), (2, 3, 4)]
    """
    for row in range(count - 1):
        for start in range(row + 1, count, pairs_per_tile):
            yield RowTile(row, start, min(start + pairs_per_tile, count))
