"""Runs in processes of their own, which kill themselves (SIGKILL) at a random moment of a stage.

The processes come from a fork server that has imported everything, so that a run costs no more
than what it computes. Only the moment is arranged: a timer in the run's own process calls os.kill.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import warnings
from dataclasses import dataclass

from cryodrgn_metric.pipeline import embed

STAGES = (
    "landmarks",
    "volumes",
    "distances",
    "h_psi",
    "error bars",
    "dimension",
    "f_xi",
    "transform",
    "fidelity",
    "clusters",
    "representative volumes",
    "pose drift",
    "local geometry",
    "motion",
    "overlay",
    "report",
)

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its exit code (-9: killed), and the stages it had begun, in order."""

    exit_code: int
    begun: list

    @property
    def killed_in(self):
        """The stage in which it died, or None."""
        return self.begun[-1] if self.exit_code == -signal.SIGKILL else None


def run_in_process(config, stage=None, delay_in_seconds=0.0):
    """Run a config in a process of its own; kill it so long after the beginning of a stage.

    Arguments:
        config: An EmbedConfig.
        stage: One of STAGES, or None: not killed.
        delay_in_seconds: After the stage began.
    """
    reader, writer = _context.Pipe(duplex=False)
    process = _context.Process(target=_run, args=(config, writer, stage, delay_in_seconds))
    process.start()
    writer.close()
    begun = []
    with contextlib.suppress(EOFError):
        while True:
            begun.append(reader.recv())
    process.join()
    return Outcome(process.exitcode, begun)


def _run(config, pipe, stage, delay_in_seconds):
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1), os.dup2(null, 2)
    warnings.simplefilter("ignore")
    announcer = _Announcer(pipe, stage, delay_in_seconds)
    logging.getLogger("cryodrgn_metric").addHandler(announcer)
    embed(config)


class _Announcer(logging.Handler):
    """Sends each stage's name as it begins, and starts the timer in the chosen one."""

    def __init__(self, pipe, stage, delay_in_seconds):
        super().__init__()
        self.pipe, self.stage, self.delay_in_seconds = pipe, stage, delay_in_seconds

    def emit(self, record):
        name = record.getMessage().removesuffix(" ...")
        if record.getMessage() != f"{name} ..." or name not in STAGES:
            return
        self.pipe.send(name)
        if name == self.stage:
            kill = (os.getpid(), signal.SIGKILL)
            threading.Timer(self.delay_in_seconds, os.kill, kill).start()
