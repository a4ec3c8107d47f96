from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from small_runs import quiet_trainer
from torch import Tensor, nn

from datamodules.base import Batch, ImageDataModule, ImageDataset, InMemoryImages, Split
from datamodules.order import ResumableLoader, ShuffledShard, sample_keys

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in ("Be aware that when using `ckpt_path`", "You requested to overfit", "`isinstance", "`max_epochs` was")
]

Seen = list[tuple[list[int], list[int]]]
WORKERS = [0, pytest.param(2, marks=pytest.mark.slow)]


def numbered(n: int) -> InMemoryImages:
    """Images whose only pixel is their index."""
    return InMemoryImages(torch.arange(n).float().view(n, 1, 1, 1), torch.zeros(n, dtype=torch.int64), classes=0)


def shards(n: int, world: int, **options: Any) -> list[ShuffledShard]:
    return [ShuffledShard(numbered(n), rank=rank, world=world, **options) for rank in range(world)]


def interleave(parts: Sequence[Sequence[Any]]) -> list[Any]:
    return [part[i] for i in range(max(map(len, parts))) for part in parts if i < len(part)]


def epoch(shard: ShuffledShard, number: int) -> list[tuple[int, int]]:
    shard.set_epoch(number)
    return list(shard)


def test_an_epoch_is_a_permutation() -> None:
    indices = [i for i, _ in ShuffledShard(numbered(1000))]
    assert sorted(indices) == list(range(1000))
    assert indices != list(range(1000))


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_interleave_one_global_order(world: int) -> None:
    full = list(ShuffledShard(numbered(100), drop_last=False))
    assert interleave([list(shard) for shard in shards(100, world, drop_last=False)]) == full


