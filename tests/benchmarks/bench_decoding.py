"""Decoding V(z) at box 64 of a D = 128 model with cryoDRGN's default nets.

Beside `eval_volume`, as cryoDRGN calls it, and beside our matrix products alone.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import quiet

from benchmarks.counting import Count, count
from benchmarks.machine import fastest_product
from benchmarks.record import Figure, Work
from benchmarks.timing import Timing, in_turns
from benchmarks.workdirs import Size, default_workdir
from cryodrgn_metric.decoder import POINTS_PER_CHUNK, Decoder
from cryodrgn_metric.distances.rotation import RotationDistance
from cryodrgn_metric.so3.conventions import spherical_window, windowed
from cryodrgn_metric.threads import map_in_threads
from cryodrgn_metric.workdir import open_workdir

BOX = 64
CPU = torch.device("cpu")
BATCH = 4  # volumes that one thread decodes together
EVALUATED = 2  # volumes of cryoDRGN's in a round
COMPARED = 16  # latents whose distances bfloat16 must keep


@dataclass(frozen=True)
class Subject:
    """One model, by us and by cryoDRGN."""

    size: Size
    decoder: Decoder
    coarse: Decoder  # bfloat16
    host: torch.nn.Module
    lattice: object
    norm: tuple[float, float]
    latents: np.ndarray

    def decode(self, decoder: Decoder) -> None:
        """A batch for every thread, as the command decodes."""
        batches = [self.latents[:BATCH]] * torch.get_num_threads()
        list(map_in_threads(lambda z: decoder.decode(z, BOX), batches, CPU))

    def eval_volume(self, latent: np.ndarray) -> torch.Tensor:
        """As `cryodrgn eval_vol -d 64` does."""
        coordinates = self.lattice.get_downsample_coords(BOX + 1)
        extent = self.lattice.extent * BOX / self.size.box
        return self.host.eval_volume(coordinates, BOX + 1, extent, self.norm, latent)


@pytest.fixture
def subject(request, quick) -> Subject:
    size = Size(width=64, steps=20) if quick else Size()
    name = f"benchmarks-decoder-{size.width}-{size.steps}"
    workdir = open_workdir(default_workdir(request.config.cache.mkdir(name), size))
    with quiet():
        from cryodrgn import config, models

        settings = config.update_config_v1(str(workdir.config_path))
        host, lattice = models.load_decoder(settings, str(workdir.weights_path), CPU)
    decoders = [Decoder.from_workdir(workdir, "cpu", d) for d in (torch.float32, torch.bfloat16)]
    return Subject(size, *decoders, host.eval(), lattice, workdir.norm, workdir.latents)


def test_decoding(benchmark, record, quick, subject, peaks):
    cost, coarse_cost = (_cost_of_one(subject, d) for d in (subject.decoder, subject.coarse))
    points = _points(subject.size, cost.products)
    timings = in_turns(
        benchmark,
        lambda: subject.decode(subject.decoder),
        rounds=2 if quick else 5,
        host=lambda: [subject.eval_volume(z) for z in subject.latents[:EVALUATED]],
        products=_floor(subject.size, points, torch.float32),
        bfloat16=lambda: subject.decode(subject.coarse),
        coarse_products=_floor(subject.size, points, torch.bfloat16),
    )
    host = _rate(timings["host"], EVALUATED)
    exact = Promise("float32", 2.0, 1.25)
    figures = _speed(exact, timings["ours"], timings["products"], host, cost)
    # promised only where the CPU multiplies bfloat16 faster
    coarse = Promise("bfloat16", 4.5 if peaks.bfloat16 > peaks.float32 else None, None)
    figures += _speed(coarse, timings["bfloat16"], timings["coarse_products"], host, coarse_cost)
    figures += [_difference(subject), _error_of_bfloat16(subject)]
    settings = {"D": subject.size.box, "box": BOX, "width": subject.size.width}
    settings |= {"hidden layers": subject.size.layers, "zdim": subject.size.zdim, "points": points}
    assert not record("decoding", "decoding V(z)", figures, settings)


# -- the floor


def _cost_of_one(subject: Subject, decoder: Decoder) -> Count:
    """Of one volume more; what all volumes of a batch share is left out of it, and small."""
    one, two = (
        count(lambda volumes=volumes: decoder.decode(subject.latents[:volumes], BOX))
        for volumes in (1, 2)
    )
    return Count(
        two.operations - one.operations, two.bytes - one.bytes, two.products - one.products
    )


def _points(size: Size, products: float) -> int:
    """How many points are evaluated, from what one more volume multiplies."""
    return round(products / (2 * size.layers * size.width**2 + 4 * size.width))


def _floor(size: Size, points: int, dtype: torch.dtype):
    """The matrix products of as many volumes as `Subject.decode` decodes, and nothing else.

    Of the dtype are the hidden layers; the first and the last are float32.
    """
    chunk, encoded = POINTS_PER_CHUNK["cpu"], 3 * size.box
    shapes = [(encoded, size.width), (size.width, size.width), (size.width, 2)]
    dtypes = [torch.float32, dtype, torch.float32]
    weights = [torch.ones(shape, dtype=d) for shape, d in zip(shapes, dtypes, strict=True)]
    first, hidden, last = (fastest_product(weight, chunk) for weight in weights)
    inputs = [torch.ones(chunk, len(weight), dtype=weight.dtype) for weight in weights]

    def multiply(_) -> None:
        for start in range(0, points, chunk):
            features, values, outputs = (array[: points - start] for array in inputs)
            first(features)
            for _ in range(BATCH):
                for _ in range(size.layers):
                    hidden(values)
                last(outputs)

    return lambda: list(map_in_threads(multiply, range(torch.get_num_threads()), CPU))


# -- figures


def _rate(timing: Timing, volumes: int) -> float:
    return volumes / timing.median


@dataclass(frozen=True)
class Promise:
    """Of one dtype: how many times as fast as eval_volume, and as slow as its products at most."""

    dtype: str
    beside_host: float | None
    beside_floor: float | None


def _speed(
    promise: Promise, ours: Timing, floor: Timing, host: float, cost: Count
) -> list[Figure]:
    decoded = BATCH * torch.get_num_threads()
    rate = _rate(ours, decoded)
    return [
        Figure(
            promise.dtype,
            rate,
            "volumes/s",
            target=promise.beside_host,
            of_ratio=True,
            reference="eval_volume in float32",
            reference_value=host,
            rounds=ours.rounds,
            work=Work(cost.operations, cost.bytes, 1 / rate, promise.dtype),
        ),
        Figure(
            f"{promise.dtype}, beside its floor",
            1 / rate,
            "s/volume",
            target=promise.beside_floor,
            direction="at most",
            of_ratio=True,
            reference=f"our matrix products alone, hidden layers in {promise.dtype}",
            reference_value=floor.median / decoded,
            rounds=ours.rounds,
        ),
    ]


def _difference(subject: Subject) -> Figure:
    theirs = subject.eval_volume(subject.latents[0])
    ours = subject.decoder.decode(subject.latents[:1], BOX)[0]
    difference = float((ours - theirs).norm() / theirs.norm())
    return Figure("difference from eval_volume, of its norm", difference, "", 1e-5, "at most")


def _error_of_bfloat16(subject: Subject) -> Figure:
    """What bfloat16 does to Delta, in percent of the median Delta."""
    window, distance = spherical_window(BOX), RotationDistance(BOX)
    exact, coarse = (
        windowed(decoder.decode(subject.latents[:COMPARED], BOX), window)
        for decoder in (subject.decoder, subject.coarse)
    )
    distance.calibrate(distance.full_features(exact[:10]))
    upper = torch.triu_indices(COMPARED, COMPARED, 1).unbind()
    true, found = (
        distance.pairwise(distance.features(volumes)).distances[upper]
        for volumes in (exact, coarse)
    )
    error = 100 * float((found - true).abs().median() / true.median())
    return Figure("error of Delta by bfloat16, of the median", error, "%", 1, "at most")
