"""benchmarks.roofline: counts that are known in closed form for a tiny network, and what is estimated from them."""

from functools import cache

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from asyncdiff.denoising import Denoiser, Velocity, training_loss
from asyncdiff.networks import DiT
from asyncdiff.noise import RectifiedFlow, Shared
from benchmarks import roofline
from benchmarks.operators import Recorder, filled, without_data
from benchmarks.roofline import (
    BANDWIDTH,
    CASES,
    GPUS,
    HOPPER,
    KERNEL,
    LEVELS,
    MAPS,
    NAIVE_MAPS,
    ONE,
    Case,
    count_evaluation,
    estimate,
    fused,
    main,
)

DIM, DEPTH, TOKENS, BATCH, FEATURES = 64, 2, 16, 4, 12
NETWORK = {
    "class_path": "asyncdiff.networks.DiT",
    "init_args": {"channels": 3, "patch_size": 2, "dim": DIM, "depth": DEPTH, "heads": 2},
}
TINY = Case(NETWORK, 3, 8, values=8)


@cache
def count_training(batch: int, levels: str, *, compiled: bool = False) -> roofline.Counts:
    """Count a step of the tiny network."""
    return roofline.count_training(TINY, batch, levels, compiled=compiled)


def forward_flops(rows: int) -> int:
    """FLOPs of an evaluation: 2 per multiplication and addition, with `rows` distinct levels."""
    tokens = BATCH * TOKENS
    block = tokens * 12 * DIM**2 + 2 * tokens * TOKENS * DIM + rows * 6 * DIM**2  # matrices, attention, modulation
    ends = tokens * 2 * FEATURES * DIM + rows * 2 * DIM**2
    return 2 * (DEPTH * block + ends)


@pytest.mark.parametrize(("levels", "rows"), [(ONE, BATCH), ("all different", BATCH * TOKENS)])
def test_operations_of_an_evaluation(levels, rows):
    counts = count_evaluation(TINY, BATCH, levels, "float32")
    embedding = 2 * rows * (256 * DIM + DIM**2)  # sinusoids of every level, and a layer
    products = sum(o.flops for o in counts.operators)
    assert products == forward_flops(rows) + embedding


def test_operations_of_a_step_are_those_that_pytorch_counts():
    network = DiT(**NETWORK["init_args"])
    x = torch.zeros(BATCH, 3, 8, 8)
    draw = Shared()(BATCH, (4, 4), generator=torch.Generator())
    with FlopCounterMode(display=False) as counter:
        loss = training_loss(Denoiser(network, RectifiedFlow()), x, x, draw, Velocity()).per_image.mean()
        loss.backward()
    # PyTorch counts no attention on CPUs: 4 n^2 d forward, 10 n^2 d backward.
    attention = 14 * DEPTH * BATCH * TOKENS**2 * DIM
    assert count_training(BATCH, ONE).flops == counter.get_total_flops() + attention


def test_bytes_of_kernels_are_those_that_they_read_and_write():
    with without_data():
        x, y = torch.empty(8, 100), torch.empty(100)
        with Recorder() as recorder:
            (x + y).to(torch.bfloat16)
            x.mul_(2)
            x.index_select(0, torch.empty(1000, dtype=torch.long))
            y.expand(50, 100) + 1
            x.view(100, 8).t()  # no kernel
    found = [(o.name, o.bytes) for o in recorder.operators]
    assert found == [
        ("add", 4 * (800 + 100 + 800)),
        ("_to_copy", 4 * 800 + 2 * 800),
        ("mul_", 2 * 4 * 800),
        ("index_select", 8 * 1000 + 4 * 800 + 4 * 1000 * 100),  # the table once, then from a cache
        ("add", 4 * (100 + 5000)),
    ]


def test_memory_counts_tensors_until_they_are_freed():
    with without_data(), Recorder() as recorder:
        x = torch.empty(1000)
        for _ in range(3):
            x = x + 1  # the sum exists together with its input
        assert (recorder.live, recorder.peak) == (4000, 8000)
        recorder.start()
        del x
        assert (recorder.live, recorder.peak) == (0, 4000)


