"""What `evaluate --samples` leaves behind: a table for people, a card for programs, a sheet of images."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from asyncdiff.checkpoints import object_config
from asyncdiff.evaluation.result_card import card_of, value_at
from asyncdiff.evaluation.sample_report import Quality
from asyncdiff.tasks.contact_sheet import sheet
from asyncdiff.tasks.photos import save_png

Rows = Mapping[str, tuple[int, Quality]]  # by what was measured: number of images, and what was found


def write(folder: Path, name: str, rows: Rows, protocol: Mapping[str, Any], shown: Tensor) -> None:
    """Print the table; write it as NAME.md, the card as NAME.json and the first images as NAME.png."""
    text = "\n".join([table(rows), "", *footnotes(rows, protocol)])
    print(text)
    (generated, found), *others = rows.values()
    more = {"floor": {"count": others[0][0], "metrics": others[0][1].metrics}} if others else {}
    held = card_of(protocol, found.metrics, deviations=found.deviations, notes=found.notes, images=generated, **more)
    files = {"numbers": folder / f"{name}.json", "table": folder / f"{name}.md", "images": folder / f"{name}.png"}
    files["numbers"].write_text(json.dumps(held, indent=2))
    files["table"].write_text(text + "\n")
    save_png(sheet([[image.expand(3, -1, -1) for image in shown]]), files["images"])
    print("\n".join(f"{what}: {file}" for what, file in files.items()))


def table(rows: Rows) -> str:
    """Markdown: a row for the generated images and one for real ones, a column per number."""
    names = list(next(iter(rows.values()))[1].metrics)
    lines = [f"| images | count | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for what, (count, found) in rows.items():
        lines.append(f"| {what} | {count} | {' | '.join(_cell(found, name) for name in names)} |")
    return "\n".join(lines)


def footnotes(rows: Rows, protocol: Mapping[str, Any]) -> list[str]:
    """The stamp in a few lines, and what has to be said about single numbers."""
    lines = [f"{_features(protocol['features'])}; {_reference(protocol['reference'])}", f"{_samples(protocol)}"]
    kid = value_at(protocol, "settings.kid")
    if kid is not None:
        lines.append(f"KID: {_subsets(kid)}{_in_turn(protocol['samples'])}")
    for name, what in (("precision_recall", "precision, recall"), ("density_coverage", "density, coverage")):
        if setting := value_at(protocol, f"settings.{name}"):
            lines.append(f"{what}: k = {setting['k']}, {setting['real']} real images")
    notes = dict.fromkeys(note for _, found in rows.values() for note in found.notes)
    return [*lines, *(f"warning: {note}" for note in notes)]


def _subsets(kid: Mapping[str, Any]) -> str:
    return f"{kid['subsets']} subset{'s' * (kid['subsets'] > 1)} of {kid['subset_size']}, seed {kid['seed']}"


def _in_turn(samples: Mapping[str, Any]) -> str:
    """Equal numbers of all classes are no independent draws, which KID is unbiased for."""
    return "; of classes in turn it lies below 0 for equal distributions, by O(1 / count)" * bool(samples.get("labels"))


def number(value: float) -> str:
    """Four digits that count."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.1f}"


def _cell(found: Quality, name: str) -> str:
    if name not in found.metrics:
        return ""
    deviation = found.deviations.get(name)
    return number(found.metrics[name]) + ("" if deviation is None else f" ± {deviation:.2g}")


def _features(stamp: Mapping[str, Any]) -> str:
    given = stamp["input"]
    resize = "" if not given.get("resize") else f", resized {given['resize']}"
    size = f" to {given['size'][0]}" if given.get("size") else ""
    return f"features: {stamp['name']}, {stamp['dim']} numbers, weights {stamp['weights'][:12]}{resize}{size}"


def _reference(stamp: Mapping[str, Any]) -> str:
    if "external" in stamp:
        return f"reference: external statistics {stamp['external']}, {stamp['sha256'][:12]}"
    data = stamp["data"].rsplit(".", 1)[-1]
    return f"reference: {stamp['read']} images of {data} {stamp['split']}, {stamp['pixels'][:12]}"


def _samples(protocol: Mapping[str, Any]) -> str:
    samples = protocol["samples"]
    told = f"commit {protocol['commit']}, torch {protocol['torch']}, {protocol['hardware']}"
    if "folder" in samples:
        return f"images: {samples['folder']}, files {samples['files'][:12]}; {told}"
    sampler = object_config.spell(
        object_config.build(samples["sampler"], [samples["sampler"]["class_path"].partition(".")[0]])
    )
    first, last = samples["seeds"]
    model = f"{protocol['weights']} weights at step {protocol['step']}, {protocol['checkpoint_sha256'][:12]}"
    return f"images: {model}; seeds {first}-{last}, labels: {samples['labels'] or 'none'}; {sampler}; {told}"
