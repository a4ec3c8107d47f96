"""`python -m asyncdiff ablate ABLATION.yaml`: train every combination of a few settings and seeds."""

import os
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asyncdiff.ablation.config import MAX_TRIALS, Ablation, Trial
from asyncdiff.ablation.launch import FINISHED, Runner
from asyncdiff.ablation.tensorboard import last_values, read_curves, write_hparams, write_layout
from asyncdiff.checkpoints.run_lock import hold
from asyncdiff.checks import at_least
from asyncdiff.cli import trusted_packages
from asyncdiff.cli.commands.shared.command_parser import CommandParser, parse_options, underscore_option
from asyncdiff.foreign_text import shell_line
from asyncdiff.markdown import markdown_table
from asyncdiff.output_paths import check_output_file, check_output_folder

MAX_THREADS = 1024
DESCRIPTION = """Train every variant of an ablation with every seed. Each of these trials has its own run directory
below --output. Run the command again to resume: finished trials are skipped, interrupted ones are resumed."""


def main(argv: Sequence[str]) -> None:
    """Check all trials, run the unfinished ones, write TensorBoard overlays, and print a table."""
    dashed = _join_sbatch([underscore_option(argument) for argument in argv])
    options = parse_options("ablate", DESCRIPTION, _declare, dashed)
    parallel = 1 if options.parallel is None else options.parallel
    at_least("--parallel", parallel, 1, "1 runs one trial at a time", MAX_TRIALS)
    if options.threads is not None:
        at_least("--threads", options.threads, 1, "omit it to share those of the machine", MAX_THREADS)
    if options.cell is not None:
        at_least("--cell", options.cell, 0, "--dry_run lists the trials")
    ablation = Ablation.read(options.ablation)
    output = (options.output or Path("runs") / "ablations" / ablation.name).absolute()
    check_output_folder(output, "--output", may_be_a_run=True)
    if options.slurm is not None:
        check_output_file(options.slurm, "--slurm")
    trials = ablation.trials()
    threads = options.threads or max(1, (os.cpu_count() or 1) // parallel)
    from asyncdiff.cli.train import parse_config  # imported late because it imports Lightning

    runner = Runner(ablation, output, parse_config, options=trusted_packages.option_argv(), threads=threads)
    configurations = runner.check(trials)
    if options.dry_run:
        for index, trial in enumerate(trials):
            print(f"{index}: {shell_line(['python', 'train.py', 'fit', *trial.argv(output)])}")
        return
    if options.slurm is not None:
        write_script(options, ablation, output, len(trials))
        return
    states = runner.run(_select(trials, options.cell), configurations, parallel)
    with hold(output, "being summarized", lock=output / ".summary.lock", wait=True):  # tasks may end at the same time
        publish(ablation, output)
    if failed := states.count("failed"):
        print(f"error: {failed} of {len(states)} trials failed: run the command again to resume", file=sys.stderr)
        sys.exit(1)


def _declare(parser: CommandParser) -> None:
    parser.add_argument("ablation", type=Path, help="YAML file of the ablation, see experiments/ablations")
    parser.add_argument("--output", type=Path | None, help="output folder (default: runs/ablations/NAME)")
    parser.add_argument("--parallel", type=int | None, help=PARALLEL)
    parser.add_argument("--threads", type=int | None, help=THREADS)
    parser.add_argument("--cell", type=int | None, help="index of a single trial to run (see --dry_run)")
    parser.add_argument("--slurm", type=Path | None, help="write a SLURM batch script to this file, without running")
    parser.add_argument("--sbatch", type=str, default="", help=SBATCH)
    parser.add_argument("--dry_run", action="store_true", help="print the index and command of every trial and exit")


def publish(ablation: Ablation, output: Path) -> None:
    """Write TensorBoard overlays of the finished trials, and print a table of their final values."""
    finished = [trial for trial in ablation.trials() if (trial.folder(output) / FINISHED).is_file()]
    if not finished:
        return
    by_variant: dict[str, list[dict[str, float]]] = {}
    for trial in finished:
        folder = trial.folder(output)
        curves = read_curves(folder)
        values = last_values(curves, ablation.metrics, folder)
        write_hparams(trial, ablation, folder, values, max(curves[m.tag][-1][0] for m in ablation.metrics))
        by_variant.setdefault(trial.variant, []).append(values)
    write_layout(ablation, output)
    print(table(ablation, by_variant))
    print(f"{len(finished)} of {len(ablation.trials())} trials are finished: {output}")
    print(f"TensorBoard: tensorboard --logdir {output}")


def table(ablation: Ablation, by_variant: dict[str, list[dict[str, float]]]) -> str:
    """Format the final values as a Markdown table.

    Args:
        ablation: ablation whose axes and metrics label the columns.
        by_variant: for every variant, one dictionary of final values by tag per seed.

    Returns:
        Table with one row per variant: mean and standard deviation over the seeds.
    """
    metrics = ablation.metrics
    rows = [
        [variant, str(len(seeds)), *(_mean([values[metric.tag] for values in seeds]) for metric in metrics)]
        for variant, seeds in by_variant.items()
    ]
    return markdown_table([", ".join(ablation.axes), "seeds", *(metric.label for metric in metrics)], rows)


def write_script(options: Any, ablation: Ablation, output: Path, count: int) -> None:
    """Write a SLURM batch script with one task per trial; a requeued task resumes its trial."""
    limit = "" if options.parallel is None else f"%{options.parallel}"
    lines = ["#!/bin/bash", f"#SBATCH --job-name={ablation.name}", f"#SBATCH --array=0-{count - 1}{limit}"]
    lines += [f"#SBATCH {option}" for option in shlex.split(options.sbatch)]
    lines += [f"#SBATCH --output={output}/slurm-%A_%a.txt", "", f"cd {shlex.quote(str(Path.cwd()))}"]
    argv = [sys.executable, "-m", "asyncdiff", "ablate", str(options.ablation), "--output", str(output)]
    argv += trusted_packages.option_argv()
    output.mkdir(parents=True, exist_ok=True)
    options.slurm.write_text("\n".join([*lines, f"{shlex.join(argv)} --cell $SLURM_ARRAY_TASK_ID", ""]))
    print(f"{count} tasks: sbatch {options.slurm}")


def _select(trials: list[Trial], index: int | None) -> list[Trial]:
    if index is None:
        return trials
    if not 0 <= index < len(trials):
        raise ValueError(f"--cell must lie in 0 .. {len(trials) - 1}, got {index}: --dry_run lists the trials")
    return [trials[index]]


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def _join_sbatch(argv: Sequence[str]) -> list[str]:
    """Join `--sbatch --gres=gpu:8` into one argument, since the parser would mistake the value for an option."""
    joined: list[str] = []
    for argument in argv:
        if joined and joined[-1] == "--sbatch":
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


PARALLEL = "number of trials to run at a time (default: 1; with --slurm, all tasks of the array)"
THREADS = "number of CPU threads per trial (default: the machine's threads divided by --parallel)"
SBATCH = 'sbatch options for --slurm, such as "--gres=gpu:1 --time=12:00:00"'
