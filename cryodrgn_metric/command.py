"""Learn a latent space in which distance is the rotation-free distance between volumes.

Example usage
-------------
# The latest epoch, in two dimensions; results go to my_workdir/metric_embed.50/
$ cryodrgn metric_embed my_workdir

# Another epoch, four dimensions, more landmarks
$ cryodrgn metric_embed my_workdir --epoch 25 --dim 4 --landmarks 1000

# A first look, in small volumes
$ cryodrgn metric_embed my_workdir -d 32 --landmarks 150 --skip-umap

# Compare models that are fitted to the volumes, in Angstroms
$ cryodrgn metric_embed my_workdir --distance atoms --model my_model.pdb

# Compare the density within a mask, at 8 Angstroms
$ cryodrgn metric_embed my_workdir -d 128 --mask mask_128.mrc --low-pass 8

See also
--------
`cryodrgn_metric embed` is this command for where Python's start-up hooks are off
`cryodrgn_metric report` for making the report again, and for comparing two runs
`cryodrgn_metric transform` for embedding other latents of the same model
`cryodrgn_metric sbatch` for a Slurm job that runs this command

"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cryodrgn_metric.errors import MetricError, OutputError
from cryodrgn_metric.options import add_args, embed_config

# `cryodrgn` imports this module whatever its user typed: torch, numpy and everything above them
# are imported by the functions that need them.

__all__ = ["add_args", "exit_statuses", "main"]

TO_GO_ON = "what was finished is saved: type the same again, without --restart, to go on"

EXIT_REFUSED = 2  # as argparse's own
EXIT_INTERRUPTED = 130  # 128 + SIGINT


def main(args: argparse.Namespace) -> None:
    """Run `cryodrgn metric_embed`; a refusal is exit status 2, SIGTERM 75, each one message."""
    with exit_statuses(TO_GO_ON):
        config = embed_config(args)
        from cryodrgn_metric.pipeline import embed

        embed(config)


@contextmanager
def exit_statuses(to_go_on: str = "") -> Iterator[None]:
    """Turn what ends a command into one message and an exit status.

    A refusal is status 2, Ctrl-C 130, SIGTERM 75 (`EXIT_UNFINISHED`).

    Arguments:
        to_go_on: What to say where the command was stopped, if it can go on.
    """
    from cryodrgn_metric.termination import EXIT_UNFINISHED, Terminated, terminable

    hint = f"; {to_go_on}" if to_go_on else ""
    try:
        with terminable():
            yield
    except MetricError as error:
        more = f" Then {to_go_on}." if to_go_on and isinstance(error, OutputError) else ""
        print(f"cryodrgn_metric: error: {error}{more}", file=sys.stderr)
        raise SystemExit(EXIT_REFUSED) from None
    except KeyboardInterrupt:
        print(f"cryodrgn_metric: interrupted{hint}", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except Terminated:
        print(f"cryodrgn_metric: stopped by SIGTERM{hint}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        # not SystemExit: Python would wait for threads, and a time limit doesn't
        os._exit(EXIT_UNFINISHED)
