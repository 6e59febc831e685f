"""The volumes of landmarks, decoded and reduced to what the distance keeps of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from cryodrgn_metric import artifacts
from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.distances.streaming import calibrate, stream_features
from cryodrgn_metric.landmarks import Landmarks
from cryodrgn_metric.perceptron import bfloat16_gain
from cryodrgn_metric.run import Run
from cryodrgn_metric.threads import one_thread

__all__ = ["decoding_of", "landmark_features"]

logger = logging.getLogger(__name__)

WORTH_ROUNDING = 1.1  # times as fast


def landmark_features(
    run: Run, landmarks: Landmarks, ends: Sequence[int]
) -> tuple[torch.Tensor, str]:
    """The coefficients of every landmark's volume, and a key of all of them.

    What the first part of the landmarks calibrates holds for the others, too, which would find
    their earlier volumes useless otherwise.

    Arguments:
        run: What all stages share.
        landmarks: Whose volumes are decoded.
        ends: Where each part of them ends, the last at their number.

    Raises:
        VolumeError: None of those that are looked at first can be compared.
    """
    parts = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    first = landmarks.only(np.arange(len(landmarks)) < ends[0])
    latents = run.workdir.latents[landmarks.indices]
    keys = [_key_of(run, landmarks, part) for part in parts]
    made_from = decoding_of(run)
    pilot = run.cache.stage("calibration", landmarks=keys[0], **made_from)
    with run.watch.stage("volumes"):
        calibrate(run.stream, run.workdir.latents[first.indices[first.train]], run.distance, pilot)
        pilot.forget_others()
        settings = (f"{name} = {value:.4g}" for name, value in run.distance.settings.items())
        logger.info("The distance rests on %s.", ", ".join(settings))
        calibration = run.distance.calibration
        stages = [
            run.cache.stage("volumes", landmarks=key, **made_from, calibration=calibration)
            for key in keys
        ]
        features = [
            stream_features(
                run.stream,
                latents[part],
                run.distance,
                store=stage,
                announce=lambda count: _announce(run, count),
            )
            for part, stage in zip(parts, stages, strict=True)
        ]
    run.note_reuse("volumes", "batches", stages[-1], *stages[:-1])
    key = stages[0].key if len(stages) == 1 else "".join(stage.key for stage in stages)
    return torch.cat(features, dim=-1), key


def decoding_of(run: Run) -> dict[str, object]:
    """All that the volume of a particle depends on, for the keys of stages.

    Arguments:
        run: What all stages share.
    """
    return {
        "config": run.digests["config"],
        "weights": run.digests["weights"],
        "mask": run.digests.get("mask"),
        "mask_radius": run.config.volumes.mask_radius,
        "box": run.stream.box,
        "max_frequency": run.stream.max_frequency,
        "scale": run.config.distances.scale,
        "distance": run.config.distances.of_volumes.distance,
        "contour": run.config.distances.contour,
        "apix": _apix_that_counts(run),
        "rigid": run.config.distances.rigid,
        "precision": run.config.volumes.precision,
    }


def _apix_that_counts(run: Run) -> float | None:
    """Of the compared volumes, where the distance is a length."""
    is_length = run.config.distances.distance == "transport"
    return run.apix_at_box(run.stream.box) if is_length else None


def _key_of(run: Run, landmarks: Landmarks, part: slice) -> str:
    """Which latents are decoded."""
    rows = artifacts.sha256_of_array(landmarks.as_table()[:, part])
    return f"{run.digests['z']} {rows}"


def _announce(run: Run, count: int) -> None:
    """Say how long decoding will take; without a GPU, say it loudly."""
    decoder, box = run.stream.decoder, run.stream.box
    threads = torch.get_num_threads() if decoder.device.type == "cpu" else 1
    with one_thread():
        seconds = decoder.estimate_seconds(box, count, run.stream.max_frequency)
    text = f"Decoding {count} landmarks at {box}^3 will take about {seconds / threads:.0f} s."
    if decoder.device.type == "cpu":
        logger.warning("NO GPU IS USED. %s", text)
        _warn_of_precision(decoder)
    else:
        logger.info("%s", text)


def _warn_of_precision(decoder: Decoder) -> None:
    if decoder.dtype != torch.bfloat16:
        return
    with one_thread():
        gain = bfloat16_gain()
    if gain < WORTH_ROUNDING:
        logger.warning(
            "--precision bfloat16 is %.1f times as fast as float32 on this CPU: leave it out.",
            gain,
        )
