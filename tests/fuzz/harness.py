"""What every case of the fuzz tests is held to.

A reader gets a file. Either it raises one of our errors, whose message names the file, or what it
returns passes the test's own oracle. Meanwhile nothing is executed or written, a warning is an
error, and time and memory are bounded.
"""

import codecs
import contextlib
import encodings.aliases
import faulthandler
import resource
import signal
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from hypothesis import settings

from cryodrgn_metric.errors import MetricError

SECONDS = 5
ROOM = 1 << 30  # of address space, in bytes, for one case of a few kB
MOST_RESIDENT = 1 << 28
LONGEST_MESSAGE = 4000

TALLY = defaultdict(Counter)


def fuzz(share=1.0):
    """Settings of a test: its share of the profile's cases."""
    return settings(max_examples=max(1, round(share * settings().max_examples)))


def judge(reader, path, read, check=lambda value: None):
    """Run one case: `read()` of the file `path`; `check` is the oracle of what it returns.

    An error has to name the file, or one of several.
    """
    TALLY[reader]["cases"] += 1
    with _guarded():
        try:
            value = read()
        except MetricError as error:
            _require_typed(error, path)
            TALLY[reader]["typed errors"] += 1
            return None
    check(value)
    assert np.dtype("f8").str == "<f8" and not np.dtype("f8").hasobject
    TALLY[reader]["correct results"] += 1
    return value


def _require_typed(error, path):
    message = str(error)
    names = [Path(one).name for one in (path if isinstance(path, tuple) else (path,))]
    assert any(name in message for name in names), f"doesn't name {path}: {message[:300]}"
    assert len(message) < LONGEST_MESSAGE, message[:300]
    cause = error
    while cause := cause.__cause__:
        text = str(cause)[:10_000].lower()
        assert not isinstance(cause, MemoryError) and "allocate memory" not in text, repr(cause)


class Hang(BaseException):
    """A case took too long; no reader's `except Exception` catches it."""


class Executed(BaseException):
    """A reader executed, started or wrote something."""


@contextlib.contextmanager
def _guarded():
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    old = resource.getrlimit(resource.RLIMIT_AS)
    signal.signal(signal.SIGALRM, _hang)
    faulthandler.dump_traceback_later(6 * SECONDS, exit=True)  # for what no signal interrupts
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + ROOM, old[1]))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    _WATCH["events"] = []
    _WATCH["on"] = True
    try:
        yield
    finally:
        _WATCH["on"] = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, old)
        faulthandler.cancel_dump_traceback_later()
    assert not _WATCH["events"], _WATCH["events"]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) * 1024
    assert grown < MOST_RESIDENT, f"{grown} bytes"


def _address_space():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _hang(*_):
    raise Hang


# -- the tripwire

_WATCH = {"on": False, "events": []}
_FORBIDDEN = ("os.", "subprocess.", "socket.", "shutil.", "exec", "ctypes.", "pty.", "ensurepip.")
_ALLOWED = ("os.listdir", "os.scandir", "os.fstat", "os.stat")


def watch_for_execution():
    """Let Python itself tell of code that is executed, files written, processes started."""
    for codec in set(encodings.aliases.aliases.values()) | {"idna", "raw_unicode_escape"}:
        with contextlib.suppress(LookupError):
            codecs.lookup(codec)  # Python imports it, and so executes it, when it is needed first
    sys.addaudithook(_heard)


def _heard(event, arguments):
    if not _WATCH["on"] or event in _ALLOWED:
        return
    written = event == "open" and _writes(*arguments)
    if written or event.startswith(_FORBIDDEN):
        _WATCH["events"].append((event, repr(arguments)[:200]))
        raise Executed(event)


def _writes(path, mode, flags):
    return any(letter in (mode or "") for letter in "wax+") or bool(flags and flags & 3)


def trip(*_):
    """What the tests' bombs call."""
    _WATCH["events"].append(("trip", ""))
