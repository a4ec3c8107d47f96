"""Build the model card of an export: Markdown with Hugging Face front matter, from recorded facts only."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from typing import Any

from asyncdiff.foreign_text import visible_lines
from asyncdiff.markdown import Markdown, code, render_markdown

MAX_CALL = 4000  # characters of a constructor call


def model_card(
    name: str, config: Mapping[str, Any], calls: Mapping[str, str], cards: Mapping[str, Mapping[str, Any]]
) -> str:
    """Return the text of an export's README.md, from the template model_card.md.

    Args:
        name: name of the model.
        config: configuration of the export.
        calls: constructor call of each part of the model, by the name of the part, for example "network".
        cards: result cards written by `evaluate`, by file name, without local paths.

    Returns:
        Markdown.
    """
    from huggingface_hub import ModelCardData  # imported late, since only exports need it

    kind = "class-conditional" if config["classes"] else "unconditional"
    tags = ["diffusion", "image-generation", "inpainting", "asyncpatch-diffusion", f"{kind}-image-generation"]
    template = files("asyncdiff.checkpoints.export").joinpath("model_card.md").read_text()
    front_matter = Markdown(ModelCardData(library_name="asyncdiff", tags=tags).to_yaml())
    card = render_markdown(
        template,
        card_data=front_matter,
        name=name,
        config=config,
        calls=calls,
        cards=cards,
        code=partial(code, limit=MAX_CALL),
        json=_json_lines,
    )
    return card.replace("---\n", "---\n# license: fill in before sharing, e.g. mit\n", 1)


def _json_lines(content: Any) -> Markdown:
    """Return JSON for a block of code: its lines begin with brackets or quotation marks, so none ends the block."""
    return Markdown(visible_lines(json.dumps(content, indent=1, ensure_ascii=False)))


def without_local_paths(value: Any) -> Any:
    """Remove local paths from nested dicts and lists: they are useless elsewhere and may reveal private names."""
    if isinstance(value, Mapping):
        return {key: without_local_paths(item) for key, item in value.items() if not _is_local_path(item)}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [without_local_paths(item) for item in value if not _is_local_path(item)]
    return value


def _is_local_path(value: Any) -> bool:
    return isinstance(value, str) and (value.startswith(("/", "~", "\\\\")) or value[1:3] in (":\\", ":/"))
