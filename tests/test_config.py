"""Configs come back from metric_embed.yaml as they were."""

import pytest
import yaml

from cryodrgn_metric.artifacts import plain
from cryodrgn_metric.config import (
    ClusterConfig,
    DistanceConfig,
    EmbedConfig,
    LandmarkConfig,
    MetricMapConfig,
    VolumeConfig,
)
from cryodrgn_metric.errors import ArgumentError


def saved(config):
    return yaml.safe_load(yaml.safe_dump(plain(config)))


@pytest.mark.parametrize(
    "config",
    [
        EmbedConfig("00_vae"),
        EmbedConfig(
            "00_vae",
            epoch=49,
            outdir="out",
            seed=3,
            threads=2,
            skip_report=True,
            landmarks=LandmarkConfig(60, "random", "i.pkl"),
            volumes=VolumeConfig(downsample=32, low_pass_in_angstroms=8.5, flip=True),
            distances=DistanceConfig("atoms", model="m.pdb", atom_distance="drmsd"),
            metric_map=MetricMapConfig(dimension="auto", loss="weighted"),
            clusters=ClusterConfig(5, skip_volumes=True),
        ),
    ],
)
def test_a_saved_config_is_read_back(config):
    assert EmbedConfig.from_saved(saved(config)) == config


@pytest.mark.parametrize(
    "options", [{"model": "m.pdb"}, {"atom_distance": "drmsd"}, {"distance": "l1"}]
)
def test_options_of_atoms_need_them(options):
    with pytest.raises(ArgumentError, match="--distance"):
        DistanceConfig(**options)
    if "distance" not in options:
        assert DistanceConfig("atoms", **options)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.pop("volumes"),
        lambda config: config["volumes"].update(of_a_later_version=1),
        lambda config: config.update(of_a_later_version=1),
        lambda config: config["metric_map"].update(dimension=0),
        lambda config: config["metric_map"].update(dimension="some"),
    ],
)
def test_another_versions_config_is_refused(change):
    config = saved(EmbedConfig("00_vae"))
    change(config)
    with pytest.raises(ArgumentError):
        EmbedConfig.from_saved(config)
