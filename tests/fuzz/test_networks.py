"""h_psi and f_xi: their settings and their weights."""

import copy
import json
import struct

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.metric_map import MetricMap
from fuzz.damage import damaged
from fuzz.harness import fuzz, judge
from fuzz.test_config import lines, yaml_values

Z = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)


class Saved:
    """A small net and a small map, and the files they were saved as."""

    def __init__(self, folder):
        distances = np.linalg.norm(Z[:, None] - Z[None], axis=-1)
        net = DistanceNet(width=4, depth=1, embedding=3, max_epochs=1, progress=False)
        net.fit(Z, distances).save(folder)
        MetricMap(width=4, depth=1, steps=2, progress=False).fit(Z, distances).save(folder)
        self.folder = folder
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        options = {"width": 4, "depth": 1, "steps": 2, "progress": False, "map": "flow"}
        MetricMap(**options).fit(Z, distances).save(folder)  # d' < d
        for path in folder.glob("f_xi.*"):
            self.files[f"flow{path.suffix}"] = path.read_bytes()

    def read(self, name, **changed):
        """Judge `load` with some files changed."""
        for file, data in {**self.files, **changed}.items():
            stem, _, suffix = file.partition(".")
            if stem == name:
                stem = "f_xi" if name == "flow" else name
                (self.folder / f"{stem}.{suffix}").write_bytes(data)
        name = "f_xi" if name == "flow" else name
        loader = DistanceNet.load if name == "h_psi" else MetricMap.load
        paths = (self.folder / f"{name}.yaml", self.folder / f"{name}.safetensors")
        judge("our networks", paths, lambda: loader(self.folder, "cpu"), self.require_right)

    def require_right(self, found):
        """Its numbers are those of its files, by numpy alone."""
        name = "h_psi" if isinstance(found, DistanceNet) else "f_xi"
        state = load((self.folder / f"{name}.safetensors").read_bytes())
        settings = yaml.safe_load((self.folder / f"{name}.yaml").read_text())
        z = np.resize(Z, (3, settings["n_features_in"])).astype(np.float32)
        with np.errstate(all="ignore"):
            is_flow = name == "f_xi" and settings["parameters"].get("map") == "flow"
            numbers = {key: value.numpy() for key, value in state.items()}
            y = (coupled if is_flow else forward)(numbers, z)
            if is_flow:
                y = y[:, : settings["parameters"]["n_components"]]
            expected = (
                y if name == "f_xi" else settings["unit"] * np.linalg.norm(y[1:] - y[:1], axis=1)
            )
            value = (
                found.transform(z) if name == "f_xi" else found.predict(z[1:], z[:1].repeat(2, 0))
            )
        fine = np.isfinite(expected) & (np.abs(expected) < 1e30)
        largest = float(np.abs(y[np.isfinite(y)]).max(initial=1)) * max(1, settings["unit"])
        tolerance = 1e-3 * largest
        assert (np.abs(value[fine].astype(float) - expected[fine]) <= tolerance).all()


def forward(state, z):
    y = (z - state["mean"]) / state["scale"]
    count = sum(key.endswith("weight") for key in state)
    for layer in range(count):
        weight, bias = state[f"layers.{2 * layer}.weight"], state[f"layers.{2 * layer}.bias"]
        y = y @ weight.T + bias
        y = y if layer == count - 1 else y / (1 + np.exp(-y))
    return y


def coupled(state, z):
    """A flow of three latents: bits of their numbers tell which a coupling leaves."""
    state = {key: value.astype(float) for key, value in state.items()}
    y = (z - state["mean"]) / state["scale"]
    masks = [np.array(mask, bool) for mask in ([0, 1, 0], [1, 0, 1], [0, 0, 1], [1, 1, 0])]
    for number, mask in enumerate(2 * masks):
        stem = f"couplings.transforms.{number}.hyper."
        weights = [k for k in state if k.startswith(stem) and k.endswith("weight")]
        phi = y[:, mask]
        for layer in range(len(weights)):
            phi = phi @ state[f"{stem}{2 * layer}.weight"].T + state[f"{stem}{2 * layer}.bias"]
            phi = phi if layer == len(weights) - 1 else phi / (1 + np.exp(-phi))
        shift, a = phi[:, 0::2], phi[:, 1::2]
        moved = y.copy()
        moved[:, ~mask] = y[:, ~mask] * np.exp(a / (1 + np.abs(a / np.log(1e-3)))) + shift
        y = moved
    whole = np.exp(state["log_c"]) * (state["mean"] + state["scale"] * y) - state["center"]
    return whole @ state["axes"].T


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return Saved(tmp_path_factory.mktemp("models"))


