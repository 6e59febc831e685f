"""The log goes to file and terminal and leaves logging as it was; stages are timed."""

import logging
import subprocess
import sys

import numpy as np
import pytest

from cryodrgn_metric.runlog import Stopwatch, logged, logging_kept, peak_memory_in_bytes


def test_the_log_holds_what_was_said_and_nothing_stays_behind(tmp_path, capsys):
    package = logging.getLogger("cryodrgn_metric")
    before = (package.level, package.propagate, list(package.handlers))
    path = tmp_path / "new folder" / "run.log"
    speaker = logging.getLogger("cryodrgn_metric.anything")
    with pytest.raises(KeyError), logged() as log:
        speaker.info("before the file")
        log.write_to(path)
        speaker.info("seen %d volumes", 3)
        raise KeyError("stop")
    lines = [line.split(" ", 2)[2] for line in path.read_text().splitlines()]
    assert lines == [
        "INFO before the file",
        "INFO seen 3 volumes",
        "ERROR Stopped by KeyError: 'stop'",
    ]
    assert "seen 3 volumes" in capsys.readouterr().out
    assert (package.level, package.propagate, list(package.handlers)) == before


def test_without_a_file_nothing_is_written(tmp_path, capsys):
    with logged():
        logging.getLogger("cryodrgn_metric").info("said only")
    assert not list(tmp_path.iterdir())
    assert "said only" in capsys.readouterr().out


def test_a_second_run_adds_to_the_log(tmp_path):
    for number in (1, 2):
        with logged() as log:
            log.write_to(tmp_path / "run.log")
            logging.getLogger("cryodrgn_metric").info("run %d", number)
    assert len((tmp_path / "run.log").read_text().splitlines()) == 2


def test_stages_add_up():
    watch = Stopwatch()
    for name in ("volumes", "distances", "volumes"):
        with watch.stage(name):
            pass
    assert list(watch.seconds) == ["volumes", "distances"]
    assert watch.total() == sum(watch.seconds.values()) >= 0


def test_peak_memory_is_that_of_a_python_process():
    assert 1e7 < peak_memory_in_bytes() < 1e12


def test_importing_cryodrgn_does_not_silence_us(tmp_path):
    """cryoDRGN disables all loggers made before its import; here, as its dictConfig does."""
    logger = logging.getLogger("cryodrgn_metric.somewhere")
    with logging_kept():
        logger.disabled = True
    assert not logger.disabled
    logger.disabled = True
    with logged() as log:
        log.write_to(tmp_path / "run.log")
        logger.info("still heard")
    assert "still heard" in (tmp_path / "run.log").read_text()


def test_peak_memory_is_not_that_of_the_parent():
    held = np.ones(400 * 2**20 // 8)  # 400 MB, in this process
    code = "from cryodrgn_metric.runlog import peak_memory_in_bytes as p; print(p())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < held.nbytes
