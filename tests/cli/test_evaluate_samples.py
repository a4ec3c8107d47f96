"""`python -m asyncdiff evaluate RUN --samples` and `compare` as users run them."""

import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import save_untrained, small_dit

from asyncdiff import AsyncDiffusion, DiffusionModel
from asyncdiff.__main__ import main
from asyncdiff.cli.jobs.distributed import Ranks, environment
from asyncdiff.cli.jobs.image_sources import RealImages, check_same_shape, open_images
from asyncdiff.evaluation.reference_statistics import load_reference
from asyncdiff.sampling.samplers import Sampler
from asyncdiff.tasks.photos import read_photo, save_png, to_bytes
from datamodules import ImageFolder

HERE = Path(__file__).resolve().parent
CONFIG = {"data": {"class_path": "datamodules.Digits", "init_args": {"batch_size": 32}}}
CLASSIFIER = json.dumps(
    {
        "class_path": "asyncdiff.evaluation.TrainedClassifier",
        "init_args": {"channels": 1, "classes": 10, "epochs": 1, "width": 8, "dim": 16},
    }
)
TIMM = json.dumps({"class_path": "asyncdiff.evaluation.TimmFeatures", "init_args": {"model": "resnet10t", "size": 32}})
ALL = ["frechet", "kid", "inception_score", "precision", "recall", "density", "coverage"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run directory of an untrained network."""
    model = AsyncDiffusion(small_dit(patch_size=4), sampler=Sampler(steps=2), image_size=8)
    return save_untrained(tmp_path_factory.mktemp("run"), model, CONFIG)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Cache of reference statistics that all tests share."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("ASYNCDIFF_CACHE", str(folder))
        yield folder


def argv(run, output, *more: str) -> list[str]:
    defaults = ["--count", "50"] if "--count" not in more else []
    defaults += ["--features", CLASSIFIER] if "--features" not in more else []
    return ["evaluate", str(run), "--samples", "--device", "cpu", "--output", str(output), *defaults, *more]


def evaluate_and_read_card(run, output, *more: str) -> dict:
    main(argv(run, output, *more))
    return json.loads((output / "samples.json").read_text())


def is_training_image(file: Path) -> bool:
    return load_reference(file).fingerprint["images"]["split"] == "train"


@pytest.fixture
def refused(run, tmp_path, expect_error):
    """Function that runs an evaluation that must fail, and returns its message."""

    def evaluate(*more: str, folder=run) -> str:
        return expect_error(*argv(folder, tmp_path, *more), chatter=True)

    return evaluate


@pytest.fixture(scope="module")
def card(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    return evaluate_and_read_card(
        run, folder, "--floor", "val", "--seed", "3", "--steps", "3", "--guidance", "2"
    ), folder


def test_the_card_records_metrics_and_protocol(card):
    held, _ = card
    assert held["format"] == 1
    assert list(held["metrics"]) == [f"{name}/classifier" for name in ALL]
    assert set(held["deviations"]) == {"kid/classifier", "inception_score/classifier"}
    assert all(np.isfinite(value) for value in held["metrics"].values())
    protocol = held["protocol"]
    assert (protocol["measurement"], protocol["weights"], protocol["dtype"]) == ("samples", "raw", "torch.float32")
    assert len(protocol["checkpoint_sha256"]) == len(protocol["features"]["weights"]) == 64
    samples = protocol["samples"]
    assert (samples["count"], samples["seeds"], samples["labels"]) == (50, [3, 52], "10 classes in turn")
    assert samples["sampler"]["init_args"]["steps"] == 3
    assert samples["sampler"]["init_args"]["guidance"][0]["init_args"]["scale"] == 2
    real = protocol["reference"]
    assert (real["data"], real["split"], real["size"]) == ("datamodules.Digits", "train", [1, 8, 8])
    assert real["count"] == real["read"] > 1400
    assert protocol["settings"]["kid"] == {"subsets": 100, "subset_size": 50, "seed": 3}
    assert protocol["commit"]
    assert held["floor"]["metrics"]["frechet/classifier"] < held["metrics"]["frechet/classifier"]
    assert held["floor"]["count"] == 50


def test_the_table_and_the_contact_sheet_are_written(card):
    held, folder = card
    text = (folder / "samples.md").read_text()
    assert text.splitlines()[0] == f"| images | count | {' | '.join(held['metrics'])} |"
    assert "| generated | 50 | " in text
    assert "| real, val | 50 | " in text
    assert "features: classifier, 16 dimensions" in text
    assert "KID: 100 subsets of 50, seed 3; as labels cycle through the classes, identical distributions give a" in text
    assert "density, coverage: k = 5, 1438 real images" in text
    assert read_photo(folder / "samples.png", 3).shape[1] > 400


def test_reference_statistics_are_cached_and_can_be_passed(run, refused, tmp_path, capfd, card, cache):
    files = sorted((cache / "references").iterdir())
    evaluate_and_read_card(run, tmp_path)
    printed = capfd.readouterr().out
    assert sorted((cache / "references").iterdir()) == files
    used = Path(next(line for line in printed.splitlines() if line.startswith("reference: "))[11:])
    assert used in files
    given = tmp_path / "statistics.safetensors"
    shutil.copy(used, given)
    assert (
        evaluate_and_read_card(run, tmp_path, "--reference", str(given))["metrics"]
        == evaluate_and_read_card(run, tmp_path)["metrics"]
    )
    error = refused("--reference", str(given), "--split", "val")
    assert "has another images.split, train instead of" in error
    assert "instead of val: omit --reference to compute the statistics" in error


def test_published_statistics_can_be_used_as_reference(run, refused, tmp_path, card, cache):
    own = load_reference(next(file for file in (cache / "references").iterdir() if is_training_image(file)))
    file = tmp_path / "published.npz"
    np.savez(file, mu=own.gaussian.mean.numpy(), sigma=own.gaussian.cov.numpy())
    held = evaluate_and_read_card(run, tmp_path, "--reference", str(file), "--metrics", "frechet,inception_score")
    whole = evaluate_and_read_card(run, tmp_path)
    assert held["metrics"]["frechet/classifier"] == pytest.approx(whole["metrics"]["frechet/classifier"], rel=1e-9)
    assert held["protocol"]["reference"]["external"] == "published.npz"
    assert "got kid, precision_recall, density_coverage" in refused("--reference", str(file))
    np.savez(file, mu=np.zeros(3), sigma=np.eye(3))
    assert "has 3 features, but the feature extractor has 16" in refused("--reference", str(file))
    np.savez(file, mu=np.zeros(16), sigma=np.eye(16), arr_0=np.zeros((2, 16, 16, 1), np.uint8))
    assert "must be of images of shape (1, 8, 8), got (1, 16, 16)" in refused("--reference", str(file))
    np.savez(file, mu=np.zeros(3), sigma=np.eye(2))
    assert "got shapes (3,) and (2, 2)" in refused("--reference", str(file))


def test_a_folder_of_the_same_images_has_the_same_numbers(run, refused, tmp_path):
    model = DiffusionModel.load(run)
    images = to_bytes(model.generate(range(50), [i % 10 for i in range(50)], batch_size=128))
    for i, image in enumerate(images):
        save_png(image, tmp_path / "pictures" / str(i % 10) / f"{i:03d}.png")
    save_png(images[0].repeat(1, 9, 9), tmp_path / "pictures" / "sheet.png")  # which `sample` writes
    for hidden in ("._000.png", "__MACOSX/000.png", "0/.ipynb_checkpoints/000.png"):
        (tmp_path / "pictures" / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / "pictures" / hidden).write_bytes(b"not an image")
    expected = evaluate_and_read_card(run, tmp_path, "--metrics", "frechet,density_coverage")["metrics"]
    only_data = tmp_path / "data"
    only_data.mkdir()
    shutil.copy(run / "config.yaml", only_data)
    more = ("--images", str(tmp_path / "pictures"), "--metrics", "frechet,density_coverage")
    found = evaluate_and_read_card(only_data, tmp_path, *more)
    assert found["metrics"] == pytest.approx(expected, rel=1e-6)
    assert found["protocol"]["samples"]["folder"] == str(tmp_path / "pictures")
    rows = np.moveaxis(images.numpy(), 1, -1)
    np.savez(tmp_path / "gray.npz", rows, np.arange(50) % 10)  # ADM's layout: images and labels
    np.savez_compressed(tmp_path / "rgb.npz", rows.repeat(3, -1))
    for name in ("gray.npz", "rgb.npz"):
        archive = ("--images", str(tmp_path / name), *more[2:])
        found = evaluate_and_read_card(only_data, tmp_path, *archive)
        assert found["metrics"] == pytest.approx(expected, rel=1e-6)
        assert found["protocol"]["samples"]["folder"] == str(tmp_path / name)
    assert "--steps cannot be combined with --images" in refused(*more, "--steps", "3", folder=only_data)
    assert "--precision cannot be combined with --images" in refused(*more, "--precision", "bf16", folder=only_data)


GOOD = np.zeros((12, 8, 8, 1), np.uint8)
ARRAYS = {
    "float": ({"arr_0": GOOD / 255}, "float64 of shape (12, 8, 8, 1)"),
    "channels first": ({"arr_0": np.moveaxis(GOOD.repeat(3, -1), -1, 1)}, "uint8 of shape (12, 3, 8, 8)"),
    "columns first": ({"arr_0": np.asfortranarray(GOOD)}, "uint8 of shape (12, 8, 8, 1)"),
    "another name": ({"images": GOOD}, "There is no item named 'arr_0.npy'"),
    "statistics": ({"mu": np.zeros(3), "sigma": np.eye(3)}, "There is no item named 'arr_0.npy'"),
    "objects": ({"arr_0": np.array([None] * 12)}, "it holds Python objects"),
    "one image": ({"arr_0": GOOD[0]}, "not enough values to unpack"),
    "none": ({"arr_0": GOOD[:0]}, "contains none"),
    "another size": ({"arr_0": GOOD.repeat(2, 1).repeat(2, 2)}, "got 1x16x16"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_of_another_layout_are_refused(case, refused, tmp_path):
    arrays, message = ARRAYS[case]
    np.savez(tmp_path / "a.npz", **arrays)
    assert message in refused("--images", str(tmp_path / "a.npz"), "--count", "12")


def test_an_array_that_is_damaged_or_no_file_is_refused(refused, tmp_path):
    file = tmp_path / "a.npz"
    header = np.lib.format.header_data_from_array_1_0(GOOD)
    with zipfile.ZipFile(file, "w") as archive, archive.open("arr_0.npy", "w") as stream:
        np.lib.format.write_array_header_1_0(stream, header | {"shape": (10**12, 8, 8, 1)})
        stream.write(GOOD.tobytes())
    assert "bytes for shape (1000000000000, 8, 8, 1)" in refused("--images", str(file))
    file.write_bytes(file.read_bytes()[:-30])
    assert "File is not a zip file; save it with numpy.savez" in refused("--images", str(file))
    file.unlink()
    os.mkfifo(file)
    assert "--images must be a regular file" in refused("--images", str(file))


def test_images_unlike_the_reference_are_refused(refused, tmp_path):
    """Distances between images of two sizes would be numbers without a meaning; 4.7 became 267.8."""
    for name, pixels in (("large", GOOD[0].repeat(2, 0).repeat(2, 1)), ("color", GOOD[0] + np.uint8([1, 2, 3]))):
        for i in range(12):
            save_png(torch.from_numpy(pixels).permute(2, 0, 1), tmp_path / name / f"{i}.png")
    error = refused("--images", str(tmp_path / "large"), "--count", "12")
    assert "images must have the shape of the reference images, 1x8x8, got 1x16x16 in " in error
    error = refused("--images", str(tmp_path / "color"), "--count", "12")
    assert "--images must be gray like the reference, got colors in " in error


@pytest.mark.parametrize("colors", [(9, 9, 9), (9, 9, 8)])
def test_gray_files_are_compared_with_gray_data_only(colors, tmp_path):
    """A data module with 3 channels may have gray images."""
    for folder, image in (("data", Image.new("RGB", (8, 8), colors)), ("samples", Image.new("L", (8, 8), 9))):
        (tmp_path / folder).mkdir()
        for number in range(8):
            image.save(tmp_path / folder / f"{number}.png")
    data = ImageFolder(str(tmp_path / "data"), 8, held_out=0.5, workers=0)
    real = RealImages(data, "train", None, decode=lambda x: x, codec=None, batch_size=4)
    samples = open_images(tmp_path / "samples", None, channels=3, batch_size=4)
    with nullcontext() if len(set(colors)) == 1 else pytest.raises(ValueError, match="--images must be in color like"):
        check_same_shape(samples, real)


def test_batches_of_another_size_give_the_same_numbers(run, tmp_path):
    one, other = (evaluate_and_read_card(run, tmp_path, "--batch_size", size)["metrics"] for size in ("128", "7"))
    assert other == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        (("--metrics", "fid"), "--metrics must be some of frechet,kid,"),
        (("--count", "1"), "--count must be at least 2"),
        (("--count", "5"), "images must be at least 10, got 5: the Inception score has 10 splits"),
        (("--count", "3", "--metrics", "precision_recall"), "number of fake images must be at least 4, got 3"),
        (
            ("--guidance", "2", "--labels", "false"),
            "--guidance needs a class-conditional model and --labels true, got 2.0",
        ),
        (
            ("--features", TIMM, "--metrics", "inception_score"),
            "inception_score needs class predictions, but TimmFeatures has none",
        ),
        (("--images", "nowhere"), "--images must be a folder of images or an .npz file, got nowhere"),
        (("--reference", "nowhere"), "--reference must be a file of statistics, got nowhere, which does not exist"),
        (
            ("--reference_count", "4", "--metrics", "density_coverage"),
            "number of real images must be at least 6, got 4",
        ),
    ],
)
def test_invalid_options(more, rule, refused):
    assert rule in refused(*more)


def test_latents_are_decoded_on_both_sides(latent_run, tmp_path):
    trainer, folder = latent_run
    where = {"root": str(folder), "size": 4, "channels": 4, "batch_size": 8}
    data = {"class_path": "datamodules.Arrays", "init_args": where}
    (folder / "config.yaml").write_text(json.dumps({"data": data}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        held = evaluate_and_read_card(folder, tmp_path, "--features", TIMM, "--metrics", "frechet,kid", "--count", "12")
    codec = trainer.lightning_module.codec.fingerprint()
    for part in ("samples", "reference"):
        assert held["protocol"][part]["codec"] == json.loads(json.dumps(codec))
    assert held["protocol"]["reference"]["size"] == [4, 4, 4]
    assert read_photo(tmp_path / "samples.png", 3).shape[2] > 10 * 96  # twelve images of 32 pixels, in rows of ten
    assert any("12 generated images in 512 feature dimensions" in note for note in held["notes"])


def test_compare_marks_cards_with_another_protocol(run, tmp_path, card, capsys):
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    for seed, file in (("0", one), ("0", other)):
        evaluate_and_read_card(run, tmp_path, "--seed", seed, "--metrics", "frechet,kid")
        shutil.move(tmp_path / "samples.json", file)
    held = json.loads(other.read_text())
    held["protocol"] |= {"checkpoint": "another.ckpt", "step": 7, "checkpoint_sha256": "0"}
    other.write_text(json.dumps(held))
    capsys.readouterr()
    main(["compare", str(one), str(other)])
    printed = capsys.readouterr().out
    assert "(a)" not in printed
    assert f"| {other} | 7 | " in printed
    held["protocol"]["samples"]["count"] = 5000
    held["protocol"]["torch"] = "1.0"
    other.write_text(json.dumps(held))
    main(["compare", str(one), str(other), str(card[1] / "samples.json")])
    printed = capsys.readouterr().out
    assert f"| {other} (a) | 7 | " in printed
    assert f"(a) protocol differs from {one} in samples.count (5000 instead of 50): not comparable" in printed
    assert "samples.json (b) | 0 | " in printed
    assert "samples.sampler.init_args.steps (3 instead of 2)" in printed
    assert "1.0; should make no difference" in printed


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{", "cannot be read as a JSON file"),
        ("[]", "must contain a JSON object, got type list: evaluate the run again"),
        ("{}", "is not a result card, it lacks the protocol or metrics"),
        ('{"format": 0, "protocol": {}, "metrics": {}}', "has the card format 0, not 1"),
        ('{"format": 1, "protocol": [], "metrics": {}}', "its protocol or metrics are not mappings"),
        (None, "is not a file: check the path of the result card"),
    ],
)
def test_unreadable_cards_are_rejected(tmp_path, expect_error, text, rule):
    file = tmp_path / "card.json"
    if text is not None:
        file.write_text(text)
    assert rule in expect_error("compare", str(file))


def test_processes_of_torchrun_and_slurm_are_recognized(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM", "RANK", "WORLD", "MASTER"))]:
        monkeypatch.delenv(name)
    assert environment() == (0, 1, 0)
    variables = {
        "NTASKS": "4",
        "NTASKS_PER_NODE": "2",
        "PROCID": "2",
        "LOCALID": "0",
        "NODEID": "1",
        "NODELIST": "n[1-2]",
        "JOB_ID": "7",
    }
    for name, value in (variables | {"JOB_NAME": "evaluate"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("MASTER_ADDR", "n1")
    monkeypatch.setenv("MASTER_PORT", "1234")
    assert environment() == (2, 4, 0)
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # an interactive job, in which srun started nothing
    assert environment() == (0, 1, 0)
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert environment() == (3, 8, 1)


def test_batches_are_shared_without_loss_or_repetition():
    shares = [Ranks(rank, 3, torch.device("cpu")).share(range(7)) for rank in range(3)]
    assert sorted(batch for share in shares for batch in share) == list(range(7))


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_images_and_numbers(run, tmp_path):
    """1, 2 and 3 processes of torchrun; 50 images in batches of 8 are no multiple of either."""
    cards, sheets = [], []
    for processes in (1, 2, 3):
        output, cache = tmp_path / f"{processes}", tmp_path / f"cache{processes}"
        surroundings = os.environ | {
            "PYTHONPATH": str(HERE.parents[1]),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "ASYNCDIFF_CACHE": str(cache),
        }
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        start = start if processes > 1 else [sys.executable]
        command = [*start, "-m", "asyncdiff", *argv(run, output, "--batch_size", "8", "--floor", "val")]
        if processes == 3:
            kept = next(f for f in (tmp_path / "cache1" / "references").iterdir() if is_training_image(f))
            command += ["--reference", str(kept)]
        done = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("| generated | 50 |") == 1
        cards.append(json.loads((output / "samples.json").read_text()))
        sheets.append((output / "samples.png").read_bytes())
    for other, sheet in zip(cards[1:], sheets[1:], strict=True):
        assert sheet == sheets[0]
        assert other["metrics"] == pytest.approx(cards[0]["metrics"], rel=1e-9)
        assert other["floor"]["metrics"] == pytest.approx(cards[0]["floor"]["metrics"], rel=1e-9)