def test_memory_of_a_step_contains_weights_gradients_averages_and_activations():
    parameters = sum(p.numel() for p in TINY.build().parameters())
    few, many = count_training(BATCH, MAPS), count_training(128, MAPS)
    assert few.base == many.base == 20 * parameters  # float32: weight, gradient, EMA, two of AdamW
    per_image = (many.peak - few.base) / 128
    # At least the inputs of all matrix products and attention in bfloat16, and the tokens between blocks in float32.
    assert (
        2 * DEPTH * TOKENS * DIM * (1 + 3 + 1 + 1 + 4 + 4) < per_image < 6 * DEPTH * TOKENS * DIM * (1 + 3 + 1 + 1 + 8)
    )


def test_asyncdiff_takes_the_way_that_it_takes_on_a_gpu_and_pytorch_sees_the_cpu():
    """On GPUs, gradients of modulations are summed by matrix products, never by atomic additions."""
    network = TINY.build()
    assert {p.device.type for p in network.parameters()} == {"meta"}
    with without_data():
        assert {p.device.type for p in filled(network).parameters()} == {"cpu"}
        assert network.grid((8, 8)) == (4, 4)
    for compiled in (False, True):
        counts = count_training(BATCH, MAPS, compiled=compiled)
        assert not [o for o in counts.operators if o.atomics and o.name != "embedding_dense_backward"]
    assert torch.autocast("cpu").device == "cpu"  # everything is as before
    assert torch.zeros(1).device.type == "cpu"


def test_naive_maps_cost_half_as_many_operations_again():
    flops = {levels: count_training(BATCH, levels).flops for levels in LEVELS["train"]}
    modulation = 3 * 2 * (DEPTH * 6 + 2) * DIM**2 * (BATCH * TOKENS - BATCH)
    assert flops[NAIVE_MAPS] - flops[ONE] == pytest.approx(modulation, rel=0.3)


def test_fusion_moves_fewer_bytes_with_fewer_kernels_and_keeps_the_operations():
    operators = count_training(BATCH, MAPS, compiled=True).operators
    kernels = list(fused(operators))
    assert len(kernels) < 0.7 * len(operators)
    assert sum(k.bytes for k in kernels) < 0.9 * sum(o.bytes for o in operators)
    assert sum(k.flops for k in kernels) == sum(o.flops for o in operators)


def test_a_fused_kernel_reads_what_others_wrote_and_writes_what_others_read():
    with without_data(), Recorder() as recorder:
        x, w = torch.empty(100, 100), torch.empty(100, 100)
        recorder.start()
        recorder.fusible = True
        y = ((x + 1) * 2 - x) @ w
        y.exp().sin()
    chain, product, end = fused(recorder.operators)
    assert (chain.bytes, product.bytes) == (2 * 40000, 3 * 40000)  # x once, and the factor of the product
    assert end.bytes == 40000  # nobody reads the result


def test_estimates_follow_from_counts():
    with without_data(), Recorder() as recorder:
        x = torch.empty(10**9, dtype=torch.bfloat16)
        x.add_(1)
        torch.empty(2**13, 2**13, dtype=torch.bfloat16) @ torch.empty(2**13, 2**13, dtype=torch.bfloat16)
        torch.empty(1).add_(1)
    gpu = GPUS["h200"]
    needed = 2 * (2**13) ** 3
    result = estimate(recorder.operators, gpu, 8, needed, host=0)
    expected = 4e9 / (BANDWIDTH * 4.8e12) + needed / (0.65 * HOPPER["bf16"]) + KERNEL
    assert result.seconds == pytest.approx(expected)
    assert result.images_per_second == pytest.approx(8 / expected)
    assert result.mfu == pytest.approx(needed / expected / HOPPER["bf16"])
    assert estimate(recorder.operators, gpu, 8, needed, host=1.0).seconds == 3  # the host is slower than the device


@pytest.mark.parametrize("what", LEVELS)
def test_the_command_prints_a_table(what, monkeypatch, capsys):
    monkeypatch.setattr(roofline, "CASES", {"tiny": lambda: TINY})
    main([what, "tiny", "--batch", "4", "--gpu", "h100", "--levels", ONE])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Estimates for one H100, from operators counted without it."
    assert {line.count("|") for line in lines[2:]} == {16}
    assert lines[-1].startswith("| tiny | 4 | one per image | ")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_case_can_be_counted(name):
    counts = count_evaluation(CASES[name](), 1, ONE, "bf16")
    assert counts.flops > 1e9
