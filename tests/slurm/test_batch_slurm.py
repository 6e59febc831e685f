"""The script on a real Slurm: its time limit, its requeue, scancel, jobs that wait for others.

`pytest -m slurm`, some four minutes; needs Slurm and munge (`apt-get install slurm-wlm munge`).
The jobs run side by side, as most of the time is spent waiting for Slurm's clock.
"""

import os
import shlex
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cluster import slurm_cluster
from running import hashes, unchanged
from shipped import DEMO

from cryodrgn_metric.batch import BatchConfig, batch_script

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parents[2]
COMMAND = Path(sysconfig.get_path("scripts")) / "cryodrgn_metric"

# Slurm's limits are whole minutes, and it looks at them every 30 s: told to give 10 s of warning,
# it sends SIGTERM between 20 and 50 s after the start. Options after `sbatch` win over the script.
SHORT = ("--time=1", "--signal=B:TERM@10")
# Longer than the 50 s that the first start gets at most: on one thread, at least a minute. But
# what is computed anew at every start must fit into the 20 s of the shortest: no report.
LONG = ("--epoch", "120", "--landmarks", "550", "--threads", "1", "--skip-umap", "--skip-report")
ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY")

# As metric_embed behaves: a piece of work a second, each saved; 75 when told to stop.
COUNTING = """
import pathlib, signal, sys, time
done, told = pathlib.Path("done"), []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
for piece in range(int(done.read_text()) if done.exists() else 0, int(sys.argv[1])):
    time.sleep(1)
    done.write_text(str(piece + 1))
    if told:
        sys.exit(75)
"""


@dataclass(frozen=True)
class Submitted:
    """A job, and the folder in which it was submitted."""

    number: str
    folder: Path

    @property
    def log(self):
        return (self.folder / f"metric_embed-{self.number}.log").read_text()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as running:
        running.environment["PYTHONPATH"] = str(ROOT)  # this very source, also within jobs
        yield running


def counting(pieces):
    """A job that counts, in the script that the real command has."""
    config = BatchConfig(gres="")
    return batch_script(config, [sys.executable, "-c", COUNTING, str(pieces)])


@pytest.fixture(scope="session")
def jobs(cluster, tmp_path_factory):
    """Three jobs longer than their limit: one told in time, one not, and the real command."""
    told, killed, real = (tmp_path_factory.mktemp(name) for name in ("told", "killed", "real"))
    unwarned = counting(120).replace("#SBATCH --signal=B:TERM@120\n", "")
    assert unwarned != counting(120)
    return {
        "told": Submitted(cluster.submit(counting(60), *SHORT, cwd=told), told),
        "killed": Submitted(cluster.submit(unwarned, "--time=1", cwd=killed), killed),
        "real": _after_its_training(cluster, real),
    }


def _after_its_training(cluster, folder):
    """The real command, submitted while a job still makes the workdir that it is to embed."""
    workdir = folder / "work dir ü 'q' $HOME\n#SBATCH --hold\n"  # were it obeyed, none would start
    training = f"sleep 3; cp -r {shlex.quote(str(DEMO))} {shlex.quote(str(workdir))}"
    first = cluster.submit(f"#!/bin/bash\n{training}\n", "--output=training.log", cwd=folder)
    words = [COMMAND, "sbatch", workdir, *LONG, "--after", first, "--cpus", "1"]
    script = cluster.run(*words, cwd=folder)
    assert not workdir.exists()
    return Submitted(cluster.submit(script, *SHORT, cwd=folder), folder)


@pytest.fixture(scope="session")
def undisturbed(jobs, tmp_path_factory):
    """The folder of the same run without Slurm, computed while the jobs run."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with unchanged(DEMO):
        done = subprocess.run(
            [COMMAND, "embed", DEMO, *LONG, "-o", out],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert done.returncode == 0, done.stderr
    return out


def test_the_real_command_is_requeued_at_its_limit_and_finishes(cluster, jobs, undisturbed):
    job = cluster.wait(jobs["real"].number, *ENDED, limit=500)
    log = jobs["real"].log
    assert job["JobState"] == "COMPLETED", log
    assert int(job["Restarts"]) >= 1, f"finished within its limit: LONG is too short here\n{log}"
    assert f"SLURM_RESTART_COUNT={job['Restarts']}\n" in log
    assert "stopped by SIGTERM; what was finished is saved" in log
    assert log.count("requeued, to go on") == int(job["Restarts"])
    assert "from an earlier run" in log and log.endswith("ended with status 0\n")
    (found,) = jobs["real"].folder.glob("work dir*/metric_embed.120")
    after = hashes(found.parent)  # nothing of the user's has changed
    assert {name: after.get(name) for name in hashes(DEMO)} == hashes(DEMO)
    for name in ("z_metric.pkl", "z_metric.csv", "analyze.120/kmeans20/vol_001.mrc"):
        assert (found / name).read_bytes() == (undisturbed / name).read_bytes(), name
    with (
        np.load(found / "distances.npz") as ours,
        np.load(undisturbed / "distances.npz") as theirs,
    ):
        assert set(ours) == set(theirs)
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize("name, state", [("told", "CANCELLED"), ("killed", "TIME LIMIT")])
def test_a_job_goes_on_where_its_limit_stopped_it(cluster, jobs, name, state):
    """Told in time, and also where it is only told by Slurm ending it."""
    job = cluster.wait(jobs[name].number, *ENDED, limit=300)
    log = jobs[name].log
    assert job["JobState"] == "COMPLETED" and int(job["Restarts"]) >= 1, log
    assert "SLURM_RESTART_COUNT=1\n" in log and log.endswith("ended with status 0\n")
    assert state in log


def started(cluster, folder, pieces):
    """The number of a counting job that has saved a piece."""
    number = cluster.submit(counting(pieces), cwd=folder)
    cluster.wait(number, "RUNNING")
    while not (folder / "done").exists():
        time.sleep(0.1)
    return number


def test_a_requeue_from_outside_is_left_to_slurm(cluster, tmp_path):
    """As Slurm does after preemption: one restart, not two."""
    number = started(cluster, tmp_path, 8)
    cluster.run("scontrol", "requeue", number)
    job, log = cluster.wait(number, *ENDED), Submitted(number, tmp_path).log
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1")
    assert "stopped by Slurm (" in log and "requeued, to go on" not in log


def test_scancel_has_the_last_word(cluster, tmp_path):
    number = started(cluster, tmp_path, 60)
    cluster.run("scancel", number)
    cluster.wait(number, "CANCELLED")
    time.sleep(2)
    job = cluster.job(number)
    assert job["JobState"] == "CANCELLED" and job["Restarts"] == "0"
    assert "stopped by Slurm (COMPLETING None)" in Submitted(number, tmp_path).log


def test_nothing_starts_after_a_training_that_failed(cluster, tmp_path):
    training = cluster.submit("#!/bin/bash\nsleep 1; exit 1\n", cwd=tmp_path)
    words = [COMMAND, "sbatch", tmp_path / "w", "--after", training, "--gres", ""]
    number = cluster.submit(cluster.run(*words), cwd=tmp_path)
    cluster.wait(training, "FAILED")
    deadline = time.monotonic() + 60
    while (job := cluster.job(number))["Reason"] != "DependencyNeverSatisfied":
        assert time.monotonic() < deadline and job["JobState"] == "PENDING"
        time.sleep(0.2)
