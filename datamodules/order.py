"""Counter-based sample order, and a DataLoader that resumes exactly in the middle of an epoch.

No random state is stored: order and keys are functions of (seed, epoch, position), so a run resumes from two numbers,
and neither the number of workers nor the number of processes changes what is drawn.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

UInt64s = npt.NDArray[np.uint64]

WINDOW = 16  # blocks among which samples are shuffled: few enough to keep on disk, enough to mix well
CHUNK = 4096  # pairs converted to Python integers at a time: a list of a million would take 80 MB


def splitmix(x: UInt64s) -> UInt64s:
    """Hash each integer to 64 pseudo-random bits (splitmix64, Steele et al. 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sample_keys(seed: int, epoch: int, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return one key in [0, 2**63) per position; a function of the three arguments only."""
    stream = splitmix(splitmix(np.array([seed], dtype=np.uint64)) + np.uint64(epoch))
    return (splitmix(stream + positions.astype(np.uint64)) >> np.uint64(1)).astype(np.int64)


def _process_group() -> tuple[int, int]:
    """Return rank and world size; (0, 1) outside a distributed run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def shuffle_in_blocks(blocks: npt.NDArray[np.int64], world: int, generator: torch.Generator) -> npt.NDArray[np.int64]:
    """Draw a permutation in which every process (positions r, r + world, ...) reads few blocks at a time.

    Args:
        blocks: sizes of consecutive runs of indices, (m,).
        world: number of processes.
        generator: source of all randomness.

    Returns:
        The indices in their new order, int64 (sum of `blocks`,).
    """
    size, ends = int(blocks.sum()), np.cumsum(blocks)
    permuted = torch.randperm(len(blocks), generator=generator).numpy()
    runs = [np.arange(ends[block] - blocks[block], ends[block]) for block in permuted]
    by_block = np.concatenate([np.empty(0, np.int64), *runs])
    share = size // world
    order = np.empty(size, np.int64)
    order[share * world :] = by_block[share * world :]  # dropped in training; different ones in every epoch
    # Each sample is delayed by up to WINDOW blocks. Unlike shuffling WINDOW blocks at a time, this needs one new block
    # after another, so that the storage never has to deliver many at once.
    window = WINDOW * float(blocks.mean()) if size else 1.0
    for rank in range(world):
        own = by_block[rank * share : (rank + 1) * share]
        delays = torch.rand(share, generator=generator, dtype=torch.float64).numpy() * window
        order[rank : share * world : world] = own[np.argsort(np.arange(share) + delays, kind="stable")]
    return order


class ShuffledShard(DistributedSampler[Any]):
    """Sampler of `(index, key)` pairs: this process's part of a global order.

    Process r of w takes the positions r, r + w, ... . With `shuffle`, the order is a new permutation in every epoch;
    without, it is the order of the dataset, and the epoch counts as 0, so that every evaluation has the same keys.

    A dataset may have `blocks`, the sizes of consecutive runs of samples that are cheap to read together, such as
    shards that are downloaded whole. Then the blocks are permuted and distributed over the processes, and each process
    shuffles its samples among `WINDOW` blocks: each block is read within a short time, by one process (or by two,
    where their parts meet).

    Args:
        dataset: any dataset with a length.
        seed: seeds the permutations and the keys, >= 0.
        shuffle: draw a new permutation in every epoch.
        drop_last: drop the tail, so that every process yields the same number of samples. Otherwise every sample is
            yielded exactly once, and the numbers of samples per process may differ by one.
        rank: rank of this process, 0 <= rank < world; read from torch.distributed when iteration starts if None.
        world: number of processes; set together with `rank`.
    """

    # A DistributedSampler by type only: Lightning does not replace such a sampler and calls its set_epoch.
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
            raise ValueError(
                f"rank and world must be set together, got rank={rank}, world={world}: set both or neither"
            )
        if rank is not None and world is not None and not 0 <= rank < world:
            raise ValueError(f"rank must lie in [0, world), got rank={rank}, world={world}: count ranks from 0")
        self._rank_and_world = None if rank is None or world is None else (rank, world)
        self._start = (-1, 0)  # epoch and global position
        self._resumed_epoch: int | None = None
        self._shift = 0

    @property
    def rank_and_world(self) -> tuple[int, int]:
        """Rank and number of processes at this moment."""
        return _process_group() if self._rank_and_world is None else self._rank_and_world

    @property
    def size(self) -> int:
        """Number of samples in the global order."""
        return len(self.dataset)  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that seeds the shuffle; while an epoch is being resumed, every number means that epoch."""
        if self._resumed_epoch is not None:
            self._shift = self._resumed_epoch - epoch
        self.epoch = epoch + self._shift

    def resume_at(self, epoch: int, start: int) -> None:
        """Let `epoch` start at global position `start`; every other epoch starts at 0.

        A resumed trainer may give the epoch that it resumes another number, or run it in two parts. Hence `set_epoch`
        stays in `epoch` until `finish_resuming` is called, and counts from there.
        """
        self.epoch = self._resumed_epoch = epoch
        self._start = (epoch, start)

    def finish_resuming(self) -> None:
        """Mark the resumed epoch as completed."""
        self._resumed_epoch = None

    @property
    def resuming(self) -> bool:
        """Whether a resumed epoch is not completed yet."""
        return self._resumed_epoch is not None

    @property
    def start(self) -> int:
        """Global position at which the current epoch starts."""
        epoch, start = self._start
        return start if epoch == self.epoch else 0

    def __len__(self) -> int:
        """Return the number of samples of this process in a full epoch, even if this one starts in the middle."""
        rank, world = self.rank_and_world
        return self.size // world if self.drop_last else len(range(rank, self.size, world))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield pairs of an index into the dataset and a key in [0, 2**63)."""
        rank, world = self.rank_and_world
        epoch = self.epoch if self.shuffle else 0
        order = self._order(epoch)
        end = self.size - self.size % world if self.drop_last else self.size
        positions = np.arange(self.start + rank, end, world)
        for first in range(0, len(positions), CHUNK):
            part = positions[first : first + CHUNK]
            yield from zip(order[part].tolist(), sample_keys(self.seed, epoch, part).tolist(), strict=True)

    @property
    def blocks(self) -> npt.NDArray[np.int64] | None:
        """Sizes of consecutive runs of samples that should be read together; None if it makes no difference."""
        return getattr(self.dataset, "blocks", None)

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(self.size)
        seed = int(sample_keys(self.seed, epoch, np.array([-1]))[0])  # -1 is the key of no sample
        generator = torch.Generator().manual_seed(seed)
        if self.blocks is None:
            return torch.randperm(self.size, generator=generator).numpy()
        return shuffle_in_blocks(self.blocks, self.rank_and_world[1], generator)


class StoppingLoader(DataLoader[Any]):
    """DataLoader whose workers end with the first error in one of them, also if they are persistent."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield the batches."""
        batches = super().__iter__()
        try:
            yield from batches
        except Exception:
            # Left to the garbage collector, torch would wait for workers that it can no longer tell to stop.
            if hasattr(batches, "_shutdown_workers"):
                batches._shutdown_workers()
                self._iterator = None  # a new iteration starts new workers
            raise


class ResumableLoader(StoppingLoader):
    """DataLoader over a ShuffledShard whose state is the position of its next batch.

    Lightning saves the state in checkpoints and restores it on resume.

    Args:
        dataset: as in DataLoader.
        progress: function that returns the trainer's (batches processed in this epoch, batches per epoch), or None
            without a trainer. Batches that were yielded but not processed when the state was saved are yielded
            again. Without `progress`, all batches that were yielded count as processed.
        **options: arguments of DataLoader; `sampler` must be a ShuffledShard.
    """

    batch_size: int  # never None, as it is with a batch_sampler

    def __init__(
        self, dataset: Dataset[Any], *, progress: Callable[[], tuple[int, int] | None] | None = None, **options: Any
    ) -> None:
        super().__init__(dataset, **options)
        self.progress = progress
        self._begin: tuple[int, int] | None = None  # epoch and position at which iteration started
        self._before = 0  # batches that the trainer had processed by then
        self._yielded = 0  # batches since then

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield the batches of the current epoch from its start position."""
        # Deliberately a generator: Lightning creates the iterator before it sets the epoch of a resumed run, and the
        # workers would start on the wrong epoch; this body only runs when the first batch is requested.
        shard = self.sampler
        if not isinstance(shard, ShuffledShard):  # Lightning's overfit_batches replaces it by a sequential sampler
            yield from super().__iter__()
            return
        self._yielded = 0
        self._begin, self._before = (shard.epoch, shard.start), self._epoch_progress()[0]
        for batch in super().__iter__():
            self._yielded += 1
            if shard.resuming:
                epoch, start = self._position_after(shard, self._yielded)
                shard.finish_resuming() if epoch > shard.epoch else shard.resume_at(epoch, start)
            yield batch

    def _epoch_progress(self) -> tuple[int, int]:
        """Return the batches processed so far and the batches per epoch."""
        progress = None if self.progress is None else self.progress()
        return (self._yielded, len(self)) if progress is None else progress

    def _position_after(self, shard: ShuffledShard, batches: int) -> tuple[int, int]:
        """Return epoch and global position of the sample that follows this many batches since iteration started."""
        epoch, start = self._begin or (shard.epoch, shard.start)
        per_batch = self.batch_size * shard.rank_and_world[1]
        start += batches * per_batch
        return (epoch + 1, 0) if start >= self._epoch_progress()[1] * per_batch else (epoch, start)

    def state_dict(self) -> dict[str, int]:
        """Return epoch and global position of the next sample, and what the order depends on, as integers."""
        shard = self.sampler
        if not isinstance(shard, ShuffledShard):
            return {}
        started = self._begin is not None
        epoch, start = self._position_after(shard, self._epoch_progress()[0] - self._before if started else 0)
        state = {"epoch": epoch, "start": start, "seed": shard.seed, "size": shard.size}
        return state if shard.blocks is None else state | {"processes": shard.rank_and_world[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume at the position of `state_dict`; warn if anything that the order depends on has changed."""
        shard = self.sampler
        if not state or not isinstance(shard, ShuffledShard):
            return
        now = {"seed": shard.seed, "size": shard.size, "processes": shard.rank_and_world[1]}
        before = now | state  # the state has "processes" only if the order depends on it
        if changed := [f"{name} {before[name]} -> {value}" for name, value in now.items() if before[name] != value]:
            text = f"the data changed since the checkpoint ({', '.join(changed)}): the epoch resumes in another order"
            warnings.warn(text, stacklevel=2)
        self._begin = None
        shard.resume_at(state["epoch"], state["start"])
