"""The model card of an export: Markdown with Hugging Face's front matter, of what is known and nothing else."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from asyncdiff.checkpoints.export.load import CONFIG, WEIGHTS

PIXELS = {1: "grey", 3: "colour"}
LIMITS = """The model draws what its training data look like, with their biases and gaps, at the size that it was
trained at; larger canvases are put together of windows. Pictures are no evidence that what they show exists, and
completed parts of photographs are inventions. Nothing was filtered or tested beyond the numbers above."""


def model_card(
    name: str, config: Mapping[str, Any], described: Mapping[str, str], cards: Mapping[str, Mapping[str, Any]]
) -> str:
    """The text of an export's README.md.

    Args:
        name: of the model.
        config: of the export.
        described: parts of the model, as the calls that make them, by their names.
        cards: of `evaluate`, by the names of their files, without paths of this machine.
    """
    parts = [
        _front_matter(config),
        f"# {name}",
        _summary(config, described),
        "## Use",
        _use(config),
        "## Training",
        _training(config, described),
        "## Measured",
        _measured(cards),
        "## Limits",
        LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(config: Mapping[str, Any]) -> str:
    tags = ["diffusion", "image-generation", "inpainting", "asyncpatch-diffusion", "unconditional-image-generation"]
    if config["classes"]:
        tags[-1] = "class-conditional-image-generation"
    known: dict[str, Any] = {"library_name": "asyncdiff", "tags": tags}
    told = yaml.safe_dump(known, sort_keys=False).rstrip()
    return f"---\n# license: to be filled in by whoever shares this, such as mit\n{told}\n---"


def _summary(config: Mapping[str, Any], described: Mapping[str, str]) -> str:
    space = config["normalisation"]
    what = PIXELS.get(space["channels"], f"{space['channels']}-channel")
    size = f"{space['size']}x{space['size']}"
    pixels = space["space"] == "pixels"
    drawn = f"{what} images of {size} pixels" if pixels else f"latents of {space['channels']} channels and {size}"
    told = f", told one of {config['classes']} classes or none" if config["classes"] else ""
    return (
        "A model of AsyncPatch Diffusion, in which every patch of an image has its own noise level: it generates, "
        f"inpaints and completes in any order. It draws {drawn}{told}.\n\n"
        f"Network: `{described['network']}`, {config['parameters']:,} parameters."
    )


def _use(config: Mapping[str, Any]) -> str:
    labels = "labels=[0, 1, 2, 3]" if config["classes"] > 3 else "labels=[0] * 4" if config["classes"] else ""
    call = ", ".join(filter(None, ["seeds=range(4)", labels]))
    latent = config["normalisation"]["space"] == "latents"
    lines = [
        "```python",
        "from asyncdiff import AsyncDiffusion",
        "",
        'model = AsyncDiffusion.from_pretrained("PATH")  # this folder, or OWNER/NAME of the Hugging Face hub',
        f"images = model.generate({call})  # (4, channels, height, width), about in [-1, 1]",
    ]
    if latent:
        lines.append("pictures = model.decode(images)  # through its codec, whose files have to be there")
    lines += ["```", "", "```sh", "python -m asyncdiff sample PATH --seeds 0-3"]
    lines += ["python -m asyncdiff inpaint PATH --image photo.png --mask square --seeds 0-3", "```"]
    text = "\n".join(lines)
    names = config["label_names"]
    if names:
        text += "\n\nClasses: " + ", ".join(f"{i} {name}" for i, name in enumerate(names)) + "."
    return text


def _training(config: Mapping[str, Any], described: Mapping[str, str]) -> str:
    data, software = config["data"], config["software"]
    named = f"`{data['class_path']}`" if data else "not named by the run"
    weights = "averaged" if config["weights"] == "ema" else "of the last step"
    rows = {
        "data": named,
        "steps": f"{config['step']:,}",
        "weights": weights,
        **{what: f"`{text}`" for what, text in described.items() if what != "network"},
        "values": "images in [-1, 1]" if config["normalisation"]["space"] == "pixels" else "latents, normalised",
        "software": ", ".join(f"{what} {version}" for what, version in software.items()),
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows.items())])
    return f"{table}\n\n`{CONFIG}` has every argument; `{WEIGHTS}` has the weights and nothing that is run."


def _measured(cards: Mapping[str, Mapping[str, Any]]) -> str:
    if not cards:
        return "Nothing was measured of these weights by `python -m asyncdiff evaluate` before they were exported."
    parts = ["Numbers are comparable where what they were measured with is the same: see each protocol."]
    for file, card in cards.items():
        rows = [f"| {name} | {_number(value)} |" for name, value in card["metrics"].items()]
        protocol = json.dumps(card["protocol"], indent=1, ensure_ascii=False)
        parts.append("\n".join([f"### {Path(file).stem}", "", "| number | value |", "|---|---|", *rows]))
        parts.append(f"<details><summary>protocol</summary>\n\n```json\n{protocol}\n```\n\n</details>")
    return "\n\n".join(parts)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else "not finite"


def without_places(value: Any) -> Any:
    """Plain containers without the paths of this machine in them, which help nobody elsewhere and may tell too much."""
    if isinstance(value, Mapping):
        return {key: without_places(item) for key, item in value.items() if not _is_place(item)}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [without_places(item) for item in value if not _is_place(item)]
    return value


def _is_place(value: Any) -> bool:
    return isinstance(value, str) and (value.startswith(("/", "~", "\\\\")) or value[1:3] in (":\\", ":/"))
