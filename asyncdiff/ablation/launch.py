"""Cells as processes: what is finished is left alone, what was interrupted continues, and a failure stops no other."""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn

import torch

from asyncdiff.ablation.config import Ablation, Trial
from asyncdiff.checkpoints.atomic_files import replace
from asyncdiff.checkpoints.old_names import current
from asyncdiff.evaluation.result_card import software

Parse = Callable[[list[str]], dict[str, Any]]  # the words of train.py -> the configuration that they mean
State = Literal["finished", "ran", "failed", "elsewhere"]

RECORD, FINISHED, LOG = "cell.json", "finished.json", "log.txt"
# What does not decide about the result of a run.
APART = (("trainer", "default_root_dir"), ("ckpt_path",), ("trainer", "enable_progress_bar"))
PROGRAM = "asyncdiff.cli.train"  # as a module: a strategy of several processes starts the others by the same name


def resolved(cell: Trial, output: Path, parse: Parse) -> dict[str, Any]:
    """The whole configuration of a cell, as train.py understands it; ValueError in one line where it does not."""
    return without(parse(["fit", *cell.words(output)]), str(cell.folder(output)))


def without(config: dict[str, Any], root: str) -> dict[str, Any]:
    """A configuration without what does not decide about the result, and without the place of the run."""
    copied: dict[str, Any] = json.loads(json.dumps(config, default=str).replace(json.dumps(root)[1:-1], "RUN"))
    for path in APART:
        at = copied
        for key in path[:-1]:
            at = at.get(key, {})
        at.pop(path[-1], None)
    return copied


def difference(before: Any, now: Any, name: str = "") -> str | None:
    """The first dotted key whose value differs, with both values; None for equal ones."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*now, *(key for key in before if key not in now)]:
            if found := difference(before.get(key), now.get(key), f"{name}.{key}".lstrip(".")):
                return found
        return None
    return None if before == now else f"{name} {_short(before)} -> {_short(now)}"


class Runner:
    """Runs cells in processes of their own.

    Args:
        ablation: the cells' own.
        output: folder of the run directories.
        parse: how train.py reads its words, `asyncdiff.cli.train.parsed`.
        options: further words of every run.
        threads: CPU threads per process, None for PyTorch's own number.
        tell: takes a line about every cell that comes to an end.
    """

    def __init__(
        self,
        ablation: Ablation,
        output: Path,
        parse: Parse,
        *,
        options: Sequence[str] = (),
        threads: int | None = None,
        tell: Callable[[str], None] = print,
    ):
        self.ablation = ablation
        self.output = output
        self.parse = parse
        self.options = list(options)
        self.threads = threads
        self.tell = tell
        self._children: set[subprocess.Popen[bytes]] = set()
        self._stopping = threading.Event()

    def check(self, cells: Sequence[Trial]) -> dict[Any, dict[str, Any]]:
        """The configuration of every cell; ValueError before anything runs if one is wrong or was run otherwise."""
        configurations = {}
        for cell in cells:
            config = resolved(cell, self.output, self.parse)
            record = cell.folder(self.output) / RECORD
            if record.is_file():
                before = current(json.loads(record.read_text())["config"])
                if changed := difference(before, config):
                    raise ValueError(
                        f"{record.parent} must have been run with the same settings, got {changed}: "
                        "choose another --output, or remove the run"
                    )
            configurations[_key(cell)] = config
        return configurations

    def run(self, cells: Sequence[Trial], configurations: dict[Any, dict[str, Any]], parallel: int) -> list[State]:
        """What became of every cell. An interruption, by Ctrl-C or SIGTERM, ends the processes, too."""
        # A process in the background of a script does not hear Ctrl-C's signal; SIGTERM by itself would leave the
        # processes running.
        usual = signal.signal(signal.SIGTERM, _stop)
        try:
            return self._all(cells, configurations, parallel)
        finally:
            signal.signal(signal.SIGTERM, usual)

    def _all(self, cells: Sequence[Trial], configurations: dict[Any, dict[str, Any]], parallel: int) -> list[State]:
        with ThreadPoolExecutor(parallel) as pool:
            futures = [pool.submit(self._one, cell, configurations[_key(cell)]) for cell in cells]
            try:
                return [future.result() for future in futures]
            except BaseException:
                self._stopping.set()
                for future in futures:
                    future.cancel()
                for child in list(self._children):
                    with suppress(ProcessLookupError):
                        os.killpg(child.pid, signal.SIGTERM)  # with the processes that it has started itself
                raise

    def _one(self, cell: Trial, config: dict[str, Any]) -> State:
        folder = cell.folder(self.output)
        name = f"{cell.variant}, seed {cell.seed}"
        if (folder / FINISHED).is_file():
            self.tell(f"{name}: finished before")
            return "finished"
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder) as mine:
            if not mine:
                self.tell(f"{name}: runs elsewhere")
                return "elsewhere"
            write_json(folder / RECORD, self._record(cell, config))
            began = time.monotonic()
            code = self._train(cell, folder)
            seconds = time.monotonic() - began
            if code or self._stopping.is_set():
                self.tell(f"{name}: failed, see {folder / LOG}: {_last_line(folder / LOG)}")
                return "failed"
            write_json(folder / FINISHED, {"seconds_of_last_part": round(seconds, 1)})
            self.tell(f"{name}: finished in {seconds:.0f} s")
            return "ran"

    def _record(self, cell: Trial, config: dict[str, Any]) -> dict[str, Any]:
        words = [os.path.relpath(word) if word.startswith("/") else word for word in cell.words(self.output)]
        return {
            "ablation": self.ablation.name,
            "number": self.ablation.cells().index(cell),
            "variants": dict(cell.variants),
            "seed": cell.seed,
            "command": shlex.join(["python", "train.py", "fit", *words]),
            "metrics": [vars(metric) for metric in self.ablation.metrics],
            "software": software("cuda" if torch.cuda.is_available() else "cpu"),
            "config": config,
        }

    def _train(self, cell: Trial, folder: Path) -> int:
        command = [sys.executable, "-m", PROGRAM, "fit", *cell.words(self.output)]
        command += ["--trainer.enable_progress_bar", "false", "--auto_resume", "true", *self.options]
        environment = dict(os.environ)
        if self.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        with (folder / LOG).open("ab") as log:
            how: dict[str, Any] = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
            child = subprocess.Popen(command, env=environment, **how)
            self._children.add(child)
            try:
                return child.wait()
            finally:
                self._children.discard(child)


def write_json(file: Path, held: Any) -> None:
    """Write a file as a whole: a reader finds the old one or the new one."""
    replace(file, [json.dumps(held, indent=1, default=str).encode()])


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether no other process holds this cell; the system gives it back when a process dies."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signum)


def _key(cell: Trial) -> Any:
    return cell.variant, cell.seed


def _last_line(file: Path) -> str:
    lines = [line for line in file.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
