"""Links that leave docs/: on a code host they lead to files of the repository, on the site to pages of those files."""

import logging
import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LOG = logging.getLogger("mkdocs.hooks.repository")
ROOT = Path(__file__).resolve().parents[2]
HOME = "repository/"  # where such pages stand on the site
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
FENCE = re.compile(r"^( *)(```+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".txt": "text"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The overview and, once there is one, the changelog are in the navigation."""
    titles = {"Overview": "README.md", "Changelog": "CHANGELOG.md"}
    there = {title: PurePosixPath(name) for title, name in titles.items() if (ROOT / name).exists()}
    config.nav = [*(config.nav or []), *({title: page_of(path)} for title, path in there.items())]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """A page for every file and folder of the repository that a page names, and for those that these name."""
    waiting = [PurePosixPath(name) for name in ("README.md", "CHANGELOG.md") if (ROOT / name).exists()]
    for file in files.documentation_pages():
        waiting += outside(file.content_string, source_of(file.src_uri))
    done: set[PurePosixPath] = set()
    while waiting:
        path = waiting.pop()
        if path in done:
            continue
        done.add(path)
        content = content_of(path)
        files.append(File.generated(config, page_of(path), content=content))
        waiting += outside(content, path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are on the site."""
    return rewritten(markdown, source_of(page.file.src_uri), page.file.src_uri)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Warn of pictures, styles and scripts that a browser would fetch from elsewhere."""
    for address in fetched(output):
        LOG.warning("%s must not fetch from elsewhere, got %s", page.file.src_uri, address)
    return output


def fetched(html: str) -> list[str]:
    """Addresses of what a page loads by itself; links to follow are none of it."""
    tags = re.findall(r"<(?:img|script|iframe|source|video|link|embed)\b[^>]*>", html)
    return [found for tag in tags for found in re.findall(r"""(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""", tag)]


def page_of(path: PurePosixPath) -> str:
    """The page of a file or folder of the repository."""
    if path.suffix == ".md":
        return f"{HOME}{path.with_suffix('')}.md".replace("README", "readme")
    return f"{HOME}{path}.md"


def source_of(uri: str) -> PurePosixPath:
    """The file of the repository that a page is of."""
    if not uri.startswith(HOME):
        return PurePosixPath("docs") / uri
    name = uri.removeprefix(HOME).removesuffix(".md")
    return next(
        (
            path
            for path in map(PurePosixPath, (f"{name.replace('readme', 'README')}.md", name))
            if (ROOT / path).exists()
        ),
        PurePosixPath(name),
    )


def outside(markdown: str, source: PurePosixPath) -> list[PurePosixPath]:
    """What a page names in the repository besides docs/."""
    found = [resolved(match[1], source) for match in LINK.finditer(FENCE.sub("", markdown))]
    return [path for path in found if path.parts[:1] != ("docs",) and (ROOT / path).exists()]


def resolved(target: str, source: PurePosixPath) -> PurePosixPath:
    """The place in the repository that a link of a file means."""
    return PurePosixPath(os.path.normpath(source.parent / target))


def rewritten(markdown: str, source: PurePosixPath, uri: str) -> str:
    """The page with links as on the site; what is in fences stays, and what is missing is MkDocs' to complain of."""

    def replace(match: re.Match[str]) -> str:
        path = resolved(match[1], source)
        if not (ROOT / path).exists():
            return match[0]
        page = "/".join(path.parts[1:]) if path.parts[:1] == ("docs",) else page_of(path)
        return os.path.relpath(page, os.path.dirname(uri) or ".") + (match[2] or "")

    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(replace, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(replace, markdown[end:])])


def content_of(path: PurePosixPath) -> str:
    """A Markdown file as it is, another one in a fence, a folder as the list of its YAML and Markdown files."""
    place = ROOT / path
    if place.is_dir():
        listed = sorted(file.name for file in place.iterdir() if file.suffix in (".yaml", ".md"))
        return f"# {path}\n\n" + "\n".join(f"* [{name}]({path.name}/{name})" for name in listed) + "\n"
    text = place.read_text()
    if path.suffix == ".md":
        return text
    return f"# {path}\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{text}````\n"
