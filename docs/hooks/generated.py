"""Pages that are made from the code at every build: the keys of YAML files, and the commands with their options."""

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

# What a YAML file may name: heading, the base class, and the key or argument under which it stands.
FAMILIES = (
    ("The model", "asyncdiff.AsyncDiffusion", "`model`"),
    ("Networks", "torch.nn.Module", "`model.network`"),
    ("Levels", "asyncdiff.noise.LevelSampler", "`model.levels`"),
    ("Paths", "asyncdiff.noise.Path", "`path` of samplers, levels and likelihoods"),
    ("Spacings", "asyncdiff.noise.ProgressSampler", "`spacing` of `AlongPath` and of likelihoods"),
    ("Fields", "asyncdiff.noise.Field", "`field` of `AsyncPatch`"),
    ("Orders", "asyncdiff.noise.Order", "`order` of `Ordered`, `Autoregressive` and `Autoregress`"),
    ("Contexts", "asyncdiff.noise.CleanPatches", "`context` of `WithCleanPatches`"),
    ("Weightings", "asyncdiff.denoising.Weighting", "`model.weighting`"),
    ("Processes", "asyncdiff.noise.Process", "`model.process`"),
    ("Targets", "asyncdiff.denoising.Target", "`model.target`"),
    ("Samplers", "asyncdiff.sampling.ImageSampler", "`model.sampler`, and `--sampler` of commands"),
    ("Solvers", "asyncdiff.sampling.Solver", "`solver` of samplers"),
    ("Guidance", "asyncdiff.sampling.Guidance", "`guidance` of samplers, a list"),
    ("StepRule", "asyncdiff.sampling.StepRule", "`step_rule` of `Adaptive`"),
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
NETWORKS = ("asyncdiff.networks.DiT", "asyncdiff.networks.UNet")  # other torch modules are parts of these
NO_DEFAULT = inspect.Parameter.empty
ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ("trainer", "model", "data")
OPTIONS = ("help", "config", "print_config")  # of the command line only


@dataclass(frozen=True)
class Argument:
    """One key below `init_args`.

    Attributes:
        name: of the key.
        type: as it is written in the code, shortened.
        default: as it is written in Python; empty where the key is required.
        meaning: from the docstring of the class that defines the argument; empty where there is none.
    """

    name: str
    type: str
    default: str
    meaning: str


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    files.append(File.generated(config, "reference/keys.md", content=keys_page()))
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    return files


def families() -> Iterator[tuple[str, str, dict[str, type]]]:
    """Heading, place and classes of every family; every class by the shortest path to it."""
    from asyncdiff.cli.errors.suggestions import known_classes

    ours = {path: kind for path, kind in known_classes().items() if not path.startswith("lightning.")}
    for heading, base, place in FAMILIES:
        module, _, name = base.rpartition(".")
        root = getattr(importlib.import_module(module), name)
        yield (
            heading,
            place,
            {
                path: kind
                for path, kind in ours.items()
                if issubclass(kind, root)
                and not inspect.isabstract(kind)
                and all("Tensor" not in one.type for one in arguments(kind) if not one.default)  # made in Python only
                and (base != "torch.nn.Module" or path in NETWORKS)
                and (not path.startswith("asyncdiff.callbacks.") or path.count(".") == 2)  # not their base classes
                and (kind is not root or heading == "The model")
            },
        )


def arguments(kind: type) -> list[Argument]:
    """The keys that a file may write below `init_args`, as the command line reads them."""
    return [
        Argument(
            parameter.name,
            shortened(parameter.annotation),
            "" if parameter.default is NO_DEFAULT else shown(parameter.default),
            " ".join((parameter.doc or "").split()),
        )
        for parameter in get_signature_parameters(kind, None, logger=False)
    ]


def shortened(annotation: Any) -> str:
    """A type in words of one or two syllables: modules left out, `X | None` kept."""
    if annotation is NO_DEFAULT:
        return ""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z_])", "", text)


def joined(kind: Any) -> Any:
    """A union as `X | Y`, however it was written."""
    return functools.reduce(operator.or_, get_args(kind)) if get_origin(kind) is Union else kind


