"""The counters of tests/benchmarks, on work whose operations and bytes are known."""

import pytest
import torch
from benchmarks.counting import count
from benchmarks.machine import fastest_product

A = torch.ones(30, 40)
B = torch.ones(40, 50)


@pytest.mark.parametrize(
    ("work", "operations", "numbers"),
    [
        (lambda: A @ B, 2 * 30 * 40 * 50, 30 * 40 + 40 * 50 + 30 * 50),
        (lambda: torch.bmm(A[None], B[None]), 2 * 30 * 40 * 50, 30 * 40 + 40 * 50 + 30 * 50),
        (lambda: A + A, 1200, 3 * 1200),
        (lambda: torch.add(A, 1, out=torch.empty(30, 40)), 1200, 2 * 1200),
        (lambda: A.clone(), 0, 2 * 1200),
        (lambda: A.sum(), 1200, 1200 + 1),
        (lambda: A.mT[3].view(30), 0, 0),
        (lambda: A[:1].expand(30, 40) * A, 1200, 40 + 2 * 1200),
        (lambda: torch.empty(30, 40).copy_(A), 0, 2 * 1200),
        (
            lambda: torch.fft.rfft(torch.ones(4, 64)),
            2.5 * 4 * 64 * 6,
            4 * 64 + 2 * 4 * 33 + 4 * 64,
        ),
    ],
)
def test_known_work(work, operations, numbers):
    counted = count(work)
    assert counted.operations == operations
    assert counted.bytes == 4 * numbers


def test_inference_mode_is_counted_too():
    def work():
        with torch.inference_mode():
            torch.addmm(torch.ones(50), A, B)

    assert count(work).products == 2 * 30 * 40 * 50


def test_the_fastest_product_multiplies_and_is_counted():
    product = fastest_product(B, 30)
    assert torch.allclose(product(A), A @ B)
    assert count(lambda: product(A)).products == 2 * 30 * 40 * 50


@pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"), reason="this torch has no oneDNN"
)
def test_onednn_is_counted():
    packed = torch.ops.mkldnn._reorder_linear_weight(B.mT.contiguous(), 30)
    linear = torch.ops.mkldnn._linear_pointwise
    counted = count(lambda: linear(A, packed, None, "none", [], ""))
    assert counted.operations == 2 * 30 * 40 * 50
    assert counted.bytes == 4 * (30 * 40 + 40 * 50 + 30 * 50)


def test_a_look_up_reads_what_it_gives():
    rows = torch.arange(3)
    assert count(lambda: A[rows]).bytes == 3 * 8 + 2 * 4 * 3 * 40


def test_times():
    assert count(lambda: A @ B).times(0.5).operations == 30 * 40 * 50
