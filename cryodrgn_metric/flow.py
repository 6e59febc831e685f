"""A normalizing flow that starts at the identity: the f_xi that can be inverted, for d' = d."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cryodrgn_metric.errors import ArgumentError, MissingExtraError
from cryodrgn_metric.networks import evaluate_in_chunks
from cryodrgn_metric.principal_axes import MOST_FOR_AXES, principal_axes

__all__ = ["Flow", "require_flow", "restored_flow"]

ROUNDS = 2  # through the codes of `_masks`
POINTS_FOR_SCALE = 512


class _Transform(Protocol):
    """As far as zuko's transforms are used here."""

    inv: Any

    def __call__(self, x: Tensor) -> Tensor: ...


def require_flow(features: int, components: int) -> None:
    """Refuses what no flow can do, before anything is computed.

    Arguments:
        features: The dimension d of the latents.
        components: The dimension d' of z'.

    Raises:
        ArgumentError: If d is 1, or d' is larger than d.
        MissingExtraError: If zuko is not installed.
    """
    try:
        import zuko  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "--map flow needs zuko, which is not installed. "
            "Type: pip install 'cryodrgn_metric[flow]'"
        ) from error
    if features < 2:
        raise ArgumentError(
            "--map flow needs latents of at least 2 dimensions: it moves each by the others; "
            f"got {features}. Type --map mlp."
        )
    if components > features:
        raise ArgumentError(
            f"--map flow keeps at most as many dimensions as z has; got --dim {components} for "
            f"{features}. Type --dim {features} or less, or --map mlp."
        )


class Flow(nn.Module):
    r"""Affine coupling layers around the identity, and one scale.

    .. math::
        z' = c\, T(z), \qquad T(z) = \mu + s\, (t_K \circ \dots \circ t_1)((z - \mu) / s)

    Each coupling layer :math:`t_k` leaves some coordinates as they are, and scales and shifts the
    others by functions of those. The last layers of these functions start at zero: T is then
    exactly the identity (in float64, and up to a last bit in float32, as s is a power of two).
    :math:`\mu` and s are one shift and one number, so that no axis is scaled by itself.

    All d coordinates come out until `settle` keeps the first d' along the principal axes.

    Arguments:
        features: The dimension d.
        outputs: The dimension d'.
        width: The width of each hidden layer of a coupling's functions.
        depth: The number of their hidden layers.
        seed: The seed of the weights.

    Raises:
        ArgumentError: If a size is below 1 (depth: below 0; features: below 2).

    References:
        | Density estimation using Real NVP (Dinh et al., 2016), arXiv:1605.08803
        | NICE: Non-linear Independent Components Estimation (Dinh et al., 2014), arXiv:1410.8516

    Example:
        >>> flow = Flow(4, 4, width=16, depth=1, seed=0).double()
        >>> z = torch.randn(5, 4, dtype=torch.float64)
        >>> bool((flow(z) == z).all())
        True
    """

    mean: Tensor
    scale: Tensor
    center: Tensor
    axes: Tensor

    def __init__(self, features: int, outputs: int, width: int, depth: int, seed: int) -> None:
        from zuko.flows import GeneralCouplingTransform
        from zuko.lazy import LazyComposedTransform

        super().__init__()
        if min(outputs, width) < 1 or depth < 0 or not outputs <= features or features < 2:
            raise ArgumentError(
                "a flow needs 1 <= outputs <= inputs, inputs >= 2, width >= 1 and depth >= 0; "
                f"got {features} -> {depth} x {width} -> {outputs}."
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.couplings = LazyComposedTransform(
                *(
                    GeneralCouplingTransform(
                        features,
                        mask=mask,
                        hidden_features=[width] * depth,
                        activation=nn.SiLU,
                    )
                    for mask in _masks(features)
                )
            )
        for coupling in self.couplings.transforms:
            coupling.register_buffer("mask", coupling.mask, persistent=False)
            nn.init.zeros_(coupling.hyper[-1].weight)
            nn.init.zeros_(coupling.hyper[-1].bias)
        self.log_c = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("center", torch.zeros(features))
        self.register_buffer("axes", torch.eye(features))
        self.outputs, self.kept = outputs, features

    def standardise(self, inputs: Tensor) -> None:
        """Sets shift and number from rows of inputs, and c: their median distance becomes 1.

        Arguments:
            inputs: z of the particles, of which the first 512 set c. :math:`(n, d)`
        """
        rows = inputs.double()
        spread = rows.var(dim=0, correction=0).mean().sqrt()
        self.mean.copy_(rows.mean(dim=0))
        self.scale.copy_(2 ** spread.log2().round() if spread > 0 else torch.ones(()))
        apart = nn.functional.pdist(rows[:POINTS_FOR_SCALE])
        median = float(apart.quantile(0.5)) if len(apart) else 0.0
        with torch.no_grad():
            self.log_c.fill_(-float(np.log(median)) if median > 0 else 0.0)

    @property
    def c(self) -> float:
        """The scale."""
        return float(self.log_c.detach().double().exp())

    def moved(self, x: Tensor) -> Tensor:
        """T(x), of rows (n, d)."""
        transform: _Transform = self.couplings()
        y: Tensor = self.mean + self.scale * transform((x - self.mean) / self.scale)
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Maps rows (n, d) to z', (n, d'), or (n, d) before `settle`."""
        whole = self.log_c.exp() * self.moved(x) - self.center
        return (whole @ self.axes.T)[:, : self.kept]

    def inverse(self, y: Tensor) -> Tensor:
        """Maps rows of z', (n, d'), to the z that they come from, (n, d).

        Coordinates that were not kept are taken to be 0, their mean.
        """
        transform: _Transform = self.couplings()
        turned = nn.functional.pad(y, (0, len(self.axes) - self.kept))
        # not by the transpose: as stored, the axes are orthonormal to float32 only
        whole = torch.linalg.solve(self.axes, turned.T).T + self.center
        x: Tensor = transform.inv((whole / self.log_c.exp() - self.mean) / self.scale)
        return self.mean + self.scale * x

    def jacobian(self, x: Tensor) -> Tensor:
        """Differentiates each output by each input in reverse mode. (n, d', d)"""
        with torch.enable_grad():
            inputs = x.detach().requires_grad_()
            outputs = self(inputs)
            rows = [
                torch.autograd.grad(column.sum(), inputs, retain_graph=True)[0]
                for column in outputs.unbind(dim=1)
            ]
        return torch.stack(rows, dim=1)

    def settle(self, inputs: Tensor, unit: float, seed: int) -> npt.NDArray[np.float64]:
        """Multiplies z' by a unit; where d' < d, centres it and turns it to its principal axes.

        Arguments:
            inputs: z of the particles, of which at most 100,000 fix the axes. (N, d)
            unit: What one unit of the outputs stands for.
            seed: The seed of the draw.

        Returns:
            The share of the variance of c·T(z) along each principal axis, largest first. (d,)
        """
        with torch.no_grad():
            self.log_c.add_(float(np.log(unit)))
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(inputs), generator=generator)[:MOST_FOR_AXES].to(inputs.device)
        whole = self.whole()
        points = evaluate_in_chunks(whole, inputs[rows].double(), inputs.device).numpy()
        center = points.mean(axis=0)
        axes = principal_axes(points - center)
        variances = ((points - center) @ axes.T).var(axis=0)
        self.kept = self.outputs
        if self.kept < len(axes):
            self.center.copy_(torch.from_numpy(center))
            self.axes.copy_(torch.from_numpy(axes))
        return np.asarray(variances / max(float(variances.sum()), 1e-300))

    def whole(self) -> Flow:
        """A copy in float64 that keeps all d coordinates."""
        found = copy.deepcopy(self).double()
        found.kept = len(self.axes)
        return found


