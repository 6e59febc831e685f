"""config.yaml: other values and keys, other text, other bytes."""

import copy

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.errors import UnsafeFileError
from cryodrgn_metric.workdir import open_workdir
from fuzz.damage import damaged
from fuzz.harness import fuzz, judge
from fuzz.workdirs import plain_config, plain_workdir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return plain_workdir(tmp_path_factory.mktemp("config"))


SECTIONS = ("dataset_args", "lattice_args", "model_args")
KEYS = sorted((section, key) for section in SECTIONS for key in plain_config()[section])
KEYS += [("dataset_args", "datadir"), ("model_args", "layers"), ("model_args", "dim")]

names = st.sampled_from(
    ["fourier", "hartley", "gaussian", "geom_lowf", "none", "relu", "tilt", "conv"]
)
whole = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**63, 2**64, 10**9, 10**99, 4097, 4095, 99, 65535]),
)
reals = st.one_of(st.floats(), st.sampled_from([float("nan"), float("inf"), 1e308, 1e-320, -0.0]))
paths = st.sampled_from(["", "/", ".", "config.yaml", "x" * 300, "a\0b", "z.1.pkl", "\ud800", "~"])
yaml_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), whole, reals, names, paths, st.text(max_size=8), st.dates()
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), inner, max_size=3),
    ),
    max_leaves=6,
)
likely = st.one_of(whole, names, st.floats(0.1, 2), yaml_values)


@st.composite
def configs(draw):
    """A good config of which some keys are missing, or hold something else."""
    config = copy.deepcopy(plain_config())
    for section, key in draw(st.lists(st.sampled_from(KEYS), max_size=3)):
        if draw(st.integers(0, 3)) == 0:
            config[section].pop(key, None)
        else:
            config[section][key] = draw(likely)
    if draw(st.integers(0, 5)) == 0:
        name = draw(st.sampled_from([*SECTIONS, "data_norm_mean", "training"]))
        config[name] = draw(yaml_values)
    if draw(st.integers(0, 5)) == 0:
        others = draw(st.dictionaries(st.one_of(names, whole), yaml_values, max_size=2))
        config["model_args"] = {**plain_config()["model_args"], **others}
    return config


def is_plain(value):
    return type(value) in (int, float) and abs(value) < 1e308


def require_read(workdir, config):
    """What was accepted is what the file says, read once more by plain PyYAML."""
    size, zdim = config["lattice_args"]["D"], config["model_args"]["zdim"]
    assert type(size) is int and workdir.box_size == size - 1 and size % 2 and 3 <= size <= 4097
    assert type(zdim) is int and workdir.latents.shape == (12, zdim)
    assert workdir.domain == config["model_args"]["domain"] in ("fourier", "hartley")
    norm = config["dataset_args"].get("norm")
    if workdir.kind == "abinit":
        norm = [config["data_norm_mean"], config["data_norm_std"]]
    assert list(workdir.norm) == norm and all(map(is_plain, workdir.norm))
    assert 0 < workdir.apix < float("inf")
    assert repr(workdir.config) == repr(config)


def run(folder, data):
    path = folder / "config.yaml"
    path.write_bytes(data)

    def check(workdir):
        require_read(workdir, yaml.safe_load(data.decode()))

    workdir = judge("config", path, lambda: open_workdir(folder), check)
    if workdir is not None:
        decodes = require_decodes(workdir)
        judge("models", path, lambda: Decoder.from_workdir(workdir, "cpu"), decodes)


def require_decodes(workdir):
    def check(decoder):
        if workdir.box_size <= 16:
            volume = decoder.decode(workdir.latents[:1], 2)
            assert volume.shape == (1, 2, 2, 2)

    return check


@fuzz(3)
@given(config=configs())
def test_other_values(folder, config):
    run(folder, yaml.safe_dump(config).encode("utf-8", "surrogatepass"))


# -- other text

