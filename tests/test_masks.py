import pytest

from asyncdiff.masks import Extreme, Half, Square


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
def test_half_is_known(side):
    known = Half(side)(8, 6)
    assert known.sum() == 24
    corner = {"left": (0, 0), "right": (0, 5), "top": (0, 0), "bottom": (7, 0)}[side]
    assert known[corner]


def test_opposite_halves_make_a_whole():
    assert (Half("left")(8, 8) ^ Half("right")(8, 8)).all()
    assert (Half("top")(8, 8) ^ Half("bottom")(8, 8)).all()


@pytest.mark.parametrize("size", [(8, 8), (64, 32), (7, 9)])
def test_extreme_is_the_complement_of_square(size):
    assert (Square()(*size) ^ Extreme()(*size)).all()


def test_square_hides_a_centred_quarter():
    known = Square()(8, 8)
    assert (~known).sum() == 16
    assert not known[2:6, 2:6].any()


def test_bad_arguments_are_refused():
    with pytest.raises((ValueError, TypeError), match="middle"):  # in tests, the annotation refuses it first
        Half("middle")
    with pytest.raises(ValueError, match="fraction must lie in"):
        Square(1.0)
