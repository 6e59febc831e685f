"""The start-up hook and the plugin, against a stand-in for cryoDRGN's command line.

tests/test_plugin_install.py (slow) repeats the essentials in real virtual environments.
"""

import os
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from cryodrgn_metric import plugin

ROOT = Path(__file__).parents[1]
BOOT = ROOT / "cryodrgn_metric" / "boot"

# What cryoDRGN 4.3.1 does in _get_commands, without its 23 commands.
COMMAND_LINE = '''
import argparse, os
from importlib import import_module

def _get_commands(cmd_dir: str, cmds: list, doc_str: str = "") -> None:
    """Stock."""
    parser = argparse.ArgumentParser(description=doc_str)
    subparsers = parser.add_subparsers()
    for cmd in cmds:
        module = import_module(f"cryodrgn.{os.path.basename(cmd_dir)}.{cmd}")
        subparser = subparsers.add_parser(cmd)
        module.add_args(subparser)
        subparser.set_defaults(func=module.main)
    args = parser.parse_args()
    args.func(args)

def main_commands():
    here = os.path.dirname(__file__)
    _get_commands(cmd_dir=os.path.join(here, "commands"), cmds=["stock"], doc_str="Main")

def util_commands():
    here = os.path.dirname(__file__)
    _get_commands(cmd_dir=os.path.join(here, "commands_utils"), cmds=["tool"], doc_str="Utils")
'''
STOCK = "def add_args(parser): pass\ndef main(args): print('stock ran')\n"
GUEST = """'''A guest.'''
def add_args(parser): parser.add_argument("word")
def main(args): print("guest says", args.word)
"""


def write_tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    return folder


