"""The plugin in real virtual environments, through the real console scripts.

Ours and cryoDRGN are really pip-installed there. What they need (torch, ...) is lent by this
environment, through a folder of links in which neither of the two appears. Every start of the
real `cryodrgn` imports torch and all its commands, so only the tests that must do it.
"""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import zipfile
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
START_FILES = {
    "_cryodrgn_metric_boot.py",
    "cryodrgn_metric_plugin.pth",
    "cryodrgn_metric_plugin.start",
}
# What `cryodrgn -h` does without importing its own commands: which ones we would add.
OUR_SHARE = """
import sys, cryodrgn.command_line as host
sys.argv[1:] = ["-h"]
host._get_commands("commands", [])
"""


def call(*command: object, **kwargs) -> subprocess.CompletedProcess[str]:
    # PYTHONPATH and the checkout as current folder would lend the package to every environment.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment["COLUMNS"] = "200"
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=400,
        env=environment,
        **kwargs,
    )


@dataclass(frozen=True)
class Environment:
    """A virtual environment of its own."""

    folder: Path

    @property
    def site_packages(self) -> Path:
        variables = {"base": str(self.folder), "platbase": str(self.folder)}
        return Path(sysconfig.get_path("purelib", "venv" if os.name != "nt" else None, variables))

    def run(self, script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return call(self.folder / "bin" / script, *arguments, cwd=self.folder)

    def python(self, code: str) -> subprocess.CompletedProcess[str]:
        return self.run("python", "-c", textwrap.dedent(code))

    def pip(self, *arguments: object) -> None:
        done = call(sys.executable, "-m", "pip", "--python", self.folder, *arguments, cwd="/")
        assert done.returncode == 0, done.stdout + done.stderr

    def install(self, *requirements: object) -> None:
        self.pip("install", "--no-deps", "--no-index", "--no-build-isolation", *requirements)


@pytest.fixture(scope="session")
def lent(tmp_path_factory) -> Path:
    """Links to everything this environment has installed, but for the two under test."""
    folder = tmp_path_factory.mktemp("lent")
    for installed in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(installed).iterdir():
            ours = entry.name.lower().startswith(("cryodrgn", "_cryodrgn", "__editable__"))
            if not ours and entry.suffix not in (".pth", ".start"):
                (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """What a clean checkout holds of the package."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(
        ROOT / "cryodrgn_metric",
        folder / "cryodrgn_metric",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="session")
def wheel(project, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = call(
        *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"),
        *("--wheel-dir", folder, project),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("cryodrgn_metric-*.whl")
    return built


def record_line(name: str, content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}"


@pytest.fixture(scope="session")
def host_wheel(tmp_path_factory) -> Path:
    """The wheel that the cryoDRGN installed here came from, packed again."""
    host = distribution("cryodrgn")
    built = tmp_path_factory.mktemp("host") / f"cryodrgn-{host.version}-py3-none-any.whl"
    left_out = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}
    record = []
    with zipfile.ZipFile(built, "w") as archive:
        for file in host.files or []:
            if ".." in file.parts or file.suffix == ".pyc" or file.name in left_out:
                continue
            content = Path(file.locate()).read_bytes()
            archive.writestr(file.as_posix(), content)
            record.append(record_line(file.as_posix(), content))
        record_name = f"cryodrgn-{host.version}.dist-info/RECORD"
        archive.writestr(record_name, "\n".join([*record, f"{record_name},,"]) + "\n")
    return built


@pytest.fixture(scope="session")
def new_environment(lent, tmp_path_factory):
    """Returns a function that makes an environment with these things installed."""

    def _new(*requirements: object) -> Environment:
        environment = Environment(tmp_path_factory.mktemp("venv"))
        done = call(sys.executable, "-m", "venv", "--without-pip", environment.folder)
        assert done.returncode == 0, done.stderr
        (environment.site_packages / "lent.pth").write_text(f"{lent}\n")
        environment.install(*requirements)
        return environment

    return _new


@pytest.fixture(scope="session")
def both(new_environment, wheel, host_wheel) -> Environment:
    """Both as wheels; for tests that only look."""
    return new_environment(host_wheel, wheel)


class TestBothInstalled:
    def test_cryodrgn_lists_our_command_beside_its_own(self, both):
        done = both.run("cryodrgn", "-h")
        assert (done.returncode, done.stderr) == (0, "")
        (listed,) = {line.strip() for line in done.stdout.splitlines() if line.startswith("  {")}
        assert listed.endswith(",train_dec,metric_embed}")
        assert "analyze_landscape_full" in listed

    def test_both_scripts_run_the_same_command(self, both):
        hosted = both.run("cryodrgn", "metric_embed", "-h")
        own = both.run("cryodrgn_metric", "embed", "-h")
        assert (hosted.returncode, hosted.stderr) == (own.returncode, own.stderr) == (0, "")
        text = [done.stdout.partition("\n\n")[2] for done in (hosted, own)]
        assert text[0] == text[1] and "--landmarks" in text[0]

    def test_start_up_is_cheap_and_silent(self, both):
        tries = [both.run("python", "-X", "importtime", "-c", "pass") for _ in range(5)]
        ours = [line for line in tries[0].stderr.splitlines() if "cryodrgn" in line]
        assert len(ours) == 1, "the boot module and nothing else of ours"
        microseconds = [
            int(line.split("|")[1])
            for done in tries
            for line in done.stderr.splitlines()
            if line.endswith("_cryodrgn_metric_boot")
        ]
        assert min(microseconds) < 2000
        done = both.python("import sys; print({'torch', 'numpy'} & set(sys.modules))")
        assert (done.stdout, done.stderr) == ("set()\n", "")

    def test_cryodrgn_help_pays_under_fifty_milliseconds(self, both):
        """The standard library's parts named here are imported by torch in any case."""
        code = """
            import sys, time, argparse, dataclasses, importlib.metadata, inspect
            import _cryodrgn_metric_boot as boot
            sys.meta_path[:] = [f for f in sys.meta_path if type(f).__module__ != boot.__name__]
            import cryodrgn.command_line as host
            host._get_commands = lambda cmd_dir, cmds: print(*cmds)
            start = time.process_time()
            boot._hand_over(host)
            host._get_commands("commands", [])
            print(1e3 * (time.process_time() - start))
        """
        tries = [both.python(code).stdout.split() for _ in range(5)]
        assert {name for name, _ in tries} == {"metric_embed"}
        assert min(float(milliseconds) for _, milliseconds in tries) < 50.0


def test_wheel_holds_the_start_files_at_its_root(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names >= START_FILES | {"cryodrgn_metric/py.typed", "cryodrgn_metric/command.py"}
    assert not any(name.startswith("cryodrgn_metric/boot/") for name in names)


def test_wheel_holds_everything_else_the_package_holds(wheel, project):
    package = project / "cryodrgn_metric"
    there = {
        path.relative_to(project).as_posix()
        for path in package.rglob("*")
        if path.is_file() and package / "boot" not in path.parents
    }
    assert there - set(zipfile.ZipFile(wheel).namelist()) == set()


def test_our_failure_leaves_cryodrgn_whole(new_environment, wheel, host_wheel):
    environment = new_environment(host_wheel, wheel)
    module = environment.site_packages / "cryodrgn_metric" / "command.py"
    module.write_text("import no_such_package\n")
    done = environment.run("cryodrgn", "-h")
    assert done.returncode == 0
    assert "train_vae" in done.stdout and "metric_embed" not in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("cryodrgn_metric: skipped the command metric_embed: ModuleNotFound")


def test_uninstalling_ours_leaves_cryodrgn_as_it_was(new_environment, wheel, host_wheel):
    environment = new_environment(host_wheel)
    before = {path for path in environment.site_packages.iterdir()}
    environment.install(wheel)
    environment.python("import _cryodrgn_metric_boot, cryodrgn_metric.command")  # leaves .pyc
    assert START_FILES <= {path.name for path in environment.site_packages.iterdir()}
    environment.pip("uninstall", "-y", "cryodrgn_metric")
    left = {path.name for path in environment.site_packages.iterdir()} - {p.name for p in before}
    assert left <= {"__pycache__"}
    assert not list(environment.site_packages.glob("__pycache__/*cryodrgn*"))
    done = environment.run("cryodrgn", "-h")
    assert (done.returncode, done.stderr) == (0, "")
    assert "train_vae" in done.stdout and "metric_embed" not in done.stdout


def test_cryodrgn_may_go_and_come_back(new_environment, wheel, host_wheel):
    environment = new_environment(host_wheel, wheel)
    environment.pip("uninstall", "-y", "cryodrgn")
    done = environment.python("pass")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = environment.run("cryodrgn_metric", "embed", "-h")
    assert (done.returncode, done.stderr) == (0, "")
    environment.install(host_wheel)
    assert "metric_embed" in environment.python(OUR_SHARE).stdout


def test_ours_in_editable_mode(new_environment, project, host_wheel, tmp_path):
    sources = tmp_path / "sources"
    shutil.copytree(project, sources)
    environment = new_environment(host_wheel)
    environment.install("--editable", sources)
    done = environment.run("cryodrgn", "metric_embed", "-h")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--landmarks" in done.stdout
    shutil.rmtree(sources)
    done = environment.python("pass")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = environment.python(OUR_SHARE)
    assert done.returncode == 0 and "metric_embed" not in done.stdout
    assert done.stderr.startswith("cryodrgn_metric: ") and done.stderr.count("\n") == 1


def test_cryodrgn_in_editable_mode(new_environment, wheel, tmp_path):
    host = distribution("cryodrgn")
    package = Path(host.locate_file("cryodrgn"))
    shutil.copytree(package, tmp_path / "cryodrgn", ignore=shutil.ignore_patterns("*.pyc"))
    (tmp_path / "pyproject.toml").write_text(
        textwrap.dedent(
            f"""
            [build-system]
            requires = ["setuptools"]
            build-backend = "setuptools.build_meta"
            [project]
            name = "cryodrgn"
            version = "{host.version}"
            scripts = {{ cryodrgn = "cryodrgn.command_line:main_commands" }}
            [tool.setuptools]
            packages = ["cryodrgn", "cryodrgn.commands", "cryodrgn.commands_utils"]
            """
        )
    )
    environment = new_environment(wheel)
    environment.install("--editable", tmp_path)
    found = environment.python("import cryodrgn; print(cryodrgn.__file__)").stdout
    assert Path(found.strip()).parents[1] == tmp_path
    done = environment.run("cryodrgn", "-h")
    assert (done.returncode, done.stderr) == (0, "")
    assert "train_vae" in done.stdout and "metric_embed" in done.stdout
