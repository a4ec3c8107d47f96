"""Text of any origin: one visible line of bounded length, and file names that differ and stay in their folder."""

import shlex
import subprocess

import pytest

from asyncdiff.foreign_text import file_names, shell_line, visible, visible_lines

HOSTILE = ["\0a\1", "\x1b[31mred\x1b[0m", "a\nb\r\n", "\u202eabc\u2066", "\udcff", "\x9b2J", "\u2028"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hidden_characters_are_shown_as_their_escapes(text):
    shown = visible(text)
    assert shown.isprintable()
    assert shown.encode().decode("unicode_escape") == text
    assert visible(shown) == shown


@pytest.mark.parametrize("text", ["naïve Größe 手", "at 1.00\u202fPM\u00a0手\u3000手", 'a "b" <c> $d$ \\e', ""])
def test_printable_text_is_unchanged(text):
    assert visible(text) == text


@pytest.mark.parametrize("limit", [2, 3, 10, 11])
def test_the_middle_of_a_long_text_is_left_out(limit):
    assert len(visible("ab" * 100, limit)) == limit
    assert visible("a" * limit, limit) == "a" * limit
    assert visible(f"start{'x' * 1000}end", 20).startswith("start")
    assert visible(f"start{'x' * 1000}end", 20).endswith("end")


def test_lines_remain_lines():
    assert visible_lines("a\x1b\nb") == "a\\x1b\nb"


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["a/b", "a_b", "a b"], ["a_b", "a_b-2", "a_b-3"]),
        (["A", "a"], ["A", "a-2"]),
        (["../x", "/etc/passwd", "..", "."], [".._x", "_etc_passwd", "_", "_-2"]),
        (["\0", "\x1b[31m", "$(id)"], ["_", "__31m", "__id_"]),
        (["a-2", "a", "A"], ["a-2", "a", "A-3"]),
    ],
)
def test_file_names_differ_and_name_no_folder(names, files):
    files = [file.lstrip(".") or "_" for file in files]
    assert list(file_names(names).values()) == files


def test_long_names_fit_into_a_file_system():
    chosen = file_names(["漢" * 5000, "漢" * 5001])
    assert len(set(chosen.values())) == 2
    assert max(len(name.encode()) for name in chosen.values()) < 250


def test_a_shell_reads_a_line_back():
    argv = ["a b", "it's", "a\nmodel: x", "\x1b[31m'\\", "", "--x=$(id)", "é"]
    line = shell_line(argv)
    assert line.isprintable()
    read = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
    assert read.decode().split("\0")[:-1] == argv
    assert shell_line(["python", "a b"]) == shlex.join(["python", "a b"])
