"""The command line: options, the configs built from them, exit statuses, subcommands."""

import argparse
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from cryodrgn_metric import __version__, command, script
from cryodrgn_metric.config import (
    ClusterConfig,
    DistanceConfig,
    EmbedConfig,
    EnsembleConfig,
    LandmarkConfig,
    MetricMapConfig,
    VolumeConfig,
)
from cryodrgn_metric.errors import WorkdirError
from cryodrgn_metric.metric_map import MetricMap
from cryodrgn_metric.options import embed_config
from cryodrgn_metric.safe_files.pickles import load_pickle
from cryodrgn_metric.workdir import load_latents

ROOT = Path(__file__).parents[1]


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_args(parser)
    return parser.parse_args(arguments)


@pytest.fixture
def pipeline(monkeypatch):
    """The boundary to the pipeline: collects configs, or raises what `pipeline.fail` holds."""
    module = ModuleType("cryodrgn_metric.pipeline")
    module.configs, module.fail = [], None

    def embed(config):
        module.configs.append(config)
        if module.fail is not None:
            raise module.fail

    module.embed = embed
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


class TestConfig:
    def test_defaults_are_the_dataclasses_own(self):
        workdir = os.path.abspath("workdir")
        assert embed_config(parse("workdir")) == EmbedConfig(workdir=workdir)

    def test_every_option_arrives(self):
        given = (
            "w --epoch 25 -o out --landmarks 60 --sampling farthest --ind i.pkl --dim 4 "
            "--loss weighted -d 32 --low-pass 8.5 --mask m.mrc --mask-radius 0.7 --Apix 1.3 "
            "--flip --invert --distance transport --contour 2.5 --ksample 7 --skip-vol "
            "--skip-umap --seed 3 --device cpu --threads 2 --restart --precision bfloat16 "
            "--map flow --no-amortization --ensemble 3"
        )
        assert embed_config(parse(*given.split())) == EmbedConfig(
            workdir=os.path.abspath("w"),
            epoch=25,
            outdir=os.path.abspath("out"),
            seed=3,
            device="cpu",
            threads=2,
            restart=True,
            landmarks=LandmarkConfig(60, "farthest", os.path.abspath("i.pkl")),
            volumes=VolumeConfig(
                32, 8.5, 1.3, os.path.abspath("m.mrc"), 0.7, True, True, "bfloat16"
            ),
            distances=DistanceConfig("transport", contour=2.5),
            ensemble=EnsembleConfig(3),
            metric_map=MetricMapConfig(4, "weighted", map="flow", amortized=False),
            clusters=ClusterConfig(7, True, True),
        )

    def test_help_names_every_option_and_default(self):
        parser = argparse.ArgumentParser()
        command.add_args(parser)
        shown = " ".join(parser.format_help().split())
        for default in ("500", "kmeans", "relative", "so3", "20", "0.85", "sphere"):
            assert f"(default: {default})" in shown
        for action in parser._actions:
            assert action.help, f"{action.dest} has no help"

    def test_the_dimension_may_be_auto(self):
        config = embed_config(parse("w", "--dim", "auto")).metric_map
        assert config == MetricMapConfig(dimension="auto")
        assert config.most_dimensions == 8

    def test_a_device_may_be_a_number_as_for_analyze(self):
        assert parse("w", "--device", "1").device == "cuda:1"
        assert parse("w", "--device", "cuda").device == "cuda"

    @pytest.mark.parametrize(
        "arguments",
        [
            "",
            "w --sampling grid",
            "w --loss none",
            "w --distance l2",
            "w --threads 0",
            "w --dim some",
            "w --flow",
            "w --precision half",
            "w --rigid so2",
            "w --distance L1",
            "w --atom-distance gdt",
        ],
    )
    def test_argparse_refuses(self, arguments, capsys):
        with pytest.raises(SystemExit) as stop:
            parse(*arguments.split())
        assert stop.value.code == 2
        assert "error:" in capsys.readouterr().err


