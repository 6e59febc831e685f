"""A decoder's layers, multiplied by the fastest product that this machine has.

On a CPU that is oneDNN's, which keeps weights in an order of its own. torch multiplies float32 by
MKL instead, which takes AVX2 where an AMD processor has AVX-512: 105 instead of 240 GFLOP/s on
one core of Zen 5.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cryodrgn_metric.host_models import Layer

__all__ = ["Perceptron", "bfloat16_gain"]

Product = Callable[[Tensor], Tensor]

PACKED_DTYPES = (torch.float32, torch.bfloat16)
TIMED_WIDTH, TIMED_ROWS, TIMED_TRIES = 1024, 256, 5
# Of one result of oneDNN against torch's own, which rounds elsewhere.
SAME = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


class Perceptron:
    """The network that gives values at points, for one latent after the other.

    What the first layer makes of points is the same for every latent, so it is kept apart. The
    hidden layers, which cost most, may be of a narrower dtype than the first and the last.

    Arguments:
        layers: the first takes encoded points, then latents.
        point_width: columns that the first takes of points.
        dtype: of the hidden layers.
        rows: that come at once, about.

    Example:
        >>> layers = [
        ...     Layer(torch.ones(3, 2), torch.zeros(2), slope=0.0),
        ...     Layer(torch.ones(2, 1), torch.zeros(1), slope=None),
        ... ]
        >>> net = Perceptron(layers, point_width=2, dtype=torch.float32, rows=1)
        >>> points, latents = net.of_points(torch.ones(1, 2)), net.of_latents(torch.ones(4, 1))
        >>> net.output(points, latents[0])
        tensor([[6.]])
    """

    def __init__(
        self, layers: list[Layer], point_width: int, dtype: torch.dtype, rows: int
    ) -> None:
        first, *hidden, last = layers
        self.dtype = dtype
        self._first = first
        self._latent_weight = first.weight[point_width:]
        by_points = replace(first, weight=first.weight[:point_width], slope=None)
        self.of_points = _fastest(by_points, rows)
        self.hidden = [_fastest(_cast(layer, dtype), rows) for layer in hidden]
        self._last = last

    def of_latents(self, encoded: Tensor) -> Tensor:
        """What the first layer adds to that of the points, (B, width), for (B, d) latents."""
        return encoded @ self._latent_weight

    def output(self, of_points: Tensor, of_latent: Tensor) -> Tensor:
        """The last layer's (P, n) from the first one's (P, width) and (width,)."""
        values = self._first.activate_(of_points + of_latent).to(self.dtype)
        for product in self.hidden:
            values = product(values)
        return torch.addmm(self._last.bias, values.to(of_points.dtype), self._last.weight)


def _cast(layer: Layer, dtype: torch.dtype) -> Layer:
    return replace(layer, weight=layer.weight.to(dtype), bias=layer.bias.to(dtype))


def _fastest(layer: Layer, rows: int) -> Product:
    """x -> act(x W + b), for x of about so many rows."""

    def plain(values: Tensor) -> Tensor:
        return layer.activate_(torch.addmm(layer.bias, values, layer.weight))

    packed = _packed(layer, rows)
    return packed if packed is not None and _agree(packed, plain, layer.weight) else plain


def _packed(layer: Layer, rows: int) -> Product | None:
    """oneDNN's product; None where it has none for this device or dtype, or no faster one."""
    if layer.weight.device.type != "cpu" or layer.weight.dtype not in PACKED_DTYPES:
        return None
    if not _has_wide_onednn():
        return None
    # These are how torch.compile multiplies. They have no public name, so they may change.
    operations: Any = torch.ops.mkldnn
    try:
        weight = operations._reorder_linear_weight(layer.weight.T.contiguous(), rows)
    except (AttributeError, RuntimeError):
        return None

    def product(values: Tensor) -> Tensor:
        found: Tensor = operations._linear_pointwise(values, weight, layer.bias, "none", [], "")
        return layer.activate_(found)  # not oneDNN's: its relu makes 0 of NaN

    return product


def _has_wide_onednn() -> bool:
    """Whether oneDNN may use AVX-512 here. Without, torch's own choice is as good."""
    try:
        capability: str = torch.backends.cpu.get_cpu_capability()
    except AttributeError:  # torch 2.0
        return False
    return torch.backends.mkldnn.is_available() and "AVX512" in capability


def _agree(packed: Product, plain: Product, weight: Tensor) -> bool:
    sample = torch.linspace(-1, 1, 3 * len(weight), device=weight.device, dtype=weight.dtype)
    expected = plain(sample.view(3, -1)).double()
    try:
        found = packed(sample.view(3, -1)).double()
    except (AttributeError, RuntimeError):
        return False
    return bool((found - expected).norm() <= SAME[weight.dtype] * expected.norm())


def bfloat16_gain() -> float:
    """How many times faster than float32 this CPU multiplies bfloat16, measured on one core."""
    best = dict.fromkeys(PACKED_DTYPES, float("inf"))
    for _ in range(TIMED_TRIES):
        for dtype, fastest in best.items():
            best[dtype] = min(fastest, _seconds_of_product(dtype))
    return best[torch.float32] / best[torch.bfloat16]


def _seconds_of_product(dtype: torch.dtype) -> float:
    weight = torch.ones(TIMED_WIDTH, TIMED_WIDTH, dtype=dtype)
    product = _fastest(Layer(weight, weight[0], slope=0.0), TIMED_ROWS)
    start = time.thread_time()  # of this core's work only: others may be busy on it
    product(weight[:TIMED_ROWS])
    return time.thread_time() - start