def test_training_shards_are_equal_and_evaluation_shards_complete() -> None:
    for n, world in [(10, 3), (9, 3), (2, 3)]:
        train = [list(s) for s in shards(n, world)]
        held_out = [list(s) for s in shards(n, world, shuffle=False, drop_last=False)]
        assert [len(part) for part in train] == [n // world] * world == [len(s) for s in shards(n, world)]
        assert [len(part) for part in held_out] == [len(s) for s in shards(n, world, drop_last=False)]
        assert [i for i, _ in interleave(held_out)] == list(range(n))


def test_order_and_keys_depend_on_seed_and_epoch_only() -> None:
    runs = [(3, 7), (3, 8), (4, 7)]
    drawn = [epoch(ShuffledShard(numbered(50), seed=seed), number) for seed, number in [*runs, (3, 7)]]
    assert drawn[0] == drawn.pop()
    assert len({key for pairs in drawn for _, key in pairs}) == 3 * 50
    assert len({tuple(index for index, _ in pairs) for pairs in drawn}) == 3


def test_keys_have_63_balanced_bits() -> None:
    keys = sample_keys(0, 0, np.arange(100_000))
    assert keys.dtype == np.int64
    assert keys.min() >= 0
    assert len(np.unique(keys)) == len(keys)
    for bit in range(63):
        assert np.mean((keys >> bit) & 1) == pytest.approx(0.5, abs=0.008)  # five standard deviations


def test_evaluation_has_the_same_keys_in_every_epoch() -> None:
    shard = ShuffledShard(numbered(5), shuffle=False)
    assert epoch(shard, 0) == epoch(shard, 4)


def test_resuming_yields_the_rest_of_that_epoch_only() -> None:
    full, part = ShuffledShard(numbered(20)), ShuffledShard(numbered(20))
    part.resume_at(2, 12)
    assert epoch(part, 2) == epoch(full, 2)[12:]
    assert len(part) == 20
    part.finish_resuming()
    assert epoch(part, 3) == epoch(full, 3)


def test_a_resumed_epoch_lasts_until_it_is_finished() -> None:
    shard = ShuffledShard(numbered(20))
    shard.resume_at(2, 12)
    for counted in (3, 4):  # a trainer that counts the rest of the epoch as epochs of their own
        shard.set_epoch(counted)
        assert (shard.epoch, shard.start) == (2, 12)
    shard.finish_resuming()
    shard.set_epoch(5)
    assert (shard.epoch, shard.start) == (3, 0)


class Blocks(InMemoryImages):
    def __init__(self, sizes: Sequence[int]) -> None:
        n = sum(sizes)
        super().__init__(torch.zeros(n, 1, 1, 1), torch.zeros(n, dtype=torch.int64), classes=0)
        self.blocks = np.array(sizes)
        self.block_of = np.repeat(np.arange(len(sizes)), sizes)


def of_ranks(data: Blocks, world: int, number: int = 0, seed: int = 0) -> list[list[int]]:
    parts = [ShuffledShard(data, seed=seed, rank=rank, world=world) for rank in range(world)]
    return [[i for i, _ in epoch(part, number)] for part in parts]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_each_block_is_read_by_one_process_in_a_short_time(world: int) -> None:
    data = Blocks([50] * 100 + [7])
    parts = of_ranks(data, world)
    indices = [i for part in parts for i in part]
    assert len(set(indices)) == len(indices) == 5007 - 5007 % world
    assert {len(part) for part in parts} == {5007 // world}
    readers = np.zeros(101, dtype=int)
    for part in parts:
        blocks = data.block_of[part]
        readers[np.unique(blocks)] += 1
        for block in np.unique(blocks):
            (places,) = np.nonzero(blocks == block)
            # The block's own length, and the 16 blocks that its samples wait for at most.
            assert places[-1] - places[0] <= 17 * 50
    assert readers.max() <= 2
    assert (readers == 2).sum() <= world - 1


def test_there_may_be_more_processes_than_blocks() -> None:
    parts = of_ranks(Blocks([7, 9]), 5)
    assert [len(part) for part in parts] == [3] * 5
    assert len({i for part in parts for i in part}) == 15


def test_samples_of_a_window_are_mixed() -> None:
    data = Blocks([50] * 128)
    ((part),) = of_ranks(data, 1)
    middle = data.block_of[part[16 * 50 : -16 * 50]]
    same = (middle[1:] == middle[:-1]).mean()
    # At a random moment the next sample is of one of 17 blocks, with chances of 1/16, the first and last of less.
    expected = (16 - 1 / 3) / 16**2
    assert same == pytest.approx(expected, abs=5 * (expected * (1 - expected) / len(middle)) ** 0.5)


def test_new_blocks_are_needed_one_after_another() -> None:
    data = Blocks([50] * 128)
    ((part),) = of_ranks(data, 1)
    blocks = data.block_of[part]
    first = np.sort(np.unique(blocks, return_index=True)[1])
    assert (first[:16] <= 16 * 50).all()
    # From then on one block for each that is read, within the scatter of a first sample: 4 blocks.
    late = first[16:] - 50 * np.arange(16, 128)
    assert late.max() - late.min() < 8 * 50


def test_the_order_of_blocks_depends_on_seed_epoch_and_processes_only() -> None:
    data = Blocks([5, 1, 9, 4] * 8)
    assert of_ranks(data, 2) == of_ranks(data, 2)
    orders = [of_ranks(data, 2), of_ranks(data, 2, number=1), of_ranks(data, 2, seed=1)]
    assert all(a != b for a, b in zip(orders, orders[1:] + orders[:1], strict=True))


def loader(data: ImageDataset, seed: int = 5) -> ResumableLoader:
    shard = ShuffledShard(data, seed=seed)
    return ResumableLoader(data, batch_size=4, sampler=shard, drop_last=True, collate_fn=lambda batch: batch)


def contents(batch: Batch) -> tuple[list[int], list[int]]:
    return batch["index"].tolist(), batch["key"].tolist()


def test_a_run_in_blocks_resumes_with_the_next_sample() -> None:
    data = Blocks([5, 1, 9, 4] * 8)
    full, part, resumed = loader(data), loader(data), loader(data)
    taken = [contents(batch) for _, batch in zip(range(7), part, strict=False)]
    state = part.state_dict()
    resumed.load_state_dict(state)
    assert taken + [contents(batch) for batch in resumed] == [contents(batch) for batch in full]
    with pytest.warns(UserWarning, match=r"processes 3 -> 1"):
        resumed.load_state_dict(state | {"processes": 3})


def test_rank_is_that_of_the_process_group_at_the_time_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    shard = ShuffledShard(numbered(10))
    full = list(shard)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert list(shard) == full[1::2]
    assert len(shard) == 5


@pytest.mark.parametrize("share", [{"rank": 0}, {"world": 2}, {"rank": 2, "world": 2}, {"rank": -1, "world": 2}])
def test_impossible_fractions_are_refused(share: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="rank"):
        ShuffledShard(numbered(10), **share)


@pytest.mark.parametrize("consumed", range(6))
def test_a_loader_without_trainer_resumes_with_the_next_batch(consumed: int) -> None:
    full = loader(numbered(23))
    expected = []
    for number in range(2):
        full.sampler.set_epoch(number)  # type: ignore[attr-defined]
        for done, batch in enumerate(full, start=1):
            expected.append(contents(batch))
            state = full.state_dict()  # the position is counted from the start of each epoch
            assert (state["epoch"], state["start"]) == ((number, done * 4) if done < 5 else (number + 1, 0))
    assert len(expected) == 10

    first, second = loader(numbered(23)), loader(numbered(23))
    seen = [contents(batch) for _, batch in zip(range(consumed), first, strict=False)]
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    for number in range(second.sampler.epoch, 2):  # type: ignore[attr-defined]
        second.sampler.set_epoch(number)  # type: ignore[attr-defined]
        seen += [contents(batch) for batch in second]
    assert seen == expected


def test_other_data_or_seed_than_in_the_checkpoint_gives_a_warning() -> None:
    with pytest.warns(UserWarning, match="seed 5 -> 6, size 23 -> 24"):
        loader(numbered(24), seed=6).load_state_dict(loader(numbered(23), seed=5).state_dict())


# ---- inside of a trainer ----


class Numbers(ImageDataModule):
    channels = size = 1

    def __init__(self, workers: int = 0) -> None:
        super().__init__(batch_size=4, workers=workers, seed=9)

    def build(self) -> dict[Split, ImageDataset]:
        return {"train": numbered(42), "val": numbered(6), "test": numbered(6)}  # ten batches, two samples dropped


class Recorder(LightningModule):
    """Trains one number, and records the samples that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: Seen = []
        self.validated: Seen = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen.append(contents(batch))
        return (self.weight - batch["image"]).square().mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.validated.append(contents(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


class Killed(Exception):
    pass


class Kill(Callback):
    """Callback that raises in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_zero_grad(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed


def fit(
    folder: Path, *, workers: int = 0, resume: Path | None = None, callbacks: Sequence[Callback] = (), **options: Any
) -> tuple[Trainer, Recorder]:
    model = Recorder()
    keeps = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    trainer = quiet_trainer(folder, enable_checkpointing=keeps, callbacks=list(callbacks), **options)
    trainer.fit(model, datamodule=Numbers(workers), ckpt_path=resume, weights_only=True)
    return trainer, model


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    return fit(tmp_path_factory.mktemp("full"), max_steps=27)[1]


def saving(folder: Path, steps: int) -> ModelCheckpoint:
    return ModelCheckpoint(
        folder, filename="{step}", auto_insert_metric_name=False, every_n_train_steps=steps, save_top_k=-1
    )


def test_the_uninterrupted_run_sees_every_sample_once_per_epoch(uninterrupted: Recorder) -> None:
    assert len(uninterrupted.seen) == 27
    epochs = [[i for indices, _ in uninterrupted.seen[e : e + 10] for i in indices] for e in (0, 10)]
    assert all(len(set(epoch)) == 40 for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("saved", [4, 12, 20])  # within the first epoch, within the second, at the end of it
def test_a_killed_run_resumes_with_the_next_batch(
    tmp_path: Path, uninterrupted: Recorder, workers: int, saved: int
) -> None:
    with pytest.raises(Killed):
        fit(tmp_path, callbacks=[saving(tmp_path, saved), Kill(saved + 3)], max_steps=27)
    ckpt = tmp_path / f"{saved}.ckpt"
    _, resumed = fit(tmp_path, workers=workers, resume=ckpt, max_steps=27)
    assert resumed.seen == uninterrupted.seen[saved:]
    assert torch.equal(resumed.weight, uninterrupted.weight)


def test_a_batch_that_was_fetched_but_not_processed_is_yielded_again(tmp_path: Path, uninterrupted: Recorder) -> None:
    keeper = ModelCheckpoint(tmp_path, save_on_exception=True, filename="dead", every_n_train_steps=1000)
    with pytest.raises(Killed):
        fit(tmp_path, callbacks=[keeper, Kill(13)], max_steps=27)
    _, resumed = fit(tmp_path, resume=tmp_path / "dead.ckpt", max_steps=27)
    assert resumed.seen == uninterrupted.seen[13:]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("length", [{"max_epochs": 2}, {"max_steps": 20}])
@pytest.mark.parametrize("validation", [0, 1.0])
def test_a_checkpoint_at_the_end_of_an_epoch_resumes_with_the_next_epoch(
    tmp_path: Path, uninterrupted: Recorder, workers: int, length: dict[str, int], validation: float
) -> None:
    # With max_steps, Lightning takes the finished epoch for an unfinished one: it asks for one batch more, or for none.
    keeper = ModelCheckpoint(tmp_path, filename="{epoch}", auto_insert_metric_name=False, save_top_k=-1)
    options: dict[str, Any] = {"limit_val_batches": validation, **length}
    fit(tmp_path, callbacks=[keeper], **options)
    _, resumed = fit(tmp_path, workers=workers, resume=tmp_path / "0.ckpt", **options)
    assert resumed.seen == uninterrupted.seen[10:20]


def test_a_run_can_be_interrupted_again_and_again(tmp_path: Path, uninterrupted: Recorder) -> None:
    seen: Seen = []
    resume = None
    for steps in (3, 10, 11, 12, 20, 24, 27):
        trainer, part = fit(tmp_path, resume=resume, max_steps=steps)
        resume = tmp_path / f"{steps}.ckpt"
        trainer.save_checkpoint(resume)
        seen += part.seen
    assert seen == uninterrupted.seen


def test_validation_and_shortened_epochs_do_not_disturb_the_order(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "max_steps": 20,
        "limit_train_batches": 6,
        "val_check_interval": 3,
        "limit_val_batches": 1.0,
    }
    _, full = fit(tmp_path, num_sanity_val_steps=2, **options)
    for saved in (4, 6, 9):
        folder = tmp_path / str(saved)
        with pytest.raises(Killed):
            fit(folder, callbacks=[saving(folder, saved), Kill(saved + 1)], **options)
        _, resumed = fit(folder, resume=folder / f"{saved}.ckpt", **options)
        assert resumed.seen == full.seen[saved:]
    first = full.validated[:2]
    assert [i for indices, _ in first for i in indices] == list(range(6))
    assert all(full.validated[at : at + 2] == first for at in range(0, len(full.validated), 2))


def test_overfitting_on_a_few_batches_is_possible(tmp_path: Path) -> None:
    trainer, model = fit(tmp_path, max_epochs=2, overfit_batches=2)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    assert [indices for indices, _ in model.seen] == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2
    assert len({key for _, keys in model.seen for key in keys}) == 8


def test_a_fit_without_any_batch_is_refused(tmp_path: Path) -> None:
    class Few(Numbers):
        def build(self) -> dict[Split, ImageDataset]:
            return dict.fromkeys(("train", "val", "test"), numbered(3))

    with pytest.raises(ValueError, match=r"batch_size .* 4 x 1 .* = 4 with 3 training images: lower"):
        quiet_trainer(tmp_path).fit(Recorder(), datamodule=Few())
    with pytest.raises(ValueError, match="batch_size"):
        Few().train_dataloader()
    Few().setup("validate")
    assert len(Few().val_dataloader()) == 1
