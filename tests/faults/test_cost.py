"""Huge numbers in every option of every command are refused in one line, or change nothing, at bounded cost.

The options come from the parsers of the commands, so a new option is tried without being listed here.
"""

import resource
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, get_args

import pytest
import torch
from faults.campaign import Campaign
from PIL import Image

from asyncdiff import memory
from asyncdiff.__main__ import main
from asyncdiff.cli.commands import (
    ablate,
    cache_latents,
    evaluate_inpainting,
    evaluate_likelihood,
    evaluate_samples,
    image_commands,
    levels,
    port,
    serve,
)
from asyncdiff.cli.commands.shared.command_parser import CommandParser, command_parser
from asyncdiff.cli.jobs import encode_latents, port_weights
from asyncdiff.cli.jobs import evaluate_inpainting as inpainting_job
from asyncdiff.cli.jobs import evaluate_likelihood as likelihood_job
from asyncdiff.cli.jobs import evaluate_samples as samples_job

ROOT = Path(__file__).resolve().parents[2]
KIND = "cost"
AVAILABLE = 2**28  # bytes that commands may believe to have
ALLOWED = 2**30  # bytes that they get: more than what is checked, less than what hostile numbers need
LIMIT = 20.0  # seconds of processor time for one command line; hostile ones would take hours
LARGE = ("1000000000000", "1" + "0" * 30, "9" * 5000)
# Values of options whose text is parsed by the command: a range, a size, a grid.
TEXTS = {
    "seeds": ("0-99999999999", "99999999999", f"0-{'9' * 5000}", "0-1,5-100005", "9" * 5000),
    "labels": ("0-99999999999", "99999999999", f"0-{'9' * 5000}", "9" * 5000),
    "grid": ("100000x100000", "1x99999999999", f"{'9' * 5000}x1", "99999999x99999999"),
    **dict.fromkeys(
        ("size", "to", "piece"), ("1000000x1000000", "60000x60000", "99999999999", f"1x{'9' * 5000}", "8x999999999")
    ),
}
FLOATS = ("1e9", "1e300", "1e400")
DRAW = ["--output", "drawn"]
# Command lines that work, by the declaration of their options; every option is set to huge numbers in turn.
LINES: dict[str, tuple[Any, list[str]]] = {
    **{
        name: (partial(image_commands._declare, command=name), [name, "run", *argv, *DRAW])
        for name, argv in {
            "sample": ["--seeds", "0,1", "--steps", "1"],
            "inpaint": ["--image", "photo.png", "--seeds", "0", "--steps", "1"],
            "edit": ["--image", "photo.png", "--seeds", "0", "--steps", "1"],
            "outpaint": ["--image", "photo.png", "--seeds", "0", "--steps", "1", "--right", "4"],
            "autoregress": ["--seeds", "0", "--steps_per_patch", "1"],
            "texture": ["--exemplar", "photo.png", "--size", "12x8", "--seeds", "0", "--steps", "1"],
        }.items()
    },
    "samples": (evaluate_samples._declare, ["evaluate", "run", "--samples", "--count", "2"]),
    "likelihood": (evaluate_likelihood._declare, ["evaluate", "run", "--likelihood"]),
    "inpainting": (evaluate_inpainting._declare, ["evaluate", "run", "--inpainting"]),
    "levels": (levels._declare, ["levels", "levels.yaml", "--grid", "2x2", "--images", "4", "--no-gif", *DRAW]),
    "cache-latents": (cache_latents._declare, ["cache-latents", "--out", "drawn"]),
    "ablate": (ablate._declare, ["ablate", "ablation.yaml", "--dry_run", "--output", "drawn"]),
    "port": (port._declare, ["port", "weights.pt", "--output", "ported.ckpt", "--kind", "dit"]),
    "serve": (serve._declare, ["serve", "nowhere"]),
}
# Numbers that the command compares with the images that there are, so that any number is right.
LIMITED_BY_DATA = {"images", "reference", "reference_count"}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class ReachedError(Exception):
    """Raised in place of the work of a command, whose options have been accepted."""


class SlowError(BaseException):
    """Raised when a command takes too long."""


def reached(*args: Any, **kwargs: Any) -> NoReturn:
    raise ReachedError


