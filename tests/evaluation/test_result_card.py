import json

import torch

from asyncdiff.checkpoints.compare import abbreviate, differences, value_at
from asyncdiff.evaluation.result_card import make_card, read_card, software

PROTOCOL = {"a": 1, "sampler": {"class": "Sampler", "steps": 50}, "seeds": [0, 9], "gone": None}


def test_equal_protocols_do_not_differ_even_after_json():
    assert differences(PROTOCOL, json.loads(json.dumps(PROTOCOL))) == []
    assert differences({"size": (8, 8)}, {"size": [8, 8]}) == []


def test_differences_are_dotted_keys_in_order():
    other = {"a": 2, "sampler": {"class": "Sampler", "steps": 20, "path": None}, "seeds": [0, 8], "new": 1}
    assert differences(PROTOCOL, other) == ["a", "sampler.steps", "sampler.path", "seeds", "gone", "new"]
    assert differences(PROTOCOL, PROTOCOL | {"sampler": None}) == ["sampler"]
    assert value_at(other, "sampler.steps") == 20
    assert value_at(other, "sampler.steps.more") is None


def test_cards_are_unchanged_after_writing_and_reading(tmp_path):
    file = tmp_path / "card.json"
    file.write_text(json.dumps(make_card(PROTOCOL, {"frechet/x": 1.5}, notes=[])))
    assert read_card(file) == {"format": 1, "protocol": PROTOCOL, "metrics": {"frechet/x": 1.5}, "notes": []}


def test_long_values_are_truncated():
    assert abbreviate("x" * 100) == "x" * 57 + "..."
    assert abbreviate({"a": 1}) == '{"a": 1}'


def test_software_contains_hardware_and_versions():
    found = software("cpu")
    assert found["torch"] == torch.__version__
    assert found["hardware"].endswith("threads")
    assert found["commit"]