class TestHelpText:
    def test_survives_the_hosts_formatting(self):
        """cryoDRGN turns runs of spaces into a backslash and a newline, for its own examples."""
        assert "  " not in command.__doc__
        assert command.__doc__.split("\n")[0].endswith(".")

    def test_examples_are_accepted(self):
        examples = re.findall(r"^\$ cryodrgn metric_embed (.+)$", command.__doc__, re.MULTILINE)
        assert len(examples) >= 3
        for example in examples:
            embed_config(parse(*example.split()))


class TestMain:
    def test_runs_the_pipeline_once(self, pipeline):
        command.main(parse("w", "--dim", "3"))
        assert pipeline.configs == [
            EmbedConfig(workdir=os.path.abspath("w"), metric_map=MetricMapConfig(dimension=3))
        ]

    @pytest.mark.parametrize(
        "failure, status, message",
        [
            (WorkdirError("no z.7.pkl in w"), 2, "cryodrgn_metric: error: no z.7.pkl in w\n"),
            (KeyboardInterrupt(), 130, f"cryodrgn_metric: interrupted; {command.TO_GO_ON}\n"),
        ],
    )
    def test_exit_statuses(self, pipeline, capsys, failure, status, message):
        pipeline.fail = failure
        with pytest.raises(SystemExit) as stop:
            command.main(parse("w"))
        assert (stop.value.code, capsys.readouterr().err) == (status, message)

    def test_a_config_out_of_range_never_reaches_the_pipeline(self, pipeline, capsys):
        with pytest.raises(SystemExit) as stop:
            command.main(parse("w", "--landmarks", "2"))
        assert (stop.value.code, pipeline.configs) == (2, [])
        assert "--landmarks must be at least 10; got 2." in capsys.readouterr().err

    @pytest.mark.parametrize(
        "options, message",
        [
            ("--distance transport --scale unit", "--scale unit has no meaning for --distance"),
            ("--contour 3", "--contour is for --distance transport only."),
            ("--distance transport --contour -1", "--contour must be a positive number"),
        ],
    )
    def test_options_that_exclude_each_other(self, pipeline, capsys, options, message):
        with pytest.raises(SystemExit):
            command.main(parse("w", *options.split()))
        assert not pipeline.configs and message in capsys.readouterr().err

    def test_a_bug_keeps_its_traceback(self, pipeline):
        pipeline.fail = ZeroDivisionError()
        with pytest.raises(ZeroDivisionError):
            command.main(parse("w"))


class TestScript:
    def test_embed_is_the_same_command(self, pipeline):
        script.main(["embed", "w", "--epoch", "4", "-d", "32"])
        command.main(parse("w", "--epoch", "4", "-d", "32"))
        assert pipeline.configs[0] == pipeline.configs[1]

    def test_version(self, capsys):
        with pytest.raises(SystemExit) as stop:
            script.main(["--version"])
        assert (stop.value.code, capsys.readouterr().out) == (
            0,
            f"cryodrgn_metric {__version__}\n",
        )

    @pytest.mark.parametrize("name", ["embed", "demo", "transform", "sbatch"])
    def test_subcommand_help(self, name, capsys):
        with pytest.raises(SystemExit) as stop:
            script.main([name, "-h"])
        shown = capsys.readouterr().out
        assert stop.value.code == 0
        assert shown.startswith(f"usage: cryodrgn_metric {name} ") and "\n$ cryodrgn" in shown

    def test_a_subcommand_is_required(self, capsys):
        with pytest.raises(SystemExit) as stop:
            script.main([])
        assert stop.value.code == 2
        assert "command" in capsys.readouterr().err

    @pytest.mark.parametrize("flags, train", [([], False), (["--train"], True)])
    def test_demo(self, monkeypatch, flags, train):
        calls = []
        module = ModuleType("cryodrgn_metric.demo.run")
        module.run_demo = lambda outdir, train=False: calls.append((outdir, train))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        script.main(["demo", "somewhere", *flags])
        assert calls == [(os.path.abspath("somewhere"), train)]

    def test_closed_stdin_and_odd_folder_change_nothing(self, tmp_path):
        """As a batch system would start it, far from the checkout."""
        code = "from cryodrgn_metric.script import main; main(['embed', '-h'])"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "--landmarks" in done.stdout


