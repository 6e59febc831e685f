"""The text of a Slurm job that runs metric_embed, and goes on after a time limit or a requeue.

The run saves every finished piece; told by SIGTERM to stop, it ends with status 75, and the same
command goes on from there. Slurm sends SIGTERM two minutes before the time limit, to the batch
shell alone. So the script passes it on, waits for the run to save, and asks for a requeue.
"""

from __future__ import annotations

import re
import shlex
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryodrgn_metric import __version__
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.termination import EXIT_UNFINISHED

__all__ = ["BatchConfig", "activation", "batch_script"]

MARGIN_IN_SECONDS = 120  # between SIGTERM and the limit: what the run has to save a piece

# What may stand in a #SBATCH line. Those aren't read by a shell: sbatch splits them at spaces by
# rules of its own, and no quoting carries every name through it (a newline ends the line).
# Hence nothing else gets there, and folders and files appear only below, quoted, for bash.
ALLOWED = {
    "partition": (r"[A-Za-z0-9_.,-]+", "a name, or several joined by commas"),
    "account": (r"[A-Za-z0-9_.@-]+", "a name"),
    "mem": (r"[0-9]+[KMGT]?", "a number with K, M, G or T, e.g. 32G"),
    "gres": (r"([A-Za-z0-9_.:,-]+)?", "such as gpu:1 or gpu:a100:1, or '' for none"),
    "after": (r"[0-9]+(_[0-9]+)?(:[0-9]+(_[0-9]+)?)*", "a job number, or several joined by ':'"),
}


@dataclass(frozen=True)
class BatchConfig:
    """What a job asks Slurm for, and the environment it runs in.

    Arguments:
        environment: shell text that makes the command available, taken as it is.
        name: what `squeue` shows; whatever can't stand there becomes `_`.
        time: the limit of one start, in Slurm's notation.
        partition, account: as for sbatch; None leaves them to the cluster.
        mem, cpus, gres: memory, CPU cores, generic resources ("" for none).
        after: jobs that must end well first, as "1234" or "1234:1235".
        max_restarts: how often the job may have been restarted and still requeue itself.

    Raises:
        ArgumentError: a value that can't stand in a #SBATCH line, or is out of range.

    Example:
        >>> BatchConfig(time="4:00:00", partition="gpu").gres
        'gpu:1'
    """

    environment: str = ""
    name: str = "metric_embed"
    time: str = "12:00:00"
    partition: str | None = None
    account: str | None = None
    mem: str = "16G"
    cpus: int = 4
    gres: str = "gpu:1"
    after: str | None = None
    max_restarts: int = 20

    def __post_init__(self) -> None:
        for option, (pattern, meaning) in ALLOWED.items():
            value = getattr(self, option)
            if value is not None and not re.fullmatch(pattern, value):
                raise ArgumentError(f"--{option} must be {meaning}; got {value!r}.")
        if _seconds_of(self.time) <= MARGIN_IN_SECONDS:
            raise ArgumentError(
                f"--time must be more than the {MARGIN_IN_SECONDS} s that the run has to save "
                f"its work before the limit; got {self.time!r}. Type e.g. --time 12:00:00."
            )
        if self.cpus < 1:
            raise ArgumentError(f"--cpus must be at least 1; got {self.cpus}.")
        if self.max_restarts < 0:
            raise ArgumentError(f"--max-restarts must not be negative; got {self.max_restarts}.")


