"""The documentation site: generated pages, completeness, links and formulas."""

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


def load_hook(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


formulas, generated, repository = load_hook("formulas"), load_hook("generated"), load_hook("repository")


@pytest.fixture(scope="module")
def keys():
    """Classes on the page of YAML keys, by class path."""
    return {path: kind for _, _, kinds in generated.families() for path, kind in kinds.items()}


def test_every_key_is_documented(keys):
    assert len(keys) > 100
    without = {path: [a.name for a in generated.arguments(kind) if not a.meaning] for path, kind in keys.items()}
    assert not {path: names for path, names in without.items() if names}


def test_all_constructor_arguments_of_public_classes_are_documented():
    checked = 0
    for path, kind in known_classes().items():
        if path.startswith("lightning.") or "__init__" not in vars(kind):
            continue
        doc = parse(inspect.getdoc(kind) or "")
        listed = [*doc.params, *getattr(doc, "attrs", ())]  # pydoclint's fork of the parser keeps attributes apart
        documented = {name for one in listed for name in re.findall(r"\w+", one.arg_name)}
        parameters = inspect.signature(kind).parameters.values()
        names = {one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
        assert names <= documented, f"{path}: {names - documented}"
        checked += bool(names)
    assert checked > 120


def test_every_environment_variable_is_documented():
    files = [*(ROOT / "asyncdiff").rglob("*.py"), *(ROOT / "datamodules").rglob("*.py"), *EXPERIMENTS.rglob("*.yaml")]
    read = {name for file in files for name in re.findall(r"ASYNCDIFF_[A-Z0-9_]+", file.read_text())}
    assert len(read) > 10
    assert read == set(re.findall(r"ASYNCDIFF_[A-Z0-9_]+", (DOCS / "reference" / "index.md").read_text()))


def test_every_class_of_the_experiments_is_on_the_page_of_keys(keys):
    named = set()
    for file in (ROOT / "experiments").rglob("*.yaml"):
        named |= set(re.findall(r"class_path: ([\w.]+)", file.read_text()))
    own = {path for path in named if path.startswith(("asyncdiff.", "datamodules."))}
    assert len(own) > 50
    classes = known_classes()
    short_path = {f"{kind.__module__}.{kind.__name__}": path for path, kind in classes.items()}
    assert {short_path.get(path, path) for path in own} <= set(keys)


def test_every_class_of_the_page_of_keys_has_a_reference_page(keys):
    pages = "".join(file.read_text() for file in (DOCS / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)", pages, re.MULTILINE))
    assert {kind.__module__ for kind in keys.values()} <= shown


def test_the_page_of_keys_lists_constructor_arguments(keys):
    page = generated.keys_page()
    assert "| `spread` | `float` | `1.0` | half-width of the levels within an image" in page
    assert "| `network` | `Module` | required |" in page
    assert all(f"`{path}`: " in page for path in keys)


def test_the_page_of_keys_begins_with_the_top_level_keys():
    named = {one.name: one for one in generated.top_level()}
    assert set(generated.MEANINGS) == set(named)
    assert {"seed_everything", "vars", "model", "data", "trainer", "auto_resume", "ckpt_path"} <= set(named)
    assert named["auto_resume"].default == "False"
    for file in (ROOT / "experiments").glob("*.yaml"):
        assert set(yaml.safe_load(file.read_text())) <= set(named), file


@pytest.mark.parametrize("name", ["Image", "Latents", "LevelMap", "KnownPatches", "KnownPixels", "Progress", "Labels"])
def test_the_table_of_shapes_matches_the_code(name):
    page = (DOCS / "reference" / "index.md").read_text()
    dims = ", ".join(getattr(shapes, name).dim_str.split())
    assert re.search(rf"^\| `{name}` \| \({dims},?\) \|", page, re.MULTILINE)


def test_the_page_of_commands_lists_all_commands_and_options():
    from asyncdiff.__main__ import COMMANDS

    page = generated.commands_page()
    for name in COMMANDS:
        part = page.partition(f"## `{name}`")[2].partition("\n## ")[0]
        assert f"usage: python -m asyncdiff {name}" in part, name
    assert page.count("--ckpt_path") > 8


@pytest.mark.parametrize(
    ("link", "source", "page", "expected"),
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
def test_links_work_in_the_repository_and_on_the_site(link, source, page, expected):
    assert repository.rewrite_links(link, PurePosixPath(source), page) == expected
    assert repository.source_of(page) == PurePosixPath(source)


def test_links_in_the_repository_point_to_files():
    """On a code host; the build checks the links of the site."""
    seen = 0
    for file in DOCUMENTS:
        for match in repository.LINK.finditer(repository.FENCE.sub("", file.read_text())):
            target = (file.parent / match[1]).resolve()
            generated = target.is_relative_to(DOCS / "reference")  # some of these pages are generated
            assert target.exists() or generated, f"{file.relative_to(ROOT)}: {match[1]}"
            seen += 1
    assert seen > 150


def test_every_formula_converts_to_mathml():
    found = [block.text for file in DOCUMENTS for block in blocks(file) if block.language == "math"]
    found += [match[1] for file in DOCUMENTS for match in re.finditer(formulas.INLINE, file.read_text())]
    assert len(found) > 8
    for latex in found:
        assert formulas.mathml(latex, display="block").startswith("<math ")


@pytest.mark.parametrize("latex", [r"\nothing x", r"\frac", r"a &= b", r"\begin{aligned}a\end"])
def test_an_invalid_formula_fails_the_build(latex):
    config = SimpleNamespace(mdx_configs={}, markdown_extensions=["pymdownx.superfences"])
    formulas.on_config(config)
    for text in (f"$`{latex}`$", f"```math\n{latex}\n```"):
        with pytest.raises((ValueError, SuperFencesException), match="formulas must"):
            markdown(text, extensions=config.markdown_extensions, extension_configs=config.mdx_configs)


def test_formulas_in_text_tables_and_fences():
    config = SimpleNamespace(mdx_configs={}, markdown_extensions=["tables", "pymdownx.superfences"])
    formulas.on_config(config)
    text = "`a` and $`x_1 < 2`$\n\n| a |\n|---|\n| $`y \\mid z`$ |\n\n```math\n\\frac{1}{n}\n```\n"
    html = markdown(text, extensions=config.markdown_extensions, extension_configs=config.mdx_configs)
    assert html.count("<math ") == 3
    assert "<code>a</code>" in html
    assert "<mi>x</mi><mn>1</mn></msub><mo>&lt;</mo>" in html
    assert re.search(r"<td><math .*∣.*</math></td>", html)
    assert re.search(r'<div class="formula"><math .*display="block">.*<mfrac>', html)


def test_external_resources_are_found():
    html = '<img src="https://a/b.png"><a href="https://c"></a><link rel=x href=//d/e.css><script src="f.js"></script>'
    assert repository.external_resources(html) == ["https://a/b.png", "//d/e.css"]


def test_images_of_the_idea_are_small_and_used():
    text = (DOCS / "idea.md").read_text()
    images = re.findall(r"\]\((images/[^)]+)\)", text)
    assert len(images) >= 7
    assert all((DOCS / name).stat().st_size < 100_000 for name in images)


def test_the_navigation_lists_existing_or_generated_files():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    named = set(re.findall(r"[\w/]+\.md", yaml.safe_dump(config["nav"])))
    assert {name for name in named if not (DOCS / name).exists()} == {"reference/keys.md", "reference/commands.md"}
    assert config["strict"] is True
    assert config["theme"]["font"] is False
    titles = [
        re.search("^# (.+)", (DOCS / name).read_text(), re.MULTILINE)[1] for name in named if (DOCS / name).exists()
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
