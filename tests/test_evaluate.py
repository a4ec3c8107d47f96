"""`python -m asyncdiff evaluate` as a user runs it."""

import json

import pytest
import torch
from conftest import awaken
from lightning.pytorch import Trainer

from asyncdiff import AsyncDiffusion
from asyncdiff.__main__ import main
from asyncdiff.networks.dit import DiT

PATHS = """
straight: {class_path: asyncdiff.paths.Synchronous}
rings:
  class_path: asyncdiff.paths.Ordered
  init_args: {order: {class_path: asyncdiff.orders.CentreOut}, overlap: 0.5}
"""
FALLING = """
down: {class_path: asyncdiff.paths.Waypoints, init_args: {maps: [[[0.5, 0.5], [0.5, 0.5]], [[0.6, 0.6], [0.3, 0.6]]]}}
"""
CONFIG = """
data: {class_path: datamodules.Digits, init_args: {batch_size: 32, seed: "${seed_everything}"}}
seed_everything: 3
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with a network that is awake."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    network = awaken(DiT(channels=1, patch_size=4, dim=32, depth=1, heads=2, classes=10))
    trainer = Trainer(default_root_dir=folder, accelerator="cpu", logger=False, barebones=False)
    trainer.strategy.connect(AsyncDiffusion(network, image_size=8))
    (folder / "checkpoints").mkdir()
    trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt", weights_only=True)
    (folder / "config.yaml").write_text(CONFIG)
    return folder


def evaluate(run, *words: str) -> None:
    main(["evaluate", str(run), "--likelihood", "--images", "12", "--points", "2", "--device", "cpu", *words])


def refused(capsys, run, *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        evaluate(run, *words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_the_table_the_card_and_the_figure(run, capsys):
    evaluate(run)
    printed = capsys.readouterr().out
    assert "| path | bits/dim | prior | diffusion | reconstruction | against synchronous |" in printed
    for name in ("synchronous", "async_patch", "wavefront", "raster"):
        assert f"| {name} | " in printed
    card = json.loads((run / "evaluation" / "likelihood.json").read_text())
    assert card["images"] == 12
    assert card["protocol"]["decoder"]["init_args"] == {"values": 17}  # the data's own
    assert card["protocol"]["floors"]["raster"] == pytest.approx(1 / 33)  # sigma / alpha is a quarter of a step, 1/32
    assert card["protocol"]["weights"] == "raw"
    assert card["unknown_values"] == 64
    assert f"path gap: {card['path_gap']['value']:.4f}" in printed
    assert (run / "evaluation" / "likelihood.png").stat().st_size > 5000


def test_the_same_seed_gives_the_same_numbers_in_batches_of_any_size(run, tmp_path, capsys):
    cards = []
    for size in ("12", "5"):
        evaluate(run, "--batch_size", size, "--output", str(tmp_path / size))
        cards.append(json.loads((tmp_path / size / "likelihood.json").read_text())["paths"])
    for name in cards[0]:
        assert cards[0][name]["rate"] == pytest.approx(cards[1][name]["rate"], rel=1e-5)


def test_a_file_of_paths_and_a_mask(run, tmp_path, capsys):
    (tmp_path / "paths.yaml").write_text(PATHS)
    mask = '{"class_path": "asyncdiff.masks.Half", "init_args": {"side": "top"}}'
    evaluate(run, "--paths", str(tmp_path / "paths.yaml"), "--mask", mask, "--output", str(tmp_path))
    card = json.loads((tmp_path / "likelihood.json").read_text())
    assert set(card["paths"]) == {"straight", "rings"}
    assert card["protocol"]["mask"]["init_args"] == {"side": "top"}
    assert card["paths"]["rings"]["per_patch"][0] == [0, 0]


def test_a_mask_that_gives_nothing(run, capsys):
    mask = '{"class_path": "asyncdiff.masks.Extreme", "init_args": {"fraction": 0.3}}'
    assert "mask must leave some patches of the level map known and some unknown, got no" in refused(
        capsys, run, "--mask", mask
    )


def test_code_of_a_shared_run_is_not_run(run, tmp_path, capsys):
    (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
    marker = tmp_path / "executed"
    (tmp_path / "config.yaml").write_text(
        f"data: {{class_path: subprocess.Popen, init_args: {{args: [touch, {marker}]}}}}"
    )
    assert "must lie in one of the packages asyncdiff, datamodules" in refused(capsys, tmp_path)
    assert not marker.exists()


def test_a_config_with_a_mistake(run, tmp_path, capsys):
    (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
    (tmp_path / "config.yaml").write_text("data: {class_path: datamodules.Digits, init_args: {batch_sise: 3}}")
    assert "Digits has no argument batch_sise; did you mean batch_size?" in refused(capsys, tmp_path)


def test_a_file_in_place_of_the_output_folder(run, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "--output must be a folder" in refused(capsys, run, "--output", str(tmp_path / "file"))


def test_a_floor_at_zero(run, capsys):
    assert "t_min must lie in (0, 1), got 0.0" in refused(capsys, run, "--t_min", "0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has one")
def test_a_device_that_is_not_there(run, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", str(run), "--likelihood", "--device", "cuda"])
    assert "--device must be one that this machine has" in capsys.readouterr().err


def test_no_run(tmp_path, capsys):
    assert "last.ckpt" in refused(capsys, tmp_path)


def test_a_run_without_its_config(run, tmp_path, capsys):
    (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
    assert "config.yaml" in refused(capsys, tmp_path)


def test_values_that_the_data_do_not_have(run, capsys):
    decoder = '{"class_path": "asyncdiff.likelihood.CategoricalDecoder", "init_args": {"values": 256}}'
    assert "pixels must take 256 equidistant values" in refused(capsys, run, "--decoder", decoder)


def test_a_falling_path_is_named_with_its_patch(run, tmp_path, capsys):
    (tmp_path / "paths.yaml").write_text(FALLING)
    error = refused(capsys, run, "--paths", str(tmp_path / "paths.yaml"))
    assert "maps must never fall, got t = 0.5 at s = 0.333333 and 0.3 at s = 0.666667 at row 1, column 0" in error


def test_what_to_evaluate_must_be_said(run, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", str(run)])
    assert "--likelihood must be given" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "rule"),
    [(("--points", "1"), "--points must be at least 2"), (("--images", "1"), "--images must be at least")],
)
def test_too_few(run, capsys, words, rule):
    assert rule in refused(capsys, run, *words)
