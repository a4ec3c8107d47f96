"""Results of the measurements: one JSON file that is written after each, so that a killed run keeps them."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from asyncdiff.checkpoints.atomic_files import write_atomically
from asyncdiff.checkpoints.json_files import read_json

VERSION = 1  # of the JSON file
DONE, FAILED, SKIPPED = "done", "failed", "skipped"
FIXED = ("device", "torch")  # what all measurements of a file have in common


@dataclass(frozen=True)
class Goal:
    """Figure that is compared with a goal.

    Attributes:
        name: the figure and its goal, for people.
        measured: the figure.
        limit: the goal.
        at_least: whether the figure should be at least `limit`, instead of at most.
    """

    name: str
    measured: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the figure reaches the goal."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


@dataclass
class Finding:
    """What one measurement found.

    Attributes:
        rows: rows for the table of its part, by column.
        goals: figures with goals.
        passed: whether the result is correct; None if this is no test.
        note: one line for people.
        details: what the JSON file alone contains.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    passed: bool | None = None
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Return the finding as dicts and lists."""
        return asdict(self) | {"goals": [asdict(goal) | {"met": goal.met} for goal in self.goals]}


class Results:
    """Records of all measurements in OUTPUT/results.json; a repeated measurement replaces its record.

    Args:
        folder: output folder.
    """

    def __init__(self, folder: Path):
        self.file = folder / "results.json"
        self.content: dict[str, Any] = {"version": VERSION, "environments": [], "finished": [], "measurements": []}
        if self.file.is_file():
            self.content = read_json(self.file, "choose another output folder")

    @property
    def measurements(self) -> list[dict[str, Any]]:
        """Records of all measurements, in the order of their first run."""
        records: list[dict[str, Any]] = self.content["measurements"]
        return records

    @property
    def finished(self) -> list[str]:
        """Names of the parts of which every measurement is done."""
        names: list[str] = self.content["finished"]
        return names

    @property
    def wrong(self) -> list[dict[str, Any]]:
        """Records of tests that failed: with an error, or with a wrong result."""
        return [r for r in self.measurements if r["passed"] is False or (r["status"] == FAILED and r["is_test"])]

    def begin(self, environment: dict[str, Any]) -> None:
        """Record where the following measurements run; raise ValueError if earlier ones ran on another device."""
        for earlier in self.content["environments"]:
            for name in FIXED:
                if earlier[name] != environment[name]:
                    raise ValueError(
                        f"output {self.file.parent} must hold measurements of one {name}, got {earlier[name]} and now "
                        f"{environment[name]}: choose another folder"
                    )
        if environment not in self.content["environments"]:
            self.content["environments"].append(environment)
        self._environment = self.content["environments"].index(environment)

    def is_done(self, part: str, name: str) -> bool:
        """Return whether a measurement was done before; failed and skipped ones are repeated."""
        return any((r["part"], r["name"], r["status"]) == (part, name, DONE) for r in self.measurements)

    def add(
        self, part: str, name: str, status: str, seconds: float, finding: Finding, *, is_test: bool = False
    ) -> None:
        """Add the record of a measurement and write the file."""
        record = {"part": part, "name": name, "status": status, "seconds": round(seconds, 3), "is_test": is_test}
        record |= {"date": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "environment": self._environment} | finding.plain()
        places = [i for i, r in enumerate(self.measurements) if (r["part"], r["name"]) == (part, name)]
        if places:
            self.measurements[places[0]] = record
        else:
            self.measurements.append(record)
        self.write()

    def finish(self, part: str) -> None:
        """Record that every measurement of a part is done."""
        self.finished.append(part)
        self.write()

    def write(self) -> None:
        """Write the file atomically."""
        write_atomically(self.file, [json.dumps(self.content, indent=1, default=str).encode()])
