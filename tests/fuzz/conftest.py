"""How many cases are run, and what came of them.

`ci` (the default) is short and the same every time. `note` is the long run whose count the note
reports: `pytest tests/fuzz --hypothesis-profile=note`, or FUZZ_PROFILE=note.
"""

import os

import pytest
from hypothesis import HealthCheck, settings

from fuzz.harness import TALLY, watch_for_execution

COMMON = {
    # of one case, in ms; a slower machine may take a while to write a file
    "deadline": 10_000,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
    "print_blob": True,
}
settings.register_profile("ci", max_examples=40, derandomize=True, database=None, **COMMON)
settings.register_profile("note", max_examples=1000, **COMMON)
settings.load_profile(os.environ.get("FUZZ_PROFILE", "ci"))


@pytest.fixture(scope="session", autouse=True)
def _execution_is_seen():
    watch_for_execution()


def pytest_terminal_summary(terminalreporter):
    """One line a reader, and one for all; counted by the cases themselves."""
    for reader, counts in sorted(TALLY.items()):
        terminalreporter.write_line(f"fuzz {reader}: {_line(counts)}")
    if TALLY:
        total = {key: sum(counts[key] for counts in TALLY.values()) for key in _KEYS}
        terminalreporter.write_line(f"fuzz: {_line(total)}")


_KEYS = ("cases", "typed errors", "correct results")


def _line(counts):
    others = counts["cases"] - counts["typed errors"] - counts["correct results"]
    listed = ", ".join(f"{counts[key]:,} {key}" for key in _KEYS)
    return f"{listed}, {others} else"
