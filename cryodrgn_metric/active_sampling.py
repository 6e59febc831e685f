"""--sampling active: landmarks in rounds, where h_psi is disputed, until its error stays."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np

from cryodrgn_metric import artifacts
from cryodrgn_metric.acquisition import first_landmarks, more_landmarks, training_sizes
from cryodrgn_metric.cache import Stage
from cryodrgn_metric.distance_ensemble import DistanceEnsemble
from cryodrgn_metric.landmark_features import decoding_of
from cryodrgn_metric.landmarks import Landmarks
from cryodrgn_metric.learning import learn_distance, learn_error_bars
from cryodrgn_metric.measurement import Measured, measure_distances
from cryodrgn_metric.run import Run

__all__ = ["learn_actively"]

logger = logging.getLogger(__name__)

PROGRESS = 0.05  # by which the error must fall for another round
SPENT, SETTLED = "--landmarks is spent", "the held-out error has stopped falling"


@dataclass
class _Rounds:
    """What has been chosen and learned so far, kept in a stage as it grows.

    Arguments:
        stage: Where it is kept: the landmarks of round r as piece 2 r, its error as 2 r + 1.
        landmarks: Of every round that was begun.
        errors: The held-out error of every round that has ended.
    """

    stage: Stage
    landmarks: list[Landmarks] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    @property
    def sizes(self) -> list[int]:
        """How many landmarks each round has."""
        return [len(landmarks) for landmarks in self.landmarks]

    def recall(self) -> None:
        """Find what an earlier run has kept; a round without its error goes on."""
        while (table := self.stage.load(2 * len(self.landmarks))) is not None:
            self.landmarks.append(Landmarks.from_table(table))
            error = self.stage.load(2 * len(self.errors) + 1)
            if error is None:
                return
            self.errors.append(float(error[0]))

    def begin(self, landmarks: Landmarks) -> None:
        """Keep the landmarks of the next round."""
        self.stage.save(2 * len(self.landmarks), landmarks.as_table())
        self.landmarks.append(landmarks)

    def end(self, error: float) -> None:
        """Keep the error of the round, after the landmarks of the one that follows, if any.

        In this order: a run that is killed between the two only judges the round once more.
        """
        self.stage.save(2 * len(self.errors) + 1, np.array([error]))
        self.errors.append(error)


def learn_actively(run: Run) -> Measured:
    """Pick, decode, compare and learn in rounds; what follows is as for any other landmarks.

    The first round is a test set, as for every sampling, a validation set and a small k-means
    sketch. Each further round adds half as many again landmarks that train, where the nets that
    give h_psi its error bars disagree. A round in which the error of h_psi on pairs of validation
    landmarks falls by less than 5 % is the last. The test set has no say in it: an error that
    decides when to stop is the lowest of several, and would be reported too low.

    Rounds are kept as they end, so that a run that was killed goes on in the one it was in.

    Arguments:
        run: What all stages share.

    Returns:
        The landmarks of the last round, measured.

    Raises:
        VolumeError: As from `measure_distances`.
        OutputError: The disk is full.
    """
    rounds = _rounds_so_far(run)
    measured = _measure(run, rounds)
    while _goes_on(run, rounds, measured):
        measured = _measure(run, rounds)
    rounds.stage.forget_others()
    run.scores["active_sampling"] = {
        "landmarks": rounds.sizes,
        "held_out_error": rounds.errors,
        "stopped": _reason_to_stop(run, rounds),
    }
    return measured


def _rounds_so_far(run: Run) -> _Rounds:
    """Those of an earlier run, or the beginning; the key is all that a choice depends on."""
    config = run.config
    stage = run.cache.stage(
        "landmarks",
        z=run.digests["z"],
        pool=artifacts.sha256_of_array(run.pool),
        count=config.landmarks.count,
        sampling=config.landmarks.sampling,
        decoding=decoding_of(run),
        distances=config.distances,
        distance_net=config.distance_net,
        ensemble=config.ensemble,
        seed=config.seed,
    )
    rounds = _Rounds(stage)
    rounds.recall()
    if not rounds.landmarks:
        with run.watch.stage("landmarks"):
            latents, seed = run.workdir.latents, config.seed
            rounds.begin(first_landmarks(latents, config.landmarks, seed, run.pool))
    return rounds


def _measure(run: Run, rounds: _Rounds) -> Measured:
    return measure_distances(run, rounds.landmarks[-1], rounds.sizes[:-1])


def _goes_on(run: Run, rounds: _Rounds, measured: Measured) -> bool:
    """Judge the round, unless an earlier run has; if another is worth it, begin that."""
    if len(rounds.errors) == len(rounds.landmarks):
        return False
    net = learn_distance(run, measured)
    ensemble = learn_error_bars(run, measured, net)
    assert ensemble is not None  # EmbedConfig has seen to it
    error = _held_out_error(ensemble, measured)
    logger.info(
        "Round %d: %d landmarks, error of h_psi on validation landmarks %.2f %%",
        len(rounds.landmarks),
        rounds.sizes[-1],
        100 * error,
    )
    reason = _reason_to_stop(run, rounds, error)
    if reason is None:
        rounds.begin(_chosen(run, rounds, ensemble))
    else:
        logger.info("No more landmarks: %s.", reason)
    rounds.end(error)
    return reason is None


def _held_out_error(ensemble: DistanceEnsemble, measured: Measured) -> float:
    """The mean relative error of all pairs of validation landmarks, over all members.

    The members' mean, as one net's error has more noise than a round makes progress. Distances
    below a tenth of h_psi's unit count as that. NaN where there are no pairs.
    """
    rows = measured.landmarks.validation
    i, j = np.triu_indices(len(rows), 1)
    if not len(i):
        return float("nan")
    truth = measured.pairs.distances[np.ix_(rows, rows)][i, j]
    predicted = ensemble.predict_members(measured.latents[rows])[:, i, j]
    return float(np.mean(np.abs(predicted - truth) / np.maximum(truth, ensemble.shortest)))


def _reason_to_stop(run: Run, rounds: _Rounds, *latest: float) -> str | None:
    """Why there is no round after the last, or None; `latest` is its error, if not kept yet."""
    errors = [*rounds.errors, *latest]
    if rounds.sizes[-1] >= min(run.config.landmarks.count, len(run.pool)):
        return SPENT
    if len(errors) > 1 and errors[-1] > (1 - PROGRESS) * min(errors[:-1]):
        return SETTLED
    return None


def _chosen(run: Run, rounds: _Rounds, ensemble: DistanceEnsemble) -> Landmarks:
    """The landmarks of the next round."""
    landmarks = rounds.landmarks[-1]
    kept = len(landmarks.test) + len(landmarks.validation)
    most = min(run.config.landmarks.count, len(run.pool)) - kept
    size = next(size for size in training_sizes(most) if size > len(landmarks.train))
    latents, seed = run.workdir.latents, run.config.seed
    wanted = size - len(landmarks.train)
    with run.watch.stage("landmarks"):
        return more_landmarks(ensemble, latents, landmarks, run.pool, wanted, seed)
