"""What a benchmark has measured, as committed in docs/performance/ROW.json.

Those files are the only source of the numbers in docs/performance.md (`report.py`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

RECORDS = Path(__file__).parents[2] / "docs" / "performance"


@dataclass(frozen=True)
class Work:
    """What a stage had to do, and how long it took.

    Arguments:
        operations: Floating-point operations, a product and a sum counted as two.
        bytes: Moved if no array ever stayed in a cache: an upper bound.
        seconds: Of wall time, for that many operations and bytes.
        dtype: Of the products: float32 or bfloat16.
    """

    operations: float
    bytes: float
    seconds: float
    dtype: str = "float32"


@dataclass(frozen=True)
class Figure:
    """One measured number and what is asked of it.

    Arguments:
        name: What was measured.
        value: The median.
        unit: Of the value and of the reference.
        target: What it must reach; None: it is only reported.
        direction: "at least" or "at most".
        of_ratio: The target is one of value / reference, not of the value.
        reference: What was measured in turns with it, in the same run.
        reference_value: Its median.
        rounds: The number of measurements behind each median.
        work: Operations and bytes, where they were counted.
        note: What a reader must know beside the number.
    """

    name: str
    value: float
    unit: str
    target: float | None = None
    direction: str = "at least"
    of_ratio: bool = False
    reference: str | None = None
    reference_value: float | None = None
    rounds: int = 1
    work: Work | None = None
    note: str = ""

    def __post_init__(self) -> None:
        assert self.direction in ("at least", "at most"), self.direction
        assert not self.of_ratio or self.reference_value is not None, self.name

    @property
    def ratio(self) -> float | None:
        return None if self.reference_value is None else self.value / self.reference_value

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        if self.target is None:
            return None
        reached = self.ratio if self.of_ratio else self.value
        assert reached is not None
        return reached >= self.target if self.direction == "at least" else reached <= self.target


@dataclass(frozen=True)
class Record:
    """All figures of one row of the table, and where they were measured.

    Arguments:
        row: The name of the file, without its suffix.
        title: The stage, as the table calls it.
        command: What measures it again.
        figures: What was measured.
        machine: As from `machine.describe`; no names of hosts, no paths.
        seconds: That all of it took, with what had to be made first.
        peaks: As from `machine.Peaks`, on the same machine in the same run.
        settings: What was chosen or found: lmax, L, N, box.
        series: Numbers for a plot.
    """

    row: str
    title: str
    command: str
    figures: list[Figure]
    seconds: float
    machine: dict[str, object]
    peaks: dict[str, float]
    settings: dict[str, object] = field(default_factory=dict)
    series: dict[str, object] = field(default_factory=dict)

    @property
    def missed(self) -> list[str]:
        """The names of the figures that don't reach their target."""
        return [figure.name for figure in self.figures if figure.met is False]

    def save(self, folder: Path = RECORDS) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.row}.json"
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: Path) -> Record:
        facts = json.loads(path.read_text(encoding="utf-8"))
        facts["figures"] = [_figure(figure) for figure in facts["figures"]]
        return cls(**facts)


def _figure(facts: dict) -> Figure:
    work = facts.pop("work")
    return Figure(**facts, work=None if work is None else Work(**work))
