import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from asyncdiff.checkpoints import object_config
from asyncdiff.evaluation import FrechetDistance, InceptionFeatures
from asyncdiff.evaluation.features.lpips import LPIPS, NETS, BackboneFeatures, upsampling_factor

# Real weights: alexnet_features_torchvision.safetensors, squeezenet1_1_torchvision.safetensors, and lpips_check/*.png
# of the LPIPS repository.
WEIGHTS = Path(os.environ.get("LPIPS_WEIGHTS", Path(__file__).parents[3] / "shared" / "data" / "weights"))
FILES = {
    "alex": WEIGHTS / "alexnet_features_torchvision.safetensors",
    "squeeze": WEIGHTS / "squeezenet1_1_torchvision.safetensors",
}
TAPS = {"alex": (1, 4, 7, 9, 11), "squeeze": (1, 4, 7, 9, 10, 11, 12)}  # layers that LPIPS compares
nets = pytest.mark.parametrize("net", list(NETS))


class Case(NamedTuple):
    layers: nn.Sequential
    file: Path
    sha256: str
    distance: LPIPS
    features: BackboneFeatures

    def activations(self, images: torch.Tensor) -> list[torch.Tensor]:
        mean, spread = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
        x, found = ((images + 1) / 2 - mean) / spread, []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in TAPS[self.distance.net]:
                found.append(x)
        return found


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Callable[[str], Case]:
    """Networks with random weights, from files in the format of torchvision."""
    from torchvision import models

    folder, cases = tmp_path_factory.mktemp("weights"), {}
    for net, build in (("alex", models.alexnet), ("squeeze", models.squeezenet1_1)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = build(weights=None).features.eval()
        file = folder / f"{net}.pth"
        torch.save(layers.state_dict(prefix="features."), file)
        arguments = net, str(file), hashlib.sha256(file.read_bytes()).hexdigest()
        cases[net] = Case(layers, file, arguments[2], LPIPS(*arguments), BackboneFeatures(*arguments))
    return cases.get


def random_images(n: int = 2, size: int = 64, channels: int = 3, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(n, channels, size // 8, size // 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear").clamp(-1, 1)


@nets
def test_distances_and_features_match_their_definitions_on_the_network_of_torchvision(case, net):
    from torchmetrics.functional.image import lpips

    given = case(net)
    heads = torch.load(Path(lpips.__file__).parent / "lpips_models" / f"{net}.pth", "cpu").values()
    images = torch.stack([random_images(size=96), random_images(size=96, seed=1)])
    images = (images * 127.5 + 127.5).round() / 127.5 - 1  # 8-bit values, which the features do not round
    expected = torch.zeros(2)
    for a, b, head in zip(*map(given.activations, images), heads, strict=True):
        a, b = (x / x.square().sum(1, keepdim=True).add(1e-8).sqrt() for x in (a, b))
        expected += ((a - b).square() * head[0]).sum(1).mean((1, 2))
    assert expected.min() > 1e-5
    torch.testing.assert_close(given.distance(*images), expected, rtol=1e-5, atol=1e-7)
    last = given.activations(images[0])[-1]
    torch.testing.assert_close(given.features(images[0]), last.mean((2, 3)), rtol=1e-4, atol=1e-5)
    assert (given.features.name, given.features.dim) == {"squeeze": ("squeezenet", 512), "alex": ("alexnet", 256)}[net]
    assert given.features(images[0]).shape == (2, given.features.dim)


@nets
def test_a_distance_is_symmetric_and_zero_for_equal_images(case, net):
    distance, a, b = case(net).distance, random_images(), random_images(seed=1)
    assert distance(a, a).tolist() == [0, 0]
    torch.testing.assert_close(distance(a, b), distance(b, a))
    torch.testing.assert_close(distance(a, b)[1:], distance(a[1:], b[1:]))
    torch.testing.assert_close(distance.train()(a, b), distance(a, b))  # no dropout


@nets
def test_gray_images_are_repeated_over_channels_and_values_clipped(case, net):
    distance, a, b = case(net).distance, random_images(channels=1), random_images(channels=1, seed=1)
    torch.testing.assert_close(distance(a, b), distance(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1)))
    torch.testing.assert_close(distance(a * 3, b), distance((a * 3).clamp(-1, 1), b))
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
        distance(torch.zeros(1, 4, 64, 64), torch.zeros(1, 4, 64, 64))


@pytest.mark.parametrize(("size", "factor"), [((8, 8), 8), ((32, 48), 2), ((63, 64), 2), ((64, 64), 1), ((256, 64), 1)])
def test_small_images_are_enlarged_by_an_integer_factor(case, size, factor):
    assert upsampling_factor(*size) == factor
    distance = case("alex").distance
    a, b = torch.rand(2, 1, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    large = [nn.functional.interpolate(x, scale_factor=factor, mode="bilinear") for x in (a, b)]
    torch.testing.assert_close(distance(a, b), distance(*large))
    assert distance(a, b) > 0


def test_the_frechet_distance_of_features_separates_distributions(case):
    metric = FrechetDistance(case("alex").features)
    near, far = random_images(300, 8, seed=1), 0.2 * random_images(300, 8, seed=2)
    metric.update(random_images(300, 8), real=True)
    distances = []
    for fake in (near, far):
        metric.reset()
        metric.update(fake, real=False)
        distances.append(metric.compute().item())
    assert 5 * distances[0] < distances[1]


def test_both_classes_are_rebuilt_from_their_object_config(case):
    """The global random state is kept, and all parameters are frozen."""
    before = torch.get_rng_state()
    for built in (case("squeeze").distance, case("alex").features):
        again = object_config.build(object_config.describe(built))
        assert again.net == built.net
        torch.testing.assert_close(again.state_dict(), built.state_dict(), rtol=0, atol=0)
        assert not any(p.requires_grad for p in again.parameters())
    assert torch.equal(before, torch.get_rng_state())


@nets
def test_another_file_is_rejected_unless_its_hash_is_given(case, net, tmp_path):
    file, sha256, copy = case(net).file, case(net).sha256, tmp_path / "copy.safetensors"
    with pytest.raises(ValueError, match="must have the SHA-256"):
        LPIPS(net, str(file))
    save_file(torch.load(file, weights_only=True), copy)
    with pytest.raises(ValueError, match=f"does not contain the published weights of {NETS[net].name}"):
        LPIPS(net, str(copy))
    with pytest.raises(ValueError, match=f"must have the SHA-256 {sha256}, got"):
        LPIPS(net, str(copy), sha256)
    trusted = BackboneFeatures(net, str(copy), hashlib.sha256(copy.read_bytes()).hexdigest()[:8])
    assert trusted.fingerprint() == case(net).features.fingerprint()


def test_weights_of_another_network_are_rejected(case):
    with pytest.raises(ValueError, match="weights do not fit torchvision's squeezenet: pass those of this network"):
        LPIPS("squeeze", str(case("alex").file), case("alex").sha256)


@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [(LPIPS, {"net": net}, NETS[net].url.rsplit("/", 1)[1]) for net in NETS]
    + [(InceptionFeatures, {}, "weights-inception-2015-12-05-6726825d.pth")],
)
def test_a_failed_download_is_reported_with_file_and_folder(kind, options, name, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub._hub_dir", None)
    monkeypatch.setattr("torch.hub.urlopen", fail)
    with pytest.raises(FileNotFoundError, match=r"cannot be downloaded: no network; put ") as error:
        kind(**options)
    assert f"put {name} into {tmp_path / 'hub' / 'checkpoints'} " in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"weights nowhere\.pth is not a file: check the path, or download h"):
        kind(**options, weights="nowhere.pth")


def test_urls_match_torchvision():
    from torchvision import models

    assert NETS["alex"].url == models.AlexNet_Weights.DEFAULT.url
    assert NETS["squeeze"].url == models.SqueezeNet1_1_Weights.DEFAULT.url


@pytest.mark.skipif(not all(file.is_file() for file in FILES.values()), reason="the real weights are not available")
@pytest.mark.parametrize(
    ("net", "expected", "fingerprint"),
    [("alex", (0.7219, 0.1376), "fcfd875d28a2e68e"), ("squeeze", (0.7110, 0.1479), "8cce49d8f924cfac")],
)
def test_distances_match_published_values_and_fingerprints_release_0_1_0(net, expected, fingerprint):
    def load_image(name: str) -> torch.Tensor:
        pixels = np.array(Image.open(WEIGHTS / "lpips_check" / f"{name}.png").convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1

    distance = LPIPS(net, str(FILES[net]))
    found = [distance(load_image("ex_ref"), load_image(name)).item() for name in ("ex_p0", "ex_p1")]
    assert found == pytest.approx(expected, abs=5e-5)
    assert BackboneFeatures(net, str(FILES[net])).fingerprint()["weights"].startswith(fingerprint)
