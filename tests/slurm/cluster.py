"""A real Slurm of one node on loopback, for the tests alone: no systemd, nothing outside a folder.

munged, slurmctld and slurmd run in the foreground as our children, on free ports, with a key and a
configuration of their own, so that a cluster the machine may belong to is neither used nor seen.
"""

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
PROGRAMS = (*DAEMONS, "sbatch", "scancel", "scontrol", "sinfo", "squeue", "setpriv")
INSTALL = "apt-get install slurm-wlm munge util-linux"

# A requeued job waits until the credential of its last start has expired: 2 min unless told less.
CONFIG = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={munge}/socket,cred_expire=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MinJobAge=3600
ReturnToService=2
SchedulerParameters=sched_interval=5,bf_interval=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 CPUs=8 RealMemory=65536 Gres=gpu:1
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""
GPU = "NodeName=localhost Name=gpu File=/dev/null\n"  # counted, not used


@dataclass(frozen=True)
class Cluster:
    """A running Slurm: the environment in which its commands find it."""

    environment: dict[str, str]
    folder: Path

    def run(self, *words, **options):
        """Standard output of a command that must succeed."""
        options = {"env": self.environment, "encoding": "utf-8", "timeout": 60, **options}
        done = subprocess.run(list(map(str, words)), capture_output=True, **options)
        assert done.returncode == 0, f"{words}: {done.stderr}{done.stdout}"
        return done.stdout.strip()

    def submit(self, script, *options, cwd):
        """The number of a job submitted through sbatch's standard input."""
        return self.run("sbatch", "--parsable", *options, input=script, cwd=cwd)

    def job(self, number):
        """What `scontrol show job` says of a job, by key."""
        shown = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(pair.partition("=")[::2] for pair in shown if "=" in pair)

    def wait(self, number, *states, limit=60):
        """What Slurm says of a job that has come to one of some states."""
        deadline = time.monotonic() + limit
        while (job := self.job(number))["JobState"] not in states:
            assert time.monotonic() < deadline, f"not {states} after {limit} s: {job}"
            time.sleep(0.2)
        return job


@contextlib.contextmanager
def slurm_cluster(folder):
    """Start a cluster that keeps its state in `folder`, and leave nothing of it running."""
    paths = [os.environ["PATH"], "/usr/local/sbin", "/usr/sbin"]
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
    environment = {**variables, "PATH": ":".join(paths), "SLURM_CONF": f"{folder}/slurm.conf"}
    missing = [name for name in PROGRAMS if not shutil.which(name, path=environment["PATH"])]
    assert not missing, f"pytest -m slurm needs {', '.join(missing)}: {INSTALL}"
    for name in ("state", "spool"):
        (folder / name).mkdir()
    cluster = Cluster(environment, folder)
    with contextlib.ExitStack() as stack:
        munge = stack.enter_context(_munged(environment))
        settings = {"folder": folder, "munge": munge, "user": getpass.getuser()}
        (folder / "slurm.conf").write_text(CONFIG.format(ports=_free_ports(2), **settings))
        (folder / "gres.conf").write_text(GPU)
        stack.enter_context(_daemon(environment, "slurmctld", "-D"))
        stack.enter_context(_daemon(environment, "slurmd", "-D", "-N", "localhost"))
        _wait_until(lambda: "idle" in _said(environment, "sinfo", "-h"), "an idle node", folder)
        stack.callback(_cancel_all, cluster)
        yield cluster


@contextlib.contextmanager
def _munged(environment):
    """munged, where its own user may be: pytest's folders are closed to all but one user."""
    user = "munge" if os.geteuid() == 0 else None  # munged refuses to be root
    with tempfile.TemporaryDirectory(prefix="munge-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "key").write_bytes(secrets.token_bytes(128))
        (folder / "key").chmod(0o600)
        if user:
            shutil.chown(folder / "key", user, user)
            shutil.chown(folder, user, user)
        files = ("key-file", "socket", "pid-file", "log-file", "seed-file")
        options = [f"--{option}={folder / option.removesuffix('-file')}" for option in files]
        with _daemon(environment, "munged", "--foreground", *options, user=user):
            _wait_until((folder / "socket").exists, "munged's socket", folder)
            yield folder


@contextlib.contextmanager
def _daemon(environment, *words, user=None):
    """A process that ends with the block; with this process as well, should that be killed."""
    whom = [f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
    process = subprocess.Popen(
        ["setpriv", *whom, "--pdeathsig=TERM", *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _cancel_all(cluster):
    """End every job, so that no slurmstepd outlives its slurmd."""
    for number in cluster.run("squeue", "-h", "-o", "%A").split():
        cluster.run("scancel", number)
    _wait_until(lambda: not cluster.run("squeue", "-h"), "an empty queue", cluster.folder, 60)


def _said(environment, *words):
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    return done.stdout


def _wait_until(true, what, folder, limit=30):
    deadline = time.monotonic() + limit
    while not true():
        if time.monotonic() > deadline:
            logs = "".join(path.read_text() for path in sorted(folder.glob("*log")))
            raise TimeoutError(f"no {what} after {limit} s\n{logs[-3000:]}")
        time.sleep(0.1)


def _free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
