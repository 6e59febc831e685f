"""How h_psi is trained: by all pairs of random landmarks, stopped by those held out (Eq. 7)."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import huber_loss, pdist
from tqdm.auto import tqdm

from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.networks import Perceptron

__all__ = ["checked_distances", "split_rows", "train_on_pairs"]

logger = logging.getLogger(__name__)

IntArray = npt.NDArray[np.int64]

FLOOR = 0.1  # of the median distance: relative errors are not asked for below it
OUTLIER = 0.1  # relative error from which a pair pulls linearly instead of quadratically
STEPS_PER_EPOCH = 10
LANDMARKS_PER_STEP = 128  # all their pairs are one batch
VALIDATION_FRACTION = 0.1
PATIENCE = 60  # epochs without progress on validation landmarks that end the training


def split_rows(
    count: int, train: npt.ArrayLike | None, validation: npt.ArrayLike | None, seed: int
) -> tuple[IntArray, IntArray]:
    """Decides which landmarks train and which stop the training.

    Arguments:
        count: The number of landmarks, L.
        train: Rows that train. Default: all but validation.
        validation: Rows that stop training. Default: 10 % of the train rows, at random.
        seed: The seed of that draw.

    Returns:
        Rows that train, sorted, and rows that stop.

    Raises:
        ArgumentError: If a row is out of range or in both, or fewer than 2 train.

    Example:
        >>> train, validation = split_rows(20, None, [3, 4], seed=0)
        >>> len(train), validation
        (18, array([3, 4]))
    """
    everything = np.arange(count)
    held_out = _checked_rows(validation, count, "validation")
    if train is None:
        rows = everything if held_out is None else np.setdiff1d(everything, held_out)
    else:
        rows = np.unique(np.asarray(train, dtype=np.int64))
        _checked_rows(rows, count, "train")
    if held_out is None:
        size = max(1, round(VALIDATION_FRACTION * len(rows)))
        held_out = np.random.default_rng(seed).choice(rows, size, replace=False)
        rows = np.setdiff1d(rows, held_out)
    if len(rows) < 2 or len(held_out) < 1 or np.isin(held_out, rows).any():
        raise ArgumentError(
            "expected at least 2 train and 1 validation landmarks, none in both; "
            f"got {len(rows)} and {len(held_out)}."
        )
    return rows, held_out


def _checked_rows(rows: npt.ArrayLike | None, count: int, name: str) -> IntArray | None:
    if rows is None:
        return None
    found = np.unique(np.asarray(rows, dtype=np.int64))
    if len(found) and (found[0] < 0 or found[-1] >= count):
        raise ArgumentError(f"expected {name} rows in 0..{count - 1}; got {found[[0, -1]]}.")
    return found


def checked_distances(distances: npt.ArrayLike | Tensor, count: int) -> npt.NDArray[np.float64]:
    """Takes measured distances as float64, if they can be such.

    Arguments:
        distances: Measured Delta. (L, L)
        count: The number of landmarks, L.

    Raises:
        ArgumentError: If the shape is another, or they are not symmetric, finite, and >= 0.

    Example:
        >>> checked_distances([[0, 1], [1, 0]], 2).dtype
        dtype('float64')
    """
    delta = np.array(
        distances.cpu() if isinstance(distances, Tensor) else distances, dtype=np.float64
    )
    if delta.shape != (count, count):
        raise ArgumentError(f"expected distances ({count}, {count}); got {delta.shape}.")
    if not np.isfinite(delta).all() or (delta < 0).any():
        raise ArgumentError("expected finite distances >= 0; got NaN, infinity or negative.")
    if not np.allclose(delta, delta.T, rtol=1e-4, atol=1e-6 * delta.max(initial=0.0)):
        raise ArgumentError("expected symmetric distances; got distances[i, j] != [j, i].")
    return delta


def train_on_pairs(
    network: Perceptron,
    z: Tensor,
    target: Tensor,
    rows: Tensor,
    held_out: Tensor,
    *,
    max_epochs: int,
    learning_rate: float,
    seed: int,
    progress: bool,
) -> tuple[dict[str, list[float]], int]:
    """Trains g_psi on all pairs of random landmarks, and leaves it with its best weights.

    Arguments:
        network: Is changed.
        z: Latents of all landmarks, on the network's device. (L, d)
        target: Distances, of median 1. (L, L)
        rows: Landmarks that train.
        held_out: Landmarks that stop the training.
        max_epochs, learning_rate, seed, progress: As of `DistanceNet`.

    Returns:
        ``epoch``, ``train`` and ``validation``, one number per epoch; and the best epoch.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    total = max_epochs * STEPS_PER_EPOCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=total + 1, pct_start=0.1
    )
    batches = _batches(rows, seed)
    history: dict[str, list[float]] = {"epoch": [], "train": [], "validation": []}
    best, best_epoch, best_state = float("inf"), 0, _copy_of(network)
    bar = tqdm(range(1, max_epochs + 1), "h_psi", unit="epoch", disable=not progress)
    for epoch in bar:
        train = _epoch(network, optimizer, schedule, z, target, batches)
        validation = _validation_error(network, z, target, rows, held_out)
        for key, value in zip(history, (epoch, train, validation), strict=True):
            history[key].append(value)
        if validation < best:
            best, best_epoch, best_state = validation, epoch, _copy_of(network)
        elif epoch - best_epoch >= PATIENCE:
            break
        bar.set_postfix_str(f"relative error {best:.3f}", refresh=False)
    network.load_state_dict(best_state)
    logger.info("h_psi: validation error %.4f at epoch %d", best, best_epoch)
    return history, best_epoch


def _batches(rows: Tensor, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield rows[torch.randperm(len(rows), generator=generator)[:LANDMARKS_PER_STEP]]


def _epoch(
    network: Perceptron,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    z: Tensor,
    target: Tensor,
    batches: Iterator[Tensor],
) -> float:
    losses = []
    for _ in range(STEPS_PER_EPOCH):
        batch = next(batches).to(z.device)
        i, j = torch.triu_indices(len(batch), len(batch), offset=1, device=z.device)
        error = _relative_error(pdist(network(z[batch])), target[batch[i], batch[j]])
        loss = huber_loss(error, torch.zeros_like(error), delta=OUTLIER)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses))


def _validation_error(
    network: Perceptron, z: Tensor, target: Tensor, rows: Tensor, held_out: Tensor
) -> float:
    """The mean floored relative error of all pairs that touch a validation landmark."""
    others = torch.cat([held_out, rows]).to(z.device)
    mine = held_out.to(z.device)
    with torch.no_grad():
        embedded = network(z)
        predicted = torch.cdist(embedded[mine], embedded[others])
    return float(_relative_error(predicted, target[mine][:, others]).abs().mean())


def _relative_error(predicted: Tensor, target: Tensor) -> Tensor:
    return (predicted - target) / target.clamp_min(FLOOR)


def _copy_of(network: Perceptron) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in network.state_dict().items()}
