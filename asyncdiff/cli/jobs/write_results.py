"""Write the results of `evaluate --samples`: Markdown table, result card and contact sheet."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from asyncdiff.checkpoints.atomic_files import write_atomically
from asyncdiff.checkpoints.compare import value_at
from asyncdiff.cli.jobs.image_sources import GeneratedImages, StoredImages
from asyncdiff.evaluation.result_card import format_number, make_card
from asyncdiff.evaluation.sample_report import SampleReport
from asyncdiff.foreign_text import MAX_NOTE, visible
from asyncdiff.markdown import markdown_table
from asyncdiff.tasks.contact_sheet import make_sheet
from asyncdiff.tasks.photos import save_png

Rows = Mapping[str, tuple[int, SampleReport]]  # rows of the table by name: number of images, and their metrics


def write(
    folder: Path,
    name: str,
    rows: Rows,
    protocol: Mapping[str, Any],
    images: Tensor,
    source: GeneratedImages | StoredImages,
) -> None:
    """Print the table, and write it to NAME.md, the result card to NAME.json and a contact sheet to NAME.png.

    Args:
        folder: output folder.
        name: NAME of the files, without suffix.
        rows: results for the generated images, followed by those for the real images of --floor, if given.
        protocol: protocol for the result card.
        images: 8-bit images for the contact sheet.
        source: source of the images.
    """
    notes = [visible(note, MAX_NOTE) for note in footnotes(rows, protocol, source.summary())]
    text = "\n".join([table(rows), "", *notes])
    print(text)
    (count, report), *floors = rows.values()
    floor = {"floor": {"count": floors[0][0], "metrics": floors[0][1].metrics}} if floors else {}
    card = make_card(protocol, report.metrics, deviations=report.deviations, notes=report.notes, images=count, **floor)
    files = {
        "result card": folder / f"{name}.json",
        "table": folder / f"{name}.md",
        "contact sheet": folder / f"{name}.png",
    }
    write_atomically(files["result card"], [json.dumps(card, indent=2).encode()])
    write_atomically(files["table"], [f"{text}\n".encode()])
    save_png(make_sheet([[image.expand(3, -1, -1) for image in images]]), files["contact sheet"])
    print("\n".join(f"{label}: {file}" for label, file in files.items()))


def table(rows: Rows) -> str:
    """Format a Markdown table with one row per set of images and one column per metric."""
    names = list(next(iter(rows.values()))[1].metrics)
    cells = [[row, str(count), *(_cell(report, name) for name in names)] for row, (count, report) in rows.items()]
    return markdown_table(["images", "count", *names], cells)


def footnotes(rows: Rows, protocol: Mapping[str, Any], source: str) -> list[str]:
    """Describe the protocol in a few lines, with a summary of the source, followed by warnings about single metrics."""
    lines = [f"{_features(protocol['features'])}; {_reference(protocol['reference'])}", _images(protocol, source)]
    kid = value_at(protocol, "settings.kid")
    if kid is not None:
        lines.append(f"KID: {_subsets(kid)}{_kid_caveat(protocol['samples'])}")
    for name, label in (("precision_recall", "precision, recall"), ("density_coverage", "density, coverage")):
        if setting := value_at(protocol, f"settings.{name}"):
            lines.append(f"{label}: k = {setting['k']}, {setting['real']} real images")
    notes = dict.fromkeys(note for _, report in rows.values() for note in report.notes)
    return [*lines, *(f"warning: {note}" for note in notes)]


def _subsets(kid: Mapping[str, Any]) -> str:
    return f"{kid['subsets']} subset{'s' * (kid['subsets'] > 1)} of {kid['subset_size']}, seed {kid['seed']}"


def _kid_caveat(samples: Mapping[str, Any]) -> str:
    """Return a caveat for class-conditional samples: equal numbers per class make them dependent, which biases KID."""
    if not samples.get("labels"):
        return ""
    return "; as labels cycle through the classes, identical distributions give a value below 0, by O(1 / count)"


def _cell(report: SampleReport, name: str) -> str:
    if name not in report.metrics:
        return ""
    deviation = report.deviations.get(name)
    return format_number(report.metrics[name]) + ("" if deviation is None else f" ± {deviation:.2g}")


def _features(fingerprint: Mapping[str, Any]) -> str:
    inputs = fingerprint["input"]
    resize = "" if not inputs.get("resize") else f", resized {inputs['resize']}"
    size = f" to {inputs['size'][0]}" if inputs.get("size") else ""
    weights = f"weights {fingerprint['weights'][:12]}"
    return f"features: {fingerprint['name']}, {fingerprint['dim']} dimensions, {weights}{resize}{size}"


def _reference(fingerprint: Mapping[str, Any]) -> str:
    if "external" in fingerprint:
        return f"reference: external statistics {fingerprint['external']}, {fingerprint['sha256'][:12]}"
    data = fingerprint["data"].rsplit(".", 1)[-1]
    return f"reference: {fingerprint['read']} images of {data} {fingerprint['split']}, {fingerprint['pixels'][:12]}"


def _images(protocol: Mapping[str, Any], source: str) -> str:
    parts = [source, f"commit {protocol['commit']}, torch {protocol['torch']}, {protocol['hardware']}"]
    if "weights" in protocol:
        weights = f"{protocol['weights']} weights at step {protocol['step']}"
        parts.insert(0, f"{weights}, {protocol['checkpoint_sha256'][:12]}, drawn in {protocol['precision']}")
    return f"images: {'; '.join(parts)}"
