"""Error bars for h_psi: several nets that learned the same distances, and how far they differ."""

from __future__ import annotations

import os
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.errors import ArgumentError, MetricError
from cryodrgn_metric.landmark_training import split_rows
from cryodrgn_metric.networks import load_network, number, save_network, settings_of

__all__ = ["LEVELS", "DistanceEnsemble"]

FloatArray = npt.NDArray[np.float64]

LEVELS = (0.5, 0.68, 0.8, 0.9, 0.95)
"""How large a share of errors an error bar can be asked to cover."""

NAME = "h_psi_ensemble"
TRAINING_SHARE = 0.8  # of the training landmarks, which each further member sees
SHORTEST = 0.1  # of the unit: relative errors are not asked for below it, as in the training
LEAST = 1e-12  # of a factor
RATIOS = np.geomspace(1e-4, 1.0, 81).tolist()  # of floor to distance; calibration chooses


class DistanceEnsemble(BaseEstimator):  # type: ignore[misc]
    r"""Predicts distances as h_psi does, and how far off each of them may be.

    Member 0 is h_psi itself: the others change nothing about what is predicted. They learn from
    random 80 % of the training landmarks, from other initial weights, so that they differ where
    landmarks say little. Their standard deviation :math:`s` misses what all of them get wrong,
    so the error bar has a relative part, too:

    .. math:: b_p(z_1, z_2) = k_p \sqrt{s^2 + \rho^2 \max(h, 0.1\, u)^2}

    with :math:`u` the unit of h_psi. On landmarks that trained no member, `calibrate` finds
    :math:`\rho` (of largest Gaussian likelihood) and, for each level p, :math:`k_p`, the p
    quantile of error / bar: a split-conformal interval, whose coverage is right on average
    over pairs like those, not at every single z. That it is right on other landmarks is
    measured, and reported.

    Arguments:
        members: The number of nets, 2 at least, h_psi included.
        net: Member 0: taken as it is if it was fitted, and fitted first if not; default: a new
            `DistanceNet`. The others have its settings and the seeds after its own.

    Attributes:
        members_: The fitted nets, h_psi first.
        ratio_: :math:`\rho`.
        factors_: :math:`k_p` of every p in LEVELS.

    References:
        | Simple and scalable predictive uncertainty estimation using deep ensembles
          (Lakshminarayanan et al., 2017), arXiv:1612.01474
        | Distribution-free predictive inference for regression (Lei et al., 2018),
          doi:10.1080/01621459.2017.1307116

    Example:
        >>> z = np.random.default_rng(0).normal(size=(90, 2))
        >>> distances = np.linalg.norm(z[:, None] - z[None], axis=-1)
        >>> net = DistanceNet(max_epochs=2, progress=False)
        >>> ensemble = DistanceEnsemble(members=2, net=net).fit(z[:60], distances[:60, :60])
        >>> ensemble = ensemble.calibrate(z[60:], distances[60:, 60:])
        >>> bars = ensemble.error_bar(z[:5], z[5:10], coverage=0.95)
        >>> bars.shape, bool((bars > 0).all())
        ((5,), True)
    """

    def __init__(self, members: int = 5, net: DistanceNet | None = None) -> None:
        self.members = members
        self.net = net

    def fit(
        self,
        z: npt.ArrayLike | Tensor,
        distances: npt.ArrayLike | Tensor,
        train: npt.ArrayLike | None = None,
        validation: npt.ArrayLike | None = None,
    ) -> DistanceEnsemble:
        """Trains the members.

        Arguments:
            z, distances, train, validation: As for `DistanceNet.fit`.

        Returns:
            self

        Raises:
            ArgumentError: As from `DistanceNet.fit`, or if there are fewer than 2 members.
        """
        if type(self.members) is not int or self.members < 2:
            raise ArgumentError(f"an ensemble needs at least 2 members; got {self.members}.")
        first = DistanceNet() if self.net is None else self.net
        rows, held_out = split_rows(len(np.asarray(z)), train, validation, first.seed)
        if not hasattr(first, "unit_"):
            first.fit(z, distances, train=rows, validation=held_out)
        self.members_ = [first]
        for number_ in range(1, self.members):
            member = DistanceNet(**first.get_params() | {"seed": first.seed + number_})
            some = _subsample(rows, member.seed)
            self.members_.append(member.fit(z, distances, train=some, validation=held_out))
        return self

    def calibrate(
        self, z: npt.ArrayLike | Tensor, distances: npt.ArrayLike | Tensor
    ) -> DistanceEnsemble:
        """Learns how error bars relate to errors.

        Arguments:
            z: Latents of landmarks that trained and stopped no member. (n, d)
            distances: Measured Delta among them. (n, n)

        Returns:
            self

        Raises:
            ArgumentError: If shapes disagree, or there are fewer than 2 landmarks.
            MetricError: If the ensemble was not fitted.
        """
        measured = np.asarray(distances, dtype=np.float64)
        if measured.ndim != 2 or measured.shape[0] != measured.shape[1] or len(measured) < 2:
            raise ArgumentError(f"expected distances (n, n), n >= 2; got {measured.shape}.")
        predicted = self.predict_members(z).astype(np.float64)
        if predicted.shape[1:] != measured.shape:
            raise ArgumentError(
                f"expected a latent for each row of distances; got {predicted.shape[1]} and "
                f"{len(measured)}."
            )
        i, j = np.triu_indices(len(measured), 1)
        pairs = predicted[:, i, j]
        errors = np.abs(pairs[0] - measured[i, j])
        self.ratio_ = min(RATIOS, key=lambda ratio: _misfit(self._scale(pairs, ratio), errors))
        scores = errors / self._scale(pairs, self.ratio_)
        # not 0, which no bar is, even where every error is: volumes that are all alike
        factors = np.maximum(np.quantile(scores, LEVELS), LEAST).tolist()
        self.factors_ = dict(zip(LEVELS, factors, strict=True))
        return self

    @overload
    def predict(self, z1: Tensor, z2: Tensor) -> Tensor: ...
    @overload
    def predict(self, z1: npt.ArrayLike, z2: npt.ArrayLike) -> npt.NDArray[np.float32]: ...
    def predict(self, z1: Any, z2: Any) -> Any:
        """Predicts the distance of each pair of rows: h_psi's own `DistanceNet.predict`."""
        return self._fitted()[0].predict(z1, z2)

    __call__ = predict

    def predict_members(self, z: npt.ArrayLike | Tensor) -> npt.NDArray[np.float32]:
        """Predicts all distances among n latents by every member, h_psi first. (members, n, n)"""
        found = [np.asarray(member.predict_matrix(z)) for member in self._fitted()]
        return np.stack(found)

    def spread(self, z1: npt.ArrayLike, z2: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Gives the standard deviation over members of the distance of each pair of rows. (n,)"""
        pairs = self._pairs(z1, z2)
        return np.asarray(pairs.std(axis=0, ddof=1), dtype=np.float32)

    def error_bar(
        self, z1: npt.ArrayLike, z2: npt.ArrayLike, coverage: float = 0.68
    ) -> npt.NDArray[np.float32]:
        """Says how far the predicted distance of each pair of rows may be off.

        Arguments:
            z1: First latents. (n, d)
            z2: Second latents. (n, d)
            coverage: The share of errors that are to be smaller, one of LEVELS.

        Returns:
            In units of Delta, positive. float32 (n,)

        Raises:
            ArgumentError: If shapes or values are refused as by `predict`, or coverage is another.
            MetricError: If the ensemble was not fitted and calibrated.
        """
        return self._bars(self._pairs(z1, z2), coverage)

    def error_bar_matrix(
        self, z: npt.ArrayLike, coverage: float = 0.68
    ) -> npt.NDArray[np.float32]:
        """Says how far each of the predicted distances among n latents may be off.

        The diagonal, which is known to be 0, has none.

        Arguments:
            z: Latents. (n, d)
            coverage: As for `error_bar`.

        Returns:
            In units of Delta, symmetric. float32 (n, n)
        """
        bars = self._bars(self.predict_members(z).astype(np.float64), coverage)
        np.fill_diagonal(bars, 0.0)
        return bars

    def error_bars_to(
        self, z: npt.ArrayLike, landmarks: npt.ArrayLike, coverage: float = 0.68
    ) -> tuple[FloatArray, FloatArray]:
        """Predicts the distance of every latent to every landmark, and how far it may be off.

        Arguments:
            z: Latents of particles. (n, d)
            landmarks: Latents of landmarks. (k, d)
            coverage: As for `error_bar`.

        Returns:
            Distances and error bars, in units of Delta. float64 (n, k) each
        """
        pairs = self._pairs_to(z, landmarks)
        return pairs[0], self._bars(pairs, coverage).astype(np.float64)

    def spread_to(
        self, z: npt.ArrayLike, landmarks: npt.ArrayLike
    ) -> tuple[FloatArray, FloatArray]:
        """Predicts distances as `error_bars_to`, and their standard deviation over members."""
        pairs = self._pairs_to(z, landmarks)
        return pairs[0], np.asarray(pairs.std(axis=0, ddof=1))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes all members but h_psi, and the calibration, beside what `DistanceNet.save` does.

        The files are ``h_psi_ensemble.safetensors`` and ``h_psi_ensemble.yaml``.

        Raises:
            MetricError: If the ensemble was not fitted and calibrated.
            OutputError: If the folder cannot be written.
        """
        factors = self._calibrated()
        networks, found = zip(*(member.parts() for member in self._fitted()[1:]), strict=True)
        settings = {
            "members": list(found),
            "ratio": self.ratio_,
            "factors": [[level, factor] for level, factor in factors.items()],
        }
        save_network(folder, NAME, nn.ModuleList(networks), settings)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str | None = None) -> DistanceEnsemble:
        """Reads what `save` and `DistanceNet.save` wrote to one folder. Executes nothing.

        Raises:
            MetricError: If a file is missing, unreadable, or not what `save` wrote.
        """
        first = DistanceNet.load(folder, device)
        state, settings = load_network(folder, NAME)
        with settings_of(folder, NAME):
            others = [
                DistanceNet.from_parts(_part_of(state, place), found, device)
                for place, found in enumerate(settings["members"])
            ]
            ensemble = cls(members=1 + len(others), net=first)
            ensemble.members_ = [first, *others]
            ensemble.ratio_ = number(settings["ratio"])
            ensemble.factors_ = {
                number(level): number(factor) for level, factor in settings["factors"]
            }
            if not others or tuple(ensemble.factors_) != LEVELS:
                raise ArgumentError(
                    f"expected 2 members or more, and factors of {LEVELS}; got "
                    f"{ensemble.members} and {tuple(ensemble.factors_)}."
                )
        return ensemble

    def _pairs(self, z1: npt.ArrayLike, z2: npt.ArrayLike) -> FloatArray:
        """Distances by every member. (members, n)"""
        found = [np.asarray(member.predict(z1, z2)) for member in self._fitted()]
        return np.stack(found).astype(np.float64)

    def _pairs_to(self, z: npt.ArrayLike, landmarks: npt.ArrayLike) -> FloatArray:
        """Distances of all latents to all landmarks by every member. (members, n, k)"""
        found = [torch.cdist(one.embed(z), one.embed(landmarks)) for one in self._fitted()]
        return np.asarray(torch.stack(found), dtype=np.float64)

    def _bars(self, predicted: FloatArray, coverage: float) -> npt.NDArray[np.float32]:
        factors = self._calibrated()
        if coverage not in factors:
            raise ArgumentError(
                f"expected a coverage among {', '.join(map(str, factors))}; got {coverage}."
            )
        bars = factors[coverage] * self._scale(predicted, self.ratio_)
        return np.asarray(bars, dtype=np.float32)

    def _scale(self, predicted: FloatArray, ratio: float) -> FloatArray:
        """What error bars are proportional to, from distances by every member (members, ...)."""
        floor = ratio * np.maximum(predicted[0], self.shortest)
        return np.asarray(np.hypot(predicted.std(axis=0, ddof=1), floor))

    @property
    def shortest(self) -> float:
        """A tenth of h_psi's unit: what shorter distances count as in a relative error."""
        return SHORTEST * self._fitted()[0].unit_

    def _fitted(self) -> list[DistanceNet]:
        if not hasattr(self, "members_"):
            raise MetricError("this DistanceEnsemble is not fitted; call fit(z, distances) first.")
        members: list[DistanceNet] = self.members_
        return members

    def _calibrated(self) -> dict[float, float]:
        if not hasattr(self, "factors_"):
            raise MetricError(
                "this DistanceEnsemble is not calibrated; call calibrate(z, distances) first, "
                "with landmarks that did not train it."
            )
        factors: dict[float, float] = self.factors_
        return factors


def _subsample(rows: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    size = max(2, round(TRAINING_SHARE * len(rows)))
    return np.sort(np.random.default_rng(seed).choice(rows, size, replace=False))


def _misfit(scale: FloatArray, errors: FloatArray) -> float:
    """Minus the Gaussian log-likelihood of errors a pair, at the best factor; up to a constant."""
    squared = float(np.mean((errors / scale) ** 2))
    return float(np.log(scale).mean() + 0.5 * np.log(max(squared, 1e-30)))


def _part_of(state: dict[str, Tensor], place: int) -> dict[str, Tensor]:
    """The state of one network in a list of them."""
    prefix = f"{place}."
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
