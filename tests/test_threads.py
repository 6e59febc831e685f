"""Work spread over threads gives what one thread gives, in order, with bounded look-ahead."""

import threading

import pytest
import torch

from cryodrgn_metric.threads import map_in_threads, one_thread

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order_from_workers_of_one_thread(two_threads):
    def work(item):
        return item, torch.get_num_threads(), threading.current_thread() is threading.main_thread()

    found = list(map_in_threads(work, range(20), CPU))
    assert found == [(item, 1, False) for item in range(20)]
    assert torch.get_num_threads() == 2


def test_few_items_are_under_way_at_once(two_threads):
    taken = []

    def items():
        for item in range(50):
            taken.append(item)
            yield item

    results = map_in_threads(lambda item: item, items(), CPU)
    next(results)
    assert len(taken) <= 5
    assert list(results) == list(range(1, 50))


def test_an_error_in_a_worker_reaches_the_caller(two_threads):
    def work(item):
        if item == 3:
            raise ValueError("three")
        return item

    with pytest.raises(ValueError, match="three"):
        list(map_in_threads(work, range(10), CPU))
    assert torch.get_num_threads() == 2


def test_one_thread_restores_the_number(two_threads):
    with pytest.raises(KeyError), one_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 2
