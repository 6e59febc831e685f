"""The exceptions of this package: one small tree, so that every level can be caught.

    MetricError                 anything this package refuses to do
    ├── WorkdirError            a cryoDRGN workdir is missing a file, an epoch, or is not one
    │   └── UnsafeFileError     a file asks for code to be executed while it is read
    ├── ArgumentError           an option or argument is out of range (also a ValueError)
    ├── VolumeError             a volume is NaN, constant or of another box (also a ValueError)
    ├── OutputError             results cannot be written: disk full, say (also an OSError)
    ├── FolderBusyError         another run is writing to the same folder
    └── MissingExtraError       an optional package is not installed (also an ImportError)

Every message says what was expected, what came, which file, and what to type next.
"""

__all__ = [
    "ArgumentError",
    "FolderBusyError",
    "MetricError",
    "MissingExtraError",
    "OutputError",
    "UnsafeFileError",
    "VolumeError",
    "WorkdirError",
    "brief",
]

MOST_LETTERS = 300  # of what a file holds, in a message


class MetricError(Exception):
    """Anything this package refuses to do; the base of all its exceptions."""


class WorkdirError(MetricError):
    """A cryoDRGN workdir lacks a file or an epoch, or is not a workdir."""


class UnsafeFileError(WorkdirError):
    """A file asks for code to be executed while it is read."""


class ArgumentError(MetricError, ValueError):
    """An option or an argument is out of range."""


class VolumeError(MetricError, ValueError):
    """A volume cannot be compared: it holds NaN, is constant, or has another box."""


class OutputError(MetricError, OSError):
    """Results cannot be written: the disk is full, read-only, or the folder is not ours."""


class FolderBusyError(MetricError):
    """Another run is writing to the same folder; the message says which."""


class MissingExtraError(MetricError, ImportError):
    """An optional package is not installed; the message holds the `pip install` line."""


def brief(value: object) -> str:
    """A value or an error for a message: a hostile file may hold a megabyte of it."""
    text = str(value)
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]} ..."
