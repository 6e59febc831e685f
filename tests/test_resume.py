"""A run that was killed, stopped or changed: what goes on, what starts anew, what stays behind."""

import json
import logging
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import mrcfile
import nbformat
import numpy as np
import pytest
import yaml
from conftest import quiet
from killed_runs import STAGES, run_in_process
from running import FEW, GUESTS, SMALL, hashes, options_of, run, unchanged

from cryodrgn_metric.artifacts import save_pickle
from cryodrgn_metric.config import DistanceNetConfig, MetricMapConfig
from cryodrgn_metric.errors import FolderBusyError
from cryodrgn_metric.folder_lock import locked
from cryodrgn_metric.options import embed_config
from cryodrgn_metric.pipeline import embed
from cryodrgn_metric.safe_files.pickles import load_pickle

ROOT = Path(__file__).parents[1]
KILLS = 20


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, vae_workdir):
    copy = tmp_path_factory.mktemp("resume") / "workdir"
    shutil.copytree(vae_workdir, copy)
    return copy


def small_config(workdir, outdir, *options, small=SMALL):
    """A run of few landmarks, kept in several blocks of pairs, with nets that train at once."""
    given = (*small, "--landmarks", "40", "--device", "cpu", *options)
    config = embed_config(options_of(workdir, *given))
    return replace(
        config,
        outdir=str(outdir) if outdir else None,
        distances=replace(config.distances, pairs_per_tile=64, pairs_per_block=256),
        distance_net=DistanceNetConfig(max_epochs=30),
        metric_map=MetricMapConfig(steps=200),
    )


def results(folder):
    """Digests of what a run made, without what differs between any two runs: clock and folder."""
    found = {
        name: digest
        for name, digest in hashes(folder).items()
        if not name.startswith("cache/") and name not in ("metric_embed.log", "metric_embed.lock")
    }
    fidelity = json.loads((folder / "fidelity.json").read_text())
    for name in ("timings_in_seconds", "pairs_per_second", "peak_memory_in_bytes"):
        del fidelity[name]
    parameters = yaml.safe_load((folder / "metric_embed.yaml").read_text())
    for name in ("outdir", "workdir", "restart"):
        del parameters["config"][name]
    del parameters["reused_from_an_earlier_run"]
    return found | {"fidelity.json": fidelity, "metric_embed.yaml": parameters}


def loadable(folder):
    """Open every file under a final name: none may be half of one."""
    for path in folder.rglob("*"):
        # a draft, which is half of something; a link of the overlay, to the user's own
        if path.name.startswith(".") or path.is_symlink():
            continue
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                assert all(len(arrays[name]) for name in arrays.files)
        elif path.suffix == ".npy":
            np.load(path, allow_pickle=False)
        elif path.suffix in (".yaml", ".json"):
            assert yaml.safe_load(path.read_text()) is not None
        elif path.suffix == ".pkl":
            load_pickle(path)
        elif path.suffix == ".mrc":
            mrcfile.read(path)
        elif path.suffix in (".cxc", ".html", ".txt"):
            assert path.read_text().rstrip().endswith("</html>") or path.suffix != ".html"
        elif path.suffix == ".ipynb":
            nbformat.validate(nbformat.read(path, as_version=4))


def drafts(folder):
    return [path for path in folder.rglob(".*") if path.is_file()]


