"""Requests of `predict`: seeds by list or by number, and what is refused."""

import pytest
import torch
from small_runs import small_dit

from asyncdiff import AsyncDiffusion
from asyncdiff.sampling.samplers import Sampler


def model(**settings):
    return AsyncDiffusion(small_dit(classes=0), sampler=Sampler(steps=2), image_size=4, **settings)


def test_seeds_may_be_listed():
    assert [request.seed for request in model(predict_count=3).predict_requests()] == [0, 1, 2]
    named = model(predict_seeds=[9, 2], predict_count=3)
    assert [request.seed for request in named.predict_requests()] == [9, 2]
    (batch,) = named.predict_dataloader()
    assert torch.equal(named.eval().predict_step(batch, 0), named.generate(seeds=[9, 2]))


@pytest.mark.parametrize("seeds", [[], [3, 3], [-1]])
def test_seeds_must_be_distinct_integers(seeds):
    with pytest.raises(ValueError, match="predict_seeds must be distinct integers of at least 0, got"):
        model(predict_seeds=seeds)


def test_predict_count_must_be_positive():
    with pytest.raises(ValueError, match="predict_count must be at least 1, got 0: set the number of images"):
        model(predict_count=0)
