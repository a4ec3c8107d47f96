"""Experiment files with a mistake: each ends in one line, exit code 2, with no traceback, and nothing is written.

What is asked for is stated by rules (`configs`), not by a list of mistakes that happen to be refused: keys of free
dictionaries and numbers that may be negative are never changed.
"""

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
from configs import SOURCES, Mistake, misspelt_keys, no_files, out_of_range, trees
from faults.campaign import Campaign

from asyncdiff.cli.train import ExperimentCLI, main

ROOT = Path(__file__).resolve().parents[2]
KIND = "mutated configs"
# How many of each source at scale 1; None is all of them, which is every key and every class.
NUMBERS = dict(zip((source.__name__ for source in SOURCES), (None, None, 50, 33, 40), strict=True))
LIMIT = 20.0  # seconds for one file
CHATTER = ("Seed set to", "GPU available", "TPU available", "💡 Tip")  # Lightning's, of files that come so far

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class AcceptedError(Exception):
    """The file was understood."""


def accept(*args: Any, **kwargs: Any) -> NoReturn:
    raise AcceptedError


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is run, and the parser, which takes longer than all that is done with it, is made once."""
    made: dict[str, Any] = {}
    set_up = ExperimentCLI.setup_parser

    def once(self: ExperimentCLI, *args: Any, **kwargs: Any) -> None:
        if not made:
            before = set(vars(self))
            set_up(self, *args, **kwargs)
            made.update({name: value for name, value in vars(self).items() if name not in before})
        vars(self).update(made)

    monkeypatch.setattr(ExperimentCLI, "setup_parser", once)
    monkeypatch.setattr(ExperimentCLI, "_run_subcommand", accept)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "codecs").symlink_to(ROOT / "experiments" / "codecs")  # which experiments name beside them


def outcome(content: bytes, capfd: pytest.CaptureFixture[str]) -> str | None:
    """None if a file is refused as it should be, else what happens."""
    Path("mistake.yaml").write_bytes(content)
    began, code = time.monotonic(), None
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
    if time.monotonic() - began > LIMIT:
        return f"takes {time.monotonic() - began:.0f} s"
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
    if source is not out_of_range:  # large networks are not built: what is wrong is found before
        monkeypatch.setattr(ExperimentCLI, "instantiate_classes", accept)
    for mistake in mistakes:
        if wrong := outcome(mistake.content, capfd):
            campaign.lost(KIND, f"{mistake.kind}, {mistake.what}: {wrong}")
        else:
            campaign.survived(KIND)
    assert mistakes


def test_files_without_a_mistake_are_accepted(capfd: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """Or the campaign would find nothing but its own mistakes."""
    monkeypatch.setattr(ExperimentCLI, "instantiate_classes", accept)
    for name in trees():
        found = outcome((ROOT / "experiments" / f"{name}.yaml").read_bytes(), capfd)
        assert found == "accepted", (name, found, capfd.readouterr().err)


def test_a_file_that_does_not_exist_ends_in_one_line(campaign: Campaign, capfd: pytest.CaptureFixture[str]) -> None:
    for words in (["fit", "--config", "nowhere.yaml"], ["fit", "--config", "."], ["fit", "--config"], ["fit"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        lines = capfd.readouterr().err.splitlines()
        assert (stopped.value.code, len(lines)) == (2, 1), (words, lines)
        campaign.survived(KIND)


def test_the_program_ends_so_too(campaign: Campaign, tmp_path: Path) -> None:
    """A few of them as real processes, whose parser is its own."""
    choose = random.Random(campaign.seed + 1)
    chosen: list[Mistake] = [choose.choice(list(source(choose))) for source in (misspelt_keys, no_files)]
    for mistake in chosen:
        (tmp_path / "mistake.yaml").write_bytes(mistake.content)
        command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", "mistake.yaml"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        found = (result.returncode, result.stdout, result.stderr.count("\n"), "Traceback" in result.stderr)
        if found == (2, "", 1, False):
            campaign.survived(KIND)
        else:
            campaign.lost(KIND, f"{mistake.what} as a process: {found} {result.stderr[-300:]}")
