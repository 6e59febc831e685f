"""Pairs of volumes by index: which one is turned onto which."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Pairs"]


@dataclass(frozen=True)
class Pairs:
    """Volume `columns[i]` is turned onto volume `rows[i]`.

    Arguments:
        rows: Indices, (pairs,); equal ones stand together.
        columns: Indices, (pairs,).

    Example:
        >>> [*Pairs(torch.tensor([4, 4, 7]), torch.tensor([5, 6, 8])).by_row()]
        [(4, slice(0, 2, None)), (7, slice(2, 3, None))]
    """

    rows: Tensor
    columns: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, chosen: Tensor | slice) -> Pairs:
        """Some of them, by index."""
        return Pairs(self.rows[chosen], self.columns[chosen])

    def to(self, device: torch.device) -> Pairs:
        """The same on another device."""
        return Pairs(self.rows.to(device), self.columns.to(device))

    def split(self, size: int) -> Iterator[Pairs]:
        """All of them in their order, at most `size` at a time."""
        for start in range(0, len(self), size):
            yield self.at(slice(start, start + size))

    def by_row(self) -> Iterator[tuple[int, slice]]:
        """Each row with the range of the pairs that have it."""
        rows, counts = self.rows.unique_consecutive(return_counts=True)
        start = 0
        for row, count in zip(rows.tolist(), counts.tolist(), strict=True):
            yield row, slice(start, start + count)
            start += count
