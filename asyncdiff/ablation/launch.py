"""Run the trials of an ablation as subprocesses: skip finished ones, resume interrupted ones, tolerate failures."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn

from asyncdiff.ablation.config import Ablation, Trial
from asyncdiff.checkpoints.atomic_files import write_atomically
from asyncdiff.checkpoints.compare import abbreviate, differences, value_at
from asyncdiff.checkpoints.json_files import read_json
from asyncdiff.checkpoints.moved_arguments import update_key
from asyncdiff.checkpoints.old_names import update_config, update_names
from asyncdiff.checkpoints.run_lock import InUseError, hold
from asyncdiff.evaluation.result_card import software

Parse = Callable[[list[str]], dict[str, Any]]  # maps the arguments of train.py to the resulting config
State = Literal["finished", "ran", "failed", "elsewhere"]

RECORD, FINISHED, LOG = "cell.json", "finished.json", "log.txt"
# Types of the keys of a record, and whether a record may lack the key.
RECORD_KEYS: dict[str, tuple[type, bool]] = {
    "seed": (int, False),
    "variants": (dict, False),
    "config": (dict, False),
    "number": (int, True),
    "software": (dict, True),
    "metrics": (list, True),
}
REMEDY = "delete it and run the ablation again"
# Keys that do not affect the result of a run.
IGNORED_KEYS = (("trainer", "default_root_dir"), ("ckpt_path",), ("trainer", "enable_progress_bar"))
PROGRAM = "asyncdiff.cli.train"  # run with -m, so that multi-process strategies can relaunch the same module


def resolve_config(trial: Trial, output: Path, parse: Parse) -> dict[str, Any]:
    """Return the full config of a trial as parsed by train.py; raise a one-line ValueError if it is invalid."""
    return comparable_config(parse(["fit", *trial.argv(output)]), str(trial.folder(output)))


def comparable_config(config: dict[str, Any], root: str) -> dict[str, Any]:
    """Return a config without `IGNORED_KEYS` and with RUN in place of the path of the run directory."""
    copy: dict[str, Any] = json.loads(json.dumps(config, default=str).replace(json.dumps(root)[1:-1], "RUN"))
    for path in IGNORED_KEYS:
        parent = copy
        for key in path[:-1]:
            parent = parent.get(key, {})
        parent.pop(path[-1], None)
    return copy


def first_difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Return the first dotted key whose value changed, with both values; a missing value equals null."""
    for key in differences(before, now):
        old, new = value_at(before, key), value_at(now, key)
        if old != new:
            return f"{key} {abbreviate(old)} -> {abbreviate(new)}"
    return None


def read_record(folder: Path) -> dict[str, Any]:
    """Return what `Runner` recorded in a run directory, with current names; empty without a record.

    Raises:
        ValueError: the record is damaged.
    """
    file = folder / RECORD
    if not file.exists():
        return {}
    record = read_json(file, REMEDY)
    for key, (kind, optional) in RECORD_KEYS.items():
        if type(record.get(key)) is not kind and not (optional and key not in record):
            given = type(record[key]).__name__ if key in record else "no such key"
            raise ValueError(f"{key} in {file} must be a {kind.__name__}, got {given}: {REMEDY}")
    for metric in record.get("metrics", []):
        if not isinstance(metric, dict) or metric.keys() != {"tag", "label", "goal"}:
            raise ValueError(f"metrics in {file} must have a tag, a label and a goal, got {metric}: {REMEDY}")
    variants = {update_key(axis): str(name) for axis, name in record["variants"].items()}
    return {**update_names(record), "variants": variants, "config": update_config(record["config"])}


