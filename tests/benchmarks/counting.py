"""Operations and bytes of a piece of torch work, counted while it runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from cryodrgn_metric.threads import one_thread


@dataclass(frozen=True)
class Count:
    """Operations and bytes of a piece of torch work; products are part of the operations."""

    operations: float
    bytes: float
    products: float

    def times(self, factor: float) -> Count:
        return Count(self.operations * factor, self.bytes * factor, self.products * factor)


def count(function) -> Count:
    """Operations and bytes of everything that torch does in `function()`, with one thread.

    Dispatch modes belong to one thread, so the work must not leave it. Matrix products are counted
    by torch's FlopCounterMode; any other operation as one per element; an FFT as 5 n log2 n. Bytes
    are the sizes of all inputs and outputs of each operation that isn't a view: what would be
    moved without any cache.
    """
    traffic = _Traffic()
    products = FlopCounterMode(display=False, custom_mapping=ONEDNN)
    with one_thread(), traffic, products:
        function()
    multiplied = float(products.get_total_flops())
    return Count(multiplied + traffic.operations, traffic.bytes, multiplied)


def _linear(values, weight, *_, out_shape=None, **__) -> int:
    """Of oneDNN's product with weights (n, m), which torch's counter doesn't know."""
    rows = math.prod(values[:-1])
    return 2 * rows * math.prod(weight)


ONEDNN = {torch.ops.mkldnn._linear_pointwise: _linear}
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_addmm_activation", "_linear_pointwise")
ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "detach", "_unsafe_view")
LOOK_UPS = ("index", "gather", "index_select", "take", "embedding")  # read as much as they give
SCATTERS = ("index_put", "index_put_", "_index_put_impl_", "scatter", "scatter_", "index_add_")
MOVES = ("copy_", "clone", "cat", "_to_copy", "stack", "flip")
MOVES += ("fill_", "zero_", "zeros", "ones", "full", "zeros_like", "ones_like", "full_like")


class _Traffic(TorchDispatchMode):
    """Counts bytes of every operation, and operations of all but matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0.0
        self.bytes = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.is_view or name in ALLOCATIONS:
            return result
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        written = {id(output) for output in outputs}
        if name in LOOK_UPS:
            inputs = inputs[1:] + outputs
        elif name in SCATTERS:
            inputs, outputs = inputs[1:], inputs[-1:]
        elif name in MOVES or (kwargs or {}).get("out") is not None:
            inputs = [tensor for tensor in inputs if id(tensor) not in written]
        self.bytes += sum(map(_size, inputs)) + sum(map(_size, outputs))
        self.operations += _operations(name, args, inputs, outputs)
        return result


def _operations(name: str, args: tuple, inputs: list, outputs: list) -> float:
    if name in PRODUCTS or name in MOVES or name in LOOK_UPS:
        return 0.0
    elements = float(max((tensor.numel() for tensor in [*inputs, *outputs]), default=0))
    if name.startswith("_fft"):
        length = math.prod(inputs[0].shape[axis] for axis in args[1])
        return (5.0 if name == "_fft_c2c" else 2.5) * elements * math.log2(length)
    return elements


def _size(tensor: torch.Tensor) -> int:
    """In bytes; an axis that was expanded without copying is read once."""
    if tensor.is_mkldnn:  # has an order of its own, and no strides
        return tensor.numel() * tensor.element_size()
    sizes = [n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return math.prod(sizes) * tensor.element_size()
