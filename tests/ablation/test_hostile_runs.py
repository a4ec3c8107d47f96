"""Reports of runs of others: whatever their files contain, the page has the expected elements and shows the text."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from asyncdiff.cli.commands import compare, report
from asyncdiff.foreign_text import visible

HOSTILE = [
    "\0img src=x onerror=alert(1)\1",
    "\0script\1alert(1)\0/script\1",
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "](javascript:alert(1)) ![x](http://example.com/x.png)",
    "a | b ` c ` ** d **",
    "line\n\n# heading\r\n- item",
    "\x1b[31m\x1b]0;title\x07 \x9b2J",
    "\u202eabc\u2066",
    "$\\frac{$ _",
    "../../../x",
    "/etc/x",
    "_x",
    "x" * 5000,
]

NO_ATTRIBUTES: frozenset[str] = frozenset()


class Page(HTMLParser):
    """Elements with their attributes, and the texts, of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)

    def handle_comment(self, data):
        raise AssertionError(data)


def write_run(folder: Path, number: int, text: str) -> None:
    (folder / "images").mkdir(parents=True)
    tag = "frechet/x"
    record = {
        "number": number,
        "variants": {text: text},
        "seed": 0,
        "command": f"python train.py {text}",
        "metrics": [{"tag": tag, "label": HOSTILE[1], "goal": "min"}],
        "software": {text: text, "commit": text},
        "config": {"data": {"root": text, text: text}, "model": {text: [text]}, "trainer": {"max_steps": text}},
    }
    (folder / "cell.json").write_text(json.dumps(record))
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed_everything": 0}))
    (folder / "finished.json").write_text("{}")
    (folder / "evaluation").mkdir()
    card = {"format": 1, "protocol": {text: text, "count": text}, "metrics": {}}
    (folder / "evaluation" / "frechet_x.json").write_text(json.dumps(card))
    Image.new("RGB", (4, 4)).save(folder / "images" / "samples.png")
    with SummaryWriter(str(folder)) as writer:
        for step in range(3):
            writer.add_scalar(tag, number + step, step)


@pytest.fixture
def runs(tmp_path) -> Path:
    out = tmp_path / "out"
    for number, text in enumerate(HOSTILE):
        write_run(out / str(number), number, text)
    return out


def test_the_page_has_the_expected_elements_and_shows_the_text(runs, capsys):
    report.main([str(runs), "--title", HOSTILE[3]])
    folder = runs / "report"
    page = Page((folder / "report.html").read_text())
    allowed: dict[str, frozenset[str] | set[str]] = {
        "html": {"lang"},
        "meta": {"charset", "http-equiv", "content"},
        "img": {"src", "alt"},
        "div": {"class"},
        **dict.fromkeys(("head", "title", "style", "body", "h1", "h2", "ul", "li", "b", "code", "p"), NO_ATTRIBUTES),
        **dict.fromkeys(("table", "tr", "th", "td", "figure", "figcaption", "details", "summary"), NO_ATTRIBUTES),
    }
    for tag, attributes in page.elements:
        assert set(attributes) <= allowed[tag]
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(images) == len(HOSTILE) + 2
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in images)
    count = [tag for tag, _ in page.elements].count
    assert (count("td"), count("h1"), count("p")) == (3 * len(HOSTILE), 1, 1 + len(HOSTILE))
    for text in HOSTILE:
        assert visible(text) in page.texts
    assert visible(HOSTILE[3]) in page.texts
    policy = next(a["content"] or "" for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    style = re.search("<style>(.*)</style>", (folder / "report.html").read_text(), re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    for text in (capsys.readouterr().out, (folder / "report.md").read_text()):
        assert not set("\0\1\x1b\x07\x9b\u202e\r") & set(text)
        assert "<script" not in text
        assert "<img" not in text


def test_every_image_has_a_file_of_its_own_in_the_folder_of_the_report(runs):
    report.main([str(runs)])
    folder = runs / "report"
    images = [file for file in folder.iterdir() if file.suffix == ".png"]
    assert len(images) == len(HOSTILE) + 2
    markdown = (folder / "report.md").read_text()
    assert sorted(re.findall(r"(?<!\\)\]\(([^()\\]*)\)", markdown)) == sorted(file.name for file in images)
    assert all(len(file.name) < 120 for file in images)


def test_a_comparison_of_cards_is_one_table(tmp_path, capsys):
    files = []
    for number, text in enumerate(HOSTILE):
        card = {
            "format": 1,
            "protocol": {text: text, "step": text, "torch": text},
            "metrics": {text: 1.0, "fid": text},
            "deviations": {text: text} if number else [text],
        }
        files.append(tmp_path / f"{number} | <b>.json")
        files[-1].write_text(json.dumps(card))
    compare.main([str(file) for file in files])
    printed = capsys.readouterr().out
    assert not set("\0\1\x1b\x07\x9b\u202e\r") & set(printed)
    head, rule, *rows = printed.split("\n\n")[0].splitlines()
    columns = len(rule.strip("|").split("|"))
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == columns + 1 for line in (head, *rows))
    assert len(rows) == len(HOSTILE)
