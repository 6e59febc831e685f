"""Layers as oneDNN multiplies them against the same layers by torch, and where it cannot."""

import pytest
import torch

from cryodrgn_metric import perceptron
from cryodrgn_metric.host_models import Layer
from cryodrgn_metric.perceptron import Perceptron, bfloat16_gain

POINT_WIDTH, LATENT_WIDTH, WIDTH = 12, 3, 40


def make_layers(slope, hidden, dtype):
    torch.manual_seed(0)
    sizes = [POINT_WIDTH + LATENT_WIDTH, *[WIDTH] * (hidden + 1), 2]
    return [
        Layer(
            torch.randn(fan_in, fan_out, dtype=dtype) / fan_in**0.5,
            torch.randn(fan_out, dtype=dtype),
            None if fan_out == 2 else slope,
        )
        for fan_in, fan_out in zip(sizes, sizes[1:], strict=False)
    ]


def output(layers, dtype, points, latents):
    network = Perceptron(layers, POINT_WIDTH, dtype, rows=len(points))
    shifts = network.of_latents(latents)
    return torch.stack([network.output(network.of_points(points), shift) for shift in shifts])


def by_torch(layers, points, latents):
    """The same in float64, layer by layer, each latent beside every point."""
    values = torch.cat(
        [points.expand(len(latents), -1, -1), latents[:, None].expand(-1, len(points), -1)], 2
    ).double()
    for layer in layers:
        values = values @ layer.weight.double() + layer.bias.double()
        if layer.slope is not None:
            values = torch.nn.functional.leaky_relu(values, layer.slope)
    return values


@pytest.fixture
def without_onednn(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)


def inputs(count, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(count, POINT_WIDTH, generator=generator, dtype=dtype)
    return points, torch.randn(2, LATENT_WIDTH, generator=generator, dtype=dtype)


@pytest.mark.parametrize("hidden", [0, 1, 3])
@pytest.mark.parametrize("slope", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("name", ["float32", "float64"])
def test_equals_the_layers_one_by_one(tolerance, name, slope, hidden):
    dtype = getattr(torch, name)
    layers, (points, latents) = make_layers(slope, hidden, dtype), inputs(50, dtype)
    found, expected = output(layers, dtype, points, latents), by_torch(layers, points, latents)
    assert found.dtype == dtype
    assert (found - expected).norm() < tolerance[name] * expected.norm()


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_is_the_same_without_onednn(without_onednn, tolerance, name):
    test_narrow_hidden_layers(name, tolerance)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_narrow_hidden_layers(name, tolerance):
    """bfloat16 has 8 bits: three layers that each round weights and values leave 1 %."""
    layers, (points, latents) = make_layers(0.0, 3, torch.float32), inputs(200)
    found = output(layers, getattr(torch, name), points, latents)
    expected = by_torch(layers, points, latents)
    assert found.dtype == torch.float32
    error = float((found - expected).norm() / expected.norm())
    assert error < (0.01 if name == "bfloat16" else tolerance["float32"])


@pytest.mark.parametrize("capability", [lambda: "AVX2", lambda: "NO AVX", lambda: "AVX512", None])
def test_processors_and_versions_of_torch(monkeypatch, tolerance, capability):
    if capability is None:  # torch 2.0
        monkeypatch.delattr(torch.backends.cpu, "get_cpu_capability")
    else:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", capability)
    test_narrow_hidden_layers("float32", tolerance)


def test_gain_of_bfloat16_is_a_ratio_of_times(monkeypatch):
    assert 0.01 < bfloat16_gain() < 20
    seconds = {torch.float32: 3.0, torch.bfloat16: 2.0}
    monkeypatch.setattr(perceptron, "_seconds_of_product", seconds.get)
    assert bfloat16_gain() == 1.5


class Changed:
    """torch's private operations as a later torch may have them."""

    def __init__(self, reorder=None, multiply=None):
        self._reorder_linear_weight = reorder or (lambda weight, rows: weight)
        if multiply is not None:
            self._linear_pointwise = multiply


def refuse(*_):
    raise RuntimeError("unsupported")


@pytest.mark.parametrize(
    "operations",
    [
        object(),
        Changed(),
        Changed(reorder=refuse),
        Changed(multiply=refuse),
        Changed(multiply=lambda values, weight, *_: values @ weight.T),  # forgets the bias
        Changed(multiply=lambda values, weight, *_: values @ weight.T * torch.nan),
    ],
)
def test_operations_that_changed_are_not_used(monkeypatch, tolerance, operations):
    monkeypatch.setattr(perceptron.torch.ops, "mkldnn", operations)
    test_equals_the_layers_one_by_one(tolerance, "float32", 0.3, 2)


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_a_network_that_diverged_gives_nan_and_no_number(slope):
    layers = make_layers(slope, 2, torch.float32)
    layers[0].weight[:, 0] = float("inf")  # and inf - inf in the layers after it
    found = output(layers, torch.float32, torch.randn(5, POINT_WIDTH), torch.ones(1, LATENT_WIDTH))
    assert found.isnan().any()


def test_inputs_stay_as_they_are():
    layers, (points, latents) = make_layers(0.0, 1, torch.float32), inputs(5)
    before = points.clone(), [layer.weight.clone() for layer in layers]
    output(layers, torch.float32, points, latents)
    assert torch.equal(points, before[0])
    assert all(map(torch.equal, [layer.weight for layer in layers], before[1]))
