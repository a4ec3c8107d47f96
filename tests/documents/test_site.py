"""The documentation site: completeness of the reference, links and formulas."""

import importlib.util
import inspect
import re
from types import SimpleNamespace

import griffe
import pytest
import yaml
from blocks import DOCUMENTS, ROOT, blocks
from docstring_parser import parse
from markdown import markdown

from asyncdiff import shapes
from asyncdiff.__main__ import COMMANDS
from asyncdiff.cli import train as cli
from asyncdiff.cli.errors.suggestions import known_classes
from datamodules import ImageDataModule

DOCS, EXPERIMENTS = ROOT / "docs", ROOT / "experiments"
KEYS = (DOCS / "reference" / "keys.md").read_text()
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")
FENCE = re.compile(r"^( *)(```+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
SPEC = importlib.util.spec_from_file_location("site_hook", DOCS / "hooks" / "site.py")
hook = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(hook)


def test_all_constructor_arguments_of_public_classes_are_documented():
    checked = 0
    for path, kind in known_classes().items():
        if path.startswith("lightning.") or "__init__" not in vars(kind):
            continue
        # A class may leave the options that it passes on to its parent's constructor to the docstring of that class.
        docs = [parse(inspect.cleandoc(base.__doc__)) for base in kind.__mro__ if base.__doc__]
        # pydoclint's fork of the parser keeps attributes apart.
        listed = [one for doc in docs for one in (*doc.params, *getattr(doc, "attrs", ()))]
        documented = {name for one in listed for name in re.findall(r"\w+", one.arg_name)}
        parameters = inspect.signature(kind).parameters.values()
        names = {one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
        assert names <= documented, f"{path}: {names - documented}"
        checked += bool(names)
    assert checked > 120


def test_the_reference_shows_all_arguments_of_data_modules():
    """Also those that a constructor passes on as `**options`, with their text."""
    extensions = griffe.load_extensions(DOCS / "hooks" / "inherited_options.py")
    package = griffe.load("datamodules", search_paths=[ROOT], extensions=extensions, docstring_parser="google")
    kinds = [kind for path, kind in known_classes().items() if path.startswith("datamodules.")]
    modules = [kind for kind in kinds if issubclass(kind, ImageDataModule) and "__init__" in vars(kind)]
    assert len(modules) > 12
    for kind in modules:
        shown = package[f"{kind.__module__}.{kind.__name__}".removeprefix("datamodules.")]
        (table,) = (section.value for section in shown.docstring.parsed if section.kind.value == "parameters")
        names = list(inspect.signature(kind).parameters)
        assert [one.name for one in shown.parameters][1:] == [one.name for one in table] == names, kind


def test_every_environment_variable_is_documented():
    files = [*(ROOT / "asyncdiff").rglob("*.py"), *(ROOT / "datamodules").rglob("*.py"), *EXPERIMENTS.rglob("*.yaml")]
    read = {name for file in files for name in re.findall(r"ASYNCDIFF_[A-Z0-9_]+", file.read_text())}
    assert len(read) > 10
    assert read == set(re.findall(r"ASYNCDIFF_[A-Z0-9_]+", (DOCS / "reference" / "index.md").read_text()))


def test_the_page_of_keys_leads_to_every_class_that_a_file_can_name():
    """Every class of its packages is on a reference page, and every class of the experiments is in these packages."""
    packages = re.findall(r"`([\w.]+)\.NAME`", KEYS)
    classes = known_classes()
    listed = {path: kind for path, kind in classes.items() if path.rpartition(".")[0] in packages}
    assert len(listed) > 100
    pages = "".join(file.read_text() for file in (DOCS / "reference").glob("*.md"))
    assert {kind.__module__ for kind in listed.values()} <= set(re.findall(r"^::: (\S+)", pages, re.MULTILINE))
    named = {path for f in EXPERIMENTS.rglob("*.yaml") for path in re.findall(r"class_path: ([\w.]+)", f.read_text())}
    own = {path for path in named if path.startswith(("asyncdiff.", "datamodules."))}
    assert len(own) > 50
    short_path = {f"{kind.__module__}.{kind.__name__}": path for path, kind in classes.items()}
    assert {short_path.get(path, path) for path in own} <= set(listed)


def test_the_page_of_keys_lists_the_top_level_keys():
    table = KEYS.partition("## The file")[2].partition("\n\nSeveral")[0]
    named = set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))
    parser = cli._run_cli(cli.ConfigOnlyCLI, ["fit", "--config", str(EXPERIMENTS / "demo.yaml")]).parser
    actions = parser._subcommands_action._name_parser_map["fit"]._actions
    assert named == {action.dest.partition(".")[0] for action in actions} - {"help", "config", "print_config"}
    for file in EXPERIMENTS.glob("*.yaml"):
        assert set(yaml.safe_load(file.read_text())) <= named, file


@pytest.mark.parametrize("name", ["Image", "Latents", "LevelMap", "KnownPatches", "KnownPixels", "Progress", "Labels"])
def test_the_table_of_shapes_matches_the_code(name):
    page = (DOCS / "reference" / "index.md").read_text()
    dims = ", ".join(getattr(shapes, name).dim_str.split())
    assert re.search(rf"^\| `{name}` \| \({dims},?\) \|", page, re.MULTILINE)