which = st.sampled_from(["h_psi", "f_xi", "flow"])
sizes = st.one_of(
    st.sampled_from([0, 1, 3, 4, -1, 10**6, 10**9, 2**63, 10**90, True, 4.0, "4", None]),
    yaml_values,
    st.floats(),
)


@fuzz(1.5)
@given(name=which, choice=st.data())
def test_other_settings(models, name, choice):
    settings = copy.deepcopy(yaml.safe_load(models.files[f"{name}.yaml"]))
    for table in (settings, settings["parameters"]):
        for key in choice.draw(st.lists(st.sampled_from(sorted(table)), max_size=1)):
            if choice.draw(st.integers(0, 3)):
                table[key] = choice.draw(sizes)
            else:
                del table[key]
    if choice.draw(st.integers(0, 5)) == 0:
        settings[choice.draw(st.sampled_from(["device", "parameters", "x"]))] = choice.draw(sizes)
    data = yaml.safe_dump(settings).encode("utf-8", "surrogatepass")
    models.read(name, **{f"{name}.yaml": data})


@fuzz(1)
@given(name=which, choice=st.data())
def test_damaged_files(models, name, choice):
    file = f"{name}.{choice.draw(st.sampled_from(['yaml', 'safetensors']))}"
    models.read(name, **{file: choice.draw(damaged(st.just(models.files[file])))})


@fuzz(0.7)
@given(name=which, added=st.lists(lines, max_size=2))
def test_other_text(models, name, added):
    text = models.files[f"{name}.yaml"] + "\n".join(added).encode("utf-8", "ignore")
    models.read(name, **{f"{name}.yaml": text})


numbers = st.one_of(
    st.integers(-2, 200), st.sampled_from([2**31, 2**40, 2**63, 2**64, 10**30, 1.5])
)


@fuzz(1)
@given(name=which, choice=st.data())
def test_other_headers(models, name, choice):
    """The header of safetensors, whose length comes first, is JSON."""
    data = models.files[f"{name}.safetensors"]
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    for key in choice.draw(st.lists(st.sampled_from(sorted(header)), min_size=1, max_size=2)):
        what = choice.draw(st.sampled_from(["dtype", "shape", "data_offsets", "name", "gone"]))
        entry = header.get(key, {})
        if what == "dtype":
            kinds = ["F64", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "x", 5]
            entry["dtype"] = choice.draw(st.sampled_from(kinds))
        elif what in ("shape", "data_offsets"):
            entry[what] = choice.draw(st.lists(numbers, max_size=3))
        else:
            header.pop(key, None)
            if what == "name":
                header[choice.draw(st.sampled_from(["mean", "__metadata__", "é", "layers.9"]))] = (
                    entry
                )
    text = json.dumps(header).encode()
    size = choice.draw(st.sampled_from([len(text)] * 4 + [0, 2**40, 2**64 - 1, len(text) - 1]))
    models.read(name, **{f"{name}.safetensors": struct.pack("<Q", size) + text + body})


@fuzz(0.7)
@given(name=which, choice=st.data())
def test_other_weights(models, name, choice):
    state = load(models.files[f"{name}.safetensors"])
    for key in choice.draw(st.lists(st.sampled_from(sorted(state)), max_size=2)):
        value = state[key]
        others = [
            value * float("nan"),
            value.half(),
            value.int(),
            value[:1],
            value.flatten(),
            -value,
        ]
        others += [
            torch.zeros(0),
            value.double(),
            torch.cat([value, value]),
            value * 1e30,
            value * 0,
        ]
        state[key] = choice.draw(st.sampled_from(others)).contiguous()
    models.read(name, **{f"{name}.safetensors": save(state)})


@fuzz(0.2)
@given(name=which)
def test_files_of_the_other_one(models, name):
    other = {"h_psi": "f_xi", "f_xi": "flow", "flow": "h_psi"}[name]
    models.read(name, **{f"{name}.yaml": models.files[f"{other}.yaml"]})
    models.read(name, **{f"{name}.safetensors": models.files[f"{other}.safetensors"]})
