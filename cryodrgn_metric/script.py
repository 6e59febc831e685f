"""The console script `cryodrgn_metric`, as `cryodrgn_utils` is to cryoDRGN: one subcommand each.

`embed` is `cryodrgn metric_embed`, which `command.py` defines; the others are defined here.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cryodrgn_metric import __version__, command
from cryodrgn_metric.batch import BatchConfig, activation, batch_script
from cryodrgn_metric.errors import ArgumentError, WorkdirError
from cryodrgn_metric.options import device, embed_config

# As in command.py, what is heavy is imported by the functions that need it.

__all__ = ["SBATCH_DOC", "SUBCOMMANDS", "main"]

DEMO_DOC = """Run metric_embed on the workdir that ships with this package, beside the known truth.

Example usage
-------------
$ cryodrgn_metric demo demo_out

"""


def _add_demo_args(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("outdir", type=os.path.abspath, help="Directory for the demo's results")
    parser.add_argument(
        "--train",
        action="store_true",
        help="First simulate the particles and train cryoDRGN again (much longer)",
    )


def _demo(args: argparse.Namespace) -> None:
    with command.exit_statuses():
        from cryodrgn_metric.demo.run import run_demo

        run_demo(args.outdir, train=args.train)


TRANSFORM_DOC = """Embed other latents of the same cryoDRGN model with a saved map.

Example usage
-------------
$ cryodrgn_metric transform z.50.pkl --model my_workdir/metric_embed.50 -o z_metric.pkl

"""


def _add_transform_args(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("zfile", type=os.path.abspath, help="Pickle of latents (N, zdim)")
    parser.add_argument(
        "--model",
        required=True,
        type=os.path.abspath,
        help="A metric_embed.N directory, or the models/ directory in it",
    )
    parser.add_argument(
        "-o",
        "--outfile",
        type=os.path.abspath,
        help="Output pickle, float32 (default: [zfile without .pkl]_metric.pkl)",
    )


def _transform(args: argparse.Namespace) -> None:
    with command.exit_statuses():
        outfile = args.outfile or os.path.splitext(args.zfile)[0] + "_metric.pkl"
        if args.outfile is None and os.path.lexists(outfile):
            raise ArgumentError(f"{outfile} exists. Type -o {outfile} to replace it.")
        if os.path.realpath(outfile) == os.path.realpath(args.zfile):
            raise ArgumentError(f"-o {outfile} is the input itself; name another file.")
        from cryodrgn_metric.artifacts import save_pickle
        from cryodrgn_metric.metric_map import MetricMap
        from cryodrgn_metric.workdir import load_latents

        models = os.path.join(args.model, "models")
        metric_map = MetricMap.load(models if os.path.isdir(models) else args.model)
        z_metric = metric_map.transform(load_latents(args.zfile)).astype("float32")
        save_pickle(outfile, z_metric)
        print(f"{outfile}: {z_metric.shape[0]} particles in {z_metric.shape[1]} dimensions")


REPORT_DOC = """Make the report and the notebook again from the saved results of metric_embed.

Example usage
-------------
$ cryodrgn_metric report my_workdir --epoch 49

# Colour the interactive scatter by numbers of your own, one for each row of z
$ cryodrgn_metric report my_workdir --epoch 49 --covariate ctf_defocus.pkl

# Add the path from cluster 3 to cluster 7 (labels), and compare with a replicate
$ cryodrgn_metric report my_workdir --epoch 49 --path 3 7
$ cryodrgn_metric report my_workdir --epoch 49 --compare my_replicate/metric_embed.49

"""


def _add_report_args(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", type=os.path.abspath, help="Directory with cryoDRGN results")
    parser.add_argument(
        "--epoch",
        type=int,
        default=-1,
        help="Epoch number N, as for `cryodrgn metric_embed` (default: the latest)",
    )
    parser.add_argument(
        "-o",
        "--outdir",
        type=os.path.abspath,
        help="Where metric_embed has put its results (default: [workdir]/metric_embed.[epoch])",
    )
    parser.add_argument(
        "--compare",
        metavar="DIR",
        type=os.path.abspath,
        help="Another metric_embed.N directory: a section sets both runs side by side",
    )
    parser.add_argument(
        "--covariate",
        metavar="FILE.pkl",
        type=os.path.abspath,
        action="append",
        default=[],
        help="Pickle of an array (N,) or (N, k), to colour the scatter by; may be given again",
    )
    parser.add_argument(
        "--path",
        metavar=("A", "B"),
        nargs=2,
        type=int,
        action="append",
        default=[],
        help="Add the path between two k-means clusters, by their labels; may be given again",
    )
    parser.add_argument("--device", type=device, help="Torch device for volumes of added paths")


def _report(args: argparse.Namespace) -> None:
    with command.exit_statuses():
        from cryodrgn_metric.reporting import ReportConfig, report

        page = report(
            ReportConfig(
                workdir=args.workdir,
                epoch=args.epoch,
                outdir=args.outdir,
                other=args.compare,
                covariates=tuple(args.covariate),
                paths=tuple((first, second) for first, second in args.path),
                device=args.device,
            )
        )
        print(page)


SBATCH_DOC = """Print a Slurm script that runs metric_embed and goes on after its time limit.

Example usage
-------------
# Submit it at once, or look at it first
$ cryodrgn_metric sbatch my_workdir --epoch 49 --partition gpu | sbatch
$ cryodrgn_metric sbatch my_workdir --epoch 49 --partition gpu > job.sh

