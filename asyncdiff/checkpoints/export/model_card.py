"""Build the model card of an export: Markdown with Hugging Face front matter, from recorded facts only."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from asyncdiff.checkpoints.export.load import CONFIG, WEIGHTS

PIXELS = {1: "gray", 3: "color"}
LIMITATIONS = """Generated images resemble the training data and share its biases and gaps. The model generates images
of the size that it was trained on; larger images are sampled in overlapping windows. A generated image is not evidence
that what it depicts exists; inpainted regions of photographs are synthetic. Outputs are not filtered, and the model was
not tested beyond the metrics above."""


def model_card(
    name: str, config: Mapping[str, Any], calls: Mapping[str, str], cards: Mapping[str, Mapping[str, Any]]
) -> str:
    """Return the text of an export's README.md.

    Args:
        name: name of the model.
        config: configuration of the export.
        calls: constructor call of each part of the model, by the name of the part, for example "network".
        cards: result cards written by `evaluate`, by file name, without local paths.

    Returns:
        Markdown.
    """
    parts = [
        _front_matter(config),
        f"# {name}",
        _summary(config, calls),
        "## Usage",
        _usage(config),
        "## Training",
        _training(config, calls),
        "## Evaluation",
        _evaluation(cards),
        "## Limitations",
        LIMITATIONS,
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(config: Mapping[str, Any]) -> str:
    tags = ["diffusion", "image-generation", "inpainting", "asyncpatch-diffusion", "unconditional-image-generation"]
    if config["classes"]:
        tags[-1] = "class-conditional-image-generation"
    metadata: dict[str, Any] = {"library_name": "asyncdiff", "tags": tags}
    text = yaml.safe_dump(metadata, sort_keys=False).rstrip()
    return f"---\n# license: fill in before sharing, e.g. mit\n{text}\n---"


def _summary(config: Mapping[str, Any], calls: Mapping[str, str]) -> str:
    space = config["normalisation"]
    kind = PIXELS.get(space["channels"], f"{space['channels']}-channel")
    size = f"{space['size']}x{space['size']}"
    pixels = space["space"] == "pixels"
    output = f"{kind} images of {size} pixels" if pixels else f"{size} latents with {space['channels']} channels"
    labels = f", conditioned on one of {config['classes']} class labels or unconditionally" if config["classes"] else ""
    return (
        "An AsyncPatch Diffusion model: every patch has its own noise level, so it can generate, inpaint and outpaint "
        f"in any order. It generates {output}{labels}.\n\n"
        f"Network: `{calls['network']}`, {config['parameters']:,} parameters."
    )


def _usage(config: Mapping[str, Any]) -> str:
    labels = "labels=[0, 1, 2, 3]" if config["classes"] > 3 else "labels=[0] * 4" if config["classes"] else ""
    call = ", ".join(filter(None, ["seeds=range(4)", labels]))
    latent = config["normalisation"]["space"] == "latents"
    lines = [
        "```python",
        "from asyncdiff import AsyncDiffusion",
        "",
        'model = AsyncDiffusion.from_pretrained("PATH")  # this folder, or OWNER/NAME on the Hugging Face Hub',
        f"{'latents' if latent else 'images'} = model.generate({call})  # (4, channels, height, width)"
        f"{'' if latent else ', approximately in [-1, 1]'}",
    ]
    if latent:
        lines.append("images = model.decode(latents)  # uses the codec; its files must be available locally")
    lines += ["```", "", "```sh", "python -m asyncdiff sample PATH --seeds 0-3"]
    lines += ["python -m asyncdiff inpaint PATH --image photo.png --mask square --seeds 0-3", "```"]
    text = "\n".join(lines)
    names = config["label_names"]
    if names:
        text += "\n\nClasses: " + ", ".join(f"{i} {name}" for i, name in enumerate(names)) + "."
    return text


def _training(config: Mapping[str, Any], calls: Mapping[str, str]) -> str:
    data, software = config["data"], config["software"]
    data_class = f"`{data['class_path']}`" if data else "not recorded by the run"
    weights = "EMA" if config["weights"] == "ema" else "raw (last step)"
    rows = {
        "data": data_class,
        "steps": f"{config['step']:,}",
        "weights": weights,
        **{part: f"`{call}`" for part, call in calls.items() if part != "network"},
        "values": "images in [-1, 1]" if config["normalisation"]["space"] == "pixels" else "latents, normalized",
        "software": ", ".join(f"{name} {version}" for name, version in software.items()),
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
    return f"{table}\n\n`{CONFIG}` records every constructor argument; `{WEIGHTS}` contains the weights and no code."


def _evaluation(cards: Mapping[str, Mapping[str, Any]]) -> str:
    if not cards:
        return "These weights were not evaluated with `python -m asyncdiff evaluate` before they were exported."
    parts = ["Metrics are comparable only if they were computed with the same protocol."]
    for file, card in cards.items():
        rows = [f"| {name} | {_number(value)} |" for name, value in card["metrics"].items()]
        protocol = json.dumps(card["protocol"], indent=1, ensure_ascii=False)
        parts.append("\n".join([f"### {Path(file).stem}", "", "| metric | value |", "|---|---|", *rows]))
        parts.append(f"<details><summary>protocol</summary>\n\n```json\n{protocol}\n```\n\n</details>")
    return "\n\n".join(parts)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else "not finite"


def without_local_paths(value: Any) -> Any:
    """Remove local paths from nested dicts and lists: they are useless elsewhere and may reveal private names."""
    if isinstance(value, Mapping):
        return {key: without_local_paths(item) for key, item in value.items() if not _is_local_path(item)}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [without_local_paths(item) for item in value if not _is_local_path(item)]
    return value


def _is_local_path(value: Any) -> bool:
    return isinstance(value, str) and (value.startswith(("/", "~", "\\\\")) or value[1:3] in (":\\", ":/"))
