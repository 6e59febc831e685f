"""One run at a time in a folder; the lock dies with the process that holds it."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cryodrgn_metric import folder_lock
from cryodrgn_metric.errors import FolderBusyError, OutputError
from cryodrgn_metric.folder_lock import locked

HOLD = """
import sys, time
from pathlib import Path
from cryodrgn_metric.folder_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    path = tmp_path / "metric_embed.2" / "metric_embed.lock"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "SLURM_JOB_ID": "7"}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout.readline() == b"held\n"
    yield path, process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_run_is_told_who_holds_it(holder):
    path, process = holder
    with pytest.raises(FolderBusyError) as caught, locked(path):
        pass
    said = str(caught.value)
    assert f"process {process.pid} on {os.uname().nodename}, Slurm job 7, since " in said
    assert "metric_embed.2 is being written" in said and "-o" in said


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_dies_with_its_process(holder, how):
    path, process = holder
    process.send_signal(how)
    process.wait()
    with locked(path):
        assert f"process {os.getpid()} on" in path.read_text()
    with locked(path):  # given back by the block's end, too
        pass


def test_a_stopped_run_still_holds_it(holder):
    path, process = holder
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    with pytest.raises(FolderBusyError), locked(path):
        pass


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="-o"), locked(tmp_path / "file" / "metric_embed.lock"):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_said_not_refused(tmp_path, monkeypatch, caplog, number):
    """No such file system can be mounted here: the answer of the kernel is given by hand."""

    def refuse(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(folder_lock.fcntl, "flock", refuse)
    with locked(tmp_path / "metric_embed.lock"):
        pass
    assert "without locks" in caplog.text
    assert fcntl.LOCK_NB  # the module itself is untouched


def test_a_lock_that_was_removed_keeps_nobody_out_but_ends_its_run_as_incomplete(tmp_path):
    path = tmp_path / "metric_embed.2" / "metric_embed.lock"
    with pytest.raises(OutputError, match="not complete"), locked(path):
        path.unlink()
        with locked(path):  # the second run has the folder now
            pass


def test_a_shorter_name_leaves_nothing_of_a_longer_one(tmp_path):
    path = tmp_path / "metric_embed.lock"
    path.write_text("process " + 500 * "9")
    with locked(path):
        assert path.read_text().count("\n") == 1 and path.read_text().endswith("\n")