def entry_points(**commands: str) -> dict[str, str]:
    """An installed distribution that declares these subcommands."""
    lines = [f"{name} = {module}" for name, module in commands.items()]
    return {
        "guests-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: guests\nVersion: 1.0\n",
        "guests-1.0.dist-info/entry_points.txt": "\n".join([f"[{plugin.GROUP}]", *lines]),
    }


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder for sys.path with a small `cryodrgn` and one guest command."""
    return write_tree(
        tmp_path,
        {
            "cryodrgn/__init__.py": "",
            "cryodrgn/command_line.py": COMMAND_LINE,
            "cryodrgn/commands/__init__.py": "",
            "cryodrgn/commands/stock.py": STOCK,
            "cryodrgn/commands_utils/__init__.py": "",
            "cryodrgn/commands_utils/tool.py": STOCK,
            "guest_command.py": GUEST,
            **entry_points(guest="guest_command"),
        },
    )


def run_python(
    *arguments: str, site: Path | None = None, package: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that has the boot folder, the package and `site` on its path.

    -S keeps .pth files of the environment, our installed one included, out of the way.
    """
    path = [str(part) for part in (site, BOOT, package) if part is not None]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    environment.pop("PYTHONHOME", None)
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=BOOT,  # -c puts it on sys.path: not the checkout, which holds the package
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def run_cryodrgn(
    *arguments: str, site: Path, function: str = "main_commands", package: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """What the console script does, after what the .pth file does."""
    pth = (BOOT / "cryodrgn_metric_plugin.pth").read_text()
    code = f"{pth}\nfrom cryodrgn.command_line import {function}; {function}()"
    return run_python("-c", code, *arguments, site=site, package=package)


class TestHook:
    def test_adds_a_declared_command(self, site):
        assert "{stock,guest}" in run_cryodrgn("-h", site=site).stdout
        done = run_cryodrgn("guest", "hello", site=site)
        assert (done.returncode, done.stdout, done.stderr) == (0, "guest says hello\n", "")

    def test_leaves_stock_commands_alone(self, site):
        done = run_cryodrgn("stock", site=site)
        assert (done.returncode, done.stdout, done.stderr) == (0, "stock ran\n", "")

    def test_leaves_utilities_alone(self, site):
        done = run_cryodrgn("-h", site=site, function="util_commands")
        assert "tool" in done.stdout and "guest" not in done.stdout

    def test_pth_without_its_boot_module_is_silent(self, tmp_path):
        line = (BOOT / "cryodrgn_metric_plugin.pth").read_text()
        script = write_tree(tmp_path, {"run.py": f"{line}\nprint('alive')"}) / "run.py"
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(script)], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")

    def test_vanished_package_costs_one_line(self, site, tmp_path):
        empty = tmp_path / "empty"
        done = run_cryodrgn("stock", site=site, package=empty)
        assert (done.returncode, done.stdout) == (0, "stock ran\n")
        assert done.stderr.startswith("cryodrgn_metric: no subcommand was added")
        assert done.stderr.count("\n") == 1

    def test_host_without_get_commands_costs_one_line(self, site):
        (site / "cryodrgn/command_line.py").write_text("def main_commands(): print('other')")
        done = run_cryodrgn(site=site)
        assert (done.returncode, done.stdout) == (0, "other\n")
        assert done.stderr.count("\n") == 1

    def test_absent_host_stays_absent(self):
        code = """
            import _cryodrgn_metric_boot as boot; boot.install()
            try:
                import cryodrgn.command_line
            except ModuleNotFoundError as error:
                print(error.name)
        """
        done = run_python("-c", textwrap.dedent(code))
        assert (done.stdout, done.stderr) == ("cryodrgn\n", "")

    def test_module_looks_as_if_nobody_had_waited(self, site):
        code = """
            import _cryodrgn_metric_boot as boot; boot.install(); boot.install()
            import importlib, inspect, sys
            import cryodrgn.command_line as host
            print(type(host.__loader__).__name__, type(host.__spec__.loader).__name__)
            print(inspect.getsource(host).count("def main_commands"))
            host = importlib.reload(host)
            print(host._get_commands.__wrapped__.__doc__, host._get_commands.__doc__)
            print(sum(type(finder).__module__ == boot.__name__ for finder in sys.meta_path))
        """
        done = run_python("-c", textwrap.dedent(code), site=site)
        assert done.stderr == ""
        assert done.stdout.splitlines() == [
            "SourceFileLoader SourceFileLoader",
            "1",
            "Stock. Stock.",
            "1",
        ]

    def test_finds_a_host_that_only_another_finder_knows(self, site):
        home = (site / "cryodrgn").rename(site / "elsewhere") / "__init__.py"
        code = f"""
            import sys
            from importlib.util import spec_from_file_location
            class Editable:
                @staticmethod
                def find_spec(name, path=None, target=None):
                    if name == "cryodrgn":
                        return spec_from_file_location(name, {str(home)!r})
            sys.meta_path.append(Editable)
            import _cryodrgn_metric_boot as boot; boot.install()
            from cryodrgn.command_line import main_commands; main_commands()
        """
        assert "{stock,guest}" in run_python("-c", textwrap.dedent(code), "-h", site=site).stdout

    def test_start_file_names_the_function_the_pth_file_calls(self):
        module, function = (BOOT / "cryodrgn_metric_plugin.start").read_text().strip().split(":")
        line = (BOOT / "cryodrgn_metric_plugin.pth").read_text()
        assert line.startswith("import ") and line.count("\n") == 1
        assert f"import {module} as boot" in line and f"boot.{function}()" in line
        assert f"\ndef {function}() -> None:" in (BOOT / f"{module}.py").read_text()


