"""Files of the project that one command line passes: those with a function that is entered, imports not counted.

python benchmarks/files_entered.py inpaint runs/digits --image photo.png --mask square --seeds 0 --output out
python benchmarks/files_entered.py --since requests inpaint runs/digits --image photo.png --seeds 0
python benchmarks/files_entered.py --until training_step fit --config experiments/digits_dit_async.yaml
"""

import argparse
import inspect
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import asyncdiff
from asyncdiff.__main__ import main as asyncdiff_main

ROOT = Path(asyncdiff.__file__).resolve().parents[1]
FOLDERS = ("asyncdiff", "datamodules")


class Recorder:
    """Records the files whose functions are entered, in their order, and how often the path enters each again.

    Args:
        since: name of a function before whose call nothing is recorded; empty records from the start.
        until: name of a function after whose return nothing is recorded; empty records everything.
    """

    def __init__(self, since: str = "", until: str = ""):
        self.since = since
        self.until = until
        self.functions: dict[str, set[CodeType]] = {}
        self.visits: Counter[str] = Counter()
        self._last = ""
        self._imports = 0  # module bodies that are being executed

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if code.co_name == "<module>" and event in ("call", "return"):
            self._imports += 1 if event == "call" else -1
        elif event == "return" and code.co_name == self.until:
            sys.setprofile(None)
        elif event == "call" and not self._imports and is_function(code) and self.since in ("", code.co_name):
            self._enter(code)

    def _enter(self, code: CodeType) -> None:
        if not code.co_filename.startswith(str(ROOT)):
            return
        file = str(Path(code.co_filename).relative_to(ROOT))
        if not file.startswith(FOLDERS):
            return
        self.since = ""
        self.functions.setdefault(file, set()).add(code)
        if file != self._last:
            self.visits[file] += 1
            self._last = file


def is_function(code: CodeType) -> bool:
    """Return whether code is that of a function, not of a class's body."""
    return bool(code.co_flags & inspect.CO_OPTIMIZED)


@contextmanager
def recorded(recorder: Recorder) -> Iterator[None]:
    """Record the functions that are entered inside."""
    sys.setprofile(recorder)
    try:
        yield
    finally:
        sys.setprofile(None)


def main() -> None:
    """Run a command line and print the files that it passes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--since", default="", metavar="FUNCTION", help="start recording when this function is called")
    parser.add_argument("--until", default="", metavar="FUNCTION", help="stop recording when this function returns")
    options, argv = parser.parse_known_args()
    recorder = Recorder(options.since, options.until)
    try:
        with recorded(recorder):
            asyncdiff_main(argv)
    finally:
        print("| file | functions entered | entered from another file |\n|---|---|---|")
        for file, functions in recorder.functions.items():
            print(f"| {file} | {len(functions)} | {recorder.visits[file]} |")
        print(f"\n{len(recorder.functions)} files, {sum(map(len, recorder.functions.values()))} functions")


if __name__ == "__main__":
    main()
