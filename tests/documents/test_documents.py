"""All commands, Python blocks and YAML blocks of README.md, CONTRIBUTING.md and docs/ are run or checked."""

from collections import Counter

import pytest
from blocks import DOCUMENTS, ROOT, SHELL, Block, blocks
from following import check_yaml, follow, follow_python
from workplace import predefined_variables, prepare, train_runs

from asyncdiff.cli.errors import UsageError

PROGRAMS = ("python ", "make ", "pip ", "source ", "torchrun ", "srun ", "asyncdiff ", "git ")
WITH_BLOCKS = [file for file in DOCUMENTS if any(block.language not in ("", "math") for block in blocks(file))]


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    return train_runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.slow
@pytest.mark.parametrize("file", WITH_BLOCKS, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_document_can_be_followed(file, runs, tmp_path, monkeypatch):
    """Follow all blocks in order, in one directory; commands that need missing data or devices are only parsed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASYNCDIFF_CACHE", str(runs / "cache"))
    monkeypatch.setenv("ASYNCDIFF_PHOTOS", "photos")
    monkeypatch.syspath_prepend(tmp_path)  # for packages of the reader
    prepare(tmp_path, runs)
    for block in blocks(file):
        if block.title:
            (tmp_path / block.title).parent.mkdir(exist_ok=True)
            (tmp_path / block.title).write_text(block.text)
    names, done, expected, marked = predefined_variables(), Counter(), 0, 0
    for block in blocks(file):
        try:
            if block.language == "python":
                expected += 1
                done[follow_python(block, names)] += 1
            elif block.language == "yaml":
                expected += 1
                check_yaml(block)
                done["checked"] += 1
            elif block.language in SHELL:
                for line, needs in block.commands():
                    expected += 1
                    marked += needs
                    done[follow(line, needs=needs)] += 1
        except BaseException as error:
            error.add_note(f"in {block}")
            raise
    print(f"{file.relative_to(ROOT)}: {done['run']} run, {done['checked']} checked, of which {marked} are marked")
    assert done["run"] + done["checked"] == expected > 0


def test_no_block_is_left_out():
    """Every block has a tested language (`math` in test_site) or no command, and every mark occurs in its block."""
    listed = [block for file in DOCUMENTS for block in blocks(file)]
    fences = sum(line.startswith("```") for file in DOCUMENTS for line in file.read_text().splitlines())
    assert fences == 2 * len(listed)
    for block in listed:
        assert block.language in (*SHELL, "python", "yaml", "math", ""), str(block)
        assert block.language or not block.text.lstrip().startswith(PROGRAMS), str(block)
        assert all(word in block.text for word in block.needs), f"{block}: {block.needs}"


def test_most_commands_are_run():
    """Marked commands need data, weights or devices; most commands need none."""
    shells = [block for file in DOCUMENTS for block in blocks(file) if block.language in SHELL]
    commands = [needs for block in shells for _, needs in block.commands()]
    assert len(commands) > 100
    assert sum(commands) < 0.4 * len(commands)


@pytest.mark.parametrize(
    "line",
    [
        "python -m asyncdiff port a.pt --kindd dit --output b.ckpt",
        "python -m asyncdiff sample RUN --sampler asyncdiff.sampling.samplers.Smpler",
        "python -m asyncdiff smple RUN",
        "python train.py fit --config experiments/demo.yaml --model.learning_rat 1",
        "python train.py fit --config experiments/demo.yaml --model.levels asyncdiff.noise.level_samplers.Nothing",
        "torchrun --nproc_per_node 8 train.py fit --config experiments/nothing.yaml",
        "torchrun --nproc_per_node 8 -m asyncdiff evaluate RUN --samples --cuont 5",
        "python -m benchmarks.nothing",
        "make nothing",
        "pip install nothing",
        "python -m pip install nothing",
        "pip install .[nothing]",
        "asyncdiff smple RUN",
        "rm -r runs",
    ],
)
def test_invalid_commands_are_found_without_running_them(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, UsageError, SystemExit)):
        follow(line, needs=True)


def test_invalid_blocks_are_found_without_running_them():
    def block(text, language="python"):
        return Block(ROOT / "README.md", 1, language, "", ("Sampler",), text)

    assert (
        follow_python(block("from asyncdiff.sampling.samplers import Sampler\nSampler(steps=nowhere)"), {}) == "checked"
    )
    with pytest.raises(TypeError, match="stepz"):
        follow_python(block("from asyncdiff.sampling.samplers import Sampler\nSampler(stepz=3)"), {})
    with pytest.raises(AttributeError, match="Smpler"):
        follow_python(block("from asyncdiff.sampling.samplers import Smpler"), {})
    check_yaml(block("{class_path: asyncdiff.sampling.Sampler, init_args: {steps: 3}}", "yaml"))
    with pytest.raises(AssertionError, match="stepz"):
        check_yaml(block("{class_path: asyncdiff.sampling.Sampler, init_args: {stepz: 3}}", "yaml"))
