"""The stock cryoDRGN commands that made the demo's workdir.

Nothing of ours takes part: `cryodrgn train_dec` learns a latent per particle and a decoder from
particles.mrcs, poses.pkl and ctf.pkl, in under half an hour on one idle core. The decoder is
small because the box is. Every latent starts at random, so its learning rate is high until all
have found their place, and low afterwards, with larger batches, so that they settle.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cryodrgn_metric.runlog import logging_kept

__all__ = ["COMMANDS", "forget_folder", "train"]

_SHARED = (
    "cryodrgn train_dec particles.mrcs --poses poses.pkl --ctf ctf.pkl --uninvert-data"
    " --zdim 4 --dim 128 --layers 3 --lr 1e-3 --no-amp --no-analysis --checkpoint 10"
)
COMMANDS = (
    f"{_SHARED} -n 80 -b 16 --z-lr 1e-2 --seed 1 -o .",
    f"{_SHARED} -n 120 -b 64 --z-lr 2e-3 --seed 2 --load weights.80.pkl --load-z z.80.pkl -o .",
)


def train(workdir: str | Path, commands: Sequence[str] = COMMANDS) -> None:
    """Run the commands in `workdir`, which holds the particles and becomes the trained workdir."""
    with logging_kept():  # and imported late: it imports all of cryodrgn
        from cryodrgn.commands import train_dec

    folder = Path(workdir).resolve()
    for command in commands:
        parser = argparse.ArgumentParser()
        train_dec.add_args(parser)
        arguments = [_located(word, folder) for word in command.split()[2:]]
        with _recorded_as(command.split()), _handlers_closed(train_dec.logger):
            train_dec.main(parser.parse_args(arguments))
    forget_folder(folder, str(folder))


def _located(word: str, folder: Path) -> str:
    """A word of a command, in `folder` if it names a file."""
    return str(folder / word) if word == "." or word.endswith((".mrcs", ".pkl")) else word


def forget_folder(workdir: Path, *prefixes: str) -> None:
    """Turn absolute paths in config.yaml and run.log into names relative to their folder."""
    for name in ("config.yaml", "run.log"):
        text = (workdir / name).read_text(encoding="utf-8")
        for prefix in prefixes:
            text = text.replace(prefix.rstrip("/") + "/", "").replace(prefix.rstrip("/"), ".")
        (workdir / name).write_text(text, encoding="utf-8")


@contextmanager
def _recorded_as(words: list[str]) -> Iterator[None]:
    """cryoDRGN writes sys.argv into config.yaml: let it be the command a user would type."""
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _handlers_closed(logger: logging.Logger) -> Iterator[None]:
    """Close run.log afterwards; the command opens it and leaves it open."""
    before = list(logger.handlers)
    try:
        yield
    finally:
        for handler in [found for found in logger.handlers if found not in before]:
            logger.removeHandler(handler)
            handler.close()
