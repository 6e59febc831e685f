"""What h_psi and f_xi share: standardised inputs, a multilayer perceptron, and its files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialised
from torch import Tensor, nn

from cryodrgn_metric.artifacts import atomic_path, save_yaml
from cryodrgn_metric.errors import ArgumentError, MetricError, brief
from cryodrgn_metric.safe_files.yaml_files import load_yaml

__all__ = [
    "Differentiable",
    "Perceptron",
    "as_latents",
    "evaluate_in_chunks",
    "jacobians_in_chunks",
    "load_network",
    "number",
    "restored",
    "save_network",
    "settings_of",
]

ROWS_PER_CHUNK = 16_384  # rows evaluated at once: activations stay in cache


class Differentiable(Protocol):
    """A network that can give its own Jacobians, as `Perceptron` can."""

    def jacobian(self, x: Tensor) -> Tensor:
        """Differentiates each output by each input. (n, outputs, inputs)"""
        ...


class Perceptron(nn.Module):
    r"""A multilayer perceptron that standardises its input.

    .. math::
        y = W_n\, \sigma(\dots \sigma(W_0\, (x - \mu) / s + b_0) \dots) + b_n,
        \quad \sigma(x) = x / (1 + e^{-x})

    Mean :math:`\mu` and scale :math:`s` are buffers, stored with the weights; columns that do
    not vary get :math:`s = 1`. The weights come from the seed alone, whatever the global state.

    Arguments:
        inputs: The number of input columns.
        outputs: The number of output columns.
        width: The width of each hidden layer.
        depth: The number of hidden layers.
        seed: The seed of the weights.

    Raises:
        ArgumentError: If a size is below 1 (depth: below 0).

    Example:
        >>> net = Perceptron(4, 2, width=16, depth=2, seed=0)
        >>> net(torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, inputs: int, outputs: int, width: int, depth: int, seed: int) -> None:
        super().__init__()
        if min(inputs, outputs, width) < 1 or depth < 0:
            raise ArgumentError(
                "a network needs sizes of at least 1 and depth of at least 0; "
                f"got {inputs} -> {depth} x {width} -> {outputs}."
            )
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(*_layers([inputs, *[width] * depth, outputs]))

    def standardise(self, inputs: Tensor) -> None:
        """Sets mean and scale from rows of inputs. :math:`(n, d)`"""
        rows = inputs.double()
        spread = rows.std(dim=0, correction=0)
        mean = rows.mean(dim=0)
        constant = spread <= 1e-7 * mean.abs()  # rounding of a column that does not vary
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(constant, torch.ones_like(spread), spread))

    def forward(self, x: Tensor) -> Tensor:
        """Maps rows (n, inputs) to rows (n, outputs)."""
        y: Tensor = self.layers((x - self.mean) / self.scale)
        return y

    def jacobian(self, x: Tensor) -> Tensor:
        """Differentiates each output by each input in forward mode. (n, outputs, inputs)

        By hand: torch.func.jvp would load torch.jit, which is deprecated and says so.
        """
        y = (x - self.mean) / self.scale
        tangents = torch.diag(1 / self.scale).expand(len(x), -1, -1)  # (n, inputs, width)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                tangents = tangents @ layer.weight.T
            else:
                gate = y.sigmoid()
                tangents = tangents * (gate * (1 + y * (1 - gate)))[:, None]
            y = layer(y)
        return tangents.mT


def _layers(sizes: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(inputs, outputs), nn.SiLU()]
    return layers[:-1]