@pytest.fixture(scope="module")
def undisturbed(workdir, tmp_path_factory):
    """A run from beginning to end, and how long its stages took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with unchanged(workdir):
        assert run_in_process(small_config(workdir, folder)).exit_code == 0
    return folder


# -- SIGKILL


def kill_and_go_on(config, undisturbed, stage, moment):
    """Kill a run at a share of a stage's usual time; the stage it died in, after all checks.

    None if it was finished: metric_embed.yaml is written when there is all but the report.
    """
    usual = json.loads((undisturbed / "fidelity.json").read_text())["timings_in_seconds"]
    folder = Path(config.outdir)
    with unchanged(config.workdir):
        died_in = run_in_process(config, stage, moment * usual[stage]).killed_in
        loadable(folder)
        # all but the report is there, so it was killed, if at all, on its way out
        if died_in != "report" and (folder / "metric_embed.yaml").exists():
            assert results(folder) == results(undisturbed)
            died_in = None
        assert run_in_process(config).exit_code == 0
    assert not drafts(folder)
    assert results(folder) == results(undisturbed)
    return died_in


@pytest.mark.parametrize(("stage", "moment"), [("distances", 0.5), ("motion", 0.1)])
def test_a_killed_run_goes_on(workdir, undisturbed, tmp_path, stage, moment):
    config = small_config(workdir, tmp_path)
    assert kill_and_go_on(config, undisturbed, stage, moment) in STAGES
    log = (tmp_path / "metric_embed.log").read_text()
    assert log.count("landmarks ...") == 2


def test_nothing_of_a_killed_run_with_other_options_stays(workdir, undisturbed, tmp_path):
    """Nor does the folder pass for finished, though it was before."""
    folder = tmp_path / "again"
    shutil.copytree(undisturbed, folder, symlinks=True)
    assert (folder / "metric_embed.yaml").exists()
    others = small_config(workdir, folder, "--ksample", "6")
    assert run_in_process(others, "overlay").killed_in == "overlay"
    assert not (folder / "metric_embed.yaml").exists()
    new = set(hashes(folder / "analyze.2")) - set(hashes(undisturbed / "analyze.2"))
    assert "kmeans6/labels.pkl" in new and any(name.startswith("path_") for name in new)
    assert run_in_process(small_config(workdir, folder)).exit_code == 0
    assert results(folder) == results(undisturbed)


ACTIVE = ("--sampling", "active", "--ensemble", "2")


@pytest.fixture(scope="module")
def undisturbed_rounds(workdir, tmp_path_factory):
    """As `undisturbed`, with --sampling active: rounds of decoding, comparing and learning."""
    folder = tmp_path_factory.mktemp("undisturbed_rounds")
    with unchanged(workdir):
        assert run_in_process(small_config(workdir, folder, *ACTIVE)).exit_code == 0
    assert len(rounds_of(folder)["landmarks"]) > 2
    return folder


def rounds_of(folder):
    return json.loads((folder / "fidelity.json").read_text())["active_sampling"]


@pytest.mark.parametrize(
    ("stage", "moment"),
    [("distances", 0.3), pytest.param("error bars", 0.5, marks=pytest.mark.slow)],
)
def test_a_killed_run_goes_on_in_its_round(workdir, undisturbed_rounds, tmp_path, stage, moment):
    config = small_config(workdir, tmp_path, *ACTIVE)
    assert kill_and_go_on(config, undisturbed_rounds, stage, moment) in STAGES


def test_finished_rounds_are_reused(workdir, undisturbed_rounds, tmp_path, caplog):
    folder = tmp_path / "again"
    shutil.copytree(undisturbed_rounds, folder)
    heard(caplog)
    embed_here(small_config(workdir, folder, *ACTIVE))
    assert reused(caplog.text) == {"batches", "pairs", "h_psi", "f_xi"}
    assert "NO GPU" not in caplog.text and "Round" not in caplog.text  # nothing was judged again
    assert results(folder) == results(undisturbed_rounds)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_every_stage_at_least_twice(
    workdir, undisturbed, tmp_path, capsys
):
    """Short stages are tried again until the kill has landed within them twice."""
    stages = [
        name for name in STAGES if name not in ("report", "error bars")
    ]  # tests of their own
    rng, hits = random.Random(0), dict.fromkeys(stages, 0)
    kills = 0
    while min(hits.values()) < 2 or kills < KILLS:
        stage = min(hits, key=lambda name: (hits[name], stages.index(name)))
        folder = tmp_path / f"{kills}_{len(list(tmp_path.iterdir()))}"
        config = small_config(workdir, folder)
        died_in = kill_and_go_on(config, undisturbed, stage, rng.random())
        shutil.rmtree(folder)
        if died_in is not None:
            hits[died_in] += 1
            kills += 1
    with capsys.disabled():
        print(f"\n{kills} kills, every continuation equal to the undisturbed run: {hits}")
    assert kills >= KILLS and min(hits.values()) >= 2


@pytest.mark.slow
def test_killed_while_it_reports(vae_workdir, tmp_path):
    """Among the figures and within the notebook, whose copy in the user's analyze.2 counts too."""
    workdir = tmp_path / "workdir"
    undisturbed = workdir / "metric_embed.undisturbed"  # its links lead to the workdir
    shutil.copytree(vae_workdir, workdir)
    (workdir / "analyze.2").mkdir()
    folder = workdir / "metric_embed.2"  # every time: the notebook says where it lies
    config = small_config(workdir, folder, small=FEW)
    assert run_in_process(config).exit_code == 0
    folder.rename(undisturbed)
    guests = hashes(workdir / "analyze.2")
    assert set(guests) == set(GUESTS)
    for moment in (0.1, 0.9):
        died_in = None
        while died_in is None:  # where the first run was slower, it ends before
            shutil.rmtree(workdir / "analyze.2")
            (workdir / "analyze.2").mkdir()
            died_in = kill_and_go_on(config, undisturbed, "report", moment)
            assert hashes(workdir / "analyze.2") == guests
            shutil.rmtree(folder)
            moment *= 0.8
        assert died_in == "report"


