import pytest
import torch

from asyncdiff.checkpoints import object_config
from asyncdiff.noise.fields import PerlinField
from asyncdiff.noise.level_samplers import AlongPath, Independent, SumBeta, WithCleanPatches
from asyncdiff.noise.orders import CustomOrder
from asyncdiff.noise.paths import AsyncPatch, Ordered
from asyncdiff.sampling.samplers import Sampler
from asyncdiff.sampling.solvers import DDIM


def test_objects_survive_conversion_to_plain_dicts_and_back():
    sampler = Sampler(AsyncPatch(spread=0.3), DDIM(0.25), steps=7)
    again = object_config.build(object_config.describe(sampler))
    assert object_config.describe(again) == object_config.describe(sampler)
    assert again.path.spread == 0.3
    assert again.solver.stochasticity == 0.25


def test_a_description_reads_like_the_yaml_files():
    described = object_config.describe(AlongPath())
    assert described["class_path"] == "asyncdiff.noise.AlongPath"
    assert described["init_args"]["path"]["init_args"]["spread"] == 1.0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (AlongPath(), "AlongPath(AsyncPatch())"),
        (AlongPath(AsyncPatch(0.5, PerlinField())), "AlongPath(AsyncPatch(spread=0.5, field=PerlinField()))"),
        (WithCleanPatches(SumBeta(2.0), 0.25), "WithCleanPatches(SumBeta(sharpness=2), probability=0.25)"),
        (Ordered(CustomOrder([[0, 1]]), 0.5), "Ordered(CustomOrder([[0, 1]]), overlap=0.5)"),
        (Independent(), "Independent()"),
        ([1, 2.5, None], "[1, 2.5, None]"),
    ],
)
def test_constructor_calls_are_formatted_without_defaults(value, text):
    assert object_config.format_call(value) == text


def test_numbers_lists_and_plain_dictionaries_are_unchanged():
    value = {"a": [1, 2.5, None], "b": {"c": "d"}}
    assert object_config.build(object_config.describe(value)) == value
    assert object_config.describe({"seeds": range(2, 4)}) == {"seeds": [2, 3]}  # YAML has no ranges


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("subprocess.Popen", r"is not in the allowed packages \(asyncdiff\): if you trust it, pass allow="),
        ("asyncdiff.checkpoints.object_config.resolve", "does not name a class of the package asyncdiff"),
        ("asyncdiff.callbacks.throughput.Trainer", "does not name a class of the package asyncdiff"),  # Lightning's
        ("asyncdiff.cli.jobs.serve.Planner", "belongs to a command, not to a model: do not use this file"),
    ],
)
def test_only_classes_of_allowed_packages_are_called(path, message):
    with pytest.raises(ValueError, match=f"class_path {path} {message}"):
        object_config.build({"class_path": path, "init_args": {"args": ["true"]}})


def test_classes_of_other_packages_are_allowed_by_name():
    assert object_config.build({"class_path": "fractions.Fraction", "init_args": {}}, allow=["fractions"]) == 0


class Forgetful:
    def __init__(self, size: int):
        self.other = size


class Catchall:
    def __init__(self, **options: int):
        self.options = options


def test_classes_that_cannot_be_described_are_refused():
    with pytest.raises(TypeError, match="Forgetful must store its constructor argument 'size'"):
        object_config.describe(Forgetful(3))
    with pytest.raises(TypeError, match=r"all constructor arguments of Catchall must have names, got \*\*options"):
        object_config.describe(Catchall(size=3))
    with pytest.raises(TypeError, match="a tensor cannot be described in a checkpoint: pass numbers or lists"):
        object_config.describe([torch.zeros(1)])


@pytest.mark.slow
def test_a_compiled_wrapper_is_refused():
    network = torch.compile(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"compile it in place with network.compile\(\)"):
        object_config.describe(network)
