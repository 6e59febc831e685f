"""f_xi: the map to z', where Euclidean distances equal the measured ones (Eq. 6, 8, 9)."""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from torch import Tensor
from torch.nn.functional import pdist
from tqdm.auto import tqdm

from cryodrgn_metric.devices import pick_device
from cryodrgn_metric.errors import ArgumentError, MetricError, brief
from cryodrgn_metric.flow import Flow, require_flow, restored_flow
from cryodrgn_metric.networks import (
    Perceptron,
    as_latents,
    evaluate_in_chunks,
    jacobians_in_chunks,
    load_network,
    number,
    restored,
    save_network,
    settings_of,
)
from cryodrgn_metric.principal_axes import turn_to_principal_axes
from cryodrgn_metric.targets import Distance, Targets, batches_of, median_of_pairs, targets_of
from cryodrgn_metric.threads import one_thread

__all__ = ["MetricMap"]

logger = logging.getLogger(__name__)

FLOOR = 0.1  # epsilon as a fraction of the median distance, unless it is given
STEPS_PER_RECORD = 10
FLOW_RATE = 0.3  # of the learning rate: at all of it, couplings that multiply may run away
MOST_GRADIENT = 1.0  # the norm of a flow's gradient, in one step
POWERS = {"stress": 0, "relative": 1, "weighted": 2}  # of h, by which an error is divided


