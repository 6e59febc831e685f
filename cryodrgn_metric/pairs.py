"""Which pairs are computed, and kept, together: row tiles of the upper triangle, and blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["PAIRS_PER_BLOCK", "RowTile", "row_tiles", "tile_blocks"]

PAIRS_PER_BLOCK = 4096
"""Kept as one piece: a few seconds of work on two cores, and few enough files for thousands of
landmarks."""


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


def tile_blocks(
    count: int, pairs_per_tile: int, pairs_per_block: int = PAIRS_PER_BLOCK
) -> list[list[RowTile]]:
    """The same tiles in the same order, gathered into blocks of about `pairs_per_block` pairs.

    Arguments:
        count: Number of landmarks.
        pairs_per_tile: As for `row_tiles`.
        pairs_per_block: A block ends once it holds as many.

    Example:
        >>> [sum(map(len, block)) for block in tile_blocks(5, 2, pairs_per_block=3)]
        [4, 3, 3]
    """
    blocks: list[list[RowTile]] = []
    for tile in row_tiles(count, pairs_per_tile):
        if not blocks or sum(map(len, blocks[-1])) >= pairs_per_block:
            blocks.append([])
        blocks[-1].append(tile)
    return blocks