@pytest.fixture(autouse=True)
def small_machine(tmp_path: Path, digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with a run, and a process that gets little memory and believes to have even less."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits_run, "run")
    Image.new("L", (8, 8), 99).save("photo.png")
    shutil.copy(ROOT / "experiments" / "levels" / "async.yaml", "levels.yaml")
    shutil.copy(ROOT / "experiments" / "digits_dit_async.yaml", "base.yaml")
    Path("ablation.yaml").write_text("base: base.yaml\naxes: {model.seed: [0]}\nmetrics: {val/loss: min}\n")
    torch.save({}, "weights.pt")
    for job in (samples_job, likelihood_job, inpainting_job):
        monkeypatch.setattr(job, "evaluate", reached)
    monkeypatch.setattr(encode_latents, "encode", reached)
    monkeypatch.setattr(encode_latents, "spawn", reached)
    monkeypatch.setattr(port_weights, "port", reached)
    monkeypatch.setattr(memory, "_available_on_linux", lambda: AVAILABLE)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ALLOWED, before[1]))
    previous = signal.signal(signal.SIGVTALRM, too_slow)
    yield
    signal.signal(signal.SIGVTALRM, previous)
    resource.setrlimit(resource.RLIMIT_AS, before)


def too_slow(*args: Any) -> NoReturn:
    raise SlowError


def hostile(declare: Any) -> Iterator[tuple[str, str]]:
    """Yield the numeric options of a command with their hostile values."""
    parser: CommandParser = command_parser("command", "", imports_classes=False)
    declare(parser)
    for action in parser._actions:
        kind = getattr(action, "_typehint", None) or action.type
        kinds = set(get_args(kind)) or {kind}
        values = TEXTS.get(action.dest, ()) if str in kinds else ()
        values += LARGE if int in kinds else ()
        values += FLOATS if float in kinds else ()
        yield from ((action.dest, value) for value in values)


def with_option(argv: list[str], name: str, value: str) -> list[str]:
    option = f"--{name}"
    if option in argv:
        at = argv.index(option)
        return [*argv[: at + 1], value, *argv[at + 2 :]]
    return [*argv, option, value]


def outcome(argv: list[str], name: str, capfd: pytest.CaptureFixture[str]) -> str | None:
    """Return None if a command line is refused or works, or else what happens."""
    shutil.rmtree("drawn", ignore_errors=True)
    started, code = time.process_time(), 0
    signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT)
    try:
        main(argv)
    except SystemExit as stopped:
        code = stopped.code  # type: ignore[assignment]
    except ReachedError:
        return None if name in LIMITED_BY_DATA else "accepted"
    except SlowError:
        return f"takes more than {LIMIT} s"
    except BaseException as error:
        return f"ends with {type(error).__name__}: {error}"[:300]
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    printed = capfd.readouterr()
    lines = printed.err.splitlines()
    if code not in (0, 2) or (code == 2 and (len(lines) != 1 or not lines[0].startswith("error: "))):
        return f"ends with code {code} and prints {lines}"[:500]
    if max(map(len, lines), default=0) > 2100:
        return f"prints {len(lines[-1])} characters"
    return None if time.process_time() - started < LIMIT else "takes long"


@pytest.mark.parametrize("command", LINES)
def test_huge_numbers_cost_little(command: str, campaign: Campaign, capfd: pytest.CaptureFixture[str]) -> None:
    declare, line = LINES[command]
    tried = 0
    for name, value in hostile(declare):
        if wrong := outcome(with_option(line, name, value), name, capfd):
            campaign.lost(KIND, f"{command} --{name} {value[:40]}: {wrong}")
        else:
            campaign.survived(KIND)
        tried += 1
    assert tried >= 3


@pytest.mark.parametrize("command", [name for name in LINES if name not in ("serve",)])
def test_the_command_lines_work(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Otherwise the campaign would test its own mistakes."""
    line = LINES[command][1]
    extra = ["--data", "datamodules.Digits"] if command == "cache-latents" else []
    try:
        main([*line, *extra])
    except ReachedError:
        code = 0
    except SystemExit as stopped:
        code = stopped.code  # type: ignore[assignment]
    else:
        code = 0
    assert code == 0 or "--codec is required" in capfd.readouterr().err
