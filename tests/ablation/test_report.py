"""Reports: compared and excluded runs, formats, and visible differences between protocols."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from asyncdiff.ablation.collect import compare_settings, find_runs, select_comparable, select_metrics
from asyncdiff.checkpoints.run_lock import hold
from asyncdiff.cli.commands import report
from asyncdiff.evaluation.figures.sweep_figures import _align_curves, dots_figure

METRIC = {"tag": "frechet/x", "label": "generated", "goal": "min"}


def write_run(
    folder: Path, values: list[float], *, variant: str = "a", seed: int = 0, number: int = 0, **changes
) -> Path:
    """Write a run directory like those of an ablation."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed_everything": seed}))
    record = {
        "number": number,
        "variants": {"levels": variant},
        "seed": seed,
        "command": f"python train.py fit --seed_everything {seed}",
        "metrics": [METRIC],
        "software": {"commit": "abc", "torch": "2.14"},
        "config": {"model": {"levels": {"class_path": variant}}, "trainer": {"max_steps": 4}, "data": {}},
    } | changes
    (folder / "cell.json").write_text(json.dumps(record))
    (folder / "finished.json").write_text("{}")
    with SummaryWriter(str(folder)) as writer:
        for step, value in enumerate(values):
            writer.add_scalar("frechet/x", value, step)
            writer.add_scalar("train/loss", value / 10, step)
    return folder


@pytest.fixture
def runs(tmp_path) -> Path:
    """Two variants with two seeds each; the second variant of the ablation comes first by name."""
    out = tmp_path / "out"
    write_run(out / "b" / "seed_0", [9.0, 1.0], variant="b", number=0)
    write_run(out / "b" / "seed_1", [9.0, 3.0], variant="b", seed=1, number=2)
    write_run(out / "a" / "seed_0", [9.0, 4.0], number=1)
    write_run(out / "a" / "seed_1", [9.0, 4.0], seed=1, number=3)
    return out


def write_report(runs: Path, *argv: str) -> tuple[str, str, dict]:
    report.main([str(runs), *argv])
    folder = runs / "report"
    return tuple(read((folder / f"report.{end}").read_text()) for end, read in KINDS)  # type: ignore[return-value]


def test_a_report_is_written_by_one_process_at_a_time(runs):
    with (
        hold(runs / "report", "being written"),
        pytest.raises(ValueError, match=r"report is being written by process \d+ on "),
    ):
        report.main([str(runs)])
    write_report(runs)
    assert not [file for file in (runs / "report").iterdir() if file.name.startswith(".")]


def test_records_with_earlier_keys_are_compared_with_new_ones(tmp_path):
    earlier = {"learning_rate": 0.1, "betas": [0.9, 0.99], "predict_count": 4}
    now = {"optimizer": {"learning_rate": 0.2, "betas": [0.9, 0.99]}, "predict": {"count": 4}}
    for name, rate, model in (("a", "model.learning_rate", earlier), ("b", "model.optimizer.learning_rate", now)):
        config = {"model": model, "trainer": {}, "data": {}}
        write_run(tmp_path / "out" / name, [1.0], variants={rate: name}, config=config)
    runs = find_runs([tmp_path / "out"])
    assert {tuple(run.record["variants"]) for run in runs} == {("model.optimizer.learning_rate",)}
    same, differing = compare_settings(runs)
    assert differing == ["model.optimizer.learning_rate"]
    assert same["model.predict.count"] == 4


KINDS = (("md", str), ("html", str), ("json", json.loads))


def test_the_table_has_the_last_values_in_the_order_of_the_ablation(runs):
    markdown, page, card = write_report(runs)
    assert markdown.splitlines()[2:6] == [
        "|  | runs | generated ↓ |",
        "|---|---|---|",
        "| b | 2 | **2** ± 1.4 |",
        "| a | 2 | 4 ± 0 |",
    ]
    assert "<td><b>2</b> ± 1.4</td>" in page
    assert sorted(entry["metrics"]["frechet/x"] for entry in card["runs"]) == [1, 3, 4, 4]