class TestTransform:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        """A finished run's folder, as far as `transform` reads it."""
        z = np.random.default_rng(0).normal(size=(40, 3)).astype("float32")
        measured = np.linalg.norm(z[:, None] - z[None], axis=-1)
        fitted = MetricMap(n_components=2, steps=5, width=8).fit(z, measured)
        fitted.save(tmp_path / "metric_embed.5" / "models")
        with open(tmp_path / "z.5.pkl", "wb") as zfile:  # as train_vae: mean, log variance
            pickle.dump(z, zfile)
            pickle.dump(z, zfile)
        return tmp_path

    @pytest.mark.parametrize("model", ["metric_embed.5", "metric_embed.5/models"])
    @pytest.mark.parametrize("name", ["z.5_metric.pkl", "other.pkl"])
    def test_writes_what_the_saved_map_says(self, folder, monkeypatch, capsys, model, name):
        monkeypatch.chdir(folder)
        flags = [] if name == "z.5_metric.pkl" else ["-o", name]
        script.main(["transform", "z.5.pkl", "--model", model, *flags])
        written = load_pickle(folder / name)
        z = load_latents(folder / "z.5.pkl")
        assert written.dtype == np.float32
        assert np.array_equal(written, MetricMap.load("metric_embed.5/models").transform(z))
        assert f"{name}: 40 particles in 2 dimensions" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "zfile, model", [("z.5.pkl", "nowhere"), ("no.pkl", "metric_embed.5")]
    )
    def test_missing_input_is_a_message(self, folder, monkeypatch, capsys, zfile, model):
        monkeypatch.chdir(folder)
        with pytest.raises(SystemExit) as stop:
            script.main(["transform", zfile, "--model", model])
        assert stop.value.code == 2
        assert (zfile if model != "nowhere" else model) in capsys.readouterr().err
        assert not list(folder.glob("*_metric.pkl"))

    @pytest.mark.parametrize("spelling", ["z.5.pkl", "./z.5.pkl", "link.pkl"])
    def test_never_overwrites_its_input(self, tmp_path, monkeypatch, capsys, spelling):
        (tmp_path / "z.5.pkl").write_bytes(b"latents")
        (tmp_path / "link.pkl").symlink_to("z.5.pkl")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as stop:
            script.main(["transform", "z.5.pkl", "--model", ".", "-o", spelling])
        assert stop.value.code == 2
        assert "is the input itself" in capsys.readouterr().err
        assert (tmp_path / "z.5.pkl").read_bytes() == b"latents"

    def test_replaces_only_what_o_names(self, folder, monkeypatch, capsys):
        monkeypatch.chdir(folder)
        (folder / "z.5_metric.pkl").write_bytes(b"mine")
        with pytest.raises(SystemExit):
            script.main(["transform", "z.5.pkl", "--model", "metric_embed.5"])
        assert "Type -o" in capsys.readouterr().err
        assert (folder / "z.5_metric.pkl").read_bytes() == b"mine"
        again = ["transform", "z.5.pkl", "--model", "metric_embed.5", "-o", "z.5_metric.pkl"]
        script.main(again)
        assert (folder / "z.5_metric.pkl").read_bytes() != b"mine"

    def test_needs_a_model(self, capsys):
        with pytest.raises(SystemExit) as stop:
            script.main(["transform", "z.pkl"])
        assert stop.value.code == 2
        assert "--model" in capsys.readouterr().err