def shown(default: Any) -> str:
    """A default as Python writes it, without addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(default))


def keys_page() -> str:
    """Every class that a YAML file may name, with its arguments."""
    parts = ["# YAML keys", INTRODUCTION, "## The file", table(top_level()), LAYERS]
    for heading, place, classes in families():
        parts += [f"## {heading}", f"Under {place}."]
        for path, kind in classes.items():
            parts += [f"### {kind.__name__}", f"`{path}`: {first_line(kind)}", table(arguments(kind))]
    return "\n\n".join(parts) + "\n"


def top_level() -> list[Argument]:
    """The keys at the top of an experiment file, as `fit` has them."""
    from asyncdiff.cli import train as cli

    read = cli._cli(cli.Parsed, ["fit", "--config", str(ROOT / "experiments" / "demo.yaml")])
    fit = read.parser._subcommands_action._name_parser_map["fit"]  # type: ignore[union-attr]
    keys = {action.dest: action for action in fit._actions if "." not in action.dest and action.dest not in OPTIONS}
    return [
        Argument(name, "section", "{}" if name == "trainer" else "", MEANINGS[name])
        if name in SECTIONS
        else Argument(name, shortened(joined(key._typehint)), shown(key.default), MEANINGS[name])
        for name, key in keys.items()
    ]


def first_line(kind: type) -> str:
    """The first sentence of the docstring."""
    return " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())


def table(listed: list[Argument]) -> str:
    """The arguments as a table; a line of words where there is none."""
    if not listed:
        return "No arguments."
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for one in listed:
        default = f"`{one.default}`" if one.default else "required"
        rows.append(f"| `{one.name}` | `{one.type}` | {default} | {cell(one.meaning)} |")
    return "\n".join(rows)


def cell(text: str) -> str:
    """Text that may stand in a cell of a table: a bar outside of code would end the cell."""
    parts = text.split("`")
    parts[::2] = [part.replace("|", "\\|") for part in parts[::2]]
    return "`".join(parts)


def commands_page() -> str:
    """`--help` of every command, in the order of the overview."""
    from asyncdiff.__main__ import COMMANDS, main, overview

    parts = ["# Commands", "```\n" + overview().strip() + "\n```", TRAINING]
    for name, (_, summary) in COMMANDS.items():
        for words in ([name], *([name, way] for way in WAYS.get(name, ()))):
            parts += [f"## `{' '.join(words)}`", *([summary.capitalize() + "."] if len(words) == 1 else [])]
            parts += ["```\n" + helped(main, words) + "\n```"]
    return "\n\n".join(parts) + "\n"


def helped(main: Any, words: list[str]) -> str:
    """What `--help` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return printed.getvalue().strip()


WAYS = {"evaluate": ("--samples", "--likelihood", "--inpainting")}
MEANINGS = {
    "seed_everything": "seed of Python, NumPy and torch before anything is built; elsewhere `${seed_everything}`",
    "trainer": "arguments of Lightning's `Trainer`; `default_root_dir` is the run directory, RUN",
    "model": "arguments of [AsyncDiffusion](#asyncdiffusion), without `class_path`",
    "data": "`class_path` and `init_args` of a [data module](#data)",
    "vars": "names and values of your own, which other keys take as `${vars.NAME}`",
    "auto_resume": "true continues the run that RUN holds, if any; without it a fit into such a directory is refused",
    "ckpt_path": "a checkpoint to continue from or to judge: a file, an exported folder, or `last` for "
    "RUN/checkpoints/last.ckpt (a fit takes the newest whole one); required in `validate`, `test` and `predict`",
    "weights_only": "leave it out: checkpoints are always read without running code, and `false` is refused",
}
INTRODUCTION = """Made from the code at every build. In a file every key is an argument of the class it stands under:

```yaml
model:
  levels:
    class_path: asyncdiff.noise.AlongPath
    init_args:
      path: {class_path: asyncdiff.noise.AsyncPatch, init_args: {spread: 0.5}}
```

On the command line the same is `--model.levels.init_args.path.init_args.spread 0.5`. A class of your own
stands by its full dotted path and needs `--allow-class-paths PACKAGE`. The keys of `trainer` are the arguments
of Lightning's [Trainer](https://lightning.ai/docs/pytorch/stable/common/trainer.html)."""
LAYERS = """Several files are layers, and what is given last counts, on the command line as well:

```sh
python train.py fit --config experiments/demo.yaml --config mine.yaml --model.learning_rate 1e-3
```

| given twice | what counts |
|---|---|
| a number or a word | the last one |
| arguments of a class | are merged, as long as the class is the same; a layer may leave its `class_path` out |
| another class | replaces the one before with all its arguments |
| a list, such as `trainer.callbacks` | the last one, as a whole; `--trainer.callbacks+=LossByLevel` adds to it |
| `vars` | are merged |

`${vars.NAME}`, `${trainer.default_root_dir}` and any other key in full stand for the value that the key has in the
end; within `{}` they need quotes. To see what a command line means, without running it, and what a class takes:

```sh
python train.py fit --config experiments/demo.yaml --config mine.yaml --print_config
python train.py fit --model.network.help DiT
python train.py fit --data.help ImageFolder
```

RUN/config.yaml is the whole of it, as the run had it."""
TRAINING = """Training is `python train.py fit | validate | test | predict --config FILE`: its options are
[the YAML keys](keys.md), of the command line as of files."""