class Runner:
    """Runs each trial in its own subprocess.

    Args:
        ablation: ablation the trials belong to.
        output: folder that contains the run directories.
        parse: function that parses train.py's arguments, `asyncdiff.cli.train.parse_config`.
        options: additional arguments for every run.
        threads: CPU threads per subprocess, None for PyTorch's default.
        log: called with one line per completed trial.
    """

    def __init__(
        self,
        ablation: Ablation,
        output: Path,
        parse: Parse,
        *,
        options: Sequence[str] = (),
        threads: int | None = None,
        log: Callable[[str], None] = print,
    ):
        self.ablation = ablation
        self.output = output
        self.parse = parse
        self.options = list(options)
        self.threads = threads
        self.log = log
        self._children: set[subprocess.Popen[bytes]] = set()
        self._stopping = threading.Event()

    def check(self, trials: Sequence[Trial]) -> dict[Any, dict[str, Any]]:
        """Return the configs for `run`; raise ValueError if one is invalid or its trial was run with other settings."""
        configs = {}
        for trial in trials:
            config = resolve_config(trial, self.output, self.parse)
            folder = trial.folder(self.output)
            record = read_record(folder)
            if record and (changed := first_difference(record["config"], config)):
                raise ValueError(
                    f"{folder} was run with other settings ({changed}): choose another --output or delete the run"
                )
            configs[_trial_key(trial)] = config
        return configs

    def run(self, trials: Sequence[Trial], configs: dict[Any, dict[str, Any]], parallel: int) -> list[State]:
        """Run the trials and return their final states; Ctrl-C and SIGTERM also stop the subprocesses."""
        # Background processes of a script ignore Ctrl-C. The default action of SIGTERM would leave the trials running.
        previous = signal.signal(signal.SIGTERM, _exit_on_signal)
        try:
            return self._run_all(trials, configs, parallel)
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _run_all(self, trials: Sequence[Trial], configs: dict[Any, dict[str, Any]], parallel: int) -> list[State]:
        with ThreadPoolExecutor(parallel) as pool:
            futures = [pool.submit(self._run_trial, trial, configs[_trial_key(trial)]) for trial in trials]
            try:
                return [future.result() for future in futures]
            except BaseException:
                self._stopping.set()
                for future in futures:
                    future.cancel()
                for child in list(self._children):
                    with suppress(ProcessLookupError):
                        os.killpg(child.pid, signal.SIGTERM)  # including its own child processes
                raise

    def _run_trial(self, trial: Trial, config: dict[str, Any]) -> State:
        folder = trial.folder(self.output)
        name = f"{trial.variant}, seed {trial.seed}"
        if (folder / FINISHED).is_file():
            self.log(f"{name}: already finished")
            return "finished"
        try:
            # Not the lock of the run directory, which the trial's training process holds.
            with hold(folder, "being run", lock=folder / ".trial.lock"):
                return self._run_held(trial, config, name)
        except InUseError as error:
            self.log(f"{name}: {error}")
            return "elsewhere"

    def _run_held(self, trial: Trial, config: dict[str, Any], name: str) -> State:
        folder = trial.folder(self.output)
        write_json(folder / RECORD, self._record(trial, config))
        start = time.monotonic()
        code = self._train(trial, folder)
        seconds = time.monotonic() - start
        if self._stopping.is_set():
            self.log(f"{name}: interrupted, see {folder / LOG}")
            return "failed"
        if code:
            self.log(f"{name}: failed, see {folder / LOG}: {_last_line(folder / LOG)}")
            return "failed"
        write_json(folder / FINISHED, {"seconds_of_last_part": round(seconds, 1)})
        self.log(f"{name}: finished in {seconds:.0f} s")
        return "ran"

    def _record(self, trial: Trial, config: dict[str, Any]) -> dict[str, Any]:
        import torch  # imported late, after the options of `ablate` have been checked

        argv = [os.path.relpath(arg) if arg.startswith("/") else arg for arg in trial.argv(self.output)]
        return {
            "ablation": self.ablation.name,
            "number": self.ablation.trials().index(trial),
            "variants": dict(trial.variants),
            "seed": trial.seed,
            "command": shlex.join(["python", "train.py", "fit", *argv]),
            "metrics": [vars(metric) for metric in self.ablation.metrics],
            "software": software("cuda" if torch.cuda.is_available() else "cpu"),
            "config": config,
        }

    def _train(self, trial: Trial, folder: Path) -> int:
        command = [sys.executable, "-m", PROGRAM, "fit", *trial.argv(self.output)]
        command += ["--trainer.enable_progress_bar", "false", "--auto_resume", "true", *self.options]
        environment = dict(os.environ)
        if self.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        with (folder / LOG).open("ab") as log:
            options: dict[str, Any] = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
            child = subprocess.Popen(command, env=environment, **options)
            self._children.add(child)
            try:
                return child.wait()
            finally:
                self._children.discard(child)


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_atomically(file, [json.dumps(value, indent=1, default=str).encode()])


def _exit_on_signal(signum: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signum)


def _trial_key(trial: Trial) -> Any:
    return trial.variant, trial.seed


def _last_line(file: Path) -> str:
    lines = [line for line in file.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"