def _seconds_of(time: str) -> int:
    """Read Slurm's M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    found = re.fullmatch(r"(?:([0-9]+)-)?([0-9]+)(?::([0-9]+))?(?::([0-9]+))?", time)
    if not found:
        raise ArgumentError(
            f"--time must be minutes, H:M:S or D-H:M:S, as for sbatch; got {time!r}. "
            "Type e.g. --time 12:00:00."
        )
    days, *rest = found.groups()
    parts = [int(part) for part in rest if part is not None]
    # Without days, one or two numbers count minutes first, three count hours first.
    units = (60, 1) if days is None and len(parts) < 3 else (3600, 60, 1)
    # zip: later units may be left out
    return 86400 * int(days or 0) + sum(n * unit for n, unit in zip(parts, units, strict=False))


def activation(prefix: str | None = None) -> str:
    """The shell line that activates an environment: by default the one we run in.

    Arguments:
        prefix: its folder; None takes that of the running interpreter.

    Returns:
        the line of a conda environment or of a virtual environment; of another installation, one
        that puts its scripts on PATH.

    Example:
        >>> activation("/nowhere/special")
        'export PATH=/nowhere/special/bin:"$PATH"'
    """
    folder = Path(sys.prefix if prefix is None else prefix)
    if (folder / "conda-meta").is_dir():
        hook = 'source "$(conda info --base)/etc/profile.d/conda.sh"'
        return f"{hook}; conda activate {shlex.quote(str(folder))}"
    if (folder / "bin" / "activate").is_file():
        return f"source {shlex.quote(str(folder / 'bin' / 'activate'))}"
    scripts = sysconfig.get_path("scripts") if prefix is None else str(folder / "bin")
    return f'export PATH={shlex.quote(scripts)}:"$PATH"'


def batch_script(config: BatchConfig, command: Sequence[str], at_first: Sequence[str] = ()) -> str:
    """Write the job: what it asks for, the environment, the run, what follows its end.

    Arguments:
        config: what to ask for.
        command: the words of what to run, each as the program shall receive it.
        at_first: further words for the job's first start alone.

    Returns:
        the text of a bash script, for `sbatch`.

    Example:
        >>> script = batch_script(BatchConfig(), ["cryodrgn_metric", "embed", "/data/my workdir"])
        >>> "cryodrgn_metric embed '/data/my workdir' &" in script
        True
    """
    parts = (
        _directives(config),
        OPENING,
        config.environment,
        _run(config, command, at_first),
        WAITING,
    )
    return "\n\n".join(part for part in (*parts, _ending(config)) if part) + "\n"


def _directives(config: BatchConfig) -> str:
    wanted = {
        "job-name": re.sub(r"[^A-Za-z0-9._-]", "_", config.name)[:40],
        "partition": config.partition,
        "account": config.account,
        "gres": config.gres,
        "cpus-per-task": config.cpus,
        "mem": config.mem,
        "time": config.time,
        "signal": f"B:TERM@{MARGIN_IN_SECONDS}",
        "dependency": config.after and f"afterok:{config.after}",
        "output": "metric_embed-%j.log",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in wanted.items() if value]
    flags = ["#SBATCH --requeue", "#SBATCH --open-mode=append"]
    return "\n".join(["#!/bin/bash", *lines, *flags, f"# cryodrgn_metric {__version__}"])


# sbatch looks for #SBATCH up to the first command, which is why one stands before any name.
OPENING = """\
terms=0
trap 'terms=$((terms + 1))' TERM
restarts=${SLURM_RESTART_COUNT:-0}
say() { printf '%s metric_embed: %s\\n' "$(date '+%F %T')" "$*"; }
say "start on $(hostname), SLURM_RESTART_COUNT=$restarts\""""


def _run(config: BatchConfig, command: Sequence[str], at_first: Sequence[str]) -> str:
    # Positional parameters, for an empty array is an error to bash < 4.4 under `set -u`.
    more = f'set --; [ "$restarts" -gt 0 ] || set -- {shlex.join(at_first)}\n' if at_first else ""
    words = shlex.join(command) + (' "$@"' if at_first else "")
    return f"""\
# The environment may have asked bash to end at the first status that isn't 0.
set +e
export OMP_NUM_THREADS="${{SLURM_CPUS_PER_TASK:-{config.cpus}}}"
{more}{words} &
run=$!
trap 'terms=$((terms + 1)); kill -TERM "$run" 2>/dev/null' TERM
# SIGTERM may have come while the environment was activated.
[ "$terms" -eq 0 ] || kill -TERM "$run\""""


# Not `wait` alone, which a trap interrupts: if the run ends in that very moment, as when Slurm
# signals the whole job, bash loses its status for good (5.2 then says -1 for ever).
WAITING = """\
while kill -0 "$run" 2>/dev/null; do sleep 1; done
# From here on SIGTERM has nothing to say; requeueing sends one, too.
trap '' TERM
status=0
wait "$run" || status=$?"""


def _ending(config: BatchConfig) -> str:
    return f"""\
# SIGTERM came before the run could listen to it: nothing was lost.
[ "$status" -eq 143 ] && [ "$terms" -gt 0 ] && status={EXIT_UNFINISHED}
if [ "$status" -ne {EXIT_UNFINISHED} ]; then
    say "ended with status $status"
    exit "$status"
fi

state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format='%T %r')
case "$state" in
    "RUNNING "* | *" TimeLimit" | "") ;;
    # Cancelled, preempted or requeued: scancel has the last word, and Slurm requeues by itself.
    *) say "stopped by Slurm ($state); what was finished is saved"; exit {EXIT_UNFINISHED} ;;
esac
if [ "$restarts" -ge {config.max_restarts} ]; then
    say "restarted $restarts times (--max-restarts); what was finished is saved. Submit this" \\
        "script again to go on, with a longer --time if the log shows no progress"
    exit {EXIT_UNFINISHED}
fi
if scontrol requeue "$SLURM_JOB_ID"; then
    say "requeued, to go on with what was finished"
else
    say "could not be requeued; what was finished is saved. Submit this script again to go on"
fi
exit {EXIT_UNFINISHED}"""
