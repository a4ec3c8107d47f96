"""Models and data must agree on what labels mean, not only on their number; new classes get new label embeddings."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import quiet_trainer, small_dit

from asyncdiff import AsyncDiffusion
from asyncdiff.__main__ import main
from asyncdiff.checkpoints.label_meaning import label_fingerprint, same_labels
from asyncdiff.checkpoints.lightning_io import AtomicCheckpointIO
from asyncdiff.latents.cache import Settings, cache
from asyncdiff.latents.codec import Identity
from asyncdiff.training import OptimizerSettings, warm_start
from datamodules import Crops, Digits, EdmZip, HuggingFace, ImageFolder, ImageNet, LatentCache
from datamodules.base import InMemoryImages
from datamodules.storage.imagenet_classes import SORTED

ANIMALS, THINGS = ["cat", "dog"], ["chair", "table"]
TABLE = "denoiser.network.label_embedding.table.weight"


def images(folder, classes, count=4, size=8):
    """Write a few images per class folder."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        for k in range(count):
            pixels = np.random.default_rng(k).integers(0, 255, (size, size), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{k}.png")
    return folder


def data(folder, classes=None) -> ImageFolder:
    if classes:
        images(folder, classes)
    return ImageFolder(str(folder), 8, channels=1, batch_size=2, held_out=0.3)


def model(**options) -> AsyncDiffusion:
    optimizer = OptimizerSettings(learning_rate=1e-12)
    return AsyncDiffusion(small_dit(classes=2, seed=1), image_size=8, optimizer=optimizer, **options)


def trainer(folder, **options):
    return quiet_trainer(folder, plugins=[AtomicCheckpointIO()], **{"max_steps": 1, "limit_val_batches": 1, **options})


@pytest.fixture
def animals(tmp_path):
    """Checkpoint of a model that was trained on animals."""
    run = trainer(tmp_path)
    run.fit(model(), datamodule=data(tmp_path / "animals", ANIMALS))
    run.save_checkpoint(tmp_path / "animals.ckpt")
    return tmp_path / "animals.ckpt"


def test_fingerprints_tell_names_and_their_order_apart():
    known = [label_fingerprint(names) for names in (ANIMALS, ANIMALS[::-1], THINGS, ["ca", "tdog"], [*ANIMALS, "eel"])]
    assert [same_labels(known[0], other) for other in known] == [True, False, False, False, False]
    for unknown in ([], None, [0, 1], {0: "cat"}, np.array([])):  # other data modules may mean what they like
        assert label_fingerprint(unknown) is None
    assert same_labels(known[0], None)
    assert same_labels(None, known[0])
    assert known[0] == {"classes": 2, "sha256": known[0]["sha256"], "first": ANIMALS}
    composed, decomposed = "caf\u00e9", "cafe\u0301"  # as Linux and macOS may list the same folder
    assert same_labels(label_fingerprint([composed]), label_fingerprint([decomposed]))
    odd = label_fingerprint(["\x1b[31m", "\udcff", "\ud800", "x" * 1000])
    assert json.dumps(odd).isascii()
    assert all(name.isprintable() and len(name) <= 24 for name in odd["first"])


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_other_classes_of_the_same_number_are_refused(stage, animals, tmp_path):
    """The error names both; the same classes elsewhere are accepted, and so is data that does not name its classes."""
    getattr(trainer(tmp_path, max_steps=2), stage)(
        model(), datamodule=data(tmp_path / "moved", ANIMALS), ckpt_path=animals
    )
    unnamed = data(tmp_path / "moved")
    unnamed.dataset("train").label_names = ()
    getattr(trainer(tmp_path, max_steps=2), stage)(model(), datamodule=unnamed, ckpt_path=animals)
    with pytest.raises(ValueError, match=r"^the classes of the data") as refusal:
        getattr(trainer(tmp_path), stage)(model(), datamodule=data(tmp_path / "things", THINGS), ckpt_path=animals)
    line, digests = str(refusal.value), [label_fingerprint(names)["sha256"][:8] for names in (ANIMALS, THINGS)]
    assert line.startswith(
        f"the classes of the data must be those of {animals}, cat, dog (2 classes, SHA-256 {digests[0]}), got "
        f"chair, table (2 classes, SHA-256 {digests[1]}): use the data that the model was trained on"
    )
    assert line.endswith("which trains its weights on new classes") == (stage == "fit")


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_a_loaded_model_meets_the_same_classes_only(stage, animals, tmp_path):
    loaded = AsyncDiffusion.load_from_checkpoint(animals)
    with pytest.raises(ValueError, match=r"the classes of the data must be those of the checkpoint, cat, dog"):
        getattr(trainer(tmp_path), stage)(loaded, datamodule=data(tmp_path / "things", THINGS))


def test_checkpoints_of_earlier_versions_are_accepted(animals, tmp_path):
    contents = torch.load(animals, weights_only=True)
    del contents["labels"]
    torch.save(contents, tmp_path / "old.ckpt")
    again = model()
    run = trainer(tmp_path, max_steps=2)
    run.fit(again, datamodule=data(tmp_path / "things", THINGS), ckpt_path=tmp_path / "old.ckpt")
    assert again.labels == label_fingerprint(THINGS)  # recorded from now on


def test_unconditional_models_record_and_compare_nothing(tmp_path):
    unconditional = AsyncDiffusion(small_dit(classes=0), image_size=8)
    run = trainer(tmp_path)
    run.fit(unconditional, datamodule=data(tmp_path / "animals", ANIMALS))
    run.save_checkpoint(tmp_path / "a.ckpt")
    assert "labels" not in torch.load(tmp_path / "a.ckpt", weights_only=True)
    again = AsyncDiffusion(small_dit(classes=0), image_size=8)
    trainer(tmp_path).validate(again, datamodule=data(tmp_path / "things", THINGS), ckpt_path=tmp_path / "a.ckpt")


@pytest.mark.parametrize(("names", "taken_over"), [(ANIMALS, True), (THINGS, False)])
def test_fine_tuning_on_other_classes_starts_new_label_embeddings(names, taken_over, animals, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    start = AsyncDiffusion.load_from_checkpoint(animals).state_dict()
    tuned = model(pretrained=str(animals))
    torch.nn.init.ones_(tuned.network.label_embedding.table.weight)
    trainer(tmp_path).fit(tuned, datamodule=data(tmp_path / "new", names))
    for name, weight in tuned.state_dict().items():
        expected = torch.ones_like(weight) if name == TABLE and not taken_over else start[name]
        assert torch.allclose(weight, expected, atol=1e-6), name
    lines = [line for line in caplog.text.splitlines() if "label embeddings start from new values" in line]
    assert len(lines) == (not taken_over)
    assert f"loaded {len(start) - (not taken_over)} of {len(start)} weights" in caplog.text
    assert tuned.labels == label_fingerprint(names)


def test_fine_tuning_a_network_with_other_names_keeps_its_label_embeddings(animals, tmp_path, caplog, monkeypatch):
    """Of a network of another package nobody knows which weights belong to the classes; a line says what happens."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(warm_start, "LABELS", "network.class_table.")
    tuned = model(pretrained=str(animals))
    trainer(tmp_path).fit(tuned, datamodule=data(tmp_path / "new", THINGS))
    start = AsyncDiffusion.load_from_checkpoint(animals).network.label_embedding.table.weight
    assert torch.allclose(tuned.network.label_embedding.table.weight, start, atol=1e-6)
    assert "the classes are chair, table (2 classes" in caplog.text
    assert "in the checkpoint: label embeddings keep their values" in caplog.text


def test_exports_and_evaluations_compare_classes(animals, tmp_path, capfd):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    animals.rename(run / "checkpoints" / "last.ckpt")
    main(["export", str(run), "--output", str(tmp_path / "shared")])
    assert AsyncDiffusion.from_pretrained(tmp_path / "shared").labels == label_fingerprint(ANIMALS)
    images(tmp_path / "things", THINGS)
    section = {"root": str(tmp_path / "things"), "size": 8, "channels": 1, "held_out": 0.3}
    config = {"data": {"class_path": "datamodules.ImageFolder", "init_args": section}, "model": {}}
    (run / "config.yaml").write_text(json.dumps(config))
    for checkpoint in ([], ["--ckpt_path", str(tmp_path / "shared")]):
        with pytest.raises(SystemExit):
            main(["evaluate", str(run), "--likelihood", *checkpoint])
        assert "error: the classes of the data must be those of" in capfd.readouterr().err
    main(["evaluate", str(run), "--likelihood", "--labels", "false", "--points", "2", "--images", "2"])


# What data modules offer


def test_a_latent_cache_means_what_its_images_mean(tmp_path):
    source = data(tmp_path / "animals", ANIMALS)
    cache(source, Identity(1), tmp_path / "cache", Settings(flip=False))
    cached = LatentCache(str(tmp_path / "cache"), 8, channels=1, horizontal_flip=False)
    assert label_fingerprint(cached.label_names) == label_fingerprint(source.label_names) != None  # noqa: E711


def test_digits_and_class_folders_name_their_classes(tmp_path):
    images(tmp_path / "images", THINGS, size=32)
    crops = {kind: Crops(str(tmp_path / "images"), 2, labels=kind).label_names for kind in ("none", "file", "folder")}
    assert crops == {"none": [], "folder": THINGS, "file": [f"{name}/{k}.png" for name in THINGS for k in range(4)]}
    assert Digits().label_names == list("0123456789")
    assert data(tmp_path / "images").label_names == THINGS
    assert len(data(images(tmp_path / "flat", [""])).label_names) == 0
    assert len(EdmZip(str(tmp_path / "flat"), 8).label_names) == 0
    assert InMemoryImages(torch.zeros(1, 1, 8, 8), torch.zeros(1).long(), classes=10).label_names == ()


def test_imagenet_names_its_synsets(tmp_path):
    for split in ("train", "val"):
        images(tmp_path / split, SORTED[:2])
    assert ImageNet(str(tmp_path), 8).label_names == SORTED[:2]
    assert len(SORTED) == 1000


def test_hugging_face_names_classes_that_its_features_name(tmp_path):
    datasets = pytest.importorskip("datasets")
    pixels = [Image.fromarray(np.zeros((8, 8), np.uint8))] * 4
    for name, label, values, expected in (
        ("named", datasets.ClassLabel(names=THINGS), [0, 1, 0, 1], THINGS),
        ("numbers", datasets.Value("int64"), [0, 1, 0, 1], []),
        ("strings", datasets.Value("string"), ["b", "a", "b", "a"], ["a", "b"]),
    ):
        features = datasets.Features({"image": datasets.Image(), "label": label})
        datasets.Dataset.from_dict({"image": pixels, "label": values}, features).save_to_disk(tmp_path / name)
        found = HuggingFace(str(tmp_path / name), 8, channels=1, held_out=0.3)
        assert list(found.label_names) == expected
        assert found.classes == 2
