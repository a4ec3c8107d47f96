"""Two processes under DDP and FSDP2: the same training, and checkpoints that load anywhere."""

from pathlib import Path
from unittest import mock

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy
from processes import run_script
from torch.distributed.device_mesh import DeviceMesh

from asyncdiff import AsyncDiffusion
from asyncdiff.checkpoints import read_checkpoint
from asyncdiff.checkpoints.object_config import build, describe, named_packages
from asyncdiff.networks.dit import DiT, DiTBlock
from asyncdiff.networks.unet import UNet
from asyncdiff.networks.unet_blocks import Resample, ResidualBlock
from asyncdiff.training import fsdp2
from asyncdiff.training.fsdp2 import FullyShard, full_tensors, local_shard, shard_like

STRATEGIES = ("ddp", "fully_shard")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    run_script("fsdp2_run.py", folder)
    return {strategy: folder / strategy for strategy in STRATEGIES}


def checkpoint(folder: Path, name: str, step: int):
    return read_checkpoint(folder / name / f"step={step}.ckpt")


def averages(held):
    return next(iter(held["ema"].values()))["weights"]


def furthest(a, b):
    """Return the largest difference, without the biases of keys: attention ignores them, their gradient is rounding."""
    assert a.keys() == b.keys()
    return max((free(name, a[name].float()) - free(name, b[name].float())).abs().max().item() for name in a)


def free(name, weight):
    """Return a weight without the third of an attention's bias that belongs to the keys."""
    queries, keys, values = weight.chunk(3) if name.endswith("qkv.bias") else (weight, None, None)
    return weight if keys is None else torch.cat([queries, values])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dit", "unet"])
