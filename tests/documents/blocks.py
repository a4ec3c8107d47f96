"""The blocks of README.md and docs/, and what a reader is to do with them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL = ("sh", "bash")
FENCE = re.compile(
    r"(?:^<!-- needs: (?P<needs>.+?) -->\n)?"
    r"^```(?P<language>\w*)(?: title=\"(?P<title>[\w./]+)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        file: the document.
        line: of its first fence.
        language: after the fence; empty for what a program prints.
        title: a file that readers are to write it to; empty for none.
        needs: words from the comment `<!-- needs: WORD, ... -->` above it: lines with one of them need data, weights or
            devices that are not in the repository, and are checked without being run.
        text: without the fences.
    """

    file: Path
    line: int
    language: str
    title: str
    needs: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"

    def commands(self) -> Iterator[tuple[str, bool]]:
        """Every command, continued lines joined, and whether it needs what is not here."""
        for line in self.text.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith("#"):
                yield line, any(word in line for word in self.needs)

    @property
    def missing(self) -> bool:
        """Whether a block of Python needs what is not here."""
        return any(word in self.text for word in self.needs)


def blocks(file: Path) -> list[Block]:
    """All of a document, in order."""
    text = file.read_text()
    return [
        Block(
            file,
            text[: match.start()].count("\n") + 1,
            match["language"],
            match["title"] or "",
            tuple(re.split(r",\s*", match["needs"])) if match["needs"] else (),
            match["text"],
        )
        for match in FENCE.finditer(text)
    ]


def words_of(line: str) -> list[str]:
    """The words of a command as a shell makes them here: comments cut, braces and stars expanded."""
    return [found for word in shlex.split(line, comments=True) for braced in braces(word) for found in stars(braced)]


def braces(word: str) -> list[str]:
    """`a{b,c}` as `ab` and `ac`."""
    match = re.fullmatch(r"([^{}]*)\{([^{}:$]+,[^{}:$]+)\}([^{}]*)", word)
    return [match[1] + middle + match[3] for middle in match[2].split(",")] if match else [word]


def stars(word: str) -> list[str]:
    """The files of a pattern."""
    return sorted(map(str, Path().glob(word))) if "*" in word and not word.startswith("--") else [word]
