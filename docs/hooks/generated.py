"""Generate the reference pages of the YAML keys and of the commands from the code."""

import contextlib
import functools
import importlib
import inspect
import io
import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from jsonargparse._parameter_resolvers import get_signature_parameters
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

# Classes that a YAML file can name: heading, base class, and the keys or arguments that take them.
FAMILIES = (
    ("The model", "asyncdiff.AsyncDiffusion", "`model`"),
    ("Networks", "torch.nn.Module", "`model.network`"),
    ("Level samplers", "asyncdiff.noise.LevelSampler", "`model.levels`"),
    ("Noise paths", "asyncdiff.noise.Path", "`path` of samplers, levels and likelihoods"),
    ("Progress samplers", "asyncdiff.noise.ProgressSampler", "`progress_sampler` of `AlongPath` and of likelihoods"),
    ("Fields", "asyncdiff.noise.Field", "`field` of `AsyncPatch`"),
    ("Orders", "asyncdiff.noise.Order", "`order` of `Ordered`, `Autoregressive` and `Autoregress`"),
    ("Clean patches", "asyncdiff.noise.CleanPatches", "`clean_patches` of `WithCleanPatches`"),
    ("Weightings", "asyncdiff.denoising.Weighting", "`model.weighting`"),
    ("Processes", "asyncdiff.noise.Process", "`model.process`"),
    ("Targets", "asyncdiff.denoising.Target", "`model.target`"),
    ("Samplers", "asyncdiff.sampling.ImageSampler", "`model.sampler`, and `--sampler` of commands"),
    ("Solvers", "asyncdiff.sampling.Solver", "`solver` of samplers"),
    ("Guidance", "asyncdiff.sampling.Guidance", "`guidance` of samplers, a list"),
    ("Step rules", "asyncdiff.sampling.StepRule", "`step_rule` of `Adaptive`"),
    ("Tasks", "asyncdiff.tasks.Task", "`model.task`"),
    ("Masks", "asyncdiff.noise.Mask", "`mask` of tasks, callbacks and commands"),
    ("Codecs", "asyncdiff.latents.Codec", "`model.codec`, and `--codec` of commands"),
    ("Decoders", "asyncdiff.denoising.Decoder", "`decoder` of likelihoods"),
    ("Features", "asyncdiff.evaluation.Features", "`features` of `Frechet`, and `--features` of `evaluate`"),
    ("Data", "datamodules.ImageDataModule", "`data`"),
    ("Callbacks", "lightning.pytorch.Callback", "`trainer.callbacks`, a list"),
    ("Strategies", "lightning.pytorch.strategies.Strategy", "`trainer.strategy`"),
    ("Plugins", "lightning.fabric.plugins.CheckpointIO", "`trainer.plugins`, a list"),
)
NETWORKS = ("asyncdiff.networks.DiT", "asyncdiff.networks.UNet")  # all other modules are parts of these
NO_DEFAULT = inspect.Parameter.empty
ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ("trainer", "model", "data")
OPTIONS = ("help", "config", "print_config")  # exist only on the command line


@dataclass(frozen=True)
class Argument:
    """One key below `init_args`.

    Attributes:
        name: name of the key.
        type: annotation, without module names.
        default: Python expression; empty if the key is required.
        meaning: description from the docstring of the class; empty without one.
    """

    name: str
    type: str
    default: str
    meaning: str


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    files.append(File.generated(config, "reference/keys.md", content=keys_page()))
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    return files


def families() -> Iterator[tuple[str, str, dict[str, type]]]:
    """Yield heading, keys and classes of every family; classes are listed by their shortest import path."""
    from asyncdiff.cli.errors.suggestions import known_classes

    own = {path: kind for path, kind in known_classes().items() if not path.startswith("lightning.")}
    for heading, base, keys in FAMILIES:
        module, _, name = base.rpartition(".")
        root = getattr(importlib.import_module(module), name)
        yield (
            heading,
            keys,
            {
                path: kind
                for path, kind in own.items()
                if issubclass(kind, root)
                and not inspect.isabstract(kind)
                and all(
                    "Tensor" not in one.type for one in arguments(kind) if not one.default
                )  # only Python can pass a tensor
                and (base != "torch.nn.Module" or path in NETWORKS)
                and (not path.startswith("asyncdiff.callbacks.") or path.count(".") == 2)  # skips base classes
                and (kind is not root or heading == "The model")
            },
        )


def arguments(kind: type) -> list[Argument]:
    """Return the keys that are allowed below `init_args`, as the command line parses them."""
    return [
        Argument(
            parameter.name,
            short_type(parameter.annotation),
            "" if parameter.default is NO_DEFAULT else python_repr(parameter.default),
            " ".join((parameter.doc or "").split()),
        )
        for parameter in get_signature_parameters(kind, None, logger=False)
    ]


def short_type(annotation: Any) -> str:
    """Return a type annotation without module names."""
    if annotation is NO_DEFAULT:
        return ""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z_])", "", text)


def as_union(kind: Any) -> Any:
    """Return `Union[X, Y]` as `X | Y`, and any other type unchanged."""
    return functools.reduce(operator.or_, get_args(kind)) if get_origin(kind) is Union else kind


