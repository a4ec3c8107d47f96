"""`python -m asyncdiff evaluate` as users run it."""

import json
from pathlib import Path

import pytest
import torch
from small_runs import save_untrained, small_dit

from asyncdiff import AsyncDiffusion
from asyncdiff.__main__ import main
from asyncdiff.cli.commands import evaluate_inpainting, evaluate_samples
from asyncdiff.evaluation import sample_report
from asyncdiff.noise.masks import MASKS

PATHS = """
straight: {class_path: asyncdiff.noise.Synchronous}
rings:
  class_path: asyncdiff.noise.Ordered
  init_args: {order: {class_path: asyncdiff.noise.CenterOut}, overlap: 0.5}
"""
FALLING = """
down: {class_path: asyncdiff.noise.Waypoints, init_args: {maps: [[[0.5, 0.5], [0.5, 0.5]], [[0.6, 0.6], [0.3, 0.6]]]}}
"""
CONFIG = {
    "data": {"class_path": "datamodules.Digits", "init_args": {"batch_size": 32, "seed": "${seed_everything}"}},
    "seed_everything": 3,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run directory of an untrained network."""
    return save_untrained(tmp_path_factory.mktemp("run"), AsyncDiffusion(small_dit(patch_size=4), image_size=8), CONFIG)


def evaluate(run, *argv: str) -> None:
    main(["evaluate", str(run), "--likelihood", "--images", "12", "--points", "2", "--device", "cpu", *argv])


@pytest.fixture
def refused(run, expect_error):
    """Function that runs an evaluation of likelihood, or of inpainting, that must fail, and returns its message."""

    def evaluate(*argv: str, folder=run, kind: str = "--likelihood") -> str:
        few = {"--likelihood": ("--points", "2"), "--inpainting": ()}[kind]
        images = () if "--images" in argv else ("--images", "6")
        return expect_error("evaluate", str(folder), kind, *images, *few, "--device", "cpu", *argv, chatter=True)

    return evaluate


def test_likelihood_writes_a_table_a_card_and_a_figure(run, capsys):
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


def test_paths_and_mask_can_be_configured(run, tmp_path, capsys):
    (tmp_path / "paths.yaml").write_text(PATHS)
    mask = '{"class_path": "asyncdiff.noise.Half", "init_args": {"side": "top"}}'
    evaluate(run, "--paths", str(tmp_path / "paths.yaml"), "--mask", mask, "--output", str(tmp_path))
    card = json.loads((tmp_path / "likelihood.json").read_text())
    assert set(card["paths"]) == {"straight", "rings"}
    assert card["protocol"]["mask"]["init_args"] == {"side": "top"}
    assert card["paths"]["rings"]["per_patch"][0] == [0, 0]


EXTREME = '{"class_path": "asyncdiff.noise.Extreme", "init_args": {"fraction": 0.3}}'
DECODER = '{"class_path": "asyncdiff.denoising.CategoricalDecoder", "init_args": {"values": 256}}'


@pytest.mark.parametrize(
    ("argv", "rule"),
    [
        (("--mask", EXTREME), "mask must leave some patches of the level map known and some unknown, got no"),
        (("--output", "paths.yaml"), "--output must be a folder"),
        (("--t_min", "0"), "t_min must lie in (0, 1), got 0.0"),
        (("--decoder", DECODER), "pixels must take 256 equidistant values"),
        (
            ("--paths", "paths.yaml"),
            "maps must have levels that never fall, got t = 0.5 at s = 0.333333 and 0.3 at s = 0.666667 in row 1, col",
        ),
        (("--points", "1"), "--points must be at least 2"),
        (("--images", "1"), "--images must be at least"),
        (("--inpainting",), "choose exactly one of --samples, --likelihood, --inpainting, got --likelihood and --inp"),
        (("--device", "cuda"), "--device cuda is not available on this machine: use cpu"),
    ],
)
def test_invalid_likelihood_options(argv, rule, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)  # as without a GPU
    monkeypatch.chdir(tmp_path)
    Path("paths.yaml").write_text(FALLING)
    assert rule in refused(*argv)


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        (
            "data: {class_path: subprocess.Popen, init_args: {args: [touch, executed]}}",
            "data.class_path must name a class of asyncdiff, datamodules and Lightning's",
        ),
        (
            "data: {class_path: datamodules.Digits, init_args: {batch_sise: 3}}",
            "Digits has no argument batch_sise; did you mean batch_size?",
        ),
        (None, "config.yaml does not exist"),
    ],
)
def test_the_config_of_a_run_is_checked_and_executes_no_code(config, rule, run, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("checkpoints").symlink_to(run / "checkpoints")
    if config is not None:
        Path("config.yaml").write_text(config)
    assert rule in refused(folder=tmp_path)
    assert not Path("executed").exists()


def test_a_missing_run_or_checkpoint_is_reported(run, refused, tmp_path):
    assert "RUN must be a run directory or its config.yaml, got" in refused(folder=tmp_path / "gone")
    (tmp_path / "config.yaml").symlink_to(run / "config.yaml")
    assert "RUN must contain checkpoints/last.ckpt, got" in refused(folder=tmp_path)


def test_exactly_one_evaluation_must_be_chosen(run, expect_error, capfd):
    message = expect_error("evaluate", str(run))
    assert message.startswith("choose exactly one of --samples, --likelihood, --inpainting, got none")
    main(["evaluate", "--help"])
    printed = capfd.readouterr().out
    assert "--likelihood" in printed
    assert "--inpainting" in printed


def test_the_commands_list_all_masks_and_metrics():
    """Their lists are copies, because refusing other names must not take the import of PyTorch."""
    assert tuple(MASKS) == evaluate_inpainting.MASKS
    assert sample_report.METRICS == evaluate_samples.METRICS


SAMPLERS = """
quick: {class_path: asyncdiff.sampling.Sampler, init_args: {steps: 2}}
jumping: {class_path: RePaint, init_args: {steps: 6, jump: 2, resamples: 2}}
"""
CLASSIFIER = (
    '{"class_path": "asyncdiff.evaluation.TrainedClassifier", "init_args": {"channels": 1, "classes": 10, "epochs": 1}}'
)


def inpaint(run, *argv: str) -> None:
    defaults = () if "--images" in argv else ("--images", "6")
    main(["evaluate", str(run), "--inpainting", *defaults, "--device", "cpu", *argv])


@pytest.mark.filterwarnings("ignore:the Fréchet distance of")
def test_inpainting_writes_a_table_a_card_and_a_contact_sheet(run, alexnet, tmp_path, capsys):
    (tmp_path / "samplers.yaml").write_text(SAMPLERS)
    argv = ["--masks", "thin,lines", "--samplers", str(tmp_path / "samplers.yaml"), "--output", str(tmp_path)]
    inpaint(run, *argv, "--features", CLASSIFIER, "--lpips", alexnet, "--seeds", "2", "--reference", "90")
    printed = capsys.readouterr().out
    head = "| mask | unknown | sampler | Fréchet, classifier | lpips_alex to the truth | diversity |"
    assert f"{head} evaluations | patches | seconds |" in printed
    table = (tmp_path / "inpainting.md").read_text()
    assert table in printed
    card = json.loads((tmp_path / "inpainting.json").read_text())
    assert [(row["mask"], row["sampler"]) for row in card["rows"]] == [
        (mask, sampler) for mask in ("thin", "lines") for sampler in ("quick", "jumping")
    ]
    assert [row["evaluations"] for row in card["rows"]] == [2, 6 + 2 * 2] * 2
    assert all(len(row["frechet_by_round"]) == 2 and row["diversity"]["mean"] > 0 for row in card["rows"])
    protocol = card["protocol"]
    assert protocol["samplers"]["quick"]["init_args"]["steps"] == 2
    assert protocol["masks"]["thin"]["drawn_per_image"]
    assert protocol["reference"] == {"split": "train", "images": 90}
    assert protocol["enlarged"] == 8
    assert not protocol["labels"]
    assert protocol["hardware"]
    assert card["masks"]["lines"] == {"unknown": 0.5, "known_patches": 0}
    assert f"the 6 true images lie at {card['frechet_real']:.2f}" in printed
    assert (tmp_path / "inpainting.png").stat().st_size > 5000


def test_the_models_own_sampler_inpaints_all_masks_in_batches_of_any_size(run, tmp_path, alexnet, capsys):
    rows = []
    for size in ("6", "4"):
        argv = ("--metrics", "lpips", "--lpips", alexnet, "--examples", "0", "--output", str(tmp_path / size))
        inpaint(run, "--batch_size", size, "--steps", "3", *argv)
        card = json.loads((tmp_path / size / "inpainting.json").read_text())
        assert card["protocol"]["samplers"]["async_path"]["init_args"]["steps"] == 3
        assert card["frechet_real"] is None
        assert not (tmp_path / size / "inpainting.png").exists()
        rows.append(card["rows"])
    assert len(rows[0]) == 7
    for a, b in zip(*rows, strict=True):
        assert (a["evaluations"], a["patches"]) == (3, 12)
        assert a["lpips"]["mean"] == pytest.approx(b["lpips"]["mean"], rel=1e-3)


@pytest.mark.parametrize(
    ("argv", "rule"),
    [
        (("--masks", "thin,widee"), "got widee; did you mean wide?"),
        (("--masks", "thin,thin"), "--masks must not repeat a name, got thin,thin"),
        (("--metrics", "fid"), "--metrics must be some of frechet,lpips, got fid"),
        (("--metrics", "lpips", "--features", CLASSIFIER), "--features needs the metric frechet, got --metrics lpips"),
        (("--images", "1"), "--images must be at least 2"),
        (("--seeds", "0"), "--seeds must be at least 1"),
        (("--steps", "0"), "steps must be at least 1"),
        (("--points", "3"), "--points: there is no such option"),
        (("--samplers", "samplers.yaml", "--steps", "3"), "--steps cannot be combined with --samplers"),
        (
            ("--samplers", "typo.yaml"),
            "typo.yaml:2: samplers.quick.init_args.stepz: Sampler has no argument stepz",
        ),
    ],
)
def test_invalid_inpainting_options(argv, rule, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("samplers.yaml").write_text(SAMPLERS)
    Path("typo.yaml").write_text(SAMPLERS.replace("{steps: 2}", "{stepz: 2}"))
    assert rule in refused(*argv, kind="--inpainting")


def test_missing_weights_are_reported_with_their_folder(refused, tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub._hub_dir", None)
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    assert "put squeezenet1_1-b8a52dc0.pth into" in refused("--metrics", "frechet", kind="--inpainting")
    assert "put alexnet-owt-7be5be79.pth into" in refused("--metrics", "lpips", kind="--inpainting")
