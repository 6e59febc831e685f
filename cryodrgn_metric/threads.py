"""Parallel work without shared barriers: several Python threads, each with one torch thread.

torch's own threads wait for each other after every small operation, busily. On a node where
another job holds a core that makes a run tens of times slower. Independent pieces of work
(a tile of pairs, a batch of volumes, the training of a small net) don't need to wait: torch
releases the GIL, so one Python thread a piece uses the cores just as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

__all__ = ["limited_to", "map_in_threads", "one_thread"]

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def limited_to(threads: int | None) -> Iterator[None]:
    """Let torch and the libraries below numpy use `threads` inside the block; None: no change."""
    if threads is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch work with one thread inside the block; outside, as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], device: torch.device
) -> Iterator[Result]:
    """Results in the order of the items, computed by as many threads as torch may use.

    At most two items a thread are under way or waiting, so that memory stays bounded. An
    accelerator is fed by one thread.

    Arguments:
        function: Independent for every item.
        items: Taken one by one, as results are consumed.
        device: Where the work is done.

    Example:
        >>> list(map_in_threads(abs, [-1, 2, -3], torch.device("cpu")))
        [1, 2, 3]
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads == 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(threads, initializer=_use_one_thread)
    waiting: deque[Future[Result]] = deque()
    with one_thread(), _ended(pool):
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def _ended(pool: ThreadPoolExecutor) -> Iterator[None]:
    """Wait for what is under way, unless the program is told to stop: that can't wait."""
    try:
        yield
    except (Exception, GeneratorExit):
        pool.shutdown(cancel_futures=True)
        raise
    except BaseException:  # Ctrl-C, SIGTERM
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    else:
        pool.shutdown()


def _use_one_thread() -> None:
    torch.set_num_threads(1)  # a setting of each thread
