"""Every command that reads YAML refuses every damaged or hostile file in one line, whatever the file is for."""

import itertools
import os
import re
import shutil
from pathlib import Path

import pytest

import asyncdiff.cli.train  # noqa: F401  imported here, so that no test is charged for it

EXPERIMENT = Path("experiments/digits_dit_async.yaml").resolve()
NAMES = "abcdefgh"
LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in itertools.pairwise(NAMES)
)
# Contents, and what every command says about them.
DAMAGED: dict[str, tuple[str | bytes, str]] = {
    "a key twice": (
        "model:\n  image_size: 8\nmodel:\n  image_size: 16\n",
        ":3: the key model is given twice, first in",
    ),
    "a tab": ("model:\n\timage_size: 8\n", ":2: not valid YAML: lines must be indented by spaces, got a tab"),
    "a program": ("model: !!python/object/apply:os.system [ls]\n", ":1: tags are not allowed, got !!python/object"),
    "a tag": ("model: !x {a: 1}\n", ":1: tags are not allowed, got !x"),
    "aliases": (LAUGHS, ":6: YAML with its aliases written out must have at most"),
    "an endless alias": ("model: &x [*x]\n", ":1: *x must not contain itself"),
    "depth": (f"a: {'[' * 600}{']' * 600}", ":1: YAML must be nested at most 100 deep"),
    "no end": ("a: " + "[" * 100_000, ":1: not valid YAML"),
    "size": ("x" * 3_000_000, ": YAML must have at most 2097152 bytes, got more"),
    "NUL": ('model: "\\0"\n', ":1: special characters are not allowed, got '\\x00'"),
    "Latin-1": (b"a: \xe9\n", ": not valid YAML: invalid continuation byte at byte 3; save it as UTF-8"),
    "two documents": ("model: {}\n---\nmodel: {}\n", ":2: a file must have one document, got a second one"),
    "a long number": (f"a: {'9' * 5000}", ":1: 9999999999... cannot be read as int"),
}
# Contents that are valid YAML, but nothing that a command reads; the wording depends on the command.
MEANINGLESS = {"nothing": "", "a comment": "# none\n", "a list": "- a\n- b\n", "a text": "hello\n", "a number": "3\n"}
WIDE = {"a": "x, ", "b": "'${vars.a}', ", "c": "'${vars.b}', "}
EXPANDING = {
    "a circle": "vars: {a: '${vars.b}', b: '${vars.a}'}\n",
    "itself": "vars: {a: '${vars}'}\n",
    "texts": "vars:\n  a0: xxxx\n" + "".join(f"  a{i + 1}: '${{vars.a{i}}}${{vars.a{i}}}'\n" for i in range(60)),
    "lists": "vars:\n  a0: [1]\n" + "".join(f"  a{i + 1}: ['${{vars.a{i}}}','${{vars.a{i}}}']\n" for i in range(60)),
    "wide lists": "vars:\n" + "".join(f"  {name}: [{value * 200}]\n" for name, value in WIDE.items()),
    "a long way": "vars:\n  a0: 1\n" + "".join(f"  a{i + 1}: '${{vars.a{i}}}'\n" for i in range(200)),
    "no resolver": "vars: {a: '${nothing:1}'}\n",
    "a program": "vars: {a: '${oc.decode:x}'}\n",
    "a chosen key": "vars: {b: c, a: '${vars.${vars.b}}'}\n",
    "no end": "vars: {a: '" + "${" * 1000 + "'}\n",
    "depth": "vars: {a: '" + "${" * 1000 + "}" * 1000 + "'}\n",
}
COMMANDS = {
    "fit --config": "fit --config FILE",
    "a layer": "fit --config good.yaml --config FILE",
    "--model": "fit --config good.yaml --model FILE",
    "--model.network": "fit --config good.yaml --model.network FILE",
    "--data": "fit --config good.yaml --data FILE",
    "--trainer": "fit --config good.yaml --trainer FILE",
    "validate": "validate --config FILE",
    "predict": "predict --config good.yaml --model.predict.task FILE",
    "sample --sampler": "sample run --sampler FILE",
    "sample --codec": "sample run --codec FILE",
    "likelihood --paths": "evaluate run --likelihood --paths FILE",
    "evaluate RUN": "evaluate broken --likelihood",
    "levels": "levels FILE",
    "ablate": "ablate FILE --output out",
    "the base of ablate": "ablate ablation.yaml --output out",
    "cache-latents --data": "cache-latents --data FILE --codec good.yaml --out out",
    "cache-latents --codec": "cache-latents --data good.yaml --codec FILE --out out",
    "report": "report broken",
    "export": "export broken --output out",
}
ABLATION = "base: [bad.yaml]\nseeds: [0]\naxes: {trainer.max_steps: [1, 2]}\nmetrics: {val/loss: min}\n"


