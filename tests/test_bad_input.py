"""Bad input through the real command: one message that says what to type, nothing computed first.

Each refusal has exit status 2 and leaves no output folder behind; fallbacks are said in the log.
"""

import ast
import os
import pickle
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
import yaml
from conftest import BOX, PARTICLES
from running import SMALL, run, unchanged

from cryodrgn_metric import align, pairwise_distances
from cryodrgn_metric.errors import VolumeError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def copied(tmp_path, vae_workdir):
    """A train_vae workdir that a test may spoil."""
    folder = tmp_path / "workdir"
    shutil.copytree(vae_workdir, folder)
    return folder


@pytest.fixture
def refusal(tmp_path, capsys):
    """Run the command, which must refuse: its message. Nothing may have been written."""

    def _refusal(workdir, *options):
        out = tmp_path / "out"
        with pytest.raises(SystemExit) as stopped:
            run(workdir, "-o", out, *options)
        assert stopped.value.code == 2
        assert not out.exists()
        said = capsys.readouterr().err  # the log, too: quiet() leaves it no other way
        assert "Decoding" not in said and "Traceback" not in said
        return said

    return _refusal


def rewrite_z(folder, change):
    """Apply a function to the (N, 3) array in z.2.pkl, and write it as one pickle."""
    with open(folder / "z.2.pkl", "rb") as file:
        z = pickle.load(file)
    (folder / "z.2.pkl").write_bytes(pickle.dumps(change(z)))


def spoil(z, row, value):
    z[row] = value
    return z


# -- the workdir


def test_not_a_workdir(refusal, tmp_path):
    assert "is not a folder" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    said = refusal(tmp_path / "empty")
    assert "no config.yaml" in said and "`cryodrgn train_vae -o`" in said


def test_no_such_epoch_lists_those_there(refusal, copied):
    assert "there are epochs 1, 2. Type e.g. --epoch 2." in refusal(copied, "--epoch", 49)


def test_config_without_weights(refusal, copied):
    for path in copied.glob("weights*.pkl"):
        path.unlink()
    said = refusal(copied)
    assert "weights.N.pkl" in said and "training has not written an epoch" in said


