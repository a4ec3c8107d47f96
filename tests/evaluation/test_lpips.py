import hashlib
import os
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchmetrics.functional.image.lpips import _LPIPS

from asyncdiff.checkpoints import object_config
from asyncdiff.evaluation import FrechetDistance
from asyncdiff.evaluation.features.lpips import LPIPS, NETS, BackboneFeatures, upsampling_factor

# Real weights: alexnet_features_torchvision.safetensors, squeezenet1_1_torchvision.safetensors, and lpips_check/*.png
# of the LPIPS repository.
WEIGHTS = Path(os.environ.get("LPIPS_WEIGHTS", Path(__file__).parents[3] / "shared" / "data" / "weights"))
FILES = {
    "alex": WEIGHTS / "alexnet_features_torchvision.safetensors",
    "squeeze": WEIGHTS / "squeezenet1_1_torchvision.safetensors",
}
real = pytest.mark.skipif(
    not all(file.is_file() for file in FILES.values()), reason="the real weights are not available"
)
nets = pytest.mark.parametrize("net", list(NETS))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, tuple[Path, str]]:
    """Random weights in torchvision's state dicts, with the hash of each file."""
    from torchvision import models

    folder = tmp_path_factory.mktemp("weights")
    found = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for net, build in (("alex", models.alexnet), ("squeeze", models.squeezenet1_1)):
            state = build(weights=None).state_dict()
            file = folder / f"{net}.pth"
            torch.save({k: v for k, v in state.items() if k.startswith("features.")}, file)
            found[net] = file, hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def lpips(files, net: str) -> LPIPS:
    return LPIPS(net, str(files[net][0]), files[net][1])