# When the training job 1234 has ended well
$ cryodrgn_metric sbatch my_workdir --epoch 49 --after 1234 | sbatch

# All options of metric_embed are accepted; their values are checked now
$ cryodrgn_metric sbatch my_workdir --epoch 49 --dim 4 --env "module load cryodrgn" | sbatch

"""


def _add_sbatch_args(parser: argparse.ArgumentParser) -> None:
    command.add_args(parser)
    group = parser.add_argument_group("Slurm job")
    group.add_argument(
        "--after",
        metavar="JOBID",
        help="Start when this job has ended well (several: 1234:1235); WORKDIR and the epoch\n"
        "need not exist yet",
    )
    group.add_argument(
        "--time",
        default=BatchConfig.time,
        help="Limit of one start, as for sbatch; the job then requeues itself and goes on\n"
        "(default: %(default)s)",
    )
    group.add_argument("--partition", help="Partition (default: the cluster's)")
    group.add_argument("--account", help="Account (default: the user's)")
    group.add_argument(
        "--gres",
        default=BatchConfig.gres,
        help="Generic resources; '' for none (default: %(default)s)",
    )
    group.add_argument(
        "--cpus", type=int, default=BatchConfig.cpus, help="CPU cores (default: %(default)s)"
    )
    group.add_argument("--mem", default=BatchConfig.mem, help="Memory (default: %(default)s)")
    group.add_argument(
        "--env",
        metavar="LINE",
        help="Shell line that makes cryodrgn_metric available, used as it is\n"
        "(default: activate the environment that this command runs in)",
    )
    group.add_argument(
        "--max-restarts",
        type=int,
        default=BatchConfig.max_restarts,
        help="After so many restarts, don't requeue any more (default: %(default)s)",
    )


def _sbatch(args: argparse.Namespace) -> None:
    with command.exit_statuses():
        embed_config(args)
        config = _batch_config(args)
        args.epoch = _epoch_to_run(args)
        # Were it repeated at every start, no start would take up what the last one finished.
        at_first = ["--restart"] if args.restart else []
        args.restart = False
        text = batch_script(config, _embed_command(args), at_first)
        sys.stdout.buffer.write(os.fsencode(text))  # bytes: a file name need not be valid text
        sys.stdout.flush()


def _batch_config(args: argparse.Namespace) -> BatchConfig:
    return BatchConfig(
        environment=activation() if args.env is None else args.env,
        name=f"metric_embed-{os.path.basename(args.workdir)}",
        time=args.time,
        partition=args.partition,
        account=args.account,
        mem=args.mem,
        cpus=args.cpus,
        gres=args.gres,
        after=args.after,
        max_restarts=args.max_restarts,
    )


def _epoch_to_run(args: argparse.Namespace) -> int:
    """The epoch in numbers, so that a restart doesn't take up a later one."""
    if args.after is None:
        from cryodrgn_metric.workdir import open_workdir

        try:
            found = open_workdir(args.workdir, args.epoch).epoch
        except WorkdirError as error:
            hint = "If a job is still training it, type --after JOBID as well."
            raise type(error)(f"{error} {hint}") from None
        return -1 if found is None else found
    if not os.path.isdir(args.workdir):
        note = f"{args.workdir} is not there yet; job {args.after} is expected to make it."
        print(f"cryodrgn_metric: {note}", file=sys.stderr)
    return int(args.epoch)


def _embed_command(args: argparse.Namespace) -> list[str]:
    """The words that run metric_embed with the options that differ from their defaults."""
    parser = argparse.ArgumentParser(add_help=False)
    command.add_args(parser)
    # Not `cryodrgn metric_embed`, the same command where Python's start-up hooks are on: this
    # also works where they are off, and doesn't wait for cryoDRGN's other commands to load.
    words = ["cryodrgn_metric", "embed", args.workdir]
    for action in parser._actions:
        value = getattr(args, action.dest)
        if action.option_strings and value != action.default:
            words.append(action.option_strings[-1])
            words += [] if action.nargs == 0 else [str(value)]
    return words


class _Subcommand(NamedTuple):
    """One subcommand in cryoDRGN's protocol: help text, options, what to run."""

    doc: str
    add_args: Callable[[argparse.ArgumentParser], None]
    main: Callable[[argparse.Namespace], None]


SUBCOMMANDS = {
    "embed": _Subcommand(command.__doc__ or "", command.add_args, command.main),
    "demo": _Subcommand(DEMO_DOC, _add_demo_args, _demo),
    "transform": _Subcommand(TRANSFORM_DOC, _add_transform_args, _transform),
    "report": _Subcommand(REPORT_DOC, _add_report_args, _report),
    "sbatch": _Subcommand(SBATCH_DOC, _add_sbatch_args, _sbatch),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run `cryodrgn_metric SUBCOMMAND ...`.

    Arguments:
        argv: The words after the name of the script; None takes those that were typed.
    """
    parser = argparse.ArgumentParser(
        prog="cryodrgn_metric", description="Rotation-free metric embedding of cryoDRGN latents"
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(title="Choose a command", dest="command", required=True)
    for name, subcommand in SUBCOMMANDS.items():
        description, _, epilog = subcommand.doc.partition("\n")
        subparser = subparsers.add_parser(
            name,
            help=description,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawTextHelpFormatter,
        )
        subcommand.add_args(subparser)
        subparser.set_defaults(func=subcommand.main)
    args = parser.parse_args(argv)
    args.func(args)