class TestEntryPoints:
    """`extend` in this process; what is installed here is present too, so names are looked up."""

    @pytest.fixture
    def offer(self, tmp_path, monkeypatch):
        """Returns names the host was given, after `extend`, with these modules installed."""

        def _offer(modules: dict[str, str], cmds=("stock",), folder="commands") -> list[str]:
            names = {name: f"plugin_test_{name}" for name in modules}
            files = {f"{names[name]}.py": text for name, text in modules.items()}
            monkeypatch.syspath_prepend(
                str(write_tree(tmp_path, {**files, **entry_points(**names)}))
            )
            for name, module in names.items():
                for known in (module, f"{plugin.GROUP}.{name}"):
                    monkeypatch.setitem(sys.modules, known, None)  # so that undo removes it
                    monkeypatch.delitem(sys.modules, known)
            seen: list[str] = []
            host = ModuleType("host")
            vars(host)["_get_commands"] = lambda cmd_dir, cmds, doc_str="": seen.extend(cmds)
            plugin.extend(host)
            host._get_commands(cmd_dir=os.path.join("anywhere", folder), cmds=list(cmds))
            return seen

        return _offer

    def test_module_is_served_under_the_hosts_name(self, offer):
        assert "guest" in offer({"guest": GUEST})
        assert sys.modules["cryodrgn.commands.guest"].__name__ == "plugin_test_guest"

    def test_only_the_commands_folder_is_extended(self, offer):
        assert offer({"guest": GUEST}, folder="commands_utils") == ["stock"]

    def test_steps_aside_for_a_listed_name(self, offer):
        assert offer({"stock": "raise RuntimeError('not to be imported')"}).count("stock") == 1

    def test_steps_aside_for_a_module_the_host_has(self, offer, capsys):
        pytest.importorskip("cryodrgn", reason="the name must exist in a real cryodrgn.commands")
        from importlib.util import find_spec

        assert find_spec("cryodrgn.commands.analyze") is not None
        assert "analyze" not in offer({"analyze": "raise RuntimeError('not to be imported')"})
        assert "analyze" not in capsys.readouterr().err

    @pytest.mark.parametrize(
        "source, reason",
        [
            ("import no_such_package", "ModuleNotFoundError"),
            ("raise RuntimeError('two\\nlines')", "RuntimeError"),
            ("raise SystemExit(3)", "SystemExit"),
            ("def main(args): pass", "AttributeError"),
            ("def add_args(parser): pass", "AttributeError"),
            ("main = 1\ndef add_args(parser): pass", "TypeError"),
            ("def main(args): pass\ndef add_args(parser): 1 / 0", "ZeroDivisionError"),
        ],
    )
    def test_unusable_command_costs_one_line(self, offer, capsys, source, reason):
        offered = offer({"bad": source, "guest": GUEST})
        assert "bad" not in offered and "guest" in offered
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith(f"cryodrgn_metric: skipped the command bad: {reason}")

    def test_second_call_offers_the_same(self, offer):
        assert "guest" in offer({"guest": GUEST})
        host = ModuleType("host")
        seen: list[str] = []
        vars(host)["_get_commands"] = lambda cmd_dir, cmds, doc_str="": seen.extend(cmds)
        plugin.extend(host)
        host._get_commands("commands", ["stock"])
        assert "guest" in seen


class TestCost:
    """CPU time, the best of several tries: the machine may be busy with other things."""

    def test_every_python_start_pays_under_two_milliseconds(self):
        line = (BOOT / "cryodrgn_metric_plugin.pth").read_text()
        code = f"""
import sys, time
before, start = set(sys.modules), time.process_time()
{line.strip()}
print(1e3 * (time.process_time() - start))
print(*sorted(set(sys.modules) - before))
"""
        runs = [run_python("-c", code).stdout.splitlines() for _ in range(5)]
        assert min(float(milliseconds) for milliseconds, _ in runs) < 2.0
        assert {new for _, new in runs} == {"_cryodrgn_metric_boot"}

    def test_cryodrgn_help_pays_under_fifty_milliseconds(self, site):
        """From the hand-over to the extended list, our own command included.

        The real host imports these parts of the standard library whether we are there or not;
        this environment's distributions are on the path because they are all searched.
        """
        write_tree(site, entry_points(metric_embed="cryodrgn_metric.command"))
        code = f"""
            import sys, time
            import argparse, dataclasses, importlib.metadata
            sys.path.append({sysconfig.get_path("purelib")!r})
            import cryodrgn.command_line as host
            def empty(cmd_dir, cmds): print(*cmds)
            host._get_commands = empty
            start = time.process_time()
            import _cryodrgn_metric_boot as boot
            boot._hand_over(host)
            host._get_commands("commands", ["stock"])
            print(1e3 * (time.process_time() - start))
            print({{"torch", "numpy"}} & set(sys.modules))
        """
        runs = [
            run_python("-c", textwrap.dedent(code), site=site).stdout.splitlines()
            for _ in range(5)
        ]
        assert {(names, heavy) for names, _, heavy in runs} == {("stock metric_embed", "set()")}
        assert min(float(milliseconds) for _, milliseconds, _ in runs) < 50.0

    def test_package_and_command_import_neither_torch_nor_numpy(self):
        code = (
            "import sys, cryodrgn_metric, cryodrgn_metric.command, cryodrgn_metric.plugin\n"
            "print(cryodrgn_metric.__version__, {'torch', 'numpy'} & set(sys.modules))"
        )
        assert run_python("-c", code).stdout.split()[1] == "set()"
