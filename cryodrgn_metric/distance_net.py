"""h_psi: the distance between two latents, learned from the landmarks (Eq. 7)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator
from torch import Tensor
from torch.nn.functional import pdist

from cryodrgn_metric.devices import pick_device
from cryodrgn_metric.errors import ArgumentError, MetricError
from cryodrgn_metric.landmark_training import checked_distances, split_rows, train_on_pairs
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
from cryodrgn_metric.threads import one_thread

__all__ = ["DistanceNet"]


class DistanceNet(BaseEstimator):  # type: ignore[misc]
    r"""Learns the distance between latents as a distance in an embedding of many dimensions.

    .. math:: h_\psi(z_1, z_2) = s\, \| g_\psi(z_1) - g_\psi(z_2) \|_2,
        \quad g_\psi : \mathbb{R}^d \rightarrow \mathbb{R}^m

    with s the median training distance and g a perceptron. By construction, whatever the
    weights: :math:`h \geq 0`, :math:`h(z, z) = 0` and :math:`h(a, b) = h(b, a)` (both bitwise),
    and the triangle inequality up to rounding: a pseudometric, as Delta is one. That h equals
    Delta, and with it that it vanishes for pure rotations only, is measured, on held-out
    landmarks.

    Training minimises a Huber loss of :math:`(h - \Delta) / \max(\Delta, 0.1 s)` over all pairs
    of 128 training landmarks drawn anew in each step. Inputs are standardised and distances
    normalised by training landmarks only. After each epoch (10 steps) the pairs that touch a
    validation landmark are predicted; the weights of the best epoch are kept. The same seed and
    number of threads give the same bits.

    Arguments:
        width: The width of each hidden layer.
        depth: The number of hidden layers.
        max_epochs: The most epochs of 10 steps; the learning rate falls to zero over them.
        learning_rate: The largest step size of Adam.
        seed: The seed of weights, batches and of a default validation set.
        device: Where to train; default: CUDA where present, else the CPU.
        embedding: The dimension m.
        progress: Shows a progress bar.

    Attributes:
        history_: ``epoch``, ``train`` (mean loss) and ``validation`` (mean floored relative
            error), one number per epoch.
        best_epoch_: The epoch whose weights were kept.
        unit_: The median training distance s, in units of Delta.
        n_features_in_: The dimension d of the latents.

    References:
        | Signature verification using a siamese network (Bromley et al., 1993), NIPS 6
        | Super-convergence (Smith & Topin, 2018), arXiv:1708.07120

    Example:
        >>> z = np.random.default_rng(0).normal(size=(60, 2))
        >>> distances = np.abs(z[:, None, 0] - z[None, :, 0])  # the second column: a rotation
        >>> net = DistanceNet(max_epochs=2, progress=False).fit(z, distances)
        >>> float(net.predict(z[:1], z[:1])[0])
        0.0
    """

    def __init__(
        self,
        width: int = 128,
        depth: int = 3,
        max_epochs: int = 150,
        learning_rate: float = 1e-2,
        seed: int = 0,
        device: str | None = None,
        embedding: int = 64,
        progress: bool = True,
    ) -> None:
        self.width = width
        self.depth = depth
        self.max_epochs = max_epochs
        self.learning_rate = learning_rate
        self.seed = seed
        self.device = device
        self.embedding = embedding
        self.progress = progress

    def fit(
        self,
        z: npt.ArrayLike | Tensor,
        distances: npt.ArrayLike | Tensor,
        train: npt.ArrayLike | None = None,
        validation: npt.ArrayLike | None = None,
    ) -> DistanceNet:
        """Learns from measured distances.

        Arguments:
            z: The latents of the landmarks. (L, d)
            distances: Measured Delta, symmetric, finite, not negative. (L, L)
            train: Rows that train. Default: all but validation.
            validation: Rows that stop training. Default: 10 % of the train rows, at random.

        Returns:
            self

        Raises:
            ArgumentError: If shapes disagree, values are not finite, a row is out of range or
                in both sets, or fewer than 2 landmarks train.
        """
        device = pick_device(self.device)
        latents = as_latents(z)
        delta = checked_distances(distances, len(latents))
        rows, held_out = split_rows(len(latents), train, validation, self.seed)
        self.unit_ = _median_of_pairs(delta[np.ix_(rows, rows)])
        self.n_features_in_ = latents.shape[1]
        self._network = self._new_network()
        self._network.standardise(latents[rows])
        self._network.to(device)
        scaled = torch.from_numpy(delta / self.unit_).float().to(device)
        with one_thread():  # the net is small: threads would mostly wait for each other
            self.history_, self.best_epoch_ = train_on_pairs(
                self._network,
                latents.to(device),
                scaled,
                torch.from_numpy(rows),
                torch.from_numpy(held_out),
                max_epochs=self.max_epochs,
                learning_rate=self.learning_rate,
                seed=self.seed,
                progress=self.progress,
            )
        return self

    @overload
    def predict(self, z1: Tensor, z2: Tensor) -> Tensor: ...
    @overload
    def predict(self, z1: npt.ArrayLike, z2: npt.ArrayLike) -> npt.NDArray[np.float32]: ...
    def predict(self, z1: Any, z2: Any) -> Any:
        """Predicts the distance of each pair of rows, in units of Delta.

        Arguments:
            z1: First latents. (n, d)
            z2: Second latents. (n, d)

        Returns:
            h_psi, float32 (n,): a tensor on z1's device if tensors came in, else an array.
            No gradients are recorded.

        Raises:
            ArgumentError: If shapes differ, columns are not d, or values are not finite.
            MetricError: If the net was not fitted.
        """
        network = self._fitted()
        first = as_latents(z1, self.n_features_in_)
        second = as_latents(z2, self.n_features_in_)
        if first.shape != second.shape:
            raise ArgumentError(
                f"expected pairs of rows; got {tuple(first.shape)} and {tuple(second.shape)}."
            )
        # Two calls of one shape, never one of both: equal rows then give equal bits.
        difference = self._embed(network, first) - self._embed(network, second)
        found = self.unit_ * difference.square().sum(dim=1).sqrt()
        return found.to(z1.device) if isinstance(z1, Tensor) else found.numpy()

    __call__ = predict

    @overload
    def predict_matrix(self, z: Tensor) -> Tensor: ...
    @overload
    def predict_matrix(self, z: npt.ArrayLike) -> npt.NDArray[np.float32]: ...
    def predict_matrix(self, z: Any) -> Any:
        """Predicts all distances among n latents; symmetric and zero on the diagonal, bitwise.

        Arguments:
            z: Latents. (n, d)

        Returns:
            h_psi, float32 (n, n): a tensor on z's device if one came in, else an array.

        Raises:
            ArgumentError: If z is not a finite (n, d) array.
            MetricError: If the net was not fitted.
        """
        embedded = self._embed(self._fitted(), as_latents(z, self.n_features_in_))
        matrix = embedded.new_zeros(len(embedded), len(embedded))
        i, j = torch.triu_indices(len(matrix), len(matrix), offset=1)
        matrix[i, j] = matrix[j, i] = self.unit_ * pdist(embedded)
        return matrix.to(z.device) if isinstance(z, Tensor) else matrix.numpy()

    def metric_tensor(self, z: npt.ArrayLike | Tensor) -> npt.NDArray[np.float32]:
        r"""Gives the Riemannian metric of h_psi: the squared distance of near latents, in chunks.

        .. math::
            G(z) = \tfrac12\, \partial^2 h_\psi^2(z, z_2) / \partial z_2^2 \,\big|_{z_2 = z}
                = s^2\, J_g^\mathsf{T} J_g, \qquad
            h_\psi^2(z, z + \delta) = \delta^\mathsf{T} G\, \delta + O(|\delta|^3)

        with :math:`J_g` the Jacobian of :math:`g_\psi`: exact, because h_psi is a distance of
        embedded latents.

        Arguments:
            z: Latents. (N, d)

        Returns:
            G of every latent, symmetric, in units of Delta squared per unit of z squared.
            float32 (N, d, d)

        Raises:
            ArgumentError: If z is not a finite (N, d) array.
            MetricError: If the net was not fitted.
        """
        network = self._fitted()
        rows = as_latents(z, self.n_features_in_)
        tensors = []
        for jacobian in jacobians_in_chunks(network, rows, network.mean.device):
            scaled = self.unit_ * jacobian
            tensors.append((scaled.mT @ scaled).cpu())
        return torch.cat(tensors).numpy()

    def embed(self, z: npt.ArrayLike | Tensor) -> Tensor:
        r"""Gives :math:`s\, g_\psi(z)`, the points whose Euclidean distances h_psi is.

        Arguments:
            z: Latents. (n, d)

        Returns:
            float32 (n, m), in units of Delta, on the CPU.

        Raises:
            ArgumentError: If z is not a finite (n, d) array.
            MetricError: If the net was not fitted.
        """
        return self.unit_ * self._embed(self._fitted(), as_latents(z, self.n_features_in_))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``h_psi.safetensors`` and ``h_psi.yaml`` to a folder.

        Raises:
            MetricError: If the net was not fitted.
            OutputError: If the folder cannot be written.
        """
        save_network(folder, "h_psi", *self.parts())

    def parts(self) -> tuple[Perceptron, dict[str, Any]]:
        """Gives what `save` writes: the network, and the settings that `from_parts` needs.

        Raises:
            MetricError: If the net was not fitted.
        """
        parameters = self.get_params()
        del parameters["device"], parameters["progress"]
        settings = {
            "parameters": parameters,
            "unit": self.unit_ if hasattr(self, "unit_") else None,
            "n_features_in": getattr(self, "n_features_in_", None),
            "best_epoch": getattr(self, "best_epoch_", None),
            "history": getattr(self, "history_", None),
        }
        return self._fitted(), settings

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str | None = None) -> DistanceNet:
        """Reads what `save` wrote; predictions are the same bits. Executes nothing.

        Raises:
            MetricError: If a file is missing, unreadable, or not what `save` wrote.
        """
        state, settings = load_network(folder, "h_psi")
        with settings_of(folder, "h_psi"):
            return cls.from_parts(state, settings, device)

    @classmethod
    def from_parts(
        cls, state: Mapping[str, Tensor], settings: Mapping[str, Any], device: str | None = None
    ) -> DistanceNet:
        """Builds a net from `parts`: the state of the network, and settings nobody has checked."""
        net = cls(**settings["parameters"], device=device)
        net.unit_ = number(settings["unit"])
        net.n_features_in_ = settings["n_features_in"]
        net.best_epoch_ = int(number(settings["best_epoch"]))
        net.history_ = dict(settings["history"])
        sizes = net.n_features_in_, net.embedding, net.width, net.depth
        net._network = restored(state, *sizes).to(pick_device(device))
        return net

    def _new_network(self) -> Perceptron:
        return Perceptron(
            self.n_features_in_, self.embedding, self.width, self.depth, seed=self.seed
        )

    def _fitted(self) -> Perceptron:
        if not hasattr(self, "_network"):
            raise MetricError("this DistanceNet is not fitted; call fit(z, distances) first.")
        network: Perceptron = self._network
        return network

    def _embed(self, network: Perceptron, z: Tensor) -> Tensor:
        return evaluate_in_chunks(network, z, network.mean.device)


def _median_of_pairs(delta: npt.NDArray[np.float64]) -> float:
    values = delta[np.triu_indices(len(delta), 1)]
    return float(np.median(values)) or float(values.mean()) or 1.0
