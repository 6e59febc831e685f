"""All pairs of some volumes, compared tile by tile in threads, and kept block by block."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from cryodrgn_metric.cache import NO_CACHE, PieceStore
from cryodrgn_metric.distances.base import PairwiseDistances
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.se3.motions import inverted
from cryodrgn_metric.so3.pairs import Pairs
from cryodrgn_metric.so3.search import PairResults
from cryodrgn_metric.threads import map_in_threads

__all__ = ["AllPairs", "Announcement", "PairSearch"]

# A GPU waits for the next operation, not for the arithmetic of the last: the larger the faster.
PAIRS_PER_TILE = {"cpu": 1024}
PAIRS_PER_TILE_ELSEWHERE = 4096

_NUMBERS, _ROTATION = 3, 9  # columns of a table: distance, raw distance, gap, then the rotation


class PairSearch(Protocol):
    """What compares pairs among `count` volumes: by rotations, or by translations as well."""

    @property
    def count(self) -> int: ...

    @property
    def translates(self) -> bool: ...

    def compare(self, pairs: Pairs) -> PairResults: ...


Announcement = Callable[[PairSearch, Collection[Pairs]], None]
"""Told which blocks of pairs are about to be compared."""


@dataclass(frozen=True)
class AllPairs:
    """How all pairs are worked off: each once, i < j, and j, i follows from it.

    Arguments:
        pairs_per_tile: Pairs that are worked on at once; bounds memory. None: as the device likes.
        pairs_per_block: Pairs kept together by a store.
        dtype: Of the results.
        device: Where pairs are computed.
        progress: Show a progress bar.
    """

    pairs_per_tile: int | None
    pairs_per_block: int
    dtype: torch.dtype
    device: torch.device
    progress: bool

    def __post_init__(self) -> None:
        sizes = self.pairs_per_tile, self.pairs_per_block
        if any(size is not None and size < 1 for size in sizes):
            raise ArgumentError(f"pairs per tile and per block must be at least 1; got {sizes}.")

    def compare(
        self,
        search: PairSearch,
        store: PieceStore = NO_CACHE,
        announce: Announcement | None = None,
    ) -> PairwiseDistances:
        """Compare all of them, but for the blocks that are kept.

        Arguments:
            search: Among the volumes.
            store: Where finished blocks are kept, and found again.
            announce: Told what is left to do, before it is begun.

        Returns:
            Tensors on the CPU.
        """
        result = self._nothing_yet(search)
        everything = Pairs(*torch.triu_indices(search.count, search.count, offset=1))
        blocks = dict(enumerate(everything.split(self.pairs_per_block)))
        kept = {number: piece for number in blocks if (piece := store.load(number)) is not None}
        for number, piece in kept.items():
            _enter(result, blocks.pop(number), torch.from_numpy(piece))
        if announce is not None:
            announce(search, blocks.values())
        with self._bar(len(everything)) as bar:
            bar.update(len(everything) - sum(map(len, blocks.values())))

            tiles = {number: [*block.split(self._tile)] for number, block in blocks.items()}
            compare = partial(_table_of, search)
            tables = map_in_threads(compare, chain(*tiles.values()), self.device)
            for number, block in blocks.items():
                rows = []
                for tile in tiles[number]:
                    rows.append(next(tables))
                    bar.update(len(tile))
                table = torch.cat(rows)
                store.save(number, table.numpy())
                _enter(result, block, table)
        return result

    @property
    def _tile(self) -> int:
        if self.pairs_per_tile is not None:
            return self.pairs_per_tile
        return PAIRS_PER_TILE.get(self.device.type, PAIRS_PER_TILE_ELSEWHERE)

    def _bar(self, pairs: int) -> tqdm:
        return tqdm(total=pairs, unit="pair", desc="Distances", disable=not self.progress)

    def _nothing_yet(self, search: PairSearch) -> PairwiseDistances:
        """Every volume on itself, other pairs to be entered."""
        square = (search.count, search.count)
        return PairwiseDistances(
            distances=torch.zeros(square, dtype=self.dtype),
            rotations=torch.eye(3, dtype=self.dtype).repeat(*square, 1, 1),
            raw_distances=torch.zeros(square, dtype=self.dtype),
            second_peak_gaps=torch.full(square, torch.inf, dtype=self.dtype),
            translations=torch.zeros(*square, 3, dtype=self.dtype) if search.translates else None,
        )


def _table_of(search: PairSearch, pairs: Pairs) -> Tensor:
    """What `_as_table` says of these pairs, on the CPU.

    Where a GPU's memory doesn't hold them, as others use it too, one half after the other.
    """
    try:
        return _as_table(search.compare(pairs)).cpu()
    except torch.cuda.OutOfMemoryError:
        if len(pairs) == 1:
            raise
    # only here, when the error, and with it all that its frames hold, is gone
    half = pairs.split((len(pairs) + 1) // 2)
    return torch.cat([_table_of(search, part) for part in half])


def _as_table(found: PairResults) -> Tensor:
    """Results as (pairs, 12): distance, raw distance, second-peak gap, rotation.

    And the translation, if there is one, which makes it 15.
    """
    numbers = torch.stack([found.distances, found.raw_distances, found.second_peak_gaps], dim=1)
    moves = [] if found.translations is None else [found.translations]
    return torch.cat([numbers, found.rotations.flatten(1), *moves], dim=1)


def _enter(result: PairwiseDistances, pairs: Pairs, table: Tensor) -> None:
    """Write pairs and their mirror images: rotations[j, i] = rotations[i, j]^T, and so on."""
    rows, columns = pairs.rows, pairs.columns
    numbers, rotation, translations = table.tensor_split([_NUMBERS, _NUMBERS + _ROTATION], dim=1)
    for number, name in enumerate(("distances", "raw_distances", "second_peak_gaps")):
        matrix = getattr(result, name)
        matrix[rows, columns] = matrix[columns, rows] = numbers[:, number]
    rotations = rotation.reshape(-1, 3, 3)
    result.rotations[rows, columns] = rotations
    result.rotations[columns, rows] = rotations.mT
    if result.translations is not None:
        result.translations[rows, columns] = translations
        result.translations[columns, rows] = inverted(rotations, translations)[1]
