"""Markdown report of the results, built from the JSON file alone."""

from collections.abc import Mapping
from typing import Any

from asyncdiff.markdown import markdown_table
from benchmarks.gpu.results import DONE
from benchmarks.gpu.runner import show

INTRODUCTION = """# Measurements on one machine

`python -m benchmarks.gpu` wrote this file from results.json, which has more digits, the date and environment of every
figure, and the details of the profile. Times are medians of interleaved runs; ± is half of the interquartile range.
Every row names the precision of its computation.
"""
PUBLISHED = """Published: 22.9 % MFU for a compiled ViT of 22M parameters on an H100; about 237 images/s per H100 for
the SR-DiT of 140M parameters with its teacher."""


def report(content: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """Return the report.

    Args:
        content: content of results.json.
        titles: titles of the parts by name, in their order.
    """
    records = content["measurements"]
    sections = [INTRODUCTION, _environments(content["environments"]), _goals(records), _problems(records)]
    for part, title in titles.items():
        if own := [record for record in records if record["part"] == part]:
            sections.append(_part(title, own))
    return "\n".join(section for section in sections if section)


def _environments(environments: list[dict[str, Any]]) -> str:
    names = list(environments[0]) if environments else []
    rows = [[name, *(show(environment.get(name)) for environment in environments)] for name in names]
    return f"{markdown_table(['', *(f'environment {i}' for i in range(len(environments)))], rows)}\n"


def _goals(records: list[dict[str, Any]]) -> str:
    rows = [
        [goal["name"], show(goal["measured"]), "met" if goal["met"] else "missed"]
        for record in records
        for goal in record["goals"]
    ]
    if not rows:
        return ""
    return f"## Goals\n\n{markdown_table(['goal', 'measured', ''], rows)}\n\n{PUBLISHED}\n"


def _problems(records: list[dict[str, Any]]) -> str:
    found = [r for r in records if r["status"] != DONE or r["passed"] is False]
    if not found:
        return ""
    rows = [[r["part"], r["name"], "wrong" if r["status"] == DONE else r["status"], r["note"]] for r in found]
    return f"## Failed, wrong or skipped\n\n{markdown_table(['part', 'measurement', 'status', ''], rows)}\n"


def _part(title: str, records: list[dict[str, Any]]) -> str:
    """Return the section of a part: one table for all rows that have the same columns."""
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    for record in records:
        for row in record["rows"]:
            tables.setdefault(tuple(row), []).append([record["name"], *map(show, row.values())])
    lines = [f"## {title[0].upper()}{title[1:]}", ""]
    for columns, rows in tables.items():
        lines += [markdown_table(["measurement", *columns], rows), ""]
    lines += [f"* {record['name']}: {record['note']}" for record in records if record["note"]]
    seconds = sum(record["seconds"] for record in records)
    return "\n".join([*lines, "", f"{seconds:.0f} s in all.", ""])