@pytest.fixture
def write(digits_run, tmp_path, monkeypatch):
    """Function that writes the file that all commands read, as bad.yaml and as the configuration of a run."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXPERIMENT, "good.yaml")
    Path("ablation.yaml").write_text(ABLATION)
    Path("run").symlink_to(digits_run)
    Path("broken").mkdir()
    Path("broken/checkpoints").symlink_to(digits_run / "checkpoints")
    Path("broken/config.yaml").symlink_to("../bad.yaml")

    def write(content: str | bytes | None) -> None:
        Path("bad.yaml").unlink(missing_ok=True)
        if content is None:
            os.mkfifo("bad.yaml")
        else:
            Path("bad.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


# Where every file is read by train.py's parser, which takes a third of a second.
SLOW = {name for name, command in COMMANDS.items() if "good.yaml --" in command} | {"the base of ablate"}
LEFT = ["ablation.yaml", "bad.yaml", "broken", "good.yaml", "run"]


def commands(*names: str) -> list[object]:
    return [pytest.param(COMMANDS[name], id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name in names]


@pytest.mark.parametrize("command", commands(*COMMANDS))
def test_damaged_files_are_refused_in_one_line_with_the_place(command, write, expect_error):
    argv = command.replace("FILE", "bad.yaml").split()
    file = "config.yaml" if "broken" in argv else "bad.yaml"
    for name, (content, problem) in DAMAGED.items():
        write(content)
        assert f"{file}{problem}" in expect_error(*argv), name
    write(None)
    message = expect_error(*argv)
    assert "must be a regular file" in message or "is not a file" in message or "does not exist" in message
    assert sorted(path.name for path in Path().iterdir()) == LEFT  # nothing is written


@pytest.mark.parametrize("command", commands(*COMMANDS))
def test_meaningless_files_are_refused_in_one_line(command, write, expect_error):
    argv = command.replace("FILE", "bad.yaml").split()
    file = "config.yaml" if "broken" in argv else "bad.yaml"
    for name, content in MEANINGLESS.items():
        write(content)
        assert file in expect_error(*argv), name


@pytest.mark.parametrize("command", commands("a layer", "the base of ablate", "levels", "cache-latents --codec"))
def test_interpolations_are_bounded_before_they_are_resolved(command, write, expect_error):
    argv = command.replace("FILE", "bad.yaml").split()
    for name, content in EXPANDING.items():
        write(content)
        message = expect_error(*argv)
        assert re.search(r"bad.yaml:\d+: vars\.[abc]", message), (name, message)
        assert len(message) < 2500


@pytest.mark.slow
def test_a_variable_of_the_environment_may_be_missing(write, expect_error):
    write("vars: {a: '${oc.env:ASYNCDIFF_NO_SUCH_VARIABLE}'}")
    message = expect_error("fit", "--config", "good.yaml", "--config", "bad.yaml")
    assert message == "bad.yaml:1: vars.a: Environment variable 'ASYNCDIFF_NO_SUCH_VARIABLE' not found"