def test_the_page_is_self_contained_and_every_markdown_link_exists(runs):
    images = runs / "a" / "seed_0" / "images"
    images.mkdir()
    from PIL import Image

    Image.new("RGB", (4, 4)).save(images / "samples.png")
    markdown, page, _ = write_report(runs)
    links = [part.split(")")[0] for part in markdown.split("](")[1:]]
    assert {"metrics.png", "train_loss.png", "samples_a.png"} <= set(links)
    assert all((runs / "report" / link).is_file() for link in links)
    assert page.count("data:image/png;base64,") == len(links)
    assert 'src="http' not in page
    assert 'src="metrics' not in page


def test_large_numbers_have_no_exponents(tmp_path):
    for seed, value in enumerate([11940.4, 12340.4]):
        write_run(tmp_path / "a" / f"seed_{seed}", [value, value], seed=seed)
    assert "| a | 2 | 12140 ± 283 |" in write_report(tmp_path)[0]


@pytest.mark.parametrize("diverged", [float("nan"), float("inf"), -float("inf")])
def test_a_diverged_run_is_never_the_best(tmp_path, diverged):
    write_run(tmp_path / "a", [1.0, diverged], variant="a", number=0)
    write_run(tmp_path / "b", [9.0, 2.0], variant="b", number=1)
    markdown, _, card = write_report(tmp_path)
    assert "| b | 1 | **2** |" in markdown
    assert f"| a | 1 | {diverged} |" in markdown
    assert [entry["metrics"]["frechet/x"] for entry in card["runs"]] == [None, 2]


def test_many_images_are_split_into_rows(runs):
    from PIL import Image

    for number in range(7):
        folder = runs / f"v{number}" / "seed_0"
        write_run(folder, [1.0, 1.0], variant=f"v{number}", number=10 + number)
        (folder / "images").mkdir()
        Image.new("RGB", (4, 4)).save(folder / "images" / "samples.png")
    markdown, page, _ = write_report(runs)
    assert "| v0 | v1 | v2 | v3 | v4 |\n|---|---|---|---|---|\n" in markdown
    assert "| v5 | v6 |\n|---|---|\n" in markdown
    assert page.count('alt="v6"') == 1


@pytest.mark.parametrize(("values", "scale"), [([1.0, 90.0], "log"), ([1.0, 9.0], "linear"), ([-1.0, 90.0], "linear")])
def test_a_wide_range_of_positive_values_has_a_logarithmic_axis(values, scale):
    figure = dots_figure({"generated": {"a": values[:1], "b": values[1:]}})
    assert [axes.get_xscale() for axes in figure.axes if axes.lines] == [scale]


def test_short_curves_keep_their_steps():
    steps, values = _align_curves([[(999, 3.0), (5999, 1.0)], [(999, 5.0), (5999, 2.0)]])
    assert steps.tolist() == [999, 5999]
    assert values.tolist() == [[3, 1], [5, 2]]


def test_binned_values_are_placed_at_the_mean_of_their_steps():
    """A straight line stays straight for any steps."""
    curves = [[(step, 2.0 * step + 1) for step in range(offset, 3000, 7)] for offset in (0, 3)]
    steps, values = _align_curves(curves)
    assert 50 < len(steps) < 3000 / 7
    np.testing.assert_allclose(values[:, 1:-1], np.stack([2 * steps + 1] * 2)[:, 1:-1], rtol=1e-6)


def test_the_protocol_and_its_differences_are_reported(runs):
    markdown, _, _ = write_report(runs)
    assert "software.commit = abc" in markdown
    assert "trainer.max_steps = 4" in markdown
    assert "They differ in: model.levels.class_path." in markdown
    assert "Not the same protocol" not in markdown
    write_run(runs / "c" / "seed_0", [1.0, 1.0], variant="c", number=4, software={"commit": "def", "torch": "2.14"})
    assert "**Not the same protocol**: software.commit differ" in write_report(runs)[0]


def write_card(folder: Path, **protocol) -> None:
    (folder / "evaluation").mkdir(exist_ok=True)
    content = {"format": 1, "protocol": {"step": 4, "torch": "2.14", **protocol}, "metrics": {}}
    (folder / "evaluation" / "frechet_x.json").write_text(json.dumps(content))


