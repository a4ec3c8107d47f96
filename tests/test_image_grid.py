"""Grids of images equal those of torchvision."""

import pytest
import torch
from torchvision.utils import make_grid

from asyncdiff.image_grid import image_grid


@pytest.mark.parametrize(("count", "columns"), [(2, 2), (3, 5), (7, 3), (6, 1)])
@pytest.mark.parametrize(("dtype", "gap"), [(torch.uint8, 4), (torch.float32, 2)])
def test_a_grid_of_equal_images_is_that_of_torchvision(count, columns, dtype, gap):
    tiles = torch.randint(0, 255, (count, 3, 5, 7), generator=torch.Generator().manual_seed(0)).to(dtype)
    grid = image_grid(list(tiles), columns, gap=gap, background=255)
    assert torch.equal(grid, make_grid(tiles, nrow=columns, padding=gap, pad_value=255))


def test_smaller_images_and_a_single_one_are_surrounded_by_the_background():
    small, large = torch.zeros(1, 2, 3), torch.ones(1, 4, 1)
    grid = image_grid([small, large], 2, gap=1, background=9)
    assert grid.shape == (1, 4 + 2, 3 + 3 + 3)
    assert torch.equal(grid[:, 1:3, 1:4], small)
    assert torch.equal(grid[:, 1:5, 5:6], large)
    assert (grid == 9).sum() == grid.numel() - 6 - 4
    assert image_grid([large], 3, gap=2, background=0).shape == (1, 4 + 4, 1 + 4)