# -- what is reused


def test_a_finished_run_is_reused_and_restart_is_not(workdir, undisturbed, tmp_path, caplog):
    folder = tmp_path / "again"
    shutil.copytree(undisturbed, folder)
    heard(caplog)
    embed_here(small_config(workdir, folder))
    for line in ("5 of 5 batches", "4 of 4 blocks of pairs", "h_psi: from", "f_xi: from"):
        assert line in caplog.text
    assert "NO GPU" not in caplog.text  # nothing was decoded
    assert results(folder) == results(undisturbed)
    caplog.clear()
    embed_here(replace(small_config(workdir, folder), restart=True))
    assert "earlier run" not in caplog.text
    assert results(folder) == results(undisturbed)


def test_the_speed_of_a_run_is_that_of_the_pairs_it_measured(workdir, undisturbed, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(undisturbed, folder)
    for expected in (0, 256):
        embed_here(small_config(workdir, folder))
        scores = json.loads((folder / "fidelity.json").read_text())
        seconds = scores["timings_in_seconds"].get("distances")
        assert (scores["pairs_per_second"] or 0) == pytest.approx(expected / seconds)
        lost = next((folder / "cache" / "distances").glob("00001-*"))
        lost.unlink()


def test_a_restart_that_was_killed_leaves_nothing_of_before(workdir, undisturbed, tmp_path):
    """The same command without --restart, as a requeued job types it, goes on from the restart."""
    folder = tmp_path / "again"
    shutil.copytree(undisturbed, folder)
    begun = time.time()
    config = small_config(workdir, folder)
    killed = run_in_process(replace(config, restart=True), "distances", 0.01)
    assert killed.killed_in is not None
    pieces = [path for path in (folder / "cache").rglob("*-*") if path.is_file()]
    assert pieces and all(path.stat().st_mtime > begun for path in pieces)
    assert run_in_process(config).exit_code == 0
    assert results(folder) == results(undisturbed)


def test_f_xi_is_learned_again_where_h_psi_came_out_otherwise(
    workdir, undisturbed, tmp_path, monkeypatch, caplog
):
    """As on another device: the same key, other weights."""
    folder = tmp_path / "again"
    shutil.copytree(undisturbed, folder)
    (folder / "models" / "h_psi.yaml").unlink()
    monkeypatch.setattr("cryodrgn_metric.landmark_training.STEPS_PER_EPOCH", 9)
    heard(caplog)
    embed_here(small_config(workdir, folder))
    assert reused(caplog.text) == {"batches", "pairs"}


def heard(caplog):
    """The package's logger doesn't propagate within a run: listen to it directly."""
    logging.getLogger("cryodrgn_metric").addHandler(caplog.handler)


def embed_here(config):
    with unchanged(config.workdir), quiet():
        embed(config)


@pytest.fixture(autouse=True)
def _stop_listening(caplog):
    yield
    logging.getLogger("cryodrgn_metric").removeHandler(caplog.handler)


CHANGED = {
    # what changes: which of (batches, blocks of pairs, h_psi, f_xi) may still be reused
    "dim": (("--dim", "3"), "batches pairs h_psi"),
    "loss": (("--loss", "weighted"), "batches pairs h_psi"),
    "map": (("--map", "flow", "--no-amortization"), "batches pairs h_psi"),
    "ksample": (("--ksample", "5"), "batches pairs h_psi f_xi"),
    "ensemble": (("--ensemble", "2"), "batches pairs h_psi f_xi"),
    "flip": (("--flip",), "batches pairs h_psi f_xi"),
    "seed": (("--seed", "1"), ""),
    "sampling": (("--sampling", "random"), ""),
    "landmarks": (("--landmarks", "30"), ""),
    "box": (("-d", "16"), ""),
    "low-pass": (("--low-pass", "12"), ""),
    "mask radius": (("--mask-radius", "0.7"), ""),
    "scale": (("--scale", "unit"), ""),
    "distance": (("--distance", "transport"), ""),
    "rigid": (("--rigid", "se3"), ""),
    "precision": (("--precision", "bfloat16"), ""),
}


@pytest.mark.parametrize("change", CHANGED)
def test_other_parameters_reuse_only_what_does_not_depend_on_them(
    workdir, undisturbed, tmp_path, caplog, change
):
    options, reusable = CHANGED[change]
    folder, fresh = tmp_path / "changed", tmp_path / "fresh"
    shutil.copytree(undisturbed, folder)
    config = small_config(workdir, folder, *options)
    if change in ("dim", "loss", "map"):
        args = embed_config(options_of(workdir, *options)).metric_map
        config = replace(config, metric_map=replace(args, steps=200))
    heard(caplog)
    embed_here(config)
    assert reused(caplog.text) == set(reusable.split())
    if reusable:
        embed_here(replace(config, outdir=str(fresh)))
        assert results(folder) == results(fresh)


def test_dim_auto_takes_the_dimension_that_was_found_before(
    workdir, undisturbed, tmp_path, caplog
):
    """It is estimated in every run, and again only where the landmarks' distances are others."""
    folder = tmp_path / "auto"
    shutil.copytree(undisturbed, folder)
    found = (folder / "intrinsic_dimension.json").read_bytes()
    heard(caplog)
    config = small_config(workdir, folder)
    embed_here(replace(config, metric_map=replace(config.metric_map, dimension="auto")))
    assert reused(caplog.text) == {"batches", "pairs", "h_psi"}
    assert "dimension: from an earlier run" in caplog.text
    assert (folder / "intrinsic_dimension.json").read_bytes() == found
    width = load_pickle(folder / "z_metric.pkl").shape[1]
    assert width == max(1, json.loads(found)["embedding_dimension"])
    caplog.clear()
    embed_here(small_config(workdir, folder, "--seed", "1"))
    assert "dimension: from an earlier run" not in caplog.text


def reused(log):
    said = {
        "batches": r"\d+ batches from an earlier run",
        "pairs": r"blocks of pairs from an earlier run",
        "h_psi": "h_psi: from an earlier run",
        "f_xi": "f_xi: from an earlier run",
    }
    return {name for name, pattern in said.items() if re.search(pattern, log)}


@pytest.mark.parametrize("changed", ["z", "weights", "config"])
def test_changed_inputs_never_reuse(workdir, undisturbed, tmp_path, caplog, changed):
    inputs, folder, fresh = tmp_path / "inputs", tmp_path / "changed", tmp_path / "fresh"
    shutil.copytree(workdir, inputs)
    shutil.copytree(undisturbed, folder, symlinks=True)
    change_input(inputs, changed)
    heard(caplog)
    embed_here(small_config(inputs, folder))
    assert reused(caplog.text) == set()
    if changed == "z":  # landmarks are kept by the others
        embed_here(small_config(inputs, fresh))
        assert results(folder) == results(fresh)


def change_input(inputs, changed):
    """The smallest change of one input file."""
    if changed == "config":
        with open(inputs / "config.yaml", "a") as config:
            config.write("# a comment\n")
    elif changed == "weights":  # those of the epoch before
        shutil.copy(inputs / "weights.1.pkl", inputs / "weights.2.pkl")
    else:
        with open(inputs / "z.2.pkl", "rb") as file:
            z, logvar = pickle.load(file), pickle.load(file)
        z[7, 0] += 1e-4
        (inputs / "z.2.pkl").write_bytes(pickle.dumps(z) + pickle.dumps(logvar))


def test_other_candidates_and_another_mask_never_reuse(workdir, tmp_path, caplog):
    candidates, mask = tmp_path / "ind.pkl", tmp_path / "mask.mrc"
    heard(caplog)
    for turn in range(2):
        save_pickle(candidates, np.arange(turn, 150))
        with mrcfile.new(mask, overwrite=True) as mrc:
            values = np.ones((16, 16, 16), np.float32)
            values[: 2 * turn] = 0
            mrc.set_data(values)
        caplog.clear()
        options = ("--ind", candidates, "--mask", mask, "-d", "16", "--landmarks", "20")
        embed_here(small_config(workdir, tmp_path / "out", *options))
        assert reused(caplog.text) == set()


def test_damaged_leftovers_are_made_again(workdir, undisturbed, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(undisturbed, folder)
    for path in (folder / "cache").rglob("*.npy"):
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    (folder / "models" / "h_psi.yaml").write_text("parameters: {width: 1}\n")
    (folder / f".z_metric.{'0' * 12}.pkl").write_bytes(b"a draft of a killed run")
    embed_here(small_config(workdir, folder))
    assert not drafts(folder)
    assert results(folder) == results(undisturbed)


def test_nothing_of_other_parameters_stays_in_the_cache(workdir, undisturbed, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(undisturbed, folder)
    embed_here(small_config(workdir, folder, "--seed", "1"))
    counts = [
        {
            stage.name: len(list(stage.iterdir()))
            for stage in (there / "cache").iterdir()
            if stage.is_dir()
        }
        for there in (folder, undisturbed)
    ]
    assert counts[0] == counts[1]


# -- SIGTERM, and two runs at once


def start(workdir, outdir, *options):
    """The real command in a process of its own, as a batch system would start it."""
    code = "from cryodrgn_metric.script import main; main()"
    arguments = [str(workdir), *SMALL, "--threads", "2", "-o", str(outdir), *options]
    return subprocess.Popen(
        [sys.executable, "-c", code, "embed", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(log, words, process):
    """Until a log says something."""
    while not log.exists() or words not in log.read_text():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


def test_sigterm_saves_and_exits_75_and_the_same_command_goes_on(workdir, tmp_path):
    folder = tmp_path / "stopped"
    with unchanged(workdir):
        process = start(workdir, folder, "--landmarks", "120")
        wait_for(folder / "metric_embed.log", "distances ...", process)
        time.sleep(1)
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 75 and time.monotonic() - begun < 20
        assert "stopped by SIGTERM" in said and "go on" in said
        assert not drafts(folder) and not (folder / "metric_embed.yaml").exists()
        loadable(folder)
        second = start(workdir, folder, "--landmarks", "120")
        wait_for(folder / "metric_embed.log", "15 of 15 batches from an earlier run", second)
        # while it runs, nobody else may
        with pytest.raises(FolderBusyError, match=f"process {second.pid} on"):
            embed_here(small_config(workdir, folder))
        assert second.wait(timeout=300) == 0
        second.stderr.close()
    whole = tmp_path / "whole"
    run(workdir, "--landmarks", "120", "--threads", "2", "-o", whole)
    assert results(folder) == results(whole)


def test_a_busy_folder_is_a_refusal_of_the_command(workdir, tmp_path, capsys):
    with locked(tmp_path / "metric_embed.lock"), pytest.raises(SystemExit) as stopped:
        run(workdir, "-o", tmp_path)
    assert stopped.value.code == 2
    assert f"process {os.getpid()} on" in capsys.readouterr().err
