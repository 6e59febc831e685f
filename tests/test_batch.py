"""The Slurm script: its text, what real bash makes of it, what it does when the run ends.

Stand-ins on PATH take the place of the run and of Slurm's commands; tests/slurm/ has real ones.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from signal import SIGTERM

import pytest
from shipped import DEMO

from cryodrgn_metric import command, script
from cryodrgn_metric.batch import BatchConfig, activation, batch_script
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.options import embed_config

PAGE = Path(__file__).parents[1] / "docs" / "batch.md"
AWKWARD = [
    "plain",
    "two  spaces",
    'it\'s "quoted"',
    "$HOME `id` $(id) \\ !! *?[a]{b,c} ~ # ; & | < >",
    "line\nbreak\n#SBATCH --partition=evil\n",
    "tab\tand\x1b[31m",
    "ü 日本 \N{PILE OF POO}",
    b"not \xff text".decode(errors="surrogateescape"),
    "-dash",
]
EVERY_OPTION = (  # each differs from its default
    "--epoch 120 -o out --landmarks 60 --sampling farthest --ind i.pkl --dim 4 --loss weighted "
    "-d 32 --low-pass 8.5 --mask m.mrc --mask-radius 0.7 --Apix 1.3 --flip --invert "
    "--ksample 7 --skip-vol --skip-umap --skip-report --seed 3 --device 1 --threads 2 "
    "--precision bfloat16 --map flow --no-amortization --ensemble 3"
).split()
EITHER = {  # options that exclude each other: what is at its default then
    "--scale unit --rigid se3": {"distance", "contour", "model", "atom_distance"},
    "--distance transport --contour 2.5": {"scale", "rigid", "model", "atom_distance"},
    "--distance atoms --model m.pdb --atom-distance drmsd": {"scale", "rigid", "contour"},
}


@pytest.fixture
def printed(capfdbinary):
    """Type `cryodrgn_metric sbatch ...` and return what stdout received, byte for byte."""

    def type_(*arguments):
        script.main(["sbatch", *map(str, arguments)])
        return os.fsdecode(capfdbinary.readouterr().out)

    return type_


def directives(script):
    """The `#SBATCH` lines that sbatch reads: those above the first command."""
    found = []
    for line in script.splitlines():
        if line.startswith("#SBATCH "):
            found.append(line.removeprefix("#SBATCH "))
        elif line and not line.startswith("#"):
            break
    return found


class Node:
    """A folder of stand-ins, first on PATH, and the script running among them."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "bin").mkdir()
        self.stand_in("scontrol", 'printf "%s\\n" "$*" >> requests; exit "${SCONTROL:-0}"')
        self.stand_in("sleep", "exec /bin/sleep 0.02")  # the script looks once a second
        self.stand_in("squeue", 'echo "${STATE-RUNNING None}"')

    def stand_in(self, name, body, shebang="/bin/bash"):
        path = self.folder / "bin" / name
        path.write_text(f"#!{shebang}\n{body}\n")
        path.chmod(0o755)

    def start(self, script, **variables):
        (self.folder / "node.sh").write_bytes(os.fsencode(script))
        paths = [str(self.folder / "bin"), os.environ["PATH"]]
        return subprocess.Popen(
            ["bash", "node.sh"],
            cwd=self.folder,
            env={**os.environ, "PATH": ":".join(paths), "SLURM_JOB_ID": "42", **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, script, **variables):
        """(exit status, what it said) of the script, left alone."""
        job = self.start(script, **variables)
        said, _ = job.communicate(timeout=30)
        return job.returncode, said

    def run_and_tell(self, script, tell=lambda job: job.send_signal(SIGTERM), **variables):
        """The same of a script that is told to stop once the file `ready` is there."""
        job = self.start(script, **variables)
        deadline = time.monotonic() + 30
        while not (self.folder / "ready").exists():
            assert time.monotonic() < deadline and job.poll() is None
            time.sleep(0.005)
        tell(job)
        said, _ = job.communicate(timeout=30)
        return job.returncode, said

    @property
    def requests(self):
        """What was asked of scontrol."""
        path = self.folder / "requests"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


REQUEUED = ["requeue 42"]
SCRIPT = batch_script(BatchConfig(), ["run"])

# A run as metric_embed behaves: told to stop, it takes a moment to save and ends with 75.
SAVING = """
import pathlib, signal, sys, time
def stop(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(0.3)
    pathlib.Path("saved").touch()
    sys.exit(STATUS)
signal.signal(signal.SIGTERM, stop)
pathlib.Path("ready").touch()
time.sleep(30)
"""


class TestCommand:
    @pytest.mark.parametrize("name", AWKWARD)
    def test_every_name_reaches_the_run_as_it_is(self, node, printed, tmp_path, name):
        """Through real bash, with a recorder in the place of the run."""
        workdir = tmp_path / name
        shutil.copytree(DEMO, workdir)
        text = printed(workdir, "--ind", tmp_path / name, "-o", workdir / name, "--env", "")
        node.stand_in("cryodrgn_metric", 'printf "%s\\0" "$@" > argv')
        assert node.run(text)[0] == 0
        received = [os.fsdecode(word) for word in (tmp_path / "argv").read_bytes().split(b"\0")]
        options = ["--epoch", "120", "--outdir", str(workdir / name), "--ind", str(workdir)]
        assert received[:-1] == ["embed", str(workdir), *options]
        assert subprocess.run(["bash", "-n", tmp_path / "node.sh"]).returncode == 0
        assert all(" " not in line and "evil" not in line for line in directives(text)[1:])

    @pytest.mark.parametrize("name", AWKWARD)
    def test_so_does_the_name_of_the_environment(self, node, tmp_path, name):
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin" / "activate").write_text("touch activated\n")
        line = activation(str(tmp_path / name))
        node.stand_in("run", "true")
        assert node.run(batch_script(BatchConfig(environment=line), ["run"]))[0] == 0
        assert (tmp_path / "activated").exists()

    @pytest.mark.parametrize("either", EITHER)
    def test_the_run_is_the_one_that_was_typed(self, printed, monkeypatch, tmp_path, either):
        """Every option of metric_embed comes back as the same config, with absolute paths."""
        typed = [str(DEMO), *EVERY_OPTION, *either.split()]
        monkeypatch.chdir(tmp_path)
        parser = argparse.ArgumentParser()
        command.add_args(parser)
        wanted = parser.parse_args(typed)
        defaults = vars(parser.parse_args([str(DEMO)]))
        assert {k for k, v in vars(wanted).items() if v == defaults[k]} == {
            "workdir",
            "restart",
            *EITHER[either],
        }
        (line,) = (li for li in printed(*typed).splitlines() if li.startswith("cryodrgn_metric "))
        words = shlex.split(line.removesuffix(" &"))
        monkeypatch.chdir("/")
        again = parser.parse_args(words[2:])
        assert embed_config(again) == embed_config(wanted)

    def test_only_what_was_typed_is_passed_on(self, printed):
        """... except the epoch: a later start must not take up a later one."""
        assert f"\ncryodrgn_metric embed {DEMO} --epoch 120 &\n" in printed(DEMO)
        assert f"\ncryodrgn_metric embed {DEMO} &\n" in printed(DEMO, "--after", "7")

    @pytest.mark.parametrize("count, restart", [("0", ["--restart"]), ("1", [])])
    def test_all_is_computed_again_only_once(self, node, printed, tmp_path, count, restart):
        """Else every start would throw away what the last one finished."""
        node.stand_in("cryodrgn_metric", 'printf "%s\\n" "$@" > argv')
        text = printed(DEMO, "--restart", "--env", "set -- of the environment")
        assert node.run(text, SLURM_RESTART_COUNT=count)[0] == 0
        received = (tmp_path / "argv").read_text().splitlines()
        assert received == ["embed", str(DEMO), "--epoch", "120", *restart]

    def test_every_option_of_the_run_takes_one_value_or_none(self):
        """As _embed_command writes them."""
        parser = argparse.ArgumentParser(add_help=False)
        command.add_args(parser)
        assert {action.nargs for action in parser._actions} <= {None, 0}

    def test_examples_are_accepted(self):
        parser = argparse.ArgumentParser()
        script._add_sbatch_args(parser)
        examples = re.findall(
            r"^\$ cryodrgn_metric sbatch (.+) [|>] .+$", script.SBATCH_DOC, re.MULTILINE
        )
        assert len(examples) == 4
        for example in examples:
            script._batch_config(parser.parse_args(shlex.split(example)))

    @pytest.mark.parametrize(
        "arguments, message",
        [
            (["nowhere"], "nowhere is not a folder. If a job is still training it, type --after"),
            ([DEMO, "--epoch", "7"], "there are epochs 120. Type e.g. --epoch 120."),
            ([DEMO, "--landmarks", "2"], "--landmarks must be at least 10; got 2."),
            (["nowhere", "--after", "1", "--dim", "0"], "--dim must be auto, or at least 1"),
            ([DEMO, "--time", "2"], "--time must be more than the 120 s"),
        ],
    )
    def test_refuses_before_anything_is_printed(self, capsys, arguments, message):
        with pytest.raises(SystemExit) as stop:
            script.main(["sbatch", *map(str, arguments)])
        shown = capsys.readouterr()
        assert (stop.value.code, shown.out) == (2, "")
        assert message in shown.err

    def test_a_workdir_of_the_future_needs_after(self, capsys, tmp_path):
        script.main(["sbatch", str(tmp_path / "w"), "--epoch", "49", "--after", "12:13"])
        shown = capsys.readouterr()
        assert "#SBATCH --dependency=afterok:12:13\n" in shown.out
        assert f"{tmp_path / 'w'} --epoch 49 &" in shown.out
        assert "is not there yet; job 12:13 is expected to make it." in shown.err


class TestDirectives:
    def test_defaults(self):
        assert directives(SCRIPT) == [
            "--job-name=metric_embed",
            "--gres=gpu:1",
            "--cpus-per-task=4",
            "--mem=16G",
            "--time=12:00:00",
            "--signal=B:TERM@120",
            "--output=metric_embed-%j.log",
            "--requeue",
            "--open-mode=append",
        ]

    def test_every_slurm_option_arrives(self, printed):
        given = (
            "--time 1-2 --partition gpu,gpu_long --account lab-7 --gres gpu:a100:1 --cpus 8 "
            "--mem 64G --after 31_2:32 --max-restarts 3"
        )
        text = printed(DEMO, *given.split())
        assert set(directives(text)) >= {
            "--time=1-2",
            "--partition=gpu,gpu_long",
            "--account=lab-7",
            "--gres=gpu:a100:1",
            "--cpus-per-task=8",
            "--mem=64G",
            "--dependency=afterok:31_2:32",
        }
        assert '[ "$restarts" -ge 3 ]' in text

    def test_no_gpu_where_none_is_wanted(self, printed):
        assert not [line for line in directives(printed(DEMO, "--gres", "")) if "gres" in line]

    def test_a_job_name_is_for_people_and_holds_what_slurm_can_read(self):
        config = BatchConfig(name="metric_embed-ü b\n#SBATCH --x" + 50 * "y")
        name = directives(batch_script(config, ["run"]))[0].removeprefix("--job-name=")
        assert name == "metric_embed-__b__SBATCH_--x" + 12 * "y"

    @pytest.mark.parametrize("bad", ["", "a b", "a\n", "a;b", "$(id)", "ü", "a\n#SBATCH --x", "'"])
    @pytest.mark.parametrize("option", ["partition", "account", "mem", "gres", "after", "time"])
    def test_nothing_else_gets_into_them(self, option, bad):
        if (option, bad) == ("gres", ""):
            return  # no resources
        with pytest.raises(ArgumentError) as refusal:
            BatchConfig(**{option: bad})
        assert f"--{option} must be" in str(refusal.value) and repr(bad) in str(refusal.value)

    @pytest.mark.parametrize("after", ["x", "1:", ":1", "afterok:1", "1,2", "-1"])
    def test_jobs_to_wait_for_are_numbers(self, after):
        with pytest.raises(ArgumentError, match="--after must be a job number"):
            BatchConfig(after=after)

    @pytest.mark.parametrize("time", ["3", "2:01", "0:2:01", "1-0", "0-0:3", "0-0:2:1", "1-2:3:4"])
    def test_time_as_sbatch_takes_it(self, time):
        assert BatchConfig(time=time).time == time

    @pytest.mark.parametrize("time", ["2", "0", "2:00", "00:02:00", "0-0:2", "0-0", "0-0:0:59"])
    def test_time_must_exceed_the_margin(self, time):
        with pytest.raises(ArgumentError, match="more than the 120 s"):
            BatchConfig(time=time)

    @pytest.mark.parametrize(
        "time", ["1:2:3:4", "1h", "1-", "-1", "1.5", "UNLIMITED", "0-1:2:3:4"]
    )
    def test_other_times_are_refused(self, time):
        with pytest.raises(ArgumentError, match="--time must be minutes, H:M:S or D-H:M:S"):
            BatchConfig(time=time)

    @pytest.mark.parametrize("option, bad", [("cpus", 0), ("max_restarts", -1)])
    def test_counts(self, option, bad):
        with pytest.raises(ArgumentError, match=f"--{option.replace('_', '-')} must"):
            BatchConfig(**{option: bad})


class TestActivation:
    def test_of_this_interpreter(self, node):
        """Python of the activated environment is the one that runs now."""
        node.stand_in("run", "python -c 'import sys; print(sys.prefix)'")
        status, said = node.run(batch_script(BatchConfig(environment=activation()), ["run"]))
        assert status == 0 and f"\n{sys.prefix}\n" in said

    def test_of_conda(self, node, tmp_path):
        prefix = tmp_path / "envs" / "my cryodrgn"
        (prefix / "conda-meta").mkdir(parents=True)
        hook = tmp_path / "base dir" / "etc" / "profile.d" / "conda.sh"
        hook.parent.mkdir(parents=True)
        hook.write_text('conda() { printf "%s\\0" "$@" > activated; }\n')
        node.stand_in("conda", f'[ "$*" = "info --base" ] && echo "{tmp_path}/base dir"')
        node.stand_in("run", "true")
        text = batch_script(BatchConfig(environment=activation(str(prefix))), ["run"])
        assert node.run(text)[0] == 0
        assert (tmp_path / "activated").read_text() == f"activate\0{prefix}\0"

    def test_of_anything_else(self, node, tmp_path):
        scripts = tmp_path / "some where" / "bin"
        scripts.mkdir(parents=True)
        shutil.copy("/bin/true", scripts / "run")
        line = activation(str(scripts.parent))
        assert node.run(batch_script(BatchConfig(environment=line), ["run"]))[0] == 0

    def test_env_is_used_as_it_is(self, printed):
        line = "module load cuda/12 && conda activate 'my env'  # ours"
        assert f"\n\n{line}\n\n" in printed(DEMO, "--env", line)


class TestEndings:
    @pytest.mark.parametrize("status", [0, 1, 2, 127, 130, 137, 143])
    def test_any_other_status_is_the_jobs(self, node, status):
        """143 as well, where it wasn't we who passed SIGTERM on."""
        node.stand_in("run", f"exit {status}")
        found, said = node.run(SCRIPT)
        assert (found, node.requests) == (status, [])
        assert f"ended with status {status}\n" in said

    def test_a_missing_command_is_127(self, node):
        found, said = node.run(SCRIPT)
        assert (found, node.requests) == (127, []) and "run: command not found" in said

    def test_75_is_requeued(self, node):
        node.stand_in("run", "exit 75")
        status, said = node.run(SCRIPT, SLURM_RESTART_COUNT="2")
        assert (status, node.requests) == (75, REQUEUED)
        assert "SLURM_RESTART_COUNT=2\n" in said and "requeued, to go on" in said

    def test_an_environment_that_ends_at_errors_doesnt_end_the_script(self, node):
        node.stand_in("run", "exit 75")
        text = batch_script(BatchConfig(environment="set -euo pipefail"), ["run"])
        status, said = node.run(text)
        assert (status, node.requests) == (75, REQUEUED), said

    @pytest.mark.parametrize("times", [1, 3])
    def test_sigterm_is_passed_on_and_waited_for(self, node, tmp_path, times):
        node.stand_in("run", SAVING.replace("STATUS", "75"), sys.executable)

        def tell(job):
            for _ in range(times):
                job.send_signal(SIGTERM)
                time.sleep(0.02)

        status, _ = node.run_and_tell(SCRIPT, tell)
        assert (status, node.requests) == (75, REQUEUED)
        assert (tmp_path / "saved").exists()

    @pytest.mark.parametrize("code", [0, 1, 200])
    def test_a_run_that_ends_otherwise_when_told_is_not_requeued(self, node, code):
        node.stand_in("run", SAVING.replace("STATUS", str(code)), sys.executable)
        assert node.run_and_tell(SCRIPT)[0] == code
        assert node.requests == []

    def test_sigterm_before_the_run_listens_is_requeued(self, node):
        """As while Python still imports: the signal simply ends it."""
        node.stand_in("run", "touch ready; exec /bin/sleep 30")
        assert node.run_and_tell(SCRIPT)[0] == 75
        assert node.requests == REQUEUED

    def test_sigterm_while_the_environment_is_activated_is_requeued(self, node, tmp_path):
        node.stand_in("run", "/bin/sleep 5; touch too_late")
        text = batch_script(BatchConfig(environment="touch ready; /bin/sleep 0.5"), ["run"])
        started = time.monotonic()
        assert node.run_and_tell(text)[0] == 75
        assert node.requests == REQUEUED and time.monotonic() - started < 4
        assert not (tmp_path / "too_late").exists()

    def test_sigterm_after_the_run_has_ended_changes_nothing(self, node):
        node.stand_in("run", "exit 75")
        node.stand_in("squeue", "touch ready; /bin/sleep 0.5; echo RUNNING None")
        assert node.run_and_tell(SCRIPT)[0] == 75
        assert node.requests == REQUEUED

    @pytest.mark.parametrize("listen", ["", "trap 'exit 75' TERM;"])
    def test_sigterm_to_the_whole_job_at_once(self, node, listen):
        """As at the limit itself: script and run receive it together, whichever ends first."""
        node.stand_in("run", f"{listen} touch ready; for ((;;)); do :; done")
        for _ in range(8):
            (node.folder / "ready").unlink(missing_ok=True)
            status, _ = node.run_and_tell(SCRIPT, tell=lambda job: os.killpg(job.pid, SIGTERM))
            assert status == 75
        assert node.requests == 8 * REQUEUED

    @pytest.mark.parametrize(
        "state, requests",
        [
            ("RUNNING None", REQUEUED),
            ("COMPLETING TimeLimit", REQUEUED),  # past the limit, in the grace before SIGKILL
            ("", REQUEUED),  # squeue could not say
            ("COMPLETING None", []),  # scancel: it must not come back
            ("COMPLETING Prolog", []),
            ("PENDING BeginTime", []),  # requeued already
        ],
    )
    def test_only_a_time_limit_is_answered(self, node, state, requests):
        node.stand_in("run", "exit 75")
        status, said = node.run(SCRIPT, STATE=state)
        assert (status, node.requests) == (75, requests)
        assert bool(requests) != (f"stopped by Slurm ({state}); what was finished" in said)

    @pytest.mark.parametrize("count, requests", [("19", REQUEUED), ("20", []), ("21", [])])
    def test_not_for_ever(self, node, count, requests):
        node.stand_in("run", "exit 75")
        status, said = node.run(SCRIPT, SLURM_RESTART_COUNT=count)
        assert (status, node.requests) == (75, requests)
        assert bool(requests) != (f"restarted {count} times (--max-restarts)" in said)

    def test_a_refused_requeue_is_said(self, node):
        node.stand_in("run", "exit 75")
        status, said = node.run(SCRIPT, SCONTROL="1")
        assert status == 75 and "could not be requeued; what was finished is saved" in said

    def test_the_run_uses_the_cores_that_slurm_gave(self, node):
        node.stand_in("run", 'echo "threads $OMP_NUM_THREADS"')
        assert "threads 3\n" in node.run(SCRIPT, SLURM_CPUS_PER_TASK="3")[1]


def test_the_commands_of_the_page_are_accepted(node, printed, monkeypatch, tmp_path):
    """What is typed there, by real bash; the workdir has the epochs that the page names."""
    shutil.copytree(DEMO, tmp_path / "00_vae128")
    for epoch in (25, 37, 49):
        for kind in ("z", "weights"):
            shutil.copy(DEMO / f"{kind}.120.pkl", tmp_path / "00_vae128" / f"{kind}.{epoch}.pkl")
    node.stand_in("cryodrgn_metric", '(printf "%s\\0" "$@"; echo) >> typed')
    node.stand_in("sbatch", "cat > /dev/null; echo 1234")
    node.stand_in("tail", "true")
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert node.run("".join(blocks) + "wait\n")[0] == 0
    typed = [line.split("\0")[:-1] for line in (tmp_path / "typed").read_text().splitlines()]
    monkeypatch.chdir(tmp_path)
    scripts = [printed(*words[1:]) for words in typed if words[0] == "sbatch"]
    assert len(scripts) == 6 and "--dependency=afterok:1234\n" in scripts[2]
    (by_hand,) = (words for words in typed if words[0] != "sbatch")
    parser = argparse.ArgumentParser()
    command.add_args(parser)
    assert by_hand[0] == "embed" and parser.parse_args(by_hand[1:]).epoch == 49