def random_images(n: int = 2, size: int = 64, channels: int = 3, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(n, channels, size // 8, size // 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear").clamp(-1, 1)


def torchmetrics_lpips(net: str, file: Path) -> nn.Module:
    """Return torchmetrics' LPIPS with its own heads and the file's backbone; it numbers layers as torchvision does."""
    reference = _LPIPS(pretrained=True, net=net, pnet_rand=True)
    state = torch.load(file, weights_only=True)
    own = reference.net.state_dict()
    layer = 2 if net == "squeeze" else 1  # slices.0.0.weight, slice1.0.weight
    reference.net.load_state_dict({name: state["features." + ".".join(name.split(".")[layer:])] for name in own})
    return reference


@nets
@pytest.mark.parametrize("size", [64, 96])
def test_distances_match_torchmetrics(files, net, size):
    a, b = random_images(size=size), random_images(size=size, seed=1)
    expected = torchmetrics_lpips(net, files[net][0])(a, b).flatten()
    assert expected.min() > 1e-5
    torch.testing.assert_close(lpips(files, net)(a, b), expected, rtol=1e-5, atol=1e-7)


@nets
def test_a_distance_is_symmetric_and_zero_for_equal_images(files, net):
    distance, a, b = lpips(files, net), random_images(), random_images(seed=1)
    assert distance(a, a).tolist() == [0, 0]
    torch.testing.assert_close(distance(a, b), distance(b, a))
    torch.testing.assert_close(distance(a, b)[1:], distance(a[1:], b[1:]))


@nets
def test_gray_images_are_repeated_over_channels_and_values_clipped(files, net):
    distance, a, b = lpips(files, net), random_images(channels=1), random_images(channels=1, seed=1)
    torch.testing.assert_close(distance(a, b), distance(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1)))
    torch.testing.assert_close(distance(a * 3, b), distance((a * 3).clamp(-1, 1), b))
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
        distance(torch.zeros(1, 4, 64, 64), torch.zeros(1, 4, 64, 64))


@pytest.mark.parametrize(("size", "factor"), [((8, 8), 8), ((32, 48), 2), ((63, 64), 2), ((64, 64), 1), ((256, 64), 1)])
def test_small_images_are_enlarged_by_an_integer_factor(files, size, factor):
    assert upsampling_factor(*size) == factor
    distance = lpips(files, "alex")
    a, b = torch.rand(2, 1, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    large = [nn.functional.interpolate(x, scale_factor=factor, mode="bilinear") for x in (a, b)]
    torch.testing.assert_close(distance(a, b), distance(*large))
    assert distance(a, b) > 0


@pytest.mark.parametrize(("net", "name", "dim"), [("squeeze", "squeezenet", 512), ("alex", "alexnet", 256)])
def test_features_average_the_last_convolution(files, net, name, dim):
    from torchvision import models

    features = BackboneFeatures(net, str(files[net][0]), files[net][1])
    assert (features.name, features.dim) == (name, dim)
    images = (random_images() * 127.5 + 127.5).round() / 127.5 - 1  # on 8-bit values, where rounding changes nothing
    reference = (models.squeezenet1_1 if net == "squeeze" else models.alexnet)(weights=None).features.eval()
    state = torch.load(files[net][0], weights_only=True)
    reference.load_state_dict({name.removeprefix("features."): value for name, value in state.items()})
    mean, spread = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    last = (reference[:-1] if net == "alex" else reference)(((images + 1) / 2 - mean) / spread)  # no pooling after it
    torch.testing.assert_close(features(images), last.mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_the_frechet_distance_of_features_separates_distributions(files):
    metric = FrechetDistance(BackboneFeatures("alex", str(files["alex"][0]), files["alex"][1]))
    near, far = random_images(300, 8, seed=1), 0.2 * random_images(300, 8, seed=2)
    metric.update(random_images(300, 8), real=True)
    distances = []
    for fake in (near, far):
        metric.reset()
        metric.update(fake, real=False)
        distances.append(metric.compute().item())
    assert 5 * distances[0] < distances[1]


def test_both_classes_are_rebuilt_from_their_object_config(files):
    for built in (lpips(files, "squeeze"), BackboneFeatures("alex", str(files["alex"][0]), files["alex"][1])):
        again = object_config.build(object_config.describe(built))
        assert again.net == built.net
        assert torch.equal(again.backbone.layers[0].weight, built.backbone.layers[0].weight)


def test_construction_keeps_the_global_random_state_and_freezes_all_parameters(files):
    before = torch.get_rng_state()
    distance = lpips(files, "squeeze")
    assert torch.equal(before, torch.get_rng_state())
    assert not any(p.requires_grad for p in distance.parameters())


@nets
def test_another_file_is_rejected_unless_its_hash_is_given(files, net, tmp_path):
    file, sha256 = files[net]
    with pytest.raises(ValueError, match="must have the SHA-256"):
        LPIPS(net, str(file))
    copy = tmp_path / "copy.safetensors"
    save_file(torch.load(file, weights_only=True), copy)
    with pytest.raises(ValueError, match=f"does not contain the published weights of {NETS[net].name}"):
        LPIPS(net, str(copy))
    with pytest.raises(ValueError, match=f"must have the SHA-256 {sha256}, got"):
        LPIPS(net, str(copy), sha256)
    trusted = LPIPS(net, str(copy), hashlib.sha256(copy.read_bytes()).hexdigest()[:8])
    assert torch.equal(trusted.backbone.layers[0].weight, lpips(files, net).backbone.layers[0].weight)


def test_weights_of_another_network_are_rejected(files):
    with pytest.raises(ValueError, match="weights do not fit torchvision's squeezenet: pass those of this network"):
        LPIPS("squeeze", str(files["alex"][0]), files["alex"][1])


@nets
def test_a_failed_download_is_reported_with_file_and_folder(net, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub._hub_dir", None)
    monkeypatch.setattr("torch.hub.urlopen", fail)
    with pytest.raises(FileNotFoundError) as error:
        LPIPS(net)
    assert NETS[net].url.rsplit("/", 1)[1] in str(error.value)
    assert str(tmp_path / "hub" / "checkpoints") in str(error.value)
    with pytest.raises(
        FileNotFoundError,
        match=r"weights nowhere\.pth is not a file: check the path, or download https://download\.pytorch\.org",
    ):
        BackboneFeatures(net, "nowhere.pth")


def test_urls_match_torchvision():
    from torchvision import models

    assert NETS["alex"].url == models.AlexNet_Weights.DEFAULT.url
    assert NETS["squeeze"].url == models.SqueezeNet1_1_Weights.DEFAULT.url


@real
@pytest.mark.parametrize(("net", "expected"), [("alex", (0.7219, 0.1376)), ("squeeze", (0.7110, 0.1479))])
def test_distances_match_published_values(net, expected):
    from PIL import Image

    def load_image(name: str) -> torch.Tensor:
        pixels = np.array(Image.open(WEIGHTS / "lpips_check" / f"{name}.png").convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1

    distance = LPIPS(net, str(FILES[net]))
    found = [distance(load_image("ex_ref"), load_image(name)).item() for name in ("ex_p0", "ex_p1")]
    assert found == pytest.approx(expected, abs=5e-5)
