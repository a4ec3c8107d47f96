"""The order of the samples, and a loader that continues in the middle of it.

Nothing random is stored: order and keys are computed from (seed, epoch, position), so that a resumed run needs two
numbers, and neither the count of workers nor that of processes changes what is drawn.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

UInt64s = npt.NDArray[np.uint64]

WINDOW = 16  # blocks among which samples are shuffled: few enough to be held at a time, enough to mix them
CHUNK = 4096  # pairs turned into Python integers at a time: a list of a million of them would cost 80 MB


def splitmix(x: UInt64s) -> UInt64s:
    """The words, each mixed into 64 bits without visible pattern (Steele et al. 2014, constants of splitmix64)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sample_keys(seed: int, epoch: int, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """One key in [0, 2**63) per position; a function of the three arguments only."""
    stream = splitmix(splitmix(np.array([seed], dtype=np.uint64)) + np.uint64(epoch))
    return (splitmix(stream + positions.astype(np.uint64)) >> np.uint64(1)).astype(np.int64)


def _process_group() -> tuple[int, int]:
    """Rank and number of processes; (0, 1) outside of a distributed run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def shuffle_in_blocks(blocks: npt.NDArray[np.int64], world: int, generator: torch.Generator) -> npt.NDArray[np.int64]:
    """A permutation in which the positions r, r + world, ... go through few blocks at a time, for every r.

    Args:
        blocks: sizes of consecutive runs of indices, (m,).
        world: number of processes.
        generator: of all that is random in it.
    """
    size, ends = int(blocks.sum()), np.cumsum(blocks)
    chosen = torch.randperm(len(blocks), generator=generator).numpy()
    runs = [np.arange(ends[block] - blocks[block], ends[block]) for block in chosen]
    walk = np.concatenate([np.empty(0, np.int64), *runs])
    share = size // world
    order = np.empty(size, np.int64)
    order[share * world :] = walk[share * world :]  # left out in training, and not the same ones every time
    # Each sample waits for up to WINDOW blocks. Unlike shuffling so many at a time, that asks for one new block after
    # the other, so that a storage need not bring many at once.
    window = WINDOW * float(blocks.mean()) if size else 1.0
    for rank in range(world):
        own = walk[rank * share : (rank + 1) * share]
        waits = torch.rand(share, generator=generator, dtype=torch.float64).numpy() * window
        order[rank : share * world : world] = own[np.argsort(np.arange(share) + waits, kind="stable")]
    return order


class ShuffledShard(DistributedSampler[Any]):
    """Yields `(index, key)` for this process' share of a global order.

    Process r of w takes the positions r, r + w, ... . With `shuffle`, the order is a permutation for each epoch;
    without, it is the order of the dataset, and the epoch counts as 0, so that every evaluation has the same keys.

    A dataset may have `blocks`, the sizes of consecutive runs of samples that are cheap to read together, such as the
    shards that a storage fetches as a whole. Then blocks are permuted, dealt out to the processes, and what a process
    holds is shuffled among `WINDOW` blocks at any time: each block is read by one process (two where shares meet),
    within a short time.

    Args:
        dataset: whatever has a length.
        seed: chooses the permutations and the keys, >= 0.
        shuffle: permute anew in every epoch.
        drop_last: leave out the tail, so that every process yields the same number. Without it, nothing is repeated
            and nothing left out: shares may differ by one.
        rank: this process, 0 <= rank < world; read from torch.distributed when iteration starts if None.
        world: number of processes; together with `rank`.
    """

    # A DistributedSampler by type only: Lightning leaves such a sampler in its place and tells it the epoch.
    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        super().__init__(dataset, num_replicas=1, rank=0, shuffle=shuffle, seed=seed, drop_last=drop_last)
        if (rank is None) != (world is None):
            raise ValueError(f"rank and world must be given together, got rank={rank}, world={world}: set both")
        if rank is not None and world is not None and not 0 <= rank < world:
            raise ValueError(f"rank must lie in [0, world), got rank={rank}, world={world}: count ranks from 0")
        self._share = None if rank is None or world is None else (rank, world)
        self._start = (-1, 0)  # epoch, position
        self._resumed_epoch: int | None = None
        self._shift = 0

    @property
    def share(self) -> tuple[int, int]:
        """Rank and number of processes, as of now."""
        return _process_group() if self._share is None else self._share

    @property
    def size(self) -> int:
        """Number of samples in the global order."""
        return len(self.dataset)  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation. While an epoch is being continued, every number means that epoch."""
        if self._resumed_epoch is not None:
            self._shift = self._resumed_epoch - epoch
        self.epoch = epoch + self._shift

    def resume_at(self, epoch: int, start: int) -> None:
        """Let `epoch` begin at global position `start`; every other epoch begins at 0.

        A trainer that is resumed may count the epoch it continues by another number, or in two parts. Hence
        `set_epoch` stays in `epoch` until `finish_resuming` is called, and counts on from there.
        """
        self.epoch = self._resumed_epoch = epoch
        self._start = (epoch, start)

    def finish_resuming(self) -> None:
        """The continued epoch has come to its end."""
        self._resumed_epoch = None

    @property
    def resuming(self) -> bool:
        """Whether an epoch is being continued that did not come to its end yet."""
        return self._resumed_epoch is not None

    @property
    def start(self) -> int:
        """Global position at which the present epoch begins."""
        epoch, start = self._start
        return start if epoch == self.epoch else 0

    def __len__(self) -> int:
        """Samples of this process in a whole epoch, also when the present one begins in the middle."""
        rank, world = self.share
        return self.size // world if self.drop_last else len(range(rank, self.size, world))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Pairs of an index into the dataset and a key in [0, 2**63)."""
        rank, world = self.share
        epoch = self.epoch if self.shuffle else 0
        order = self._order(epoch)
        end = self.size - self.size % world if self.drop_last else self.size
        positions = np.arange(self.start + rank, end, world)
        for first in range(0, len(positions), CHUNK):
            part = positions[first : first + CHUNK]
            yield from zip(order[part].tolist(), sample_keys(self.seed, epoch, part).tolist(), strict=True)

    @property
    def blocks(self) -> npt.NDArray[np.int64] | None:
        """Sizes of the runs of samples that are to be read together, None where that makes no difference."""
        return getattr(self.dataset, "blocks", None)

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(self.size)
        seed = int(sample_keys(self.seed, epoch, np.array([-1]))[0])  # -1 is the key of no sample
        generator = torch.Generator().manual_seed(seed)
        if self.blocks is None:
            return torch.randperm(self.size, generator=generator).numpy()
        return shuffle_in_blocks(self.blocks, self.share[1], generator)


class ResumableLoader(DataLoader[Any]):
    """A DataLoader over a ShuffledShard whose state is the place of its next batch.

    Lightning stores the state with a checkpoint and gives it back on resume.

    Args:
        dataset: as in DataLoader.
        progress: returns (batches processed in this epoch, batches of an epoch) as the trainer counts them, or None
            if there is no trainer. Batches which were handed out and not processed when the state was
            taken are handed out again. Without it, all batches that were handed out count.
        **options: as in DataLoader; `sampler` is a ShuffledShard.
    """

    def __init__(
        self, dataset: Dataset[Any], *, progress: Callable[[], tuple[int, int] | None] | None = None, **options: Any
    ) -> None:
        super().__init__(dataset, **options)
        self.progress = progress
        self._begin: tuple[int, int] | None = None  # epoch and position at which iteration began
        self._before = 0  # batches the trainer had counted by then
        self._handed_out = 0  # batches since then

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The batches of the present epoch, from its start."""
        # A generator on purpose. Lightning asks for the iterator before it sets the epoch of a resumed run, and
        # workers would start at once on the wrong epoch; this body runs with the first batch.
        shard = self.sampler
        if not isinstance(shard, ShuffledShard):  # Lightning's overfit_batches puts a sequential sampler in its place
            yield from super().__iter__()
            return
        self._handed_out = 0
        self._begin, self._before = (shard.epoch, shard.start), self._counted()[0]
        for batch in super().__iter__():
            self._handed_out += 1
            if shard.resuming:
                epoch, start = self._place(self._handed_out)
                shard.finish_resuming() if epoch > shard.epoch else shard.resume_at(epoch, start)
            yield batch

    def _counted(self) -> tuple[int, int]:
        """Batches processed so far, and batches of an epoch."""
        counted = None if self.progress is None else self.progress()
        return (self._handed_out, len(self)) if counted is None else counted

    def _place(self, batches: int) -> tuple[int, int]:
        """Epoch and global position of the sample that follows so many batches since iteration began."""
        assert isinstance(self.sampler, ShuffledShard)
        assert self.batch_size is not None
        epoch, start = self._begin or (self.sampler.epoch, self.sampler.start)
        per_batch = self.batch_size * self.sampler.share[1]
        start += batches * per_batch
        return (epoch + 1, 0) if start >= self._counted()[1] * per_batch else (epoch, start)

    def state_dict(self) -> dict[str, int]:
        """Epoch and global position of the next sample, and what they refer to; plain numbers."""
        shard = self.sampler
        if not isinstance(shard, ShuffledShard):
            return {}
        began = self._begin is not None
        epoch, start = self._place(self._counted()[0] - self._before if began else 0)
        place = {"epoch": epoch, "start": start, "seed": shard.seed, "size": shard.size}
        return place if shard.blocks is None else place | {"processes": shard.share[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at the place that `state_dict` described. Warns if what the order depends on has changed."""
        shard = self.sampler
        if not state or not isinstance(shard, ShuffledShard):
            return
        now = {"seed": shard.seed, "size": shard.size, "processes": shard.share[1]}
        before = now | state  # the number of processes counts where the order depends on it
        if changed := [f"{name} {before[name]} -> {value}" for name, value in now.items() if before[name] != value]:
            text = f"the data changed since the checkpoint ({', '.join(changed)}): the order is not the one it began"
            warnings.warn(text, stacklevel=2)
        self._begin = None
        shard.resume_at(state["epoch"], state["start"])
