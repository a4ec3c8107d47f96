import hashlib
import json
import sys

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from asyncdiff.checkpoints.compare import differences
from asyncdiff.evaluation import Features, FrechetDistance, InceptionFeatures, TrainedClassifier, as_features
from asyncdiff.evaluation.features.base import to_uint8


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], torch.tensor(data.target)[order]
    train = [{"image": x, "label": y} for x, y in zip(images[:1437].split(100), labels[:1437].split(100), strict=True)]
    return train, images[1437:], labels[1437:]


@pytest.fixture(scope="module")
def trained(digits):
    classifier = TrainedClassifier(1, 10, name="digits_classifier")
    classifier.prepare(iter(digits[0]))
    return classifier


def tiny(**options) -> TrainedClassifier:
    return TrainedClassifier(3, 2, **{"width": 8, "dim": 16, "epochs": 2, **options})


def two_classes(n: int = 80, size: int = 32) -> list[dict[str, torch.Tensor]]:
    labels = torch.arange(n) % 2
    noise = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))
    return [{"image": (0.3 * noise + labels[:, None, None, None] - 0.5).clamp(-1, 1), "label": labels}]


def test_uint8_is_exact_at_every_level_rounds_to_the_nearest_and_clips():
    levels = torch.arange(256).reshape(1, 1, 16, 16)
    assert torch.equal(to_uint8(levels / 127.5 - 1), levels.to(torch.uint8))
    images = torch.tensor([-1.5, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 0.9999, 1.5]).reshape(1, 1, 1, 5)
    assert to_uint8(images).flatten().tolist() == [0, 0, 1, 255, 255]


def test_classifier_is_accurate_on_held_out_digits_and_its_features_have_full_rank(trained, digits):
    _, images, labels = digits
    assert trained.name == "digits_classifier"
    assert trained.accuracy(images, labels) >= 0.97
    features = trained(images)
    assert features.shape == (360, 64)
    variances = torch.linalg.eigvalsh(features.double().T.cov())
    assert variances[0] > 1e-6 * variances[-1]


def test_classifier_features_separate_blurred_images_from_real_ones(trained, digits):
    _, images, _ = digits
    distances = []
    for fake in (images[180:], nn.functional.avg_pool2d(images[180:], 3, 1, padding=1)):
        metric = FrechetDistance(trained)
        metric.update(images[:180], real=True)
        metric.update(fake, real=False)
        distances.append(metric.compute().item())
    assert distances[1] > 4 * distances[0]


@pytest.mark.parametrize("size", [5, 8, 32])
def test_classifier_accepts_color_images_of_any_size(size):
    classifier = tiny(epochs=20)
    batches = two_classes(size=size)
    classifier.prepare(batches)
    assert classifier(batches[0]["image"]).shape == (80, 16)
    assert classifier.accuracy(batches[0]["image"], batches[0]["label"]) == 1.0


def test_classifier_depends_only_on_its_seed():
    results = []
    for seed, global_seed in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(global_seed)
        classifier = tiny(seed=seed)
        torch.rand(global_seed)
        with torch.inference_mode():  # as in a validation hook
            classifier.prepare(two_classes())
        results.append(classifier(two_classes()[0]["image"]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_classifier_is_frozen_restored_by_its_state_dict_and_keeps_the_global_random_state():
    class Loader:
        def __iter__(self):
            torch.rand(3)  # a DataLoader draws a base seed here
            yield from two_classes()

    random_state, classifier = torch.get_rng_state(), tiny()
    before = classifier.fingerprint()
    classifier.prepare(Loader())
    assert torch.equal(random_state, torch.get_rng_state())
    assert not classifier.training
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    copy = tiny(seed=3)
    copy.load_state_dict(classifier.state_dict())
    images = two_classes()[0]["image"]
    assert torch.equal(copy(images), classifier(images))
    assert before["class"] == "asyncdiff.evaluation.TrainedClassifier"
    assert differences(before, json.loads(json.dumps(classifier.fingerprint()))) == ["weights"]
    assert copy.fingerprint() == classifier.fingerprint()


def test_classifier_rejects_use_before_training_and_invalid_batches():
    with pytest.raises(RuntimeError, match="call prepare"):
        tiny()(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="train_batches is empty"):
        tiny().prepare([])
    with pytest.raises(ValueError, match=r"at least 5x5 pixels, got \(4, 4\)"):
        tiny().prepare(two_classes(size=4))


def test_any_module_can_be_wrapped_as_features():
    features = as_features(nn.Flatten())
    assert features.name == "flatten"
    with pytest.raises(ValueError, match="as_features"):
        FrechetDistance(features)
    features.prepare(two_classes(size=5))
    assert features.dim == 75
    named = as_features(nn.Flatten(), name="pixels", dim=12)
    named.prepare([])
    assert isinstance(named, Features)
    assert (named.name, named.dim) == ("pixels", 12)
    assert named.fingerprint()["input"] == {"module": "torch.nn.modules.flatten.Flatten"}
    assert named.fingerprint()["weights"] == hashlib.sha256().hexdigest()
    assert as_features(named) is named
    with pytest.raises(ValueError, match="_Wrapped has its own name and dim, got name 'other' and dim None"):
        as_features(named, name="other")


def test_inception_reports_the_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match="pip install torch-fidelity"):
        InceptionFeatures()


@pytest.mark.slow
def test_inception_from_a_local_file_matches_torch_fidelity(tmp_path):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {})
        reference = FeatureExtractorInceptionV3("reference", ["2048", "logits_unbiased"])
    path = tmp_path / "random.pth"
    torch.save(reference.state_dict(), path)
    with pytest.raises(ValueError, match="must have the SHA-256 6726825d, got"):
        InceptionFeatures(str(path))
    before = torch.get_rng_state()
    features = InceptionFeatures(str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert torch.equal(before, torch.get_rng_state())
    assert (features.name, features.dim) == ("inception", 2048)

    levels = torch.randint(256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(features(levels / 127.5 - 1), reference(levels.to(torch.uint8))[0])
        scores = reference(levels.to(torch.uint8))[1]
        torch.testing.assert_close(features.logits(levels / 127.5 - 1), scores, rtol=1e-5, atol=1e-6)
        gray = levels[:, :1] / 127.5 - 1
        assert torch.equal(features(gray), features(gray.repeat(1, 3, 1, 1)))
    assert features.fingerprint()["input"]["size"] == [299, 299]
    assert features.fingerprint()["weights"] != TrainedClassifier(1, 2).fingerprint()["weights"]
    with pytest.raises(ValueError, match="1 or 3 channels, got 4: decode"):
        features(torch.zeros(1, 4, 8, 8))
