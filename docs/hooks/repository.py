"""Make links out of docs/ work: on a code host they lead to repository files, on the site to pages of those files."""

import logging
import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LOG = logging.getLogger("mkdocs.hooks.repository")
ROOT = Path(__file__).resolve().parents[2]
FOLDER = "repository/"  # folder of these pages on the site
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
FENCE = re.compile(r"^( *)(```+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".txt": "text"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the README and the changelog to the navigation."""
    titles = {"Overview": "README.md", "Changelog": "CHANGELOG.md"}
    existing = {title: PurePosixPath(name) for title, name in titles.items() if (ROOT / name).exists()}
    config.nav = [*(config.nav or []), *({title: page_of(path)} for title, path in existing.items())]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every repository file and folder that a page links to, recursively."""
    waiting = [PurePosixPath(name) for name in ("README.md", "CHANGELOG.md") if (ROOT / name).exists()]
    for file in files.documentation_pages():
        waiting += outside_links(file.content_string, source_of(file.src_uri))
    done: set[PurePosixPath] = set()
    while waiting:
        path = waiting.pop()
        if path in done:
            continue
        done.add(path)
        content = content_of(path)
        files.append(File.generated(config, page_of(path), content=content))
        waiting += outside_links(content, path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page for the site."""
    return rewrite_links(markdown, source_of(page.file.src_uri), page.file.src_uri)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Warn about images, styles and scripts that a browser would fetch from another host."""
    for address in external_resources(output):
        LOG.warning("%s must not load files from other hosts, got %s", page.file.src_uri, address)
    return output


def external_resources(html: str) -> list[str]:
    """Return the addresses that a browser loads automatically; links are not included."""
    tags = re.findall(r"<(?:img|script|iframe|source|video|link|embed)\b[^>]*>", html)
    return [found for tag in tags for found in re.findall(r"""(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""", tag)]


def page_of(path: PurePosixPath) -> str:
    """Return the page of a repository file or folder."""
    if path.suffix == ".md":
        return f"{FOLDER}{path.with_suffix('')}.md".replace("README", "readme")
    return f"{FOLDER}{path}.md"


def source_of(uri: str) -> PurePosixPath:
    """Return the repository file that a page shows."""
    if not uri.startswith(FOLDER):
        return PurePosixPath("docs") / uri
    name = uri.removeprefix(FOLDER).removesuffix(".md")
    return next(
        (
            path
            for path in map(PurePosixPath, (f"{name.replace('readme', 'README')}.md", name))
            if (ROOT / path).exists()
        ),
        PurePosixPath(name),
    )


def outside_links(markdown: str, source: PurePosixPath) -> list[PurePosixPath]:
    """Return the link targets of a page that are in the repository but outside docs/."""
    targets = [resolve(match[1], source) for match in LINK.finditer(FENCE.sub("", markdown))]
    return [path for path in targets if path.parts[:1] != ("docs",) and (ROOT / path).exists()]


def resolve(target: str, source: PurePosixPath) -> PurePosixPath:
    """Return the repository path that a link in the file `source` points to."""
    return PurePosixPath(os.path.normpath(source.parent / target))


def rewrite_links(markdown: str, source: PurePosixPath, uri: str) -> str:
    """Return the page with links rewritten for the site, except in fences; MkDocs reports broken links."""

    def replace(match: re.Match[str]) -> str:
        path = resolve(match[1], source)
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
    """Return a Markdown file unchanged, any other file in a fence, or a list of a folder's YAML and Markdown files."""
    target = ROOT / path
    if target.is_dir():
        listed = sorted(file.name for file in target.iterdir() if file.suffix in (".yaml", ".md"))
        return f"# {path}\n\n" + "\n".join(f"* [{name}]({path.name}/{name})" for name in listed) + "\n"
    text = target.read_text()
    if path.suffix == ".md":
        return text
    return f"# {path}\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{text}````\n"
