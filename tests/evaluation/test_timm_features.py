import hashlib

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config

from asyncdiff.evaluation import TimmFeatures
from asyncdiff.tasks.photos import to_model

SMALL_VIT = "vit_tiny_patch16_224.augreg_in21k"


@pytest.fixture(scope="module")
def resnet():
    return TimmFeatures("resnet18.tv_in1k")


def levels(n: int, size: int, channels: int = 3) -> torch.Tensor:
    return torch.randint(256, (n, channels, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_features_are_the_pooled_features_of_the_network(resnet):
    x = to_model(levels(2, 224))
    settings = resolve_model_data_config(resnet.network)
    mean, std = (torch.tensor(settings[name])[:, None, None] for name in ("mean", "std"))
    expected = resnet.network((levels(2, 224) / 255 - mean) / std)
    assert (resnet.name, resnet.dim, resnet.size, resnet.filter) == ("resnet18", 512, 224, "bilinear")
    torch.testing.assert_close(resnet(x), expected, rtol=1e-5, atol=1e-6)
    assert not any(p.requires_grad for p in resnet.parameters())
    gray = to_model(levels(1, 32, 1))
    assert torch.equal(resnet(gray), resnet(gray.expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match="1 or 3 channels, got 4: decode"):
        resnet(torch.zeros(1, 4, 8, 8))


def test_the_resize_matches_pillow(resnet):
    """Compare with timm's own pipeline without a crop: nearly equal, since Pillow rounds once more."""
    from torchvision.transforms.functional import to_pil_image

    photo = torch.nn.functional.avg_pool2d(levels(1, 600)[0].float(), 3).round().to(torch.uint8)
    settings = resolve_model_data_config(resnet.network) | {"crop_pct": 1.0}
    transformed = create_transform(**settings)(to_pil_image(photo))[None]
    torch.testing.assert_close(resnet(to_model(photo[None])), resnet.network(transformed), rtol=0.01, atol=5e-3)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_are_read_from_a_local_file_without_the_classifier(tmp_path, suffix):
    network = timm.create_model(SMALL_VIT, num_classes=21843)
    file = tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(network.state_dict(), file)
    own = hashlib.sha256(file.read_bytes()).hexdigest()
    features = TimmFeatures(SMALL_VIT, str(file), sha256=own[:8])
    x = to_model(levels(1, 32))
    resized = torch.nn.functional.interpolate(levels(1, 32).float(), (224, 224), mode="bicubic", antialias=True)
    network.reset_classifier(0)
    with torch.no_grad():
        expected = network.eval()((resized.clamp(0, 255) / 255 - 0.5) / 0.5)
    torch.testing.assert_close(features(x), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="must have the SHA-256 00000000, got"):
        TimmFeatures(SMALL_VIT, str(file), sha256="00000000")


def test_another_size_resizes_the_position_embeddings_of_a_transformer():
    features = TimmFeatures(SMALL_VIT, size=64)
    assert features(to_model(levels(1, 32))).shape == (1, 192)
    assert features.fingerprint()["input"]["size"] == [64, 64]
    assert features.fingerprint()["input"]["resize"] == "bicubic, antialiased"


def test_the_fingerprint_identifies_the_tensors(resnet):
    before = torch.get_rng_state()
    other = TimmFeatures("resnet18.tv_in1k", size=64)
    assert torch.equal(torch.get_rng_state(), before)
    assert other.fingerprint()["weights"] == resnet.fingerprint()["weights"]  # random, from the same seed
    assert other.fingerprint() != resnet.fingerprint()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    assert other.fingerprint()["weights"] != resnet.fingerprint()["weights"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet17",), "model must be the name of a timm model, got resnet17"),
        (("resnet18", "nowhere.pth"), r"weights nowhere\.pth is not a file"),
        (("resnet18", "x.pth", None, True), "weights and pretrained exclude each other"),
        (("resnet18", None, "00000000"), "sha256 needs a weight file, got sha256 00000000 alone"),
        ((SMALL_VIT, None, None, False, 33), f"multiple of the patch size of {SMALL_VIT}, 16 pixels, got 33: use 32"),
        (("resnet18", "other.safetensors"), "weights or size do not fit timm's resnet18"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"conv1.weight": torch.zeros(1)}, "other.safetensors")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        TimmFeatures(*arguments)
    assert "\n" not in str(error.value)
