"""The command that measures a GPU: what it does with time, errors, earlier results; its measurements on a CPU."""

import json
import time
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from pretend_gpu.pretended_cuda import pretended_cuda

from asyncdiff.precision import computing_in
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import runner, timing
from benchmarks.gpu.flows import difference, train
from benchmarks.gpu.images import NpzImages, write_npz
from benchmarks.gpu.machine import Machine, environment
from benchmarks.gpu.profiling import idle_share
from benchmarks.gpu.results import Finding, Goal, Results
from benchmarks.gpu.runner import Deadline, Measurement, Part, run_parts
from benchmarks.gpu.timing import SHORTEST, Seconds, Waits, largest, medians, operators

HERE = {"device": "a GPU", "torch": "2.14", "day": "2026-11-29"}


class Clock:
    """Time that passes only where a measurement says so."""

    now = 0.0


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(runner, "free_memory", lambda: None)  # collecting garbage takes most of the time
    return Clock()


@pytest.fixture
def results(tmp_path):
    made = Results(tmp_path)
    made.begin(HERE)
    return made


def part(clock, *seconds, share=1.0, **options):
    """A part whose measurements take these seconds; an error in place of a number is raised."""

    def run(number, deadline):
        if isinstance(number, BaseException):
            raise number
        clock.now += number
        return Finding([{"seconds": number}])

    def measurements(machine):
        for place, number in enumerate(seconds):
            yield Measurement(f"m{place}", lambda deadline, number=number: run(number, deadline))

    return Part("a part", share, measurements, **options)


def run(parts, results, clock, seconds):
    lines = []
    run_parts(parts, None, results, Deadline(seconds, lambda: clock.now), say=lines.append)
    return lines


def statuses(results):
    return {(r["part"], r["name"]): r["status"] for r in results.measurements}


def test_a_part_is_skipped_when_its_share_of_the_time_is_spent(results, clock):
    lines = run({"a": part(clock, 5, 5, 5, 5), "b": part(clock, 1)}, results, clock, 20)  # 10 s each
    found = statuses(results)
    assert found == {("a", "m0"): "done", ("a", "m1"): "done", ("a", "m2"): "skipped", ("b", "m0"): "done"}
    assert sum("skipped, 0 s are left of this part's time" in line for line in lines) == 1
    assert results.finished == ["b"]


def test_a_part_ends_when_less_time_is_left_than_its_next_measurement_needs(results, clock):
    def measurements(machine):
        yield from part(clock, 6).measurements(machine)
        yield Measurement("long", lambda deadline: Finding(), needs=5)

    run({"a": Part("a part", 1, measurements)}, results, clock, 10)
    assert statuses(results) == {("a", "m0"): "done", ("a", "long"): "skipped"}
    assert clock.now == 6


def test_time_that_a_part_leaves_is_shared_by_those_after_it(results, clock):
    run({"a": part(clock, 1), "b": part(clock, *[6] * 5, share=3), "c": part(clock, 1)}, results, clock, 25)
    # 24 s are left for b and c, of which b has three quarters.
    assert [name for (key, name), status in statuses(results).items() if key == "b" and status == "done"] == [
        "m0",
        "m1",
        "m2",
    ]


def test_a_second_call_continues_with_what_is_not_done(results, clock, tmp_path):
    run({"a": part(clock, 5, 5), "b": part(clock, 5, 5)}, results, clock, 12)
    again = Results(tmp_path)
    again.begin(HERE)
    before = clock.now
    lines = run({"a": part(clock, 5, 5), "b": part(clock, 5, 5)}, again, clock, 100)
    assert set(statuses(again).values()) == {"done"}
    assert clock.now - before == 5  # what was done is not repeated
    assert "a: finished before" in lines
    assert len(again.measurements) == 4  # the record of the skipped one is replaced