def python_repr(default: Any) -> str:
    """Return the repr of a default value, without memory addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(default))


def keys_page() -> str:
    """Return the page of all classes that a YAML file can name, with their arguments."""
    parts = ["# YAML keys", INTRODUCTION, "## The file", table(top_level()), LAYERS]
    for heading, keys, classes in families():
        parts += [f"## {heading}", f"Keys: {keys}."]
        for path, kind in classes.items():
            parts += [f"### {kind.__name__}", f"`{path}`: {first_line(kind)}", table(arguments(kind))]
    return "\n\n".join(parts) + "\n"


def top_level() -> list[Argument]:
    """Return the top-level keys of an experiment file, as `fit` defines them."""
    from asyncdiff.cli import train as cli

    read = cli._run_cli(cli.ConfigOnlyCLI, ["fit", "--config", str(ROOT / "experiments" / "demo.yaml")])
    fit = read.parser._subcommands_action._name_parser_map["fit"]  # type: ignore[union-attr]
    keys = {action.dest: action for action in fit._actions if "." not in action.dest and action.dest not in OPTIONS}
    return [
        Argument(name, "section", "{}" if name == "trainer" else "", MEANINGS[name])
        if name in SECTIONS
        else Argument(name, short_type(as_union(key._typehint)), python_repr(key.default), MEANINGS[name])
        for name, key in keys.items()
    ]


def first_line(kind: type) -> str:
    """Return the first paragraph of the docstring."""
    return " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())


def table(listed: list[Argument]) -> str:
    """Return the arguments as a Markdown table, or a sentence if there are none."""
    if not listed:
        return "No arguments."
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for one in listed:
        default = f"`{one.default}`" if one.default else "required"
        rows.append(f"| `{one.name}` | `{one.type}` | {default} | {cell(one.meaning)} |")
    return "\n".join(rows)


def cell(text: str) -> str:
    """Escape text for a table cell: a bar outside of code would end the cell."""
    parts = text.split("`")
    parts[::2] = [part.replace("|", "\\|") for part in parts[::2]]
    return "`".join(parts)


def commands_page() -> str:
    """Return the page with the `--help` of every command, in the order of the overview."""
    from asyncdiff.__main__ import COMMANDS, main, overview

    parts = ["# Commands", "```\n" + overview().strip() + "\n```", TRAINING]
    for name, (_, summary) in COMMANDS.items():
        for argv in ([name], *([name, mode] for mode in MODES.get(name, ()))):
            parts += [f"## `{' '.join(argv)}`", *([summary.capitalize() + "."] if len(argv) == 1 else [])]
            parts += ["```\n" + help_text(main, argv) + "\n```"]
    return "\n\n".join(parts) + "\n"


def help_text(main: Any, argv: list[str]) -> str:
    """Return the output of `--help`."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*argv, "--help"])
    return printed.getvalue().strip()


MODES = {"evaluate": ("--samples", "--likelihood", "--inpainting")}
MEANINGS = {
    "seed_everything": "seed of Python, NumPy and torch, set first; other keys use it as `${seed_everything}`",
    "trainer": "arguments of Lightning's `Trainer`; `default_root_dir` is the run directory, RUN",
    "model": "arguments of [AsyncDiffusion](#asyncdiffusion), without `class_path`",
    "data": "`class_path` and `init_args` of a [data module](#data)",
    "vars": "your own variables, which other keys use as `${vars.NAME}`",
    "auto_resume": "true resumes the run in RUN, if there is one; without it, `fit` refuses the directory of a run",
    "ckpt_path": "checkpoint to resume from or to evaluate: a file, an exported folder, or `last` for "
    "RUN/checkpoints/last.ckpt (`fit` takes the newest undamaged one); required in `validate`, `test` and `predict`",
    "weights_only": "leave it out: checkpoints are always loaded without running code, and `false` is refused",
}
INTRODUCTION = """Generated from the code at every build. In a file, every key is an argument of the class above it:

```yaml
model:
  levels:
    class_path: asyncdiff.noise.AlongPath
    init_args:
      path: {class_path: asyncdiff.noise.AsyncPatch, init_args: {spread: 0.5}}
```

On the command line, the same is `--model.levels.init_args.path.init_args.spread 0.5`. Your own classes are named by
their full dotted path and need `--allow-class-paths PACKAGE`. The keys of `trainer` are the arguments
of Lightning's [Trainer](https://lightning.ai/docs/pytorch/stable/common/trainer.html)."""
LAYERS = """Several config files are layers: later values override earlier ones, and options override files:

```sh
python train.py fit --config experiments/demo.yaml --config mine.yaml --model.learning_rate 1e-3
```

| given twice | result |
|---|---|
| a number or a string | the last one |
| arguments of a class | merged, if the class is the same; a layer may omit its `class_path` |
| a different class | replaces the earlier class and all its arguments |
| a list, such as `trainer.callbacks` | the last one; `--trainer.callbacks+=LossByLevel` appends to it |
| `vars` | merged |

`${vars.NAME}`, `${trainer.default_root_dir}` and any other full key stand for the final value of that key; within `{}`
they need quotes. To print the final config without running it, and to list the arguments of a class:

```sh
python train.py fit --config experiments/demo.yaml --config mine.yaml --print_config
python train.py fit --model.network.help DiT
python train.py fit --data.help ImageFolder
```

RUN/config.yaml holds the final config of a run."""
TRAINING = """To train, use `python train.py fit | validate | test | predict --config FILE`; its options are the
[YAML keys](keys.md)."""
