"""`python -m asyncdiff ablate ABLATION.yaml`: runs that differ in a few settings, over several seeds."""

import os
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asyncdiff.ablation.config import Ablation, Trial
from asyncdiff.ablation.launch import FINISHED, Runner
from asyncdiff.ablation.tensorboard import last_values, read_curves, write_layout, write_parameters
from asyncdiff.checks import at_least
from asyncdiff.cli import trusted_packages
from asyncdiff.cli.commands.options import command_parser

DESCRIPTION = """Run every combination of an ablation's variants for every seed, each in a run directory of its own
below --output. Run it again to go on: what is finished is left alone, what was interrupted continues."""


def main(args: Sequence[str]) -> None:
    """Check all cells, run what is not finished, and make TensorBoard show them as one."""
    parser = command_parser("ablate", DESCRIPTION)
    parser.add_argument("ablation", type=Path, help="a YAML file, see experiments/ablations")
    parser.add_argument("--output", type=Path | None, help="runs/ablations/NAME by default")
    parser.add_argument("--parallel", type=int | None, help="runs at a time; 1 by default, all tasks of a SLURM array")
    parser.add_argument("--threads", type=int | None, help="CPU threads of a run; the machine's shared out by default")
    parser.add_argument("--cell", type=int | None, help="run one cell only, as the tasks of a SLURM array do")
    parser.add_argument("--slurm", type=Path | None, help="write a batch script with a task per cell, and run nothing")
    parser.add_argument("--sbatch", type=str, default="", help='options for it, such as "--gres=gpu:1 --time=12:00:00"')
    parser.add_argument("--dry_run", action="store_true", help="print the cells with their commands, and run nothing")
    options = parser.parse_args(_joined([_with_underscores(word) for word in args]))
    parallel = 1 if options.parallel is None else options.parallel
    at_least("--parallel", parallel, 1, "set the runs at a time")
    ablation = Ablation.read(options.ablation)
    output = (options.output or Path("runs") / "ablations" / ablation.name).absolute()
    cells = ablation.cells()
    threads = options.threads or max(1, (os.cpu_count() or 1) // parallel)
    from asyncdiff.cli.train import parsed  # late: it loads Lightning

    runner = Runner(ablation, output, parsed, options=trusted_packages.option(), threads=threads)
    configurations = runner.check(cells)
    if options.dry_run:
        print(
            "\n".join(
                f"{i}: {shlex.join(['python', 'train.py', 'fit', *c.words(output)])}" for i, c in enumerate(cells)
            )
        )
        return
    if options.slurm is not None:
        write_script(options, ablation, output, len(cells))
        return
    states = runner.run(_chosen(cells, options.cell), configurations, parallel)
    publish(ablation, output)
    if failed := states.count("failed"):
        print(f"error: {failed} of {len(states)} cells failed: run the command again to go on", file=sys.stderr)
        sys.exit(1)


def publish(ablation: Ablation, output: Path) -> None:
    """Write TensorBoard's overlays of the cells that are finished, and print a table of their last values."""
    done = [cell for cell in ablation.cells() if (cell.folder(output) / FINISHED).is_file()]
    if not done:
        return
    found: dict[str, list[dict[str, float]]] = {}
    for cell in done:
        folder = cell.folder(output)
        curves = read_curves(folder)
        values = last_values(curves, ablation.metrics, folder)
        write_parameters(cell, ablation, folder, values, max(curves[m.tag][-1][0] for m in ablation.metrics))
        found.setdefault(cell.variant, []).append(values)
    write_layout(ablation, output)
    print(table(ablation, found))
    print(f"{len(done)} of {len(ablation.cells())} cells are finished: {output}")
    print(f"curves: tensorboard --logdir {output}")


def table(ablation: Ablation, found: dict[str, list[dict[str, float]]]) -> str:
    """Mean and standard deviation over the seeds, in Markdown."""
    heads = [metric.label for metric in ablation.metrics]
    lines = [f"| {', '.join(ablation.axes)} | seeds | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for variant, rows in found.items():
        cells = [_mean([row[metric.tag] for row in rows]) for metric in ablation.metrics]
        lines.append(f"| {variant} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_script(options: Any, ablation: Ablation, output: Path, count: int) -> None:
    """A batch script for SLURM with one task per cell; a task that is started again goes on where it was."""
    limit = "" if options.parallel is None else f"%{options.parallel}"
    lines = ["#!/bin/bash", f"#SBATCH --job-name={ablation.name}", f"#SBATCH --array=0-{count - 1}{limit}"]
    lines += [f"#SBATCH {word}" for word in shlex.split(options.sbatch)]
    lines += [f"#SBATCH --output={output}/slurm-%A_%a.txt", "", f"cd {shlex.quote(str(Path.cwd()))}"]
    words = [sys.executable, "-m", "asyncdiff", "ablate", str(options.ablation), "--output", str(output)]
    words += trusted_packages.option()
    output.mkdir(parents=True, exist_ok=True)
    options.slurm.write_text("\n".join([*lines, f"{shlex.join(words)} --cell $SLURM_ARRAY_TASK_ID", ""]))
    print(f"{count} tasks: sbatch {options.slurm}")


def _chosen(cells: list[Trial], number: int | None) -> list[Trial]:
    if number is None:
        return cells
    if not 0 <= number < len(cells):
        raise ValueError(f"--cell must lie in 0 .. {len(cells) - 1}, got {number}: --dry_run lists them")
    return [cells[number]]


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def _joined(words: Sequence[str]) -> list[str]:
    """`--sbatch --gres=gpu:8` as one word: a parser would take the value for an option."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == "--sbatch":
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _with_underscores(word: str) -> str:
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if word.startswith("--") else word
