"""The documentation site: what is made at its build, that nothing is left out, and that links lead somewhere."""

import importlib.util
import inspect
import re
from pathlib import PurePosixPath
from types import SimpleNamespace

import pytest
import yaml
from blocks import DOCUMENTS, ROOT, blocks
from docstring_parser import parse
from markdown import markdown
from pymdownx.superfences import SuperFencesException

from asyncdiff import shapes
from asyncdiff.cli.errors.suggestions import known_classes

DOCS, EXPERIMENTS = ROOT / "docs", ROOT / "experiments"


def hook(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


formulas, generated, repository = hook("formulas"), hook("generated"), hook("repository")


@pytest.fixture(scope="module")
def keys():
    """Class paths on the page of YAML keys, with the classes."""
    return {path: kind for _, _, kinds in generated.families() for path, kind in kinds.items()}


def test_every_key_of_a_file_is_explained(keys):
    assert len(keys) > 100
    without = {path: [a.name for a in generated.arguments(kind) if not a.meaning] for path, kind in keys.items()}
    assert not {path: names for path, names in without.items() if names}


def test_constructors_of_all_public_classes_are_explained():
    checked = 0
    for path, kind in known_classes().items():
        if path.startswith("lightning.") or "__init__" not in vars(kind):
            continue
        told = {name for one in parse(inspect.getdoc(kind) or "").params for name in re.findall(r"\w+", one.arg_name)}
        known = inspect.signature(kind).parameters.values()
        names = {one.name for one in known if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
        assert names <= told, f"{path}: {names - told}"
        checked += bool(names)
    assert checked > 120


def test_every_environment_variable_is_explained():
    files = [*(ROOT / "asyncdiff").rglob("*.py"), *(ROOT / "datamodules").rglob("*.py"), *EXPERIMENTS.rglob("*.yaml")]
    read = {name for file in files for name in re.findall(r"ASYNCDIFF_[A-Z0-9_]+", file.read_text())}
    assert len(read) > 10
    assert read == set(re.findall(r"ASYNCDIFF_[A-Z0-9_]+", (DOCS / "reference" / "index.md").read_text()))


def test_every_class_of_our_experiments_is_on_the_page_of_keys(keys):
    named = set()
    for file in (ROOT / "experiments").rglob("*.yaml"):
        named |= set(re.findall(r"class_path: ([\w.]+)", file.read_text()))
    ours = {path for path in named if path.startswith(("asyncdiff.", "datamodules."))}
    assert len(ours) > 50
    classes = known_classes()
    longer = {f"{kind.__module__}.{kind.__name__}": path for path, kind in classes.items()}
    assert {longer.get(path, path) for path in ours} <= set(keys)


def test_every_class_of_the_page_of_keys_has_a_page_of_its_room(keys):
    pages = "".join(file.read_text() for file in (DOCS / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)", pages, re.MULTILINE))
    assert {kind.__module__ for kind in keys.values()} <= shown


def test_the_page_of_keys_says_what_a_class_is_made_with(keys):
    page = generated.keys_page()
    assert "| `spread` | `float` | `1.0` | half-width of the levels within an image" in page
    assert "| `network` | `Module` | required |" in page
    assert all(f"`{path}`: " in page for path in keys)


def test_the_page_of_keys_begins_with_those_at_the_top_of_a_file():
    named = {one.name: one for one in generated.top_level()}
    assert set(generated.MEANINGS) == set(named)
    assert {"seed_everything", "vars", "model", "data", "trainer", "auto_resume", "ckpt_path"} <= set(named)
    assert named["auto_resume"].default == "False"
    for file in (ROOT / "experiments").glob("*.yaml"):
        assert set(yaml.safe_load(file.read_text())) <= set(named), file


@pytest.mark.parametrize("name", ["Image", "Latents", "LevelMap", "KnownPatches", "KnownPixels", "Progress", "Labels"])
def test_the_table_of_shapes_is_that_of_the_code(name):
    page = (DOCS / "reference" / "index.md").read_text()
    dims = ", ".join(getattr(shapes, name).dim_str.split())
    assert re.search(rf"^\| `{name}` \| \({dims},?\) \|", page, re.MULTILINE)


def test_the_page_of_commands_has_all_of_them_with_their_options():
    from asyncdiff.__main__ import COMMANDS

    page = generated.commands_page()
    for name in COMMANDS:
        part = page.partition(f"## `{name}`")[2].partition("\n## ")[0]
        assert f"usage: python -m asyncdiff {name}" in part, name
    assert page.count("--ckpt_path") > 8


@pytest.mark.parametrize(
    ("link", "source", "page", "rewritten"),
    [
        ("[a](levels.md#paths)", "docs/tasks.md", "tasks.md", "[a](levels.md#paths)"),
        ("[a](../tasks.md)", "docs/results/README.md", "results/README.md", "[a](../tasks.md)"),
        ("[a](../benchmarks/README.md#data)", "docs/data.md", "data.md", "[a](repository/benchmarks/readme.md#data)"),
        ("[a](docs/tasks.md)", "README.md", "repository/readme.md", "[a](../tasks.md)"),
        ("![a](docs/images/levels.png)", "README.md", "repository/readme.md", "![a](../images/levels.png)"),
        ("[a](https://a.b/c) [b](#d)", "README.md", "repository/readme.md", "[a](https://a.b/c) [b](#d)"),
        ("```\n[a](docs/tasks.md)\n```", "README.md", "repository/readme.md", "```\n[a](docs/tasks.md)\n```"),
    ],
)
def test_links_work_in_the_repository_and_on_the_site(link, source, page, rewritten):
    assert repository.rewritten(link, PurePosixPath(source), page) == rewritten
    assert repository.source_of(page) == PurePosixPath(source)


def test_links_of_the_repository_lead_to_files():
    """On a code host; the build checks those of the site."""
    seen = 0
    for file in DOCUMENTS:
        for match in repository.LINK.finditer(repository.FENCE.sub("", file.read_text())):
            target = (file.parent / match[1]).resolve()
            made = target.is_relative_to(DOCS / "reference")  # some of these are made at the build
            assert target.exists() or made, f"{file.relative_to(ROOT)}: {match[1]}"
            seen += 1
    assert seen > 150


def test_every_formula_is_one_that_browsers_draw():
    found = [block.text for file in DOCUMENTS for block in blocks(file) if block.language == "math"]
    found += [match[1] for file in DOCUMENTS for match in re.finditer(formulas.INLINE, file.read_text())]
    assert len(found) > 8
    for latex in found:
        assert formulas.mathml(latex, display="block").startswith("<math ")


@pytest.mark.parametrize("latex", [r"\nothing x", r"\frac", r"a &= b", r"\begin{aligned}a\end"])
def test_a_formula_with_a_mistake_ends_the_build(latex):
    config = SimpleNamespace(mdx_configs={}, markdown_extensions=["pymdownx.superfences"])
    formulas.on_config(config)
    for text in (f"$`{latex}`$", f"```math\n{latex}\n```"):
        with pytest.raises((ValueError, SuperFencesException), match="formulas must"):
            markdown(text, extensions=config.markdown_extensions, extension_configs=config.mdx_configs)


def test_formulas_are_read_in_lines_tables_and_fences():
    config = SimpleNamespace(mdx_configs={}, markdown_extensions=["tables", "pymdownx.superfences"])
    formulas.on_config(config)
    text = "`a` and $`x_1 < 2`$\n\n| a |\n|---|\n| $`y \\mid z`$ |\n\n```math\n\\frac{1}{n}\n```\n"
    html = markdown(text, extensions=config.markdown_extensions, extension_configs=config.mdx_configs)
    assert html.count("<math ") == 3
    assert "<code>a</code>" in html
    assert "<mi>x</mi><mn>1</mn></msub><mo>&lt;</mo>" in html
    assert re.search(r"<td><math .*∣.*</math></td>", html)
    assert re.search(r'<div class="formula"><math .*display="block">.*<mfrac>', html)


def test_what_a_page_fetches_is_found():
    html = '<img src="https://a/b.png"><a href="https://c"></a><link rel=x href=//d/e.css><script src="f.js"></script>'
    assert repository.fetched(html) == ["https://a/b.png", "//d/e.css"]


def test_pictures_of_the_idea_are_small_and_used():
    text = (DOCS / "idea.md").read_text()
    pictures = re.findall(r"\]\((images/[^)]+)\)", text)
    assert len(pictures) >= 7
    assert all((DOCS / name).stat().st_size < 100_000 for name in pictures)


def test_the_navigation_names_files_that_are_there_or_made():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    named = set(re.findall(r"[\w/]+\.md", yaml.safe_dump(config["nav"])))
    assert {name for name in named if not (DOCS / name).exists()} == {"reference/keys.md", "reference/commands.md"}
    assert config["strict"] is True
    assert config["theme"]["font"] is False
    titles = [
        re.search("^# (.+)", (DOCS / name).read_text(), re.MULTILINE)[1] for name in named if (DOCS / name).exists()
    ]
    assert len(titles) == len(set(titles))


def test_links_are_called_by_what_they_lead_to():
    for file in (file for file in DOCS.rglob("*.md") if "results" not in file.parts):
        assert not re.findall(r"\[[\w/.]+\.md\]\(", file.read_text()), file


def test_search_works_from_the_disk_and_fetches_nothing():
    """The plugin takes a script of its own from elsewhere unless one of this name is there."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert "offline" in config["plugins"]
    assert [(DOCS / name).is_file() and "iframe-worker" in name for name in config["extra"]["polyfills"]] == [True]
