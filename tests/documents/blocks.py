"""Code blocks of README.md, CONTRIBUTING.md and docs/, and the commands in them."""

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
        file: document.
        line: line of its first fence.
        language: language of the fence; empty for program output.
        title: file that readers write the block to; empty for none.
        needs: words from the comment `<!-- needs: WORD, ... -->` above it: lines with one of them need data, weights or
            devices that are not in the repository, and are only checked, not run.
        text: content without the fences.
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
        """Yield every command, with continued lines joined, and whether it needs something that is missing here."""
        for line in self.text.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith("#"):
                yield line, any(word in line for word in self.needs)

    @property
    def missing(self) -> bool:
        """Whether a Python block needs something that is missing here."""
        return any(word in self.text for word in self.needs)


def blocks(file: Path) -> list[Block]:
    """Return all blocks of a document, in order."""
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


def split_command(line: str) -> list[str]:
    """Split a command as a shell does: without comments, with braces and globs expanded."""
    words = shlex.split(line, comments=True)
    return [path for word in words for pattern in expand_braces(word) for path in expand_glob(pattern)]


def expand_braces(word: str) -> list[str]:
    """Expand `a{b,c}` to `ab` and `ac`."""
    match = re.fullmatch(r"([^{}]*)\{([^{}:$]+,[^{}:$]+)\}([^{}]*)", word)
    return [match[1] + middle + match[3] for middle in match[2].split(",")] if match else [word]


def expand_glob(word: str) -> list[str]:
    """Expand a word with stars to the matching files."""
    return sorted(map(str, Path().glob(word))) if "*" in word and not word.startswith("--") else [word]
