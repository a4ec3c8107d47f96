"""Hooks of the documentation site: LaTeX to MathML, the page of commands, and pages of files outside docs/."""

import contextlib
import io
import logging
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

LOG = logging.getLogger("mkdocs.hooks.site")
ROOT = Path(__file__).resolve().parents[2]
# Files and folders of the repository that pages link to; the build warns about links to others.
SHOWN = ("*.md", "*.cff", "benchmarks/README.md", "experiments", "experiments/ablations", "experiments/**/*.yaml")
INLINE, DISPLAYED = re.compile(r"\$`([^`]+)`\$"), re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TO_DOCS = re.compile(r"(?<=\]\()(\.\./)*docs/")  # start of a link into docs/, in a file outside docs/
MODES = {"evaluate": ("--samples", "--likelihood", "--inpainting")}


class RepositoryPage(File):
    """Page of a file or folder outside docs/, found by relative links since its path is relative to docs/ too."""

    def __init__(self, config: MkDocsConfig, path: Path):
        name = path.relative_to(ROOT).as_posix()
        target = f"repository/{name.removesuffix('.md')}.html"
        super().__init__(
            f"../{name}", None, config.site_dir, False, dest_uri=target, inclusion=InclusionLevel.NOT_IN_NAV
        )
        if path.is_dir():
            links = [f"* [{file.name}]({path.name}/{file.name})" for file in sorted(path.glob("*.yaml"))]
            self.content_string = "\n".join([f"# {name}\n", *links])
        else:
            text = path.read_text()
            self.content_string = text if path.suffix == ".md" else f"# {name}\n\n````yaml\n{text}````\n"

    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    for path in sorted({path for pattern in SHOWN for path in ROOT.glob(pattern)}):
        files.append(RepositoryPage(config, path))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Convert the formulas; make links into docs/ absolute, as MkDocs resolves them."""
    if page.file.src_uri.startswith("../"):
        markdown = TO_DOCS.sub("/", markdown)
    markdown = DISPLAYED.sub(lambda match: f'<div class="formula">{mathml(match[1], "block")}</div>', markdown)
    return INLINE.sub(lambda match: f"<span>{mathml(match[1], 'inline')}</span>", markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Warn about images, styles and scripts that a browser would fetch from another host."""
    for tag in re.findall(r"<(?:img|script|iframe|source|video|link|embed)\b[^>]*>", output):
        for address in re.findall(r"""(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""", tag):
            LOG.warning("%s must not load files from other hosts, got %s", page.file.src_uri, address)
    return output


def mathml(latex: str, display: str) -> str:
    """Return the formula as a `math` element; raise ValueError for an unknown command."""
    try:
        formula = convert(" ".join(latex.split()), display=display)
    except Exception as error:  # the converter raises many types
        raise ValueError(f"formulas must be LaTeX, got {latex}: {error!r}") from error
    if "\\" in formula or ">&<" in formula:  # the converter copies unknown commands
        raise ValueError(f"formulas must have known commands, got {latex}")
    return formula


def commands_page() -> str:
    """Return the page with the `--help` of every command, in the order of the overview."""
    from asyncdiff.__main__ import COMMANDS, main, overview

    page = f"# Commands\n\n```\n{overview().strip()}\n```\n\nOptions of training are the [YAML keys](keys.md).\n"
    for name in COMMANDS:
        for argv in ([name], *([name, mode] for mode in MODES.get(name, ()))):
            with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
                main([*argv, "--help"])
            page += f"\n## `{' '.join(argv)}`\n\n```\n{printed.getvalue().strip()}\n```\n"
    return page