def test_an_error_is_recorded_with_its_last_line_and_the_others_go_on(results, clock):
    parts = {"a": part(clock, RuntimeError("CUDA error\nof two lines"), 1, is_test=True), "b": part(clock, 1)}
    run(parts, results, clock, 100)
    assert statuses(results) == {("a", "m0"): "failed", ("a", "m1"): "done", ("b", "m0"): "done"}
    assert [record["note"] for record in results.wrong] == ["of two lines"]


def test_wrong_results_and_errors_of_tests_make_the_command_fail(results, clock):
    run({"speed": part(clock, ValueError("no"))}, results, clock, 10)
    assert not results.wrong
    results.add("tests", "t", "done", 0, Finding(passed=False), is_test=True)
    assert [record["name"] for record in results.wrong] == ["t"]


def test_an_interrupted_run_keeps_what_it_measured(results, clock, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run({"a": part(clock, 5, KeyboardInterrupt())}, results, clock, 100)
    assert statuses(Results(tmp_path)) == {("a", "m0"): "done"}


def test_results_of_another_device_are_refused(results, tmp_path):
    results.write()
    with pytest.raises(ValueError, match="must hold measurements of one device, got a GPU and now a CPU: choose"):
        Results(tmp_path).begin(HERE | {"device": "a CPU"})


def test_another_commit_is_another_environment(results, tmp_path):
    results.add("a", "m", "done", 0, Finding())
    again = Results(tmp_path)
    again.begin(HERE | {"day": "2026-11-30"})
    again.add("a", "n", "done", 0, Finding())
    assert [record["environment"] for record in again.measurements] == [0, 1]


def test_the_report_names_goals_failures_and_every_row(results):
    goals = [Goal("maps at most 1.05", 1.04, 1.05), Goal("MFU at least 38 %", 30.0, 38, at_least=True)]
    rows = [{"precision": "bf16", "ms": 12.3456}]
    results.add("training", "DiT-B/2", "done", 1, Finding(rows, goals, note="a note"))
    results.add("loading", "jpg", "failed", 1, Finding(note="OSError: | disk"))
    text = command.report(json.loads(results.file.read_text()), command.TITLES)
    assert "| maps at most 1.05 | 1.04 | met |" in text
    assert "| MFU at least 38 % | 30 | missed |" in text
    assert "| DiT-B/2 | bf16 | 12.35 |" in text
    assert r"| loading | jpg | failed | OSError: \| disk |" in text
    assert text.index("## Training steps") < text.index("## Reading images")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--minutes", "0"], "--minutes must be positive, got 0"),
        (["--parts", "trainings"], "invalid choice"),
        (["--data", "nowhere.npz"], "nowhere.npz, which is missing"),
        (["--only-report", "--output", "nowhere"], "has no results.json"),
    ],
)
def test_wrong_options_are_refused(arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        command.options_of(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_only_report_writes_the_report_again(results, tmp_path):
    results.write()
    assert command.main(["--only-report", "--output", str(tmp_path)]) == 0
    assert "a GPU" in (tmp_path / "report.md").read_text()


# Measuring


def test_medians_rotate_the_order_and_leave_out_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(timing, "free_memory", lambda: None)
    order = []

    def note(name):
        order.append(name)
        time.sleep(SHORTEST)  # so that every sample is one call
        if name == "large":
            raise torch.OutOfMemoryError("no")

    runs = {name: lambda name=name: note(name) for name in ("a", "large", "b")}
    times = medians(runs, torch.device("cpu"), 0.0, least=3)
    assert list(times) == ["a", "b"]
    assert {seconds.count for seconds in times.values()} == {3}
    warm_up, rounds = order[:5], order[5:]
    assert warm_up == ["a", "a", "large", "b", "b"]
    assert rounds == ["a", "b", "b", "a", "a", "b"]


def test_seconds_are_medians_with_half_the_interquartile_range():
    seconds = Seconds.of([1.0, 2.0, 3.0, 4.0, 100.0])
    assert seconds.median == 3
    assert seconds.count == 5
    assert Seconds.of([2.0]).spread == 0


def test_the_largest_size_that_fits(monkeypatch):
    monkeypatch.setattr(timing, "free_memory", lambda: None)

    def run(size):
        if size > 64:
            raise torch.OutOfMemoryError("no")

    assert largest([256, 128, 64, 32], run) == 64
    with pytest.raises(torch.OutOfMemoryError):
        largest([256, 128], run)


def test_operators_are_counted_without_views():
    x = torch.ones(4, 4)
    assert operators(lambda: (x @ x).T.reshape(2, 8).add_(1)) == 3  # mm, clone of the transpose, add


def test_idle_share_is_what_no_kernel_covers():
    assert idle_share([(0, 2), (1, 3), (5, 6), (6, 10)]) == pytest.approx(0.2)
    assert idle_share([]) == 0


def test_waits_name_their_places():
    waits = Waits()
    waits.add("operation")
    assert waits.count == 1
    assert waits.listed().startswith("1x operation in ")


@pytest.mark.parametrize("layout", ["channels first", "splits"])
def test_npz_files_of_both_layouts_are_read(layout, tmp_path):
    write_npz(tmp_path / "a.npz", 40, 8)
    expected = np.load(tmp_path / "a.npz")["images"]
    if layout == "splits":
        arrays = {"x_train": expected[1:], "y_train": np.arange(39)[:, None] % 10, "x_test": expected[:1]}
        np.savez(tmp_path / "a.npz", **arrays, y_test=[[3]])
    else:
        np.savez(tmp_path / "a.npz", images=expected.transpose(0, 3, 1, 2), labels=np.arange(40) % 10)
    data = NpzImages(tmp_path / "a.npz", batch_size=4)
    first = next(data.images("val", 1))
    assert (data.channels, data.size, data.classes) == (3, 8, 10)
    pixels = ((first["image"][0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert (pixels == expected[0]).all()


def test_training_in_bfloat16_uses_the_weights_of_every_step():
    """Autocast would keep those that it converted first, and the losses would differ by a half."""
    cpu = torch.device("cpu")
    expected = train("DiT", cpu)
    with computing_in("bf16", cpu):
        found = train("DiT", cpu)
    assert 0 < difference({"losses": found["losses"]}, {"losses": expected["losses"]})[0] < 0.05


# All parts


def small(part_name, machine, count):
    """The first measurements of a part."""
    chosen = command.parts(machine)[part_name]
    first = Part(chosen.title, 1, lambda machine: islice(chosen.measurements(machine), count), chosen.is_test)
    results = Results(machine.output)
    results.begin(environment(machine))
    run_parts({part_name: first}, machine, results, Deadline(600), say=lambda line: None)
    return results


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("correctness", 100),
        ("training", 12),
        ("sampling", 8),
        ("levels", 3),
        ("loading", 3),
        ("profiling", 2),
        ("processes", 1),
        ("learning", 6),
    ],
)
def test_every_part_works_on_a_cpu(name, count, tmp_path):
    results = small(name, Machine.of("cpu", tmp_path), count)
    assert {(r["name"], r["status"], r["note"]) for r in results.measurements if r["status"] != "done"} == set()
    assert not results.wrong
    assert all(r["rows"] or r["note"].startswith("not on this device") for r in results.measurements)
    assert all("precision" in row for record in results.measurements for row in record["rows"])
    assert command.report(results.content, command.TITLES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"), [("correctness", 40), ("training", 4), ("sampling", 5), ("levels", 3), ("loading", 1)]
)
def test_the_code_for_gpus_runs_on_a_pretended_one(name, count, tmp_path, monkeypatch):
    """Eager, with tiny networks and the fewest repetitions, since a pretended GPU is slow."""
    monkeypatch.setattr(timing, "SHORTEST", 0.0)
    monkeypatch.setattr(Machine, "largest_time", 0.0)
    with pretended_cuda() as watch:
        machine = replace(Machine.of("cuda", tmp_path), small=True, modes=(False,))
        results = small(name, machine, count)
    assert {(r["name"], r["status"], r["note"]) for r in results.measurements if r["status"] != "done"} == set()
    assert not results.wrong
    assert not watch.mixed