def restored_flow(
    state: Mapping[str, Tensor], inputs: int, outputs: int, width: int, depth: int
) -> Flow:
    """Builds the flow whose state this is; it takes no memory beyond that of the state.

    Raises:
        ArgumentError: If the sizes are not those of the state, or no flow's.
        MissingExtraError: If zuko is not installed.
    """
    sizes = (inputs, outputs, width, depth)
    if any(type(size) is not int for size in sizes):
        raise ArgumentError(f"expected the sizes of a network; got {sizes}.")
    require_flow(inputs, outputs)
    if depth > len(state) or _parameters(inputs, width, depth) != sum(
        value.numel() for value in state.values()
    ):
        raise ArgumentError(f"the weights are not those of a flow with sizes {sizes}.")
    flow = Flow(inputs, outputs, width, depth, seed=0)
    try:
        flow.load_state_dict(state)
    except RuntimeError as error:
        raise ArgumentError(f"the weights are those of another network: {error}") from error
    flow.kept = outputs
    if not bool(flow.scale > 0):
        raise ArgumentError(f"expected a positive scale; got {float(flow.scale)}.")
    return flow


def _masks(features: int) -> list[Tensor]:
    """Which coordinates each coupling leaves as they are: bits of their numbers, then the others.

    Any two coordinates differ in a bit, so each comes to move by every other.
    """
    numbers = torch.arange(features)
    bits = [(numbers >> bit) % 2 == 1 for bit in range((features - 1).bit_length())]
    return [mask for bit in bits for mask in (bit, ~bit)] * ROUNDS


def _parameters(features: int, width: int, depth: int) -> int:
    """How many numbers the state of a flow has."""
    kept = [int(mask.sum()) for mask in _masks(features)] if features < 2**16 else []
    count = features * features + 2 * features + 2  # axes, center, mean; scale, c
    for inputs in kept:
        sizes = [inputs, *[width] * depth, 2 * (features - inputs)]
        count += sum((i + 1) * o for i, o in zip(sizes[:-1], sizes[1:], strict=True))
    return count
