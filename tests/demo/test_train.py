"""The demo's training commands are stock cryoDRGN's, and leave no path of the machine behind."""

import argparse
import importlib
import re

import pytest
import yaml
from conftest import quiet
from shipped import DEMO

from cryodrgn_metric.demo import simulate, train
from cryodrgn_metric.workdir import open_workdir

SHORTER = {"-n 80": "-n 1", "-n 120": "-n 2", "--checkpoint 10": "--checkpoint 1", ".80.": ".1."}


def shortened(command):
    for long, short in SHORTER.items():
        command = command.replace(long, short)
    return command


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    simulate.simulate(folder, count=48, seed=0)
    with quiet():
        train.train(folder, [shortened(command) for command in train.COMMANDS])
    return folder


@pytest.mark.parametrize("command", train.COMMANDS)
def test_commands_are_ones_that_cryodrgn_takes(command):
    parser = argparse.ArgumentParser()
    with quiet():
        importlib.import_module("cryodrgn.commands.train_dec").add_args(parser)
    assert parser.parse_args(command.split()[2:]).zdim == 4


def test_training_makes_a_workdir(trained):
    assert open_workdir(str(trained), -1).epoch == 2
    assert open_workdir(str(trained), 2).latents.shape == (48, 4)


def test_config_records_what_a_user_would_type(trained):
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert " ".join(config["cmd"]) == shortened(train.COMMANDS[-1])
    assert config["dataset_args"]["particles"] == "particles.mrcs"
    assert config["dataset_args"]["ctf"] == "ctf.pkl"


def test_no_path_of_the_machine_is_left(trained):
    for name in ("config.yaml", "run.log"):
        assert str(trained) not in (trained / name).read_text()


# -- the workdir that ships


def test_shipped_workdir_was_made_by_the_commands():
    config = yaml.safe_load((DEMO / "config.yaml").read_text())
    assert config["cmd"] == train.COMMANDS[-1].split()


def test_shipped_workdir_names_no_machine():
    for name in ("config.yaml", "run.log"):
        assert not re.search(r"(?<![\w.])/\w+/", (DEMO / name).read_text())


def test_shipped_workdir_opens():
    workdir = open_workdir(str(DEMO), -1)
    assert workdir.kind == "train_dec"
    assert workdir.box_size == 32
    assert workdir.apix_in_angstroms == simulate.APIX_IN_ANGSTROMS
    assert workdir.latents.shape == (simulate.PARTICLES, 4)