SPOILED = {
    "NaN": (lambda z: spoil(z, 3, np.nan), "1 of 200 particles have NaN"),
    "another length": (lambda z: z[:150], "z.2.pkl holds 150 particles"),
    "infinity": (lambda z: spoil(z, slice(2), np.inf), "2 of 200 particles have NaN or infinite"),
    "other columns": (lambda z: z[:, :2], "expected (N, 3) latents"),
    "one dimension": (lambda z: z.ravel(), "expected an (N, zdim) array"),
    "no particle": (lambda z: z[:0], "empty"),
    "one particle": (lambda z: z[:1], "z.2.pkl holds 1 particles"),
    "all alike": (lambda z: 0 * z + 0.5, "got 200, all alike"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_latents(refusal, copied, case):
    change, words = SPOILED[case]
    rewrite_z(copied, change)
    said = refusal(copied, "--landmarks", 10)
    assert words in said
    assert "z.2.pkl" in said or "candidates" in said


@pytest.mark.parametrize(("count", "words"), [(1, "got 1, all alike"), (9, "got 9")])
def test_a_training_of_too_few_particles(refusal, copied, count, words):
    rewrite_z(copied, lambda z: z[:count])
    forget_poses(copied)
    assert words in refusal(copied, "--landmarks", 10)


def forget_poses(folder):
    """Without them in config.yaml, nothing says how many particles there should be."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["dataset_args"]["poses"] = None
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


# -- options


OPTIONS = {
    "odd box": (("-d", 15), "-d/--downsample must be an even number of voxels >= 8; got 15"),
    "tiny box": (("-d", 4), "got 4"),
    "larger box": (("-d", BOX + 2), f"Type -d {BOX} or less"),
    "dimension": (("--dim", 60), "Type --dim 59 or less"),
    "no dimension": (("--dim", 0), "--dim must be auto, or at least 1; got 0"),
    "landmarks": (("--landmarks", 3), "--landmarks must be at least 10; got 3"),
    "clusters": (("--ksample", 0), "--ksample must be at least 1; got 0"),
    "negative seed": (("--seed", -1), "--seed must be"),
    "no resolution": (("--low-pass", 0), "--low-pass must be a positive resolution"),
    "infinite resolution": (("--low-pass", "inf"), "--low-pass must be a positive resolution"),
    "coarse resolution": (("--low-pass", 50), "Type --low-pass 36 or less"),
    "pixel size": (("--Apix", "nan"), "--Apix must be positive"),
    "no such device": (("--device", "abacus"), "--device abacus cannot be used"),
    "no such GPU": (("--device", "cuda:99"), "--device cuda:99 cannot be used"),
    "mask radius": (("--mask-radius", 1.5), "fraction of the half box"),
    "no mask": (("--mask", "nowhere.mrc"), "nowhere.mrc"),
    "no candidates": (("--ind", "nowhere.pkl"), "nowhere.pkl"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options(refusal, vae_workdir, case):
    options, words = OPTIONS[case]
    assert words in refusal(vae_workdir, *options)


MASKS = {
    "another box": (np.ones((8, 8, 8)), "expected (24, 24, 24) voxels"),
    "not a cube": (np.ones((24, 24, 12)), "Resample the mask"),
    "empty": (np.zeros((24, 24, 24)), "it is empty"),
    "NaN": (np.full((24, 24, 24), np.nan), "NaN or infinite"),
    "a volume": (np.full((24, 24, 24), 7.0), "expected values from 0 to 1"),
    "in a corner": (np.pad(np.ones((2, 2, 2)), (0, 22)), "Centre the mask"),
}


@pytest.mark.parametrize("case", MASKS)
def test_masks(refusal, vae_workdir, tmp_path, case):
    values, words = MASKS[case]
    with warnings.catch_warnings(), mrcfile.new(tmp_path / "mask.mrc") as mrc:
        warnings.simplefilter("ignore")  # mrcfile's, of NaN
        mrc.set_data(values.astype(np.float32))
    said = refusal(vae_workdir, "--mask", tmp_path / "mask.mrc")
    assert words in said and "mask.mrc" in said


@pytest.mark.parametrize(
    ("candidates", "words"),
    [
        (np.arange(5), "at least 10"),
        (np.arange(195, 215), "got 5"),
        (np.linspace(0, 1, 20), "expected particle numbers"),
        ({"a": 1}, "expected particle numbers"),
    ],
    ids=["few", "of other particles", "fractions", "a dictionary"],
)
def test_candidates(refusal, vae_workdir, tmp_path, candidates, words):
    (tmp_path / "ind.pkl").write_bytes(pickle.dumps(candidates))
    assert words in refusal(vae_workdir, "--ind", tmp_path / "ind.pkl")


# -- stated fallbacks


def test_fewer_particles_than_landmarks_uses_all_and_says_so(copied, tmp_path, capsys):
    rewrite_z(copied, lambda z: z[:30])
    forget_poses(copied)
    run(copied, "-o", tmp_path / "out", "--landmarks", 100, "--skip-vol")
    assert "100 landmarks were asked for" in capsys.readouterr().err
    with np.load(tmp_path / "out" / "distances.npz") as found:
        assert sorted(found["landmark_indices"]) == list(range(30))


# -- volumes


def test_bad_volumes_are_named():
    volumes = np.random.default_rng(0).normal(size=(4, 8, 8, 8))
    for value, words in ((0.0, "constant"), (3.0, "constant"), (np.nan, "NaN"), (np.inf, "NaN")):
        spoiled = volumes.copy()
        spoiled[2] = value
        with pytest.raises(VolumeError, match=rf"volumes\[2\].*{words}"):
            pairwise_distances(spoiled)
        with pytest.raises(VolumeError, match=words):
            align(spoiled[2], volumes[0])
    spoiled = volumes.copy()
    spoiled[1, 2:-2, 2:-2, 2:-2] = 0
    spoiled[1] *= spherical_outside(8)
    with pytest.raises(VolumeError, match=r"within the window.*\[1\]"):
        pairwise_distances(spoiled)


def spherical_outside(box):
    """1 where the soft window is 0."""
    from cryodrgn_metric.so3.conventions import spherical_window

    return (spherical_window(box, 0.85) == 0).numpy()


def break_decoder(folder, share):
    """Change weights.2.pkl so that V(z) is NaN for a share of the particles: their rows.

    The first hidden unit becomes 1e30 (z[0] - threshold) where that is positive, which the next
    layers carry to infinity; elsewhere it stays 0.
    """
    with open(folder / "z.2.pkl", "rb") as file:
        z = pickle.load(file)
    order = np.argsort(z[:, 0])
    kept, broken = np.split(order, [round((1 - share) * len(z))])
    threshold = (z[kept[-1], 0] + z[broken[0], 0]) / 2 if len(kept) else z[:, 0].min() - 1
    checkpoint = torch.load(folder / "weights.2.pkl", weights_only=True)
    state = checkpoint["model_state_dict"]
    weights = [name for name in state if re.fullmatch(r"decoder\.decoder\..*weight", name)]
    first, second = weights[:2]
    state[first][0] = 0.0
    state[first][0, -3] = 1e30  # the latent follows the coordinates
    state[first.replace("weight", "bias")][0] = -1e30 * float(threshold)
    state[second][:, 0] = 1e30
    torch.save(checkpoint, folder / "weights.2.pkl")
    return broken


def test_a_few_volumes_of_nan_are_left_out_and_counted(copied, tmp_path, capsys):
    broken = break_decoder(copied, 0.03)
    run(copied, "-o", tmp_path / "out", "--landmarks", PARTICLES)
    said = capsys.readouterr().err
    assert f"{len(broken)} of {PARTICLES} decoded volumes are constant or hold NaN" in said
    assert "They are left out." in said
    with np.load(tmp_path / "out" / "distances.npz") as found:
        assert len(found["distances"]) == PARTICLES - len(broken)
        assert not set(found["landmark_indices"]) & set(broken)
        assert np.isfinite(found["distances"]).all()
    with open(tmp_path / "out" / "z_metric.pkl", "rb") as file:
        z_metric = pickle.load(file)
    assert z_metric.shape == (PARTICLES, 2) and np.isfinite(z_metric).all()


def test_many_volumes_of_nan_are_refused(copied, tmp_path, capsys):
    broken = break_decoder(copied, 0.1)
    with pytest.raises(SystemExit) as stopped:
        run(copied, "-o", tmp_path / "out", "--landmarks", PARTICLES)
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert f"{len(broken)} of {PARTICLES}" in said and "More than 5 %" in said
    assert "weights.2.pkl" in said and "Choose another epoch" in said


def test_a_decoder_of_nothing_but_nan_is_refused_after_ten_volumes(copied, tmp_path, capsys):
    break_decoder(copied, 1.0)
    with pytest.raises(SystemExit) as stopped:
        run(copied, "-o", tmp_path / "out")
    assert stopped.value.code == 2
    assert "10 of 10 volumes" in capsys.readouterr().err


def test_weights_of_nan_are_refused(refusal, copied):
    checkpoint = torch.load(copied / "weights.2.pkl", weights_only=True)
    next(iter(checkpoint["model_state_dict"].values())).fill_(torch.nan)
    torch.save(checkpoint, copied / "weights.2.pkl")
    said = refusal(copied)
    assert "weights.2.pkl" in said and "training diverged" in said


# -- where results go


def test_output_below_a_file(vae_workdir, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        run(vae_workdir, "-o", tmp_path / "file" / "out")
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "cannot be written" in said and "-o" in said and "Decoding" not in said


@pytest.mark.parametrize("where", [".", "..", "../link"])
def test_the_workdir_or_what_holds_it_is_no_output_folder(copied, capsys, where):
    """Not even with a file in it that looks like ours; nothing in it may change."""
    (copied / "metric_embed.log").write_text("")
    (copied / "metric_embed.lock").write_text("process 1 on a host, since then\n")
    (copied.parent / "link").symlink_to(copied)
    with pytest.raises(SystemExit) as stopped:
        run(copied, "-o", copied / where)
    assert stopped.value.code == 2
    assert "is, or holds, the workdir" in capsys.readouterr().err


@pytest.mark.parametrize(
    "inside",
    [
        "analyze.2",
        "analyze.2/kmeans4",
        "analyze.2/pc1",
        "landscape.2",
        "figures",
        "models",
        "cache",
    ],
)
def test_nothing_is_written_through_a_link_in_our_folder(copied, capsys, inside):
    """Where the user has linked a folder of ours to one of hers, hers stays as it is."""
    hers, ours = copied / "analyze.2" / "kmeans4", copied / "metric_embed.2"
    hers.mkdir(parents=True)
    (hers / "labels.pkl").write_bytes(b"hers")
    (ours / inside).parent.mkdir(parents=True)
    (ours / "metric_embed.lock").write_text("process 1 on a host, since then\n")
    (ours / inside).symlink_to(hers)
    with pytest.raises(SystemExit) as stopped:
        run(copied)
    assert stopped.value.code == 2
    assert "nothing is written through it" in capsys.readouterr().err


def test_a_first_run_that_could_not_sign_its_lock_goes_on(vae_workdir, tmp_path):
    """Killed, or out of disk, between making the file and writing who holds it."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metric_embed.lock").touch()
    run(vae_workdir, "-o", tmp_path / "out", "--landmarks", 12, "--skip-vol")
    assert (tmp_path / "out" / "metric_embed.lock").read_text().startswith("process ")


@pytest.mark.parametrize("option", ["WORKDIR", "-o", "--ind", "--mask"])
def test_names_that_are_too_long(copied, tmp_path, capsys, option):
    name = tmp_path / ("x" * 300)
    arguments = [name] if option == "WORKDIR" else [copied, option, name]
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
    assert "x" * 300 in capsys.readouterr().err


def test_too_many_threads(vae_workdir, capsys):
    with pytest.raises(SystemExit):
        run(vae_workdir, "--threads", 99_999_999_999)
    assert "must be from 1 to" in capsys.readouterr().err


SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
from cryodrgn_metric.script import main
main(sys.argv[1:])
"""


def in_small_disk(folder, size, mode, before, *arguments):
    """Run the command in a mount namespace of its own, in which `folder` is a tmpfs.

    Arguments:
        before: A shell line that is run in it first.
        arguments: Of `cryodrgn_metric`.
    """
    mount = 'mount -t tmpfs -o "size=$SIZE" none "$FOLDER"'
    shell = "\n".join(["set -e", mount, before, mode, 'exec "$@"'])
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "SIZE": size,
        "FOLDER": str(folder),
    }
    alone = ["unshare", "--map-root-user", "--mount", "sh", "-c", shell, "sh"]
    with unchanged(arguments[1]):
        return subprocess.run(
            [*alone, sys.executable, "-c", SCRIPT, *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )


EMBED = (*SMALL, "--landmarks", "30", "--ksample", "3")


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "small disk"
    folder.mkdir()
    return folder


def test_a_read_only_disk(vae_workdir, disk):
    remount = 'mount -o remount,ro "$FOLDER"'
    done = in_small_disk(disk, "50m", remount, ":", "embed", vae_workdir, "-o", disk / "o", *EMBED)
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr and "Read-only" in done.stderr
    assert "Decoding" not in done.stdout


def test_a_full_disk_is_refused_before_anything_is_computed(vae_workdir, disk):
    done = in_small_disk(disk, "1m", ":", ":", "embed", vae_workdir, "-o", disk / "o", *EMBED)
    assert done.returncode == 2, done.stderr
    assert "needs about" in done.stderr and "are free or taken" in done.stderr
    assert "Decoding" not in done.stdout


# A watcher fills the disk once a stage begins. Then room is made, and the command typed again.
FILL_UP = r"""
watch() {
    until grep -q 'STAGE \.\.\.' "$FOLDER/o/metric_embed.log" 2>/dev/null; do sleep 0.01; done
    dd if=/dev/zero of="$FOLDER/filler" bs=64k 2>/dev/null || true
}
watch & "$@" || echo "status $?" >&2
wait
echo "drafts: $(find "$FOLDER/o" -name '.*' | wc -l)" >&2
rm "$FOLDER/filler"
"""


@pytest.mark.parametrize("stage", ["volumes", pytest.param("motion", marks=pytest.mark.slow)])
def test_a_disk_that_fills_up_leaves_nothing_half_written_and_the_run_goes_on(
    vae_workdir, disk, stage
):
    fill_up = FILL_UP.replace("STAGE", stage)
    done = in_small_disk(disk, "24m", ":", fill_up, "embed", vae_workdir, "-o", disk / "o", *EMBED)
    assert done.returncode == 0, done.stderr
    assert "status 2" in done.stderr and "cannot be written: No space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert "drafts: 0\n" in done.stderr


# -- names


NAMES = ["with space", "quo'te\"s", "new\nline", "ünïcode 粒子", "$(touch pwned); `id` & *"]


@pytest.mark.parametrize("name", NAMES)
def test_odd_names_are_only_names(vae_workdir, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    workdir = tmp_path / name / "work dir"
    shutil.copytree(vae_workdir, workdir)
    run(workdir, "--landmarks", 12)
    folder = workdir / "metric_embed.2"
    parameters = yaml.safe_load((folder / "metric_embed.yaml").read_text(encoding="utf-8"))
    assert parameters["config"]["workdir"] == str(workdir)
    assert (folder / "z_metric.pkl").exists() and len(list(folder.rglob("kmeans4/vol_*.mrc"))) == 4
    assert os.listdir(tmp_path) == [name]


STARTERS = (
    r"\b(os\.(system|popen|exec\w*|spawn\w*|posix_spawn\w*|fork\w*)|subprocess|pty)\b|shell=True"
)


def starts_a_program(source):
    """Calls and imports by which Python source could start a program, or a shell."""
    kinds = (ast.Call, ast.Import, ast.ImportFrom)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return [text for node in nodes if re.search(STARTERS, text := ast.unparse(node))]


@pytest.mark.parametrize(
    "source", ["os.system('x')", "import subprocess", "run('x', shell=True)", "os.execvp('a', b)"]
)
def test_programs_that_are_started_would_be_seen(source):
    assert starts_a_program(source)


def test_no_shell_string_is_ever_built():
    """Nothing in the package starts a shell, nor a program; jupyter_client a notebook's kernel."""
    for path in (ROOT / "cryodrgn_metric").rglob("*.py"):
        assert not starts_a_program(path.read_text()), path
