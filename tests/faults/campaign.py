"""Fault statistics over all tests and processes, printed as a table at the end of a test run.

A test takes the fixture `campaign` and reports the outcome of every fault: `campaign.survived("mutated configs")`, or
`campaign.lost("mutated configs", "what happened")`, which fails the test at its end. A fault that no reader can detect,
such as a different color in a format without checksums, is `campaign.undetectable(...)`. ASYNCDIFF_FAULT_SEED (0) seeds
the faults, and ASYNCDIFF_FAULT_SCALE (1) multiplies their number.
"""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

OUTCOMES = ("survived", "undetectable", "lost")
PROPERTY = "faults"
_COUNTED: Counter[tuple[str, str]] = Counter()


class Campaign:
    """Outcomes of the faults of one test."""

    def __init__(self, properties: list[tuple[str, object]]) -> None:
        self.seed = int(os.environ.get("ASYNCDIFF_FAULT_SEED", "0"))
        self.scale = float(os.environ.get("ASYNCDIFF_FAULT_SCALE", "1"))
        self.losses: list[str] = []
        self._properties = properties

    def number(self, default: int) -> int:
        """Return the number of faults to try; `default` is the number at scale 1."""
        return max(1, round(default * self.scale))

    def survived(self, kind: str, count: int = 1) -> None:
        """Record faults that were refused with a message or changed nothing."""
        self._properties.append((PROPERTY, [kind, "survived", count]))

    def undetectable(self, kind: str, count: int = 1) -> None:
        """Record faults whose content is different but well-formed."""
        self._properties.append((PROPERTY, [kind, "undetectable", count]))

    def lost(self, kind: str, what: str) -> None:
        """Record a fault that did harm."""
        self._properties.append((PROPERTY, [kind, "lost", 1]))
        self.losses.append(f"{kind}: {what}")


@pytest.fixture
def campaign(request: pytest.FixtureRequest) -> Iterator[Campaign]:
    """Collect the outcomes of faults; fail the test if any did harm."""
    collected = Campaign(request.node.user_properties)
    yield collected
    if collected.losses:
        text = "\n".join(collected.losses[:20])
        pytest.fail(f"{len(collected.losses)} faults did harm:\n{text}", pytrace=False)


def pytest_runtest_logreport(report: Any) -> None:
    """Sum the outcomes of all tests, in the process that prints."""
    if report.when == "call":
        for name, value in report.user_properties:
            if name == PROPERTY:
                kind, outcome, count = value
                _COUNTED[kind, outcome] += count


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table if any faults were tried."""
    kinds = sorted({kind for kind, _ in _COUNTED})
    if not kinds:
        return
    terminalreporter.section("faults")
    rows = [(kind, *(_COUNTED[kind, outcome] for outcome in OUTCOMES)) for kind in kinds]
    rows.append(("all", *(sum(row[i] for row in rows) for i in (1, 2, 3))))
    width = max(len(row[0]) for row in rows)
    terminalreporter.line(f"{'kind':{width}} | tried | survived | undetectable | lost")
    for kind, survived, undetectable, lost in rows:
        tried = survived + undetectable + lost
        terminalreporter.line(f"{kind:{width}} | {tried:5} | {survived:8} | {undetectable:12} | {lost:4}")