def test_the_page_of_commands_lists_all_commands_and_options():
    page = hook.commands_page()
    for name in COMMANDS:
        part = page.partition(f"## `{name}`")[2].partition("\n## ")[0]
        assert f"usage: python -m asyncdiff {name}" in part, name
    assert page.count("--ckpt_path") > 8


def test_links_in_the_repository_point_to_files():
    """On a code host; the build checks the links of the site."""
    seen = 0
    for file in DOCUMENTS:
        for match in LINK.finditer(FENCE.sub("", file.read_text())):
            target = (file.parent / match[1]).resolve()
            generated = target == DOCS / "reference" / "commands.md"
            assert target.exists() or generated, f"{file.relative_to(ROOT)}: {match[1]}"
            seen += 1
    assert seen > 150


@pytest.mark.parametrize(
    ("link", "page", "expected"),
    [
        ("[a](levels.md#paths)", "tasks.md", "[a](levels.md#paths)"),
        ("[a](../benchmarks/README.md#data)", "data.md", "[a](../benchmarks/README.md#data)"),
        ("[a](docs/tasks.md)", "../README.md", "[a](/tasks.md)"),
        ("![a](../docs/images/levels.png)", "../benchmarks/README.md", "![a](/images/levels.png)"),
        ("[a](https://a.b/docs/c) [b](#d)", "../README.md", "[a](https://a.b/docs/c) [b](#d)"),
    ],
)
def test_links_from_outside_the_documents_are_absolute_on_the_site(link, page, expected):
    assert on_page(link, page) == expected


def test_files_outside_the_documents_are_pages_at_their_relative_path():
    for name in ("README.md", "experiments/ablations", "experiments/ablations/fid.yaml"):
        page = hook.RepositoryPage(SimpleNamespace(site_dir="site"), ROOT / name)
        assert page.src_uri == f"../{name}"
        assert page.dest_uri == f"repository/{name.removesuffix('.md')}.html"
        assert page.is_documentation_page()
        assert page.content_string.startswith("# ")


def on_page(text: str, page: str = "a.md") -> str:
    return hook.on_page_markdown(text, SimpleNamespace(file=SimpleNamespace(src_uri=page)), None, None)


def test_every_formula_converts_to_mathml():
    found = [block.text for file in DOCUMENTS for block in blocks(file) if block.language == "math"]
    found += [match[1] for file in DOCUMENTS for match in hook.INLINE.finditer(file.read_text())]
    assert len(found) > 8
    for latex in found:
        assert hook.mathml(latex, "block").startswith("<math ")


@pytest.mark.parametrize("latex", [r"\nothing x", r"\frac", r"a &= b", r"\begin{aligned}a\end"])
def test_an_invalid_formula_fails_the_build(latex):
    for text in (f"$`{latex}`$", f"```math\n{latex}\n```"):
        with pytest.raises(ValueError, match="formulas must"):
            on_page(text)


def test_formulas_in_text_tables_and_fences():
    text = "$`c`$ is `a` and $`x_1 < 2 * y * z`$\n\n| a |\n|---|\n| $`y \\mid z`$ |\n\n```math\n\\frac{1}{n}\n```\n"
    html = markdown(on_page(text), extensions=["tables", "pymdownx.superfences"])
    assert html.count("<math ") == 4
    assert "</math></span> is <code>a</code> and <span><math" in html
    assert "<mi>x</mi><mn>1</mn></msub><mo>&#x0003C;</mo>" in html
    assert "<em>" not in html
    assert re.search(r"<td><span><math .*&#x02223;.*</math></span></td>", html)
    assert re.search(r'<div class="formula"><math .*display="block">.*<mfrac>', html)


def test_external_resources_are_reported(caplog):
    html = '<img src="https://a/b.png"><a href="https://c"></a><link rel=x href=//d/e.css><script src="f.js"></script>'
    page = SimpleNamespace(file=SimpleNamespace(src_uri="a.md"))
    assert hook.on_post_page(html, page, None) == html
    assert [record.args for record in caplog.records] == [("a.md", "https://a/b.png"), ("a.md", "//d/e.css")]


def test_images_of_the_idea_are_small_and_used():
    images = re.findall(r"\]\((images/[^)]+)\)", (DOCS / "idea.md").read_text())
    assert len(images) >= 7
    assert all((DOCS / name).stat().st_size < 100_000 for name in images)


def test_the_navigation_lists_existing_or_generated_files():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    named = set(re.findall(r"[\w/.]+\.md", yaml.safe_dump(config["nav"])))
    assert {name for name in named if not (DOCS / name).exists()} == {"reference/commands.md"}
    assert config["strict"] is True
    assert config["theme"]["font"] is False
    titles = [
        re.search("^# (.+)", (DOCS / name).read_text(), re.MULTILINE)[1]
        for name in named
        if (DOCS / name).exists() and not name.startswith("../")
    ]
    assert len(titles) == len(set(titles))


def test_link_texts_are_not_file_names():
    for file in (file for file in DOCS.rglob("*.md") if "results" not in file.parts):
        assert not re.findall(r"\[[\w/.]+\.md\]\(", file.read_text()), file


def test_search_works_from_the_disk_without_downloads():
    """The plugin downloads its own script unless a file of this name exists."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert "offline" in config["plugins"]
    assert [(DOCS / name).is_file() and "iframe-worker" in name for name in config["extra"]["polyfills"]] == [True]
