"""docs/performance.md says what the committed records say: no number in it is typed by hand."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from benchmarks.record import Figure, Record, Work
from benchmarks.report import PAGE, draw_growth, figure_lines, load_records, render

ROOT = Path(__file__).parents[1]
PARTS = ("figures", "settings", "growth", "bounds", "machines", "estimates")
RATE = Figure("rate", 1200.0, "pairs/s", target=1000, rounds=5)
SLOW = Figure("again", 2.0, "ms", 1.5, "at most", True, "the floor", 1.0, 5, Work(2e9, 1e8, 0.01))
RECORD = Record(
    "distances_64",
    "all pairs",
    "pytest tests/benchmarks/bench_distances.py",
    [RATE, SLOW],
    seconds=90.0,
    machine={
        "cpu": "a CPU",
        "cores": 2,
        "threads": 2,
        "versions": {"torch": "2"},
        "commit": "0123",
        "date": "2026-01-01",
    },
    peaks={"float32": 4e11, "bfloat16": 8e11, "memory": 2e10, "threads": 2},
    settings={"lmax": 24},
)


def test_the_page_is_rendered_from_the_records():
    page = PAGE.read_text(encoding="utf-8")
    assert render(page, load_records()) == page, "PYTHONPATH=tests python -m benchmarks.report"


@pytest.mark.parametrize("part", PARTS)
def test_every_table_has_its_place(part):
    page = PAGE.read_text(encoding="utf-8")
    assert f"<!-- begin {part} -->" in page and f"<!-- end {part} -->" in page


def test_targets_are_met_or_missed():
    assert RATE.met and SLOW.met is False and SLOW.ratio == 2.0
    assert Figure("no target", 1.0, "s").met is None
    assert RECORD.missed == ["again"]
    assert [line.split()[-1] for line in figure_lines([RECORD])] == ["met", "MISSED"]


def test_a_quick_run_is_never_saved():
    command = [sys.executable, "-m", "pytest", "tests/benchmarks/bench_transform.py"]
    options = ["--quick", "--save-records"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "leave --save-records out" in done.stderr


def test_plain_pytest_runs_no_benchmark():
    assert not list(Path(__file__).with_name("benchmarks").glob("test_*.py"))


def test_a_record_comes_back_as_it_was_saved(tmp_path):
    path = RECORD.save(tmp_path)
    assert Record.load(path) == RECORD
    assert json.loads(path.read_text()) == asdict(RECORD)
    assert load_records(tmp_path) == [RECORD]


def test_tables_hold_the_figures():
    marks = "".join(f"<!-- begin {part} -->\n<!-- end {part} -->\n" for part in PARTS)
    page = render(marks, [RECORD])
    assert "| all pairs | rate | 1,200 pairs/s | 5 | at least 1,000 pairs/s |  |  | met |" in page
    assert "at most 1.5 x | the floor: 1 ms | 2x | MISSED |" in page
    assert "200 G (50 % of peak) | 10 G (50 % of a copy's) | arithmetic |" in page
    assert "| lmax 24 | `pytest tests/benchmarks/bench_distances.py` | 1.5 min |" in page
    assert "a CPU, 2 of 2 cores" in page
    assert "| 10 ms | 103 µs | 205 µs | 29.9 µs | 59.7 µs |" in page
    assert render(page, [RECORD]) == page
    assert "Nothing is recorded yet." in render(page, [])


def test_the_plot_is_drawn_from_the_record(tmp_path):
    line = {"size": [100, 1000], "seconds": [1.0, 100.0]}
    draw_growth(
        replace(RECORD, row="growth", series={"distances, of L": line}), tmp_path / "a.png"
    )
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
