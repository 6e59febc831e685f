"""Which particles may be landmarks, however a user names them."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from cryodrgn_metric.errors import ArgumentError

__all__ = ["candidate_pool", "rows_of_particles"]

logger = logging.getLogger(__name__)

IntArray = npt.NDArray[np.int64]

FEWEST_LANDMARKS = 10  # below that, too few are left to test, to stop and to train


def candidate_pool(candidates: npt.ArrayLike | None, count: int) -> IntArray:
    """Sorted rows of z that may be landmarks.

    Arguments:
        candidates: Rows of z, or a mask of them; None: all.
        count: The number of rows, N.

    Raises:
        ArgumentError: Not numbers of rows, out of range, or fewer than 10.
    """
    if candidates is None:
        pool: IntArray = np.arange(count, dtype=np.int64)
    else:
        pool = np.unique(_as_indices(candidates, count))
    if len(pool) < FEWEST_LANDMARKS:
        raise ArgumentError(
            f"expected at least {FEWEST_LANDMARKS} candidates for landmarks; got {len(pool)}."
        )
    if pool[0] < 0 or pool[-1] >= count:
        raise ArgumentError(
            f"candidates must lie in 0..{count - 1}, the rows of z; "
            f"got {pool[0]}..{pool[-1]}. Check --ind."
        )
    return pool


def rows_of_particles(particles: object, particle_indices: npt.ArrayLike) -> IntArray:
    r"""The rows of z of some particles, given by their numbers in the original stack.

    Arguments:
        particles: Numbers as ``cryodrgn filter`` writes them, :math:`(M,)`; those that the run
            was not trained on are left out. Or a mask of the rows of z, :math:`(N,)` bool.
        particle_indices: The number of each row's particle (``Workdir``). :math:`(N,)`

    Returns:
        Sorted rows.

    Raises:
        ArgumentError: Neither whole numbers nor a mask, or negative.

    Example:
        >>> rows_of_particles([7, 8, 2], particle_indices=[2, 3, 7])
        array([0, 2])
    """
    numbers = np.asarray(particle_indices)
    chosen = _as_indices(particles, len(numbers))
    if np.asarray(particles).dtype == bool:
        return chosen
    wanted = np.unique(chosen)
    if len(wanted) and wanted[0] < 0:
        raise ArgumentError(f"--ind must hold particle numbers from 0; got {wanted[0]}.")
    unknown = int((~np.isin(wanted, numbers)).sum())
    if unknown:
        logger.warning(
            "%d of the %d particles in --ind are ignored: the run was not trained on them.",
            unknown,
            len(wanted),
        )
    return np.flatnonzero(np.isin(numbers, wanted))


def _as_indices(candidates: object, count: int) -> IntArray:
    """Numbers, also from a mask of all rows of z."""
    try:
        values = np.asarray(candidates)
    except ValueError:  # a ragged list
        values = np.empty(0, dtype=object)
    if values.dtype == bool and values.shape == (count,):
        return np.flatnonzero(values)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ArgumentError(
            f"--ind must hold particle numbers, or a mask of the {count} rows of z; "
            f"got {values.dtype} of shape {values.shape}."
        )
    return values.astype(np.int64)
