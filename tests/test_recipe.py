import pytest
import torch

from asyncdiff import recipe
from asyncdiff.fields import PerlinField
from asyncdiff.levels import AlongPath, CleanContext, Independent, SumBeta
from asyncdiff.orders import Given
from asyncdiff.paths import AsyncPatch, Ordered
from asyncdiff.sampling import Sampler
from asyncdiff.solvers import Ddim


def test_objects_survive_the_way_through_plain_containers():
    sampler = Sampler(AsyncPatch(spread=0.3), Ddim(0.25), steps=7)
    again = recipe.build(recipe.describe(sampler))
    assert recipe.describe(again) == recipe.describe(sampler)
    assert again.path.spread == 0.3
    assert again.solver.stochasticity == 0.25


def test_a_description_reads_like_the_yaml_files():
    described = recipe.describe(AlongPath())
    assert described["class_path"] == "asyncdiff.levels.AlongPath"
    assert described["init_args"]["path"]["init_args"]["spread"] == 1.0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (AlongPath(), "AlongPath(AsyncPatch())"),
        (AlongPath(AsyncPatch(0.5, PerlinField())), "AlongPath(AsyncPatch(spread=0.5, field=PerlinField()))"),
        (CleanContext(SumBeta(2.0), 0.25), "CleanContext(SumBeta(sharpness=2), probability=0.25)"),
        (Ordered(Given([[0, 1]]), 0.5), "Ordered(Given([[0, 1]]), overlap=0.5)"),
        (Independent(), "Independent()"),
        ([1, 2.5, None], "[1, 2.5, None]"),
    ],
)
def test_the_call_that_makes_an_object(value, text):
    assert recipe.spell(value) == text


def test_numbers_lists_and_plain_dictionaries_pass():
    value = {"a": [1, 2.5, None], "b": {"c": "d"}}
    assert recipe.build(recipe.describe(value)) == value


def test_foreign_classes_are_not_imported_unless_allowed():
    with pytest.raises(ValueError, match="one of the packages asyncdiff, got subprocess.Popen"):
        recipe.build({"class_path": "subprocess.Popen", "init_args": {"args": ["true"]}})
    assert recipe.build({"class_path": "fractions.Fraction", "init_args": {}}, allow=["fractions"]) == 0


def test_only_classes_are_called():
    with pytest.raises(ValueError, match="must name a class of its package, got asyncdiff.recipe.resolve"):
        recipe.build({"class_path": "asyncdiff.recipe.resolve", "init_args": {}})


class Forgetful:
    def __init__(self, size: int):
        self.other = size


def test_an_argument_that_is_not_kept_is_refused():
    with pytest.raises(TypeError, match="Forgetful must keep its constructor argument 'size'"):
        recipe.describe(Forgetful(3))


class Catchall:
    def __init__(self, **options: int):
        self.options = options


def test_arguments_without_a_name_are_refused():
    with pytest.raises(TypeError, match=r"Catchall must have named constructor arguments only, got \*\*options"):
        recipe.describe(Catchall(size=3))


def test_what_was_compiled_in_a_wrapper_is_refused():
    network = torch.compile(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"compile in place, network.compile\(\)"):
        recipe.describe(network)


def test_re_exported_foreign_classes_are_refused():
    with pytest.raises(ValueError, match="a class of its package, got asyncdiff.callbacks.throughput.Trainer"):
        recipe.build({"class_path": "asyncdiff.callbacks.throughput.Trainer", "init_args": {}})
