"""Benchmarks: run by explicit path, their figures printed last and saved when asked.

Plain `pytest` collects none of them (their files are not named test_*.py) and doesn't need
pytest-benchmark.
"""

import time
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.machine import Peaks, describe, measure_peaks
from benchmarks.record import Figure, Record
from benchmarks.report import figure_lines

RECORDED = pytest.StashKey[list[Record]]()


def pytest_addoption(parser):
    group = parser.getgroup("figures of docs/performance.md")
    group.addoption(
        "--save-records",
        action="store_true",
        help="write the figures to docs/performance/ROW.json; default: print them only",
    )
    group.addoption(
        "--quick",
        action="store_true",
        help="less of everything, to see that a script works; no target is checked",
    )
    group.addoption(
        "--workdir", metavar="DIR", help="a trained workdir, for the audit of bench_exactness.py"
    )


def pytest_configure(config):
    if config.getoption("--quick", False) and config.getoption("--save-records", False):
        raise pytest.UsageError("--quick measures nothing worth saving: leave --save-records out.")
    config.stash[RECORDED] = []


def pytest_collection_modifyitems(items):
    """Warnings of the libraries measured are not ours to make errors of."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def quick(pytestconfig) -> bool:
    """Whether to measure less of everything."""
    return pytestconfig.getoption("--quick")


@pytest.fixture(scope="session")
def peaks() -> Peaks:
    """What this machine can do, measured once, before anything else is."""
    return measure_peaks()


@pytest.fixture
def record(request, peaks, quick):
    """record(row, title, figures, settings, series): keep figures, give back those that missed.

    Call it before any target is checked, and assert that nothing comes back: a miss is then
    recorded, too, and fails. A quick run misses nothing.
    """
    start = time.perf_counter()

    def recorded(
        row: str, title: str, figures: list[Figure], settings=None, series=None
    ) -> list[str]:
        command = f"pytest {Path(request.path).relative_to(request.config.rootpath).as_posix()}"
        made = Record(
            row,
            title,
            command,
            figures,
            time.perf_counter() - start,
            describe(),
            asdict(peaks),
            settings or {},
            series or {},
        )
        request.config.stash[RECORDED].append(made)
        if request.config.getoption("--save-records"):
            made.save()
        return [] if quick else made.missed

    return recorded


def pytest_unconfigure(config):
    """The last thing that is printed, below pytest's own summary."""
    records = config.stash.get(RECORDED, [])
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if not records or reporter is None:
        return
    if config.getoption("--quick"):
        reporter.write_line("A quick run: too little work for these figures to mean anything.")
    for line in figure_lines(records):
        reporter.write_line(line)