def test_sharding_trains_the_same_weights_and_ema(runs, name):
    a, b = (checkpoint(runs[strategy], name, 4) for strategy in STRATEGIES)
    start = checkpoint(runs["ddp"], name, 2)["state_dict"]
    assert furthest(start, a["state_dict"]) > 1e-3  # it moved
    # Sharded convolutions have another memory layout and sum in another order. AdamW divides by the gradient's size:
    # where that is zero up to rounding, a weight moves by a fraction of the learning rate, 1e-2.
    bound = {"dit": 1e-6, "unet": 1e-4}[name]
    assert furthest(a["state_dict"], b["state_dict"]) < bound
    assert furthest(averages(a), averages(b)) < bound
    assert a["recipe"] == b["recipe"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dit", "unet"])
def test_sharding_gives_the_same_metrics(runs, name):
    a, b = (torch.load(runs[strategy] / "results.pt", weights_only=True)[name] for strategy in STRATEGIES)
    assert {"train/loss", "train/gradient_norm", "val/loss", "frechet/pixels", "bits_per_dim/synchronous"} <= set(a)
    assert a["flops"] > 1e6
    for tag in a:
        assert b[tag] == pytest.approx(a[tag], rel=1e-4, abs=1e-4), tag


def distance(a, b):
    """Return the mean absolute difference."""
    return torch.cat([(free(name, a[name]) - free(name, b[name])).flatten() for name in a]).abs().mean().item()


@pytest.mark.slow
def test_blocks_gathered_in_bfloat16_have_the_gradients_of_autocast(runs):
    a, b = (torch.load(runs[strategy] / "results.pt", weights_only=True) for strategy in STRATEGIES)
    assert b["gradient_difference"] == 0
    exact, half = ("torch.float32", "torch.bfloat16")
    assert a["types"] == {"residual stream": exact, "embedding": exact, "block": exact}
    assert b["types"] == {"residual stream": exact, "embedding": exact, "block": half}


@pytest.mark.slow
def test_sharding_in_bfloat16_trains_the_same_up_to_its_rounding(runs):
    """Once gradients differ by a rounding, AdamW makes more of it: by less than bfloat16 differs from float32."""
    exact, a = (checkpoint(runs["ddp"], name, 4) for name in ("dit", "bf16"))
    b = checkpoint(runs["fully_shard"], "bf16", 4)
    assert {weight.dtype for weight in b["state_dict"].values()} == {torch.float32}
    assert distance(a["state_dict"], b["state_dict"]) < distance(a["state_dict"], exact["state_dict"]) / 2
    assert distance(averages(a), averages(b)) < distance(averages(a), averages(exact)) / 2
    assert b["precision"] == "bf16-mixed"
    a, b = (torch.load(runs[strategy] / "results.pt", weights_only=True)["bf16"] for strategy in STRATEGIES)
    for tag in a:
        assert b[tag] == pytest.approx(a[tag], rel=2e-3, abs=1e-3), tag


@pytest.mark.slow
def test_processes_may_have_unequal_numbers_of_batches(runs):
    a, b = (torch.load(runs[strategy] / "results.pt", weights_only=True)["uneven"] for strategy in STRATEGIES)
    assert set(a) >= {"val/loss", "val/error_constant"}
    assert b == pytest.approx(a, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_resumed_run_ends_like_an_uninterrupted_one(runs, strategy):
    a, b = (checkpoint(runs[strategy], name, 4) for name in ("dit", "resumed"))
    assert furthest(a["state_dict"], b["state_dict"]) == 0
    assert furthest(averages(a), averages(b)) == 0
    assert a["loops"] == b["loops"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_sharded_run_s_checkpoint_loads_in_one_process_and_generates(runs, strategy):
    path = runs[strategy] / "dit" / "step=4.ckpt"
    model = AsyncDiffusion.load_from_checkpoint(path, weights="ema")
    assert type(model.network) is DiT
    assert not any(hasattr(p, "device_mesh") for p in model.parameters())
    own = {name: p.detach() for name, p in model.named_parameters()}
    held = averages(read_checkpoint(path))
    assert furthest(own, held) == 0
    assert model.generate([0, 1], [1, 2]).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_training_starts_from_pretrained_weights(runs, strategy):
    before, after = averages(checkpoint(runs[strategy], "dit", 4)), checkpoint(runs[strategy], "tuned", 1)
    # One step of a learning rate in its warm-up, at most 1e-2 / 2 for a weight.
    assert 0 < furthest(before, {n: after["state_dict"][n] for n in before}) <= 5e-3 * 1.01


def test_sharded_checkpoints_are_refused_with_a_remedy(tmp_path):
    (tmp_path / "run.ckpt").mkdir()
    (tmp_path / "run.ckpt" / ".metadata").touch()
    with pytest.raises(
        ValueError, match=r"run.ckpt is a folder of shards, not a single file: .*consolidate_checkpoint.*fully_shard"
    ):
        read_checkpoint(tmp_path / "run.ckpt")


def test_fsdp_is_refused_before_it_fails():
    model = AsyncDiffusion(DiT(channels=1, patch_size=2, dim=16, depth=1, heads=2), image_size=8)
    model._trainer = mock.Mock(spec=Trainer, strategy=FSDPStrategy(), precision="32-true")
    expected = r"trainer.strategy FSDPStrategy is not supported, .*use --trainer.strategy fully_shard"
    with pytest.raises(ValueError, match=expected):
        model.configure_model()


def test_all_processes_form_one_group():
    strategy = FullyShard()
    assert strategy._tensor_parallel_size == 1
    assert not strategy._save_distributed_checkpoint


@pytest.mark.parametrize(
    "network",
    [DiT(channels=1, patch_size=2, dim=16, depth=2, heads=2), UNet(1, 8, (1, 2, 2), 2, head_dim=8)],
    ids=["dit", "unet"],
)
def test_every_block_is_gathered_by_itself(network, monkeypatch):
    """Also those of the U-Net, which are in lists of lists; the network gathers only what is in no block."""
    units = []
    monkeypatch.setattr(fsdp2, "fully_shard", lambda module, **_: units.append(module))
    fsdp2.shard(network, mock.Mock(spec=DeviceMesh, device_type="cuda"))
    *blocks, outermost = units
    assert outermost is network
    assert set(blocks) == {m for m in network.modules() if isinstance(m, (DiTBlock, ResidualBlock, Resample))}


def test_tensors_that_are_not_sharded_are_unchanged():
    weight = torch.arange(6.0)
    assert local_shard(weight) is weight
    assert torch.equal(full_tensors({"a": weight}, {"a": weight})["a"], weight)
    assert torch.equal(shard_like(weight, weight), weight)


def test_an_object_config_names_its_packages():
    described = describe(DiT(channels=1, patch_size=2, dim=16, depth=1, heads=2))
    assert named_packages(described) == {"asyncdiff"}
    assert named_packages([{"class_path": "mine.Net", "init_args": {"inner": described}}]) == {"mine", "asyncdiff"}
    assert isinstance(build(described), DiT)
