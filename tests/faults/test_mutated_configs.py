"""Experiment files with a mistake end in one line with exit code 2, without a traceback, and write nothing.

The mistakes follow from rules (`configs`), not from a list of mistakes that happen to be refused: arbitrary keys and
numbers that may be negative are never changed.
"""

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
from configs import SOURCES, Mistake, invalid_files, misspelled_keys, out_of_range, trees
from faults.campaign import Campaign

from asyncdiff.cli.train import ExperimentCLI, main

ROOT = Path(__file__).resolve().parents[2]
KIND = "mutated configs"
# Number of mistakes per source at scale 1; None stands for all of them: every key and every class.
NUMBERS = dict(zip((source.__name__ for source in SOURCES), (None, None, 50, 33, 40), strict=True))
LIMIT = 20.0  # seconds for one file
CHATTER = ("Seed set to", "GPU available", "TPU available", "💡 Tip")  # printed by Lightning for files that get so far

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class AcceptedError(Exception):
    """Raised when the file is accepted."""


def accept(*args: Any, **kwargs: Any) -> NoReturn:
    raise AcceptedError


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run nothing, and build the parser only once, since building it is slow."""
    built: dict[str, Any] = {}
    set_up = ExperimentCLI.setup_parser

    def once(self: ExperimentCLI, *args: Any, **kwargs: Any) -> None:
        if not built:
            before = set(vars(self))
            set_up(self, *args, **kwargs)
            built.update({name: value for name, value in vars(self).items() if name not in before})
        vars(self).update(built)

    monkeypatch.setattr(ExperimentCLI, "setup_parser", once)
    monkeypatch.setattr(ExperimentCLI, "_run_subcommand", accept)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "codecs").symlink_to(ROOT / "experiments" / "codecs")  # which experiments refer to


def outcome(content: bytes, capfd: pytest.CaptureFixture[str]) -> str | None:
    """Return None if the file is refused correctly, or else what happens."""
    Path("mistake.yaml").write_bytes(content)
    started, code = time.monotonic(), None
    try:
        main(["fit", "--config", "mistake.yaml"])
    except SystemExit as stopped:
        code = stopped.code
    except AcceptedError:
        return "accepted"
    except Exception as error:
        return f"ends with {type(error).__name__}: {error}"[:300]
    printed = capfd.readouterr()
    lines = [line for line in printed.err.splitlines() if not line.startswith(CHATTER)]
    if code != 2 or printed.out or len(lines) != 1 or not lines[0].startswith("error: ") or len(lines[0]) < 25:
        return f"ends with code {code} and prints {printed.out!r} {lines}"
    if time.monotonic() - started > LIMIT:
        return f"takes {time.monotonic() - started:.0f} s"
    if left := [path.name for path in Path().iterdir() if path.name not in ("mistake.yaml", "codecs")]:
        return f"leaves {left}"
    return None


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_every_mistake_ends_in_one_line(
    source: Any, campaign: Campaign, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = random.Random(campaign.seed)
    mistakes = list(source(choose))
    if (number := NUMBERS[source.__name__]) is not None:
        mistakes = choose.sample(mistakes, min(len(mistakes), campaign.number(number)))
    if source is not out_of_range:  # mistakes are found before the network is built
        monkeypatch.setattr(ExperimentCLI, "instantiate_classes", accept)
    for mistake in mistakes:
        if wrong := outcome(mistake.content, capfd):
            campaign.lost(KIND, f"{mistake.kind}, {mistake.what}: {wrong}")
        else:
            campaign.survived(KIND)
    assert mistakes


def test_valid_files_are_accepted(capfd: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """Otherwise the campaign would test its own mistakes."""
    monkeypatch.setattr(ExperimentCLI, "instantiate_classes", accept)
    for name in trees():
        result = outcome((ROOT / "experiments" / f"{name}.yaml").read_bytes(), capfd)
        assert result == "accepted", (name, result, capfd.readouterr().err)


def test_a_missing_file_ends_in_one_line(campaign: Campaign, capfd: pytest.CaptureFixture[str]) -> None:
    for argv in (["fit", "--config", "nowhere.yaml"], ["fit", "--config", "."], ["fit", "--config"], ["fit"]):
        with pytest.raises(SystemExit) as stopped:
            main(argv)
        lines = capfd.readouterr().err.splitlines()
        assert (stopped.value.code, len(lines)) == (2, 1), (argv, lines)
        campaign.survived(KIND)


def test_the_program_ends_in_the_same_way(campaign: Campaign, tmp_path: Path) -> None:
    """A few mistakes in real processes, each with its own parser."""
    choose = random.Random(campaign.seed + 1)
    chosen: list[Mistake] = [choose.choice(list(source(choose))) for source in (misspelled_keys, invalid_files)]
    for mistake in chosen:
        (tmp_path / "mistake.yaml").write_bytes(mistake.content)
        command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", "mistake.yaml"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        found = (result.returncode, result.stdout, result.stderr.count("\n"), "Traceback" in result.stderr)
        if found == (2, "", 1, False):
            campaign.survived(KIND)
        else:
            campaign.lost(KIND, f"{mistake.what} as a process: {found} {result.stderr[-300:]}")