def as_latents(
    z: npt.ArrayLike | Tensor, columns: int | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Turns latents into a tensor (n, d), checked; shares memory where it can.

    Arguments:
        z: Latents, finite. :math:`(n, d)`
        columns: The d that is expected, if it is known.
        dtype: float32 or float64.

    Raises:
        ArgumentError: If z is not two-dimensional, has other columns, or is not finite.

    Example:
        >>> as_latents([[1, 2], [3, 4]]).dtype
        torch.float32
    """
    if isinstance(z, Tensor):
        tensor = z.to(dtype)
    else:
        kind = np.float32 if dtype == torch.float32 else np.float64
        tensor = torch.from_numpy(np.require(z, kind, ["C", "W"]))
    if tensor.ndim != 2 or columns not in (None, tensor.shape[1]):
        wanted = "d" if columns is None else columns
        raise ArgumentError(f"expected latents (n, {wanted}); got shape {tuple(tensor.shape)}.")
    if not bool(torch.isfinite(tensor).all()):
        raise ArgumentError("expected finite latents; got NaN or infinity.")
    return tensor


def evaluate_in_chunks(
    network: Callable[[Tensor], Tensor], rows: Tensor, device: torch.device
) -> Tensor:
    """Evaluates a network without gradients, 16,384 rows at a time; the result is on the CPU."""
    with torch.no_grad():
        starts = range(0, max(1, len(rows)), ROWS_PER_CHUNK)
        chunks = [network(rows[i : i + ROWS_PER_CHUNK].to(device)).cpu() for i in starts]
    return torch.cat(chunks)


def jacobians_in_chunks(
    network: Differentiable, rows: Tensor, device: torch.device
) -> Iterator[Tensor]:
    """Differentiates the outputs of a network by its inputs, row by row, without gradients.

    Arguments:
        network: With the given number of inputs.
        rows: Its inputs. (N, inputs)
        device: The network's.

    Returns:
        Jacobians of one chunk of rows after the other, on the device. (n, outputs, inputs)

    Example:
        >>> net = Perceptron(3, 2, width=1, depth=0, seed=0)
        >>> (found,) = jacobians_in_chunks(net, torch.zeros(5, 3), torch.device("cpu"))
        >>> bool((found == net.layers[0].weight).all())
        True
    """
    size = max(1, ROWS_PER_CHUNK // (4 * rows.shape[1]))  # every row has a tangent along each axis
    for start in range(0, max(1, len(rows)), size):
        with torch.no_grad():
            found = network.jacobian(rows[start : start + size].to(device))
        yield found


def save_network(
    folder: str | os.PathLike[str], name: str, network: nn.Module, settings: Mapping[str, Any]
) -> None:
    """Writes ``name.safetensors`` and ``name.yaml``, each atomically.

    Arguments:
        folder: Where to write; made if it is missing.
        name: The stem of both files.
        network: Its parameters and buffers are stored, in float32.
        settings: Plain numbers, strings and lists, from which the network is built again.

    Raises:
        OutputError: If the folder cannot be written.
    """
    target = Path(folder)
    state = {
        key: value.detach().float().cpu().contiguous()
        for key, value in network.state_dict().items()
    }
    with atomic_path(target / f"{name}.safetensors") as draft:
        draft.write_bytes(serialised(state))
    save_yaml(target / f"{name}.yaml", dict(settings))


def load_network(
    folder: str | os.PathLike[str], name: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save_network` wrote; executes nothing.

    Returns:
        The state dict, and the settings, which nobody has checked yet.

    Raises:
        MetricError: If a file is missing or unreadable, or a weight is not a finite float32.
    """
    weights, text = Path(folder, f"{name}.safetensors"), Path(folder, f"{name}.yaml")
    for path in (weights, text):
        if not path.is_file():
            raise MetricError(f"expected {path}; there is none. Give the folder `models`.")
    settings = load_yaml(text)
    try:
        state = load_file(weights)
    except Exception as error:  # safetensors raises its own, unrelated types
        raise MetricError(f"cannot read {weights}: {brief(error)}") from error
    for key, value in state.items():
        if value.dtype != torch.float32 or not bool(value.isfinite().all()):
            raise MetricError(f"{weights}: {brief(key)} should be finite float32 numbers.")
    return state, settings


@contextmanager
def settings_of(folder: str | os.PathLike[str], name: str) -> Iterator[None]:
    """Turns what a changed settings file brings about into an error that names it."""
    try:
        yield
    except MetricError as error:
        raise MetricError(f"{Path(folder, name)}.yaml: {brief(error)}") from error
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise MetricError(
            f"{Path(folder, name)}.yaml is not what this version saves: {type(error).__name__} "
            f"{brief(error)}."
        ) from error


def number(value: Any) -> float:
    """A positive number that float32 can hold, as it was read from a settings file.

    Raises:
        ArgumentError: If it is anything else.
    """
    if type(value) not in (int, float) or not 0 < value <= torch.finfo(torch.float32).max:
        raise ArgumentError(f"expected a positive number; got {value}.")
    return float(value)


def restored(
    state: Mapping[str, Tensor], inputs: int, outputs: int, width: int, depth: int
) -> Perceptron:
    """Builds the perceptron whose state this is; it takes no memory beyond that of the state.

    Raises:
        ArgumentError: If the sizes are not those of the state.
    """
    sizes = (inputs, outputs, width, depth)
    if any(type(size) is not int for size in sizes) or depth > len(state):
        raise ArgumentError(f"expected the sizes of a network; got {sizes}.")
    try:
        with torch.device("meta"):
            network = Perceptron(inputs, outputs, width, depth, seed=0)
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ArgumentError(f"the weights are those of another network: {error}") from error
    return network