class MetricMap(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    r"""Learns the space z' in which Euclidean distance equals a given distance.

    With :math:`d_{ij} = \|f_\xi(z_i) - f_\xi(z_j)\|_2` and :math:`h_{ij}` the given distance,
    minimises over random pairs of all particles, :math:`i \neq j`,

    .. math::
        \text{relative (Eq. 8):} \quad
            \left( \frac{d - h}{\max(h, \epsilon)} \right)^2, \qquad
        \text{weighted (Eq. 9):} \quad
            \left( \frac{s\, (d - h)}{\max(h, \epsilon)^2} \right)^2,

    s the median of h; or, to be compared with SMACOF, ``stress``: :math:`(d - h)^2`. Only the
    weight is floored, never the target: two latents with h = 0 are drawn together. Each step
    takes distinct particles at random and all their pairs. z' is in the units of the distance,
    centred, and turned so that its axes are the principal ones, the third moment along each not
    negative. The same seed and number of threads give the same bits.

    A ``flow`` can be inverted. It starts at the identity, :math:`z' = c\, T(z)`, and trains all d
    dimensions; for d' = d its axes remain those of z, for d' < d z' is then turned to its
    principal axes, of which the first d' are kept.

    Arguments:
        n_components: The dimension d' of z'; at most d for a flow.
        loss: ``relative``, ``weighted`` or ``stress``.
        width: The width of each hidden layer (of a flow: in each of its couplings).
        depth: The number of hidden layers.
        steps: The number of steps; the learning rate falls to zero over them.
        pairs_per_step: The number of pairs in a step, rounded up to all pairs of some particles.
        learning_rate: The largest step size of Adam; of a flow, 0.3 of it.
        epsilon: The floor of the weight, in units of the distance (the pipeline passes 0.1 of
            the median measured Delta); default: 0.1 of the median of the distance given.
        seed: The seed of weights and pairs.
        device: Where to train; default: CUDA where present, else the CPU.
        progress: Shows a progress bar.
        map: ``mlp``, a perceptron; or ``flow``, coupling layers that are the identity at first.

    Attributes:
        epsilon_: The floor that was used, in units of the distance.
        unit_: The median s of the distance among particles, in its own units.
        history_: ``step`` and ``loss``, the mean over the 10 steps up to it.
        n_features_in_: The dimension d of the latents.
        variance_shares_: Of a flow: how much of the variance of c·T(z) lies along each of its
            principal axes; the first d' are kept. (d,)

    References:
        | A nonlinear mapping for data structure analysis (Sammon, 1969),
          doi:10.1109/T-C.1969.222678
        | Super-convergence (Smith & Topin, 2018), arXiv:1708.07120

    Example:
        >>> z = np.random.default_rng(0).normal(size=(100, 3))
        >>> def distance(z1, z2):
        ...     return (z1 - z2)[:, :2].norm(dim=1)  # the third column: a rotation
        >>> MetricMap(steps=5, progress=False).fit(z, distance).transform(z).shape
        (100, 2)
    """

    def __init__(
        self,
        n_components: int = 2,
        loss: str = "relative",
        width: int = 128,
        depth: int = 3,
        steps: int = 2000,
        pairs_per_step: int = 8128,
        learning_rate: float = 1e-2,
        epsilon: float | None = None,
        seed: int = 0,
        device: str | None = None,
        progress: bool = True,
        map: str = "mlp",
    ) -> None:
        self.n_components = n_components
        self.loss = loss
        self.width = width
        self.depth = depth
        self.steps = steps
        self.pairs_per_step = pairs_per_step
        self.learning_rate = learning_rate
        self.epsilon = epsilon
        self.seed = seed
        self.device = device
        self.progress = progress
        self.map = map

    def fit(
        self,
        z: npt.ArrayLike | Tensor,
        distance: Distance,
        particles: npt.ArrayLike | Tensor | None = None,
    ) -> MetricMap:
        """Learns the map from latents and their distance.

        Arguments:
            z: The latents whose pairs train: those of all particles, or of landmarks where the
                distance is a matrix. (N, d)
            distance: A function of tensors (n, d), (n, d) -> (n,), such as DistanceNet.predict;
                or an object whose predict_matrix maps latents (n, d) to (n, n), such as a
                DistanceNet (its predict does as well), which is quicker; or a matrix (N, N).
            particles: Latents that set the scale of the inputs, the centre and the axes;
                default: z. (M, d)

        Returns:
            self

        Raises:
            ArgumentError: If an argument is out of range, shapes disagree, or distances are
                negative or not finite.
            MissingExtraError: If map is ``flow`` and zuko is not installed.
        """
        self._check()
        device = pick_device(self.device)
        latents = as_latents(z).to(device)
        if len(latents) < 2:
            raise ArgumentError(f"expected at least 2 latents; got {len(latents)}.")
        everyone = latents
        if particles is not None:
            everyone = as_latents(particles, latents.shape[1]).to(device)
        if self.map == "flow":
            require_flow(latents.shape[1], self.n_components)
        targets = targets_of(distance, latents)
        self.n_features_in_ = latents.shape[1]
        self.unit_ = median_of_pairs(targets, len(latents), self.seed)
        self.epsilon_ = FLOOR * self.unit_ if self.epsilon is None else float(self.epsilon)
        self._network = self._new_network()
        self._network.standardise(everyone)
        self._network.to(device)
        with one_thread():  # the net is small: threads would mostly wait for each other
            self._train(latents, targets)
        if isinstance(self._network, Flow):
            self.variance_shares_ = self._network.settle(everyone, self.unit_, self.seed)
            self._network.double()
        else:
            turn_to_principal_axes(self._network, everyone, self.unit_, self.seed)
        return self

    def transform(self, z: npt.ArrayLike | Tensor) -> npt.NDArray[Any]:
        """Maps latents to z', in chunks.

        Arguments:
            z: Latents. (N, d)

        Returns:
            z', in units of the distance. (N, d'), float32; of a flow, whose inverse needs them
            all, float64 digits

        Raises:
            ArgumentError: If z is not a finite (N, d) array.
            MetricError: If the map was not fitted.
        """
        network = self._fitted()
        rows = as_latents(z, self.n_features_in_)
        found = evaluate_in_chunks(network, rows, network.mean.device)
        return np.asarray(found.numpy())

    def inverse(self, z_metric: npt.ArrayLike | Tensor) -> npt.NDArray[np.float64]:
        """Maps z' back to the latents it comes from, in float64 and in chunks.

        For d' = d, ``inverse(transform(z))`` is z. For d' < d the coordinates that were not kept
        are taken as their mean: then ``transform(inverse(z_metric))`` is z_metric.

        Arguments:
            z_metric: Points of z', particles or not, in units of the distance. (N, d')

        Returns:
            Latents. float64 (N, d)

        Raises:
            ArgumentError: If z_metric is not a finite (N, d') array, or the map is no flow.
            MetricError: If the map was not fitted.

        Example:
            >>> z = np.random.default_rng(0).normal(size=(50, 2))
            >>> def distance(z1, z2):
            ...     return (z1 - z2).norm(dim=1)
            >>> found = MetricMap(2, steps=5, progress=False, map="flow").fit(z, distance)
            >>> bool(np.allclose(found.inverse(found.transform(z)), z, atol=1e-6))
            True
        """
        flow = self.flow
        rows = as_latents(z_metric, self.n_components, torch.float64)
        return np.asarray(evaluate_in_chunks(flow.inverse, rows, flow.mean.device).numpy())

    @property
    def flow(self) -> Flow:
        """The flow of a fitted map, in float64.

        Raises:
            ArgumentError: If the map is no flow.
            MetricError: If the map was not fitted.
        """
        network = self._fitted()
        if not isinstance(network, Flow):
            raise ArgumentError(
                "a map of kind mlp has no inverse. Type --map flow, or MetricMap(map='flow')."
            )
        return network

    def jacobian(self, z: npt.ArrayLike | Tensor) -> npt.NDArray[np.float32]:
        r"""Differentiates z' by z, in chunks: how the map stretches latent space, and where.

        .. math:: J_{ij} = \partial z'_i / \partial z_j

        Arguments:
            z: Latents. (N, d)

        Returns:
            J of every particle, in units of the distance per unit of z. float32 (N, d', d)

        Raises:
            ArgumentError: If z is not a finite (N, d) array.
            MetricError: If the map was not fitted.

        Example:
            >>> z = np.random.default_rng(0).normal(size=(50, 3))
            >>> def distance(z1, z2):
            ...     return (z1 - z2)[:, :2].norm(dim=1)
            >>> MetricMap(steps=5, progress=False).fit(z, distance).jacobian(z).shape
            (50, 2, 3)
        """
        network = self._fitted()
        rows = as_latents(z, self.n_features_in_)
        chunks = jacobians_in_chunks(network, rows, network.mean.device)
        return torch.cat([chunk.cpu() for chunk in chunks]).numpy()

    def fit_transform(self, z: npt.ArrayLike | Tensor, distance: Distance) -> npt.NDArray[Any]:
        """Fits, and maps the same latents; arguments and results as in fit and transform."""
        return self.fit(z, distance).transform(z)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``f_xi.safetensors`` and ``f_xi.yaml`` to a folder.

        Raises:
            MetricError: If the map was not fitted.
            OutputError: If the folder cannot be written.
        """
        network = self._fitted()
        parameters = self.get_params()
        del parameters["device"], parameters["progress"]
        settings = {
            "parameters": parameters,
            "epsilon": self.epsilon_,
            "unit": self.unit_,
            "n_features_in": self.n_features_in_,
            "history": self.history_,
        }
        if isinstance(network, Flow):
            settings["variance_shares"] = self.variance_shares_.tolist()
        save_network(folder, "f_xi", network, settings)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str | None = None) -> MetricMap:
        """Reads what `save` wrote; transforms to the same bits. Executes nothing.

        Raises:
            MetricError: If a file is missing, unreadable, or not what `save` wrote.
        """
        state, settings = load_network(folder, "f_xi")
        with settings_of(folder, "f_xi"):
            found = cls(**settings["parameters"], device=device)
            found._check()
            found.epsilon_ = number(settings["epsilon"])
            found.unit_ = number(settings["unit"])
            found.n_features_in_ = settings["n_features_in"]
            found.history_ = dict(settings["history"])
            sizes = found.n_features_in_, found.n_components, found.width, found.depth
            if found.map == "flow":
                found._network = restored_flow(state, *sizes).double()
                found.variance_shares_ = _shares(settings["variance_shares"], sizes[0])
            else:
                found._network = restored(state, *sizes)
            found._network.to(pick_device(device))
        return found

    def _check(self) -> None:
        if self.loss not in POWERS:
            raise ArgumentError(f"loss must be one of {', '.join(POWERS)}; got {self.loss!r}.")
        if self.map not in ("mlp", "flow"):
            raise ArgumentError(f"map must be mlp or flow; got {self.map!r}.")
        sizes = (self.n_components, self.steps, self.pairs_per_step)
        if min(sizes) < 1:
            raise ArgumentError(
                f"n_components, steps and pairs_per_step must be at least 1; got {sizes}."
            )
        if self.epsilon is not None and not 0 < self.epsilon < float("inf"):
            raise ArgumentError(f"epsilon must be positive and finite; got {self.epsilon}.")

    def _new_network(self) -> Perceptron | Flow:
        sizes = self.n_features_in_, self.n_components, self.width, self.depth
        return Flow(*sizes, self.seed) if self.map == "flow" else Perceptron(*sizes, self.seed)

    def _fitted(self) -> Perceptron | Flow:
        if not hasattr(self, "_network"):
            raise MetricError("this MetricMap is not fitted; call fit(z, distance) first.")
        network: Perceptron | Flow = self._network
        return network

    def _train(self, z: Tensor, targets: Targets) -> None:
        is_flow = isinstance(self._network, Flow)
        rate = self.learning_rate * (FLOW_RATE if is_flow else 1)
        optimizer = torch.optim.Adam(self._network.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=self.steps + 1, pct_start=0.1
        )
        batches = batches_of(len(z), self.pairs_per_step, self.seed)
        self.history_: dict[str, list[float]] = {"step": [], "loss": []}
        recent: list[float] = []
        bar = tqdm(range(1, self.steps + 1), "f_xi", unit="step", disable=not self.progress)
        for step in bar:
            batch = next(batches).to(z.device)
            loss = self._loss(pdist(self._network(z[batch])), targets(batch) / self.unit_)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            if is_flow:
                torch.nn.utils.clip_grad_norm_(self._network.parameters(), MOST_GRADIENT)
            optimizer.step()
            schedule.step()
            recent.append(float(loss.detach()))
            if step % STEPS_PER_RECORD == 0 or step == self.steps:
                self.history_["step"].append(step)
                self.history_["loss"].append(float(np.mean(recent)))
                bar.set_postfix_str(f"loss {np.mean(recent):.4f}", refresh=False)
                recent.clear()
        logger.info("f_xi: loss %.5f after %d steps", self.history_["loss"][-1], self.steps)

    def _loss(self, d: Tensor, h: Tensor) -> Tensor:
        # h is in units of s, so that s = 1 here
        weight = h.clamp_min(self.epsilon_ / self.unit_) ** POWERS[self.loss]
        return ((d - h) / weight).square().mean()


def _shares(value: Any, count: int) -> npt.NDArray[np.float64]:
    """Shares of variance, as they were read from a settings file."""
    shares = np.array(value, dtype=np.float64)
    if shares.shape != (count,) or not ((shares >= 0) & (shares <= 1 + 1e-9)).all():
        raise ArgumentError(f"expected {count} shares of a variance; got {brief(value)}.")
    return shares
