import itertools
import os
import re

import pytest
import yaml
from jsonargparse._loaders_dumpers import get_yaml_default_loader

from asyncdiff.yaml_files import MAX_DEPTH, MAX_SIZE, parse_yaml, read_yaml

LETTERS = "abcdefgh"
LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in itertools.pairwise(LETTERS)
)
MERGED_LAUGHS = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name}\n  <<: [{', '.join([f'*{before}'] * 9)}]\n" for before, name in itertools.pairwise(LETTERS)
)
REFUSED = [
    ("a: 1\nb:\n  c: 2\n  c: 3\n", ":4: the key c is given twice, first in line 3"),
    ("a: 1\nd: 3\n'a': 2\n", ":3: the key a is given twice, first in line 1"),
    ("b: &b {x: 1}\nc:\n  <<: *b\n  <<: *b\n", ":4: the key << is given twice, first in line 3"),
    ("a: {b: 1, b: 1}", ":1: the key b is given twice"),
    ("x: 1\na: !!python/name:os.system x", ":2: tags are not allowed, got !!python/name:os.system"),
    ("a: !custom [1]", ":1: tags are not allowed, got !custom"),
    ("a: !!binary aGVsbG8=", ":1: tags are not allowed, got !!binary"),
    ("a: !!set {b}", ":1: tags are not allowed, got !!set"),
    ("a:\n\tb: 1\n", ":2: not valid YAML: lines must be indented by spaces, got a tab"),
    ("a: 1\n---\nb: 2\n", ":2: a file must have one document, got a second one"),
    ("a: &x [*x]", ":1: *x must not contain itself"),
    ("a: &x 1\nb: &x 2", ":2: &x is defined twice"),
    ("a: *x", ":1: not valid YAML: found undefined alias"),
    ('a: 1\nb: "\0"', ":2: not valid YAML: special characters are not allowed, got '\\x00'"),
    ('a: 1\nb: "x\\0"', ":2: special characters are not allowed, got '\\x00'"),
    (b"a: \xe9\n", ": not valid YAML: invalid continuation byte at byte 3; save it as UTF-8"),
    ("a: 1".encode("utf-16"), ": not valid YAML: invalid start byte at byte 0; save it as UTF-8"),
    ("".join(f"{' ' * i}a:\n" for i in range(200)), f":{MAX_DEPTH + 1}: YAML must be nested at most {MAX_DEPTH} deep"),
    (f"{'[' * 600}{']' * 600}", f":1: YAML must be nested at most {MAX_DEPTH} deep"),
    ("[" * 100_000, ":1: not valid YAML: exceeded maximum nesting depth"),
    (LAUGHS, ":6: YAML with its aliases written out must have at most 2097152 bytes"),
    (MERGED_LAUGHS, ":13: YAML with its aliases written out must have at most 2097152 bytes"),
    (f"a: &a {'x' * 10_000}\nb: [{', '.join(['*a'] * 1000)}]", ":2: YAML with its aliases written out must have"),
    (f"[{'a,' * 900_000}]", ":1: YAML with its aliases written out must have at most 2097152 bytes"),
    ("x" * (MAX_SIZE + 1), ": YAML must have at most 2097152 bytes, got more"),
    (f"a: {'9' * 5000}", ":1: 9999999999... cannot be read as int: put it into quotes"),
    (f"a: 1{':1' * 1000}", ":1: 1:1:1:1:1:... cannot be read as int: put it into quotes"),
    ("a: 0x_", ":1: 0x_ cannot be read as int: put it into quotes"),
    ("a: !!bool abc", ":1: abc cannot be read as bool: put it into quotes"),
    ("a: [1, 2", ":2: not valid YAML: did not find expected ',' or ']'"),
    ("a: [1, 2\n", ":2: not valid YAML: did not find expected ',' or ']'"),
    ("a: 'b\n\n", ":3: not valid YAML: found unexpected end of stream"),
    ("? [1, 2]\n: 3", ":1: keys must be text or numbers, got a list or section"),
    ("b: 1\nc:\n  <<: 3", ":3: not valid YAML: expected a mapping or list of mappings for merging, but found scalar"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_wrong_is_one_clause_with_its_line(text, message):
    with pytest.raises(ValueError, match=f"^{re.escape(f'run.yaml{message}')}") as refusal:
        parse_yaml(text, "run.yaml")
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 200


def test_what_is_permitted():
    text = "\ufeffbase: &base {x: 1, y: [a]}\nc:\n  <<: *base\n  x: 3\nd: !!str 5\ne: 1e-3\nf: 2020-01-01\ng:\n"
    base = {"x": 1, "y": ["a"]}
    read = {"base": base, "c": {"x": 3, "y": ["a"]}, "d": "5", "e": 0.001, "f": "2020-01-01", "g": None}
    assert parse_yaml(text) == read
    assert parse_yaml("") is None
    assert parse_yaml("# nothing\n") is None
    assert parse_yaml(f"{'[' * MAX_DEPTH}{']' * MAX_DEPTH}") is not None


WORDS = ["-1.5e+3", "1_0.5", "1:30", "1:30.5", "010", "0x1f", ".NaN", "+.INF", "on", "~", "", "- 1", "2001-12-14", "<<"]


@pytest.mark.parametrize("length", range(1, 4))
def test_scalars_are_read_as_on_command_lines(length):
    for word in [*WORDS, *map("".join, itertools.product("1.e+-_:", repeat=length))]:
        try:
            expected = repr(yaml.load(word, get_yaml_default_loader()))
        except (ValueError, yaml.YAMLError):
            with pytest.raises(ValueError, match="not valid YAML|cannot be read"):
                parse_yaml(word)
        else:
            assert repr(parse_yaml(word)) == expected, word


def test_what_was_dumped_is_read_as_it_was():
    content = {"names": ["1e-3", "2020-01-01", "on", "0x1", "1:30", ""], "rate": 1e-5, "none": None}
    assert parse_yaml(yaml.safe_dump(content), dumped=True) == content


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"--config must be a regular file, got .*/pipe, a named pipe"):
        read_yaml(tmp_path / "pipe", name="--config")
    (tmp_path / "a.yaml").write_text("a: b: c")
    with pytest.raises(ValueError, match=r"a.yaml:1: not valid YAML: mapping values are not allowed"):
        read_yaml(tmp_path / "a.yaml")
    with pytest.raises(FileNotFoundError):
        read_yaml(tmp_path / "none.yaml")