TAGS = ("!!python/object/apply:os.system", "!!python/object/apply:fuzz.harness.trip", "!!float")
TAGS += ("!!python/name:fuzz.harness.trip", "!!python/module:os", "!!python/tuple", "!!binary")
TAGS += ("!!int", "!!timestamp", "!!bool", "!!null", "!!set", "!!omap", "!!pairs", "!own", "!!map")
TAGS += ("!!python/object/new:fuzz.pickles.Armed", "!<tag:yaml.org,2002:seq>", "!!str", "!!merge")
PYTHON_TAGS = [tag for tag in TAGS if "python" in tag]
BODIES = ("['true']", "{a: 1}", "x", "''", "2001-99-99", "0x" + "f" * 5000, "9" * 5000, "1:2:3")
BODIES += ("[" * 200, "{a: " * 200, "[" * 200 + "]" * 200, "1" + ":59" * 3000, "&a [*a]", "*b")
BODIES += (
    "{<<: [{a: 1}, {b: 2}]}",
    "{<<: 5}",
    "? [a]",
    "&b {<<: *b}",
    "-",
    "|",
    ">",
    "'",
    '"\\x"',
)
KEYS_IN_TEXT = (
    "a",
    "seed",
    "cmd",
    "'<<'",
    "<<",
    "? [1, 2]\n",
    "5",
    "null",
    "model_args",
    "lattice_args",
)


def laughs(levels, width, merged):
    shape = "{{<<: [{0}]}}" if merged else "[{0}]"
    lines = ["l0: &l0 {x: 1}"]
    for level in range(levels):
        lines.append(
            f"l{level + 1}: &l{level + 1} " + shape.format(", ".join([f"*l{level}"] * width))
        )
    return "\n".join(lines)


lines = st.one_of(
    st.builds(
        "{}: {} {}".format,
        st.sampled_from(KEYS_IN_TEXT),
        st.sampled_from(TAGS),
        st.sampled_from(BODIES),
    ),
    st.builds("{}: {}".format, st.sampled_from(KEYS_IN_TEXT), st.sampled_from(BODIES)),
    st.builds(laughs, st.integers(1, 70), st.integers(1, 9), st.booleans()),
    st.text(max_size=30),
    st.sampled_from(
        ["---", "...", "%YAML 9.9", "%TAG ! x", "\t- x", "\ufeff", "\x85", "\x00", "# x"]
    ),
)
encodings = st.sampled_from(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-32", "latin1", "utf-7"])
GOOD = yaml.safe_dump(plain_config())


@fuzz(2)
@given(before=st.lists(lines, max_size=1), after=st.lists(lines, max_size=2), encoding=encodings)
def test_other_text(folder, before, after, encoding):
    text = "\n".join([*before, GOOD, *after, ""])
    run(folder, text.encode(encoding, "ignore"))


@fuzz(2)
@given(data=damaged(st.just(GOOD.encode())))
def test_other_bytes(folder, data):
    run(folder, data)


@fuzz(0.3)
@given(data=st.one_of(st.binary(max_size=100), st.text(max_size=100).map(str.encode)))
def test_nothing_of_a_config(folder, data):
    run(folder, data)


@fuzz(0.3)
@given(
    tag=st.sampled_from([tag for tag in TAGS if "python" in tag]), body=st.sampled_from(BODIES[:4])
)
def test_python_objects_are_named(folder, tag, body):
    path = folder / "config.yaml"
    path.write_text(GOOD + f"bomb: {tag} {body}\n")
    with pytest.raises(UnsafeFileError, match=r"config\.yaml"):
        open_workdir(folder)
    judge("config", path, lambda: open_workdir(folder))


# -- names of files


@fuzz(0.3)
@given(
    names=st.lists(
        st.sampled_from(
            ["z.7.pkl", "weights.7.pkl", "z.07.pkl", "z.٣.pkl", "weights.٣.pkl", "z..pkl"]
            + ["z." + "9" * 200 + ".pkl", "weights." + "9" * 200 + ".pkl", "z.-1.pkl", "z.1e3.pkl"]
        )
    ),
    epoch=st.one_of(st.integers(-3, 9), st.integers()),
)
def test_names_of_files(tmp_path_factory, names, epoch):
    folder = plain_workdir(tmp_path_factory.mktemp("names"))
    for name in names:
        (folder / name).write_bytes((folder / "z.1.pkl").read_bytes())

    def check(workdir):
        assert workdir.z_path.is_file() and workdir.weights_path.is_file()
        assert epoch in (-1, workdir.epoch)

    # the folder is named where it lacks something, the option where that is what is wrong
    judge("config", (folder, "--epoch"), lambda: open_workdir(folder, epoch), check)