def test_protocols_of_frechet_distances_are_footnotes_with_their_differences(runs):
    for folder in runs.glob("?/seed_?"):
        write_card(folder, features={"weights": "abcdef"}, samples={"count": 100})
    markdown, page, report_json = write_report(runs)
    assert "* frechet/x: features.weights = abcdef, samples.count = 100." in markdown
    assert "Not the same protocol" not in markdown
    assert "features.weights = abcdef" in page
    assert report_json["protocols"]["frechet/x"]["common"] == {"features.weights": "abcdef", "samples.count": 100}
    write_card(runs / "a" / "seed_1", features={"weights": "abcdef"}, samples={"count": 50})
    assert "**Not the same protocol**: samples.count of frechet/x differ" in write_report(runs)[0]
    (runs / "a" / "seed_1" / "evaluation" / "frechet_x.json").unlink()
    assert (
        "**Not the same protocol**: features.weights, samples.count, card of frechet/x differ" in write_report(runs)[0]
    )


def test_unfinished_runs_and_runs_without_events_are_excluded_with_a_note(runs, capsys):
    (runs / "a" / "seed_1" / "finished.json").unlink()
    for file in (runs / "b" / "seed_1").glob("events*"):
        file.unlink()
    markdown, _, _ = write_report(runs)
    assert "| b | 1 | **1** |" in markdown
    assert "| a | 1 | 4 |" in markdown
    assert f"Left out: {runs / 'a' / 'seed_1'}: not finished" in markdown
    assert f"Left out: {runs / 'b' / 'seed_1'}: no event files" in markdown
    assert "not finished" in capsys.readouterr().out


def test_runs_outside_an_ablation_are_compared_by_default_tags(runs):
    for file in runs.rglob("cell.json"):
        file.unlink()
    found, _ = select_comparable(find_runs([runs]))
    assert [r.variant for r in found] == ["a/seed_0", "a/seed_1", "b/seed_0", "b/seed_1"]
    assert [m.tag for m in select_metrics(found)] == ["frechet/x"]
    assert [m.tag for m in select_metrics(found, ["train/loss"])] == ["train/loss"]


def test_errors_are_reported_in_one_line(runs, tmp_path):
    found, _ = select_comparable(find_runs([runs]))
    with pytest.raises(ValueError, match=r"--metrics: no run logged fid: choose from frechet/x, train/loss"):
        select_metrics(found, ["fid"])
    with pytest.raises(FileNotFoundError, match="RUNS must be folders, but .*none is not one"):
        find_runs([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"RUNS: .*empty contains no run directory"):
        find_runs([tmp_path / "empty"])
    record = json.loads((runs / "a" / "seed_0" / "cell.json").read_text())
    for change, problem in (
        ({"variants": ["a"]}, "variants in .*cell.json must be a dict, got list"),
        ({"seed": True}, "seed in .*cell.json must be a int, got bool"),
        ({"config": None}, "config in .*cell.json must be a dict, got NoneType"),
        ({"number": "1"}, "number in .*cell.json must be a int, got str"),
        ({"metrics": [{"tag": "x"}]}, "metrics in .*cell.json must have a tag, a label and a goal"),
    ):
        (runs / "a" / "seed_0" / "cell.json").write_text(json.dumps(record | change))
        with pytest.raises(ValueError, match=problem):
            find_runs([runs])
    del record["config"]
    (runs / "a" / "seed_0" / "cell.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"config in .*cell.json must be a dict, got no such key"):
        find_runs([runs])
    for text in (
        "{",
        '{"a": ' * 1000,
        '{"a": ' * 200 + "1" + "}" * 200,
        '{"a": 1, "a": 2}',
        '{"a": ' + "9" * 5000 + "}",
    ):
        (runs / "a" / "seed_0" / "cell.json").write_text(text)
        with pytest.raises(ValueError, match=r"cell.json cannot be read as a JSON file"):
            find_runs([runs])
    (runs / "a" / "seed_0" / "cell.json").unlink()
    config = runs / "a" / "seed_0" / "config.yaml"
    for text, problem in (
        ("", "got nothing"),
        ("- a", "got a list"),
        ("model:\n\tx: 1", "config.yaml:2: .* a tab"),
        ("a: 1\na: 2", "yaml:2: .* twice"),
    ):
        config.write_text(text)
        with pytest.raises(ValueError, match=problem):
            find_runs([runs])
    config.write_text("seed_everything: 0")
    for file in runs.rglob("finished.json"):
        file.unlink()
    for file in (runs / "a" / "seed_0").glob("events*"):
        file.unlink()
    with pytest.raises(ValueError, match="RUNS: none of the 4 runs can be compared"):
        select_comparable(find_runs([runs]))
