"""The options of `cryodrgn metric_embed`, and the configuration that they make."""

from __future__ import annotations

import argparse
import os

from cryodrgn_metric.config import (
    ATOM_DISTANCES,
    DIMENSION,
    DISTANCES,
    LOSSES,
    MAPS,
    PRECISIONS,
    RIGID_MOTIONS,
    SAMPLINGS,
    SCALES,
    ClusterConfig,
    DistanceConfig,
    EmbedConfig,
    EnsembleConfig,
    LandmarkConfig,
    MetricMapConfig,
    VolumeConfig,
)

# Imported whatever command of cryoDRGN a user typed: nothing heavier than the configuration.

__all__ = ["add_args", "device", "embed_config"]

MOST_THREADS = 4096


def add_args(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `cryodrgn metric_embed`; their defaults are the configs' own."""
    parser.add_argument("workdir", type=os.path.abspath, help="Directory with cryoDRGN results")
    parser.add_argument(
        "--epoch",
        type=int,
        default=EmbedConfig.epoch,
        help="Epoch number N, as in z.N.pkl and weights.N.pkl (default: the latest that has both)",
    )
    parser.add_argument(
        "-o",
        "--outdir",
        type=os.path.abspath,
        help="Output directory (default: [workdir]/metric_embed.[epoch])",
    )
    parser.add_argument(
        "--skip-vol", action="store_true", help="Skip generation of representative volumes"
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="Forget what earlier runs in the same directory have finished, and compute it\n"
        "again (default: go on from there)",
    )
    parser.add_argument("--skip-umap", action="store_true", help="Skip running UMAP")
    parser.add_argument(
        "--skip-report",
        action="store_true",
        help="Skip figures, report.html and the notebook; `cryodrgn_metric report` makes them",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=EmbedConfig.seed,
        help="Seed of everything that is random (default: %(default)s)",
    )
    parser.add_argument(
        "--device",
        type=device,
        help="Torch device, or the number of a CUDA device (default: CUDA where there is one)",
    )
    parser.add_argument(
        "--threads", type=_thread_count, help="CPU threads to use (default: torch's choice)"
    )
    _add_landmark_args(parser.add_argument_group("Landmarks, the particles that are decoded"))
    _add_volume_args(parser.add_argument_group("Volumes that are compared"))
    _add_distance_args(parser.add_argument_group("Distance between volumes"))
    _add_map_args(parser.add_argument_group("Learned distance and space"))
    _add_output_args(parser.add_argument_group("Volumes that are written"))


def _add_landmark_args(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--landmarks",
        type=int,
        default=LandmarkConfig.count,
        help="Number of particles whose volumes are compared (default: %(default)s)",
    )
    group.add_argument(
        "--sampling",
        choices=SAMPLINGS,
        default=LandmarkConfig.sampling,
        help="How landmarks are drawn, apart from the test set, which is drawn at random.\n"
        "active: in rounds, where the learned distance is least sure, and no more than help\n"
        "(default: %(default)s)",
    )
    group.add_argument(
        "--ind",
        type=os.path.abspath,
        help="Pickle of the particles that may be landmarks, numbered as in the original stack\n"
        "(as `cryodrgn filter` saves them), or a mask of the rows of z (default: all)",
    )


def _add_volume_args(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-d",
        "--downsample",
        type=int,
        help="Box size to compare and write volumes at, in pixels\n"
        "(default: compare at 64, or the model's where smaller; write at the model's)",
    )
    group.add_argument(
        "--low-pass", type=float, help="Low-pass filter resolution in Angstroms (default: none)"
    )
    group.add_argument(
        "--mask",
        metavar="{sphere,FILE.mrc}",
        type=_mask,
        default=VolumeConfig.mask,
        help="Density to compare: within a soft sphere, or a mask file (of box -d) as well\n"
        "(default: %(default)s)",
    )
    group.add_argument(
        "--mask-radius",
        type=float,
        default=VolumeConfig.mask_radius,
        help="Where the soft sphere starts to fall off, as a fraction of half the box\n"
        "(default: %(default)s)",
    )
    group.add_argument(
        "--Apix",
        type=float,
        help="Pixel size of the model's box in Angstroms, for --low-pass and written volumes\n"
        "(default is to infer from ctf.pkl file else 1)",
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=VolumeConfig.precision,
        help="Of the decoder's hidden layers where volumes are compared. bfloat16 is faster on\n"
        "recent processors, and moves a distance by some 0.03 to 0.3%% of the median\n"
        "(default: %(default)s)",
    )


def _add_distance_args(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--distance",
        choices=DISTANCES,
        default=DistanceConfig.distance,
        help="so3: the L2 distance, minimised over all rotations; transport: how far mass has\n"
        "moved, in Angstroms, minimised over rotations and translations; atoms: how far the\n"
        "beads of a model move that is fitted to every volume (default: %(default)s)",
    )
    group.add_argument(
        "--contour",
        type=float,
        help="For transport: density counts as mass from so many standard deviations of the\n"
        "solvent above its level (default: 3)",
    )
    group.add_argument(
        "--model",
        metavar="FILE",
        type=os.path.abspath,
        help="Model for --distance atoms, .pdb or .cif; needs gemmi (default: pseudo-atoms, made\n"
        "from the volume in the middle)",
    )
    group.add_argument(
        "--atom-distance",
        choices=ATOM_DISTANCES,
        default=DistanceConfig.atom_distance,
        help="rmsd: after optimal superposition; drmsd: of distances within the model\n"
        "(default: %(default)s)",
    )
    group.add_argument(
        "--rigid",
        choices=RIGID_MOTIONS,
        default=DistanceConfig.rigid,
        help="Motions that are taken out of the distance; se3: also translations, up to a tenth\n"
        "of the box, which takes ten times as long (default: %(default)s)",
    )
    group.add_argument(
        "--scale",
        choices=SCALES,
        default=DistanceConfig.scale,
        help="unit: divide each volume by its norm, where contrast drifts (default: %(default)s)",
    )


def _add_map_args(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--ensemble",
        type=int,
        default=EnsembleConfig.members,
        help="Number of nets that learn the distance: the first predicts it, all of them say how\n"
        "far off it may be; 1: no error bars (default: %(default)s)",
    )
    group.add_argument(
        "--dim",
        type=_dimension,
        metavar="{N,auto}",
        default=MetricMapConfig.dimension,
        help="Dimension of the learned space; auto: as many as the motion takes to be embedded\n"
        f"(default: {DIMENSION}; with --map flow that of z)",
    )
    group.add_argument(
        "--loss",
        choices=LOSSES,
        default=MetricMapConfig.loss,
        help="relative: by the relative error of each distance; weighted: short distances\n"
        "count even more (default: %(default)s)",
    )
    group.add_argument(
        "--map",
        choices=MAPS,
        default=MetricMapConfig.map,
        help="Network that learns the space. flow: a normalizing flow that starts at z itself\n"
        "and can be inverted, so that straight lines in the learned space become volumes\n"
        "(default: %(default)s)",
    )
    group.add_argument(
        "--no-amortization",
        action="store_true",
        help="Learn the space from the measured pairs of landmarks alone, not from distances\n"
        "predicted for all particles (those are learned as well, for the report)",
    )
    group.add_argument(
        "--ksample",
        type=int,
        default=ClusterConfig.count,
        help="Number of k-means clusters of the learned space, and of representative volumes\n"
        "(default: %(default)s)",
    )


def _add_output_args(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--flip", action="store_true", help="Flip handedness of output volumes and rotations"
    )
    group.add_argument("--invert", action="store_true", help="Invert contrast of output volumes")


def device(text: str) -> str:
    """A torch device as typed: a number is a CUDA device, as for `cryodrgn analyze`."""
    return f"cuda:{text}" if text.isdecimal() else text


def _mask(text: str) -> str:
    return text if text == "sphere" else os.path.abspath(text)


def _dimension(text: str) -> int | str:
    return text if text == "auto" else int(text)


def _thread_count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= MOST_THREADS:
        raise argparse.ArgumentTypeError(f"must be from 1 to {MOST_THREADS}; got {number}")
    return number


def embed_config(args: argparse.Namespace) -> EmbedConfig:
    """Sort the command line into the configs of the stages.

    Raises:
        ArgumentError: a value is out of range.
    """
    return EmbedConfig(
        workdir=args.workdir,
        epoch=args.epoch,
        outdir=args.outdir,
        seed=args.seed,
        device=args.device,
        threads=args.threads,
        restart=args.restart,
        skip_report=args.skip_report,
        landmarks=LandmarkConfig(args.landmarks, args.sampling, args.ind),
        volumes=VolumeConfig(
            downsample=args.downsample,
            low_pass_in_angstroms=args.low_pass,
            apix_in_angstroms=args.Apix,
            mask=args.mask,
            mask_radius=args.mask_radius,
            flip=args.flip,
            invert=args.invert,
            precision=args.precision,
        ),
        distances=DistanceConfig(
            distance=args.distance,
            scale=args.scale,
            contour=args.contour,
            rigid=args.rigid,
            model=args.model,
            atom_distance=args.atom_distance,
        ),
        ensemble=EnsembleConfig(args.ensemble),
        metric_map=MetricMapConfig(
            dimension=args.dim, loss=args.loss, map=args.map, amortized=not args.no_amortization
        ),
        clusters=ClusterConfig(args.ksample, args.skip_vol, args.skip_umap),
    )
