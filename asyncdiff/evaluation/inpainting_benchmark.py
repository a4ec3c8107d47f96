"""How good completed images are and what they cost: the same held-out images, masks and noise for every sampler."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asyncdiff.denoising.denoiser import Denoiser, Prediction
from asyncdiff.evaluation.frechet import FrechetDistance
from asyncdiff.noise.masks import Mask
from asyncdiff.randomness import counter_key
from asyncdiff.sampling.batched import evaluation_mode
from asyncdiff.sampling.samplers import ImageSampler
from asyncdiff.shapes import Image, KnownPixels, Labels, LevelMap, UniqueLevels, known_patches

PerImage = Float[Tensor, " n"]


class Counted(Denoiser):
    """A denoiser whose predictions are those of another one, and which counts what they cost.

    Args:
        denoiser: what is asked; its network is this one's.

    Attributes:
        rows: images that went through the network, each as often as it did.
        patches: patches that were computed for them, fewer where a network is asked for the moving ones only.
    """

    def __init__(self, denoiser: Denoiser):
        super().__init__(denoiser.network, denoiser.process)
        self.denoiser = denoiser
        self.rows = 0
        self.patches = 0

    def forward(
        self,
        x_t: Image,
        t: LevelMap,
        label: Labels | None = None,
        *,
        unique: UniqueLevels | None = None,
        kv_cache: Any | None = None,
    ) -> Prediction:
        """The other one's prediction."""
        moving = getattr(kv_cache, "moving", None)
        if moving is None:
            each = math.prod(self.grid((x_t.shape[2], x_t.shape[3])))
        else:  # as many patches of every image as of the one in which most move
            each = max(int(moving.flatten(1).sum(1).max()), 1)
        self.rows += len(x_t)
        self.patches += len(x_t) * each
        remembered = {} if kv_cache is None else {"kv_cache": kv_cache}
        prediction: Prediction = self.denoiser(x_t, t, label, unique=unique, **remembered)
        return prediction


@dataclass(frozen=True)
class HeldOut:
    """Held-out images that are completed.

    Attributes:
        images: in [-1, 1], on any device.
        indices: their places in the split, which choose their masks and their noise.
        labels: their classes, None where they are not to be told.
    """

    images: Image
    indices: Sequence[int]
    labels: Labels | None = None

    def batches(self, size: int) -> Iterator["HeldOut"]:
        """The same in parts of `size` images."""
        for first in range(0, len(self.images), size):
            part = slice(first, first + size)
            labels = None if self.labels is None else self.labels[part]
            yield HeldOut(self.images[part], self.indices[part], labels)

    def masks(self, mask: Mask) -> KnownPixels:
        """True = known: each image's mask, drawn with its place in the split as the seed."""
        return mask.per_image(self.images.shape[2], self.images.shape[3], seeds=self.indices)


@dataclass(frozen=True)
class Completion:
    """What one sampler made of one mask set.

    Attributes:
        mask: its name.
        sampler: its name.
        frechet: distance from the reference, of each round of results (one result per image); empty if not measured.
        lpips: distance of each image's results from the truth, their mean; None if not measured.
        diversity: mean distance between the results of each image; None for one result or without LPIPS.
        evaluations: of the network, per result.
        patches: that were computed for them, per result.
        seconds: of the sampler, per result.
    """

    mask: str
    sampler: str
    frechet: list[float]
    lpips: PerImage | None
    diversity: PerImage | None
    evaluations: float
    patches: float
    seconds: float

    def card(self) -> dict[str, Any]:
        """The numbers as plain containers."""
        return {
            "mask": self.mask,
            "sampler": self.sampler,
            "frechet": mean(self.frechet),
            "frechet_by_round": self.frechet,
            "lpips": _with_error(self.lpips),
            "diversity": _with_error(self.diversity),
            "evaluations": self.evaluations,
            "patches": self.patches,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class InpaintingBenchmark:
    """How completions are measured, the same for all mask sets and samplers.

    Attributes:
        lpips: distance between images, as `evaluation.lpips.LPIPS`; not measured without.
        frechet: with the sums of its reference; not measured without.
        rounds: results per image, each from noise of its own.
        seed: result k of image i starts from the noise of counter_key(seed, i, k).
        batch_size: images that go through the network together.
        decode: makes pictures, which distances are between, of what is completed: of latents a codec's; true images are
            decoded likewise.
    """

    lpips: nn.Module | None = None
    frechet: FrechetDistance | None = None
    rounds: int = 1
    seed: int = 0
    batch_size: int = 128
    decode: Callable[[Image], Image] = lambda images: images

    @torch.no_grad()
    def completion(
        self,
        denoiser: Denoiser,
        given: HeldOut,
        mask: tuple[str, Mask],
        sampler: tuple[str, ImageSampler],
        *,
        done: Callable[[int], Any] = lambda results: None,
    ) -> Completion:
        """The numbers of a named mask set and a named sampler; RuntimeError where known pixels do not come back.

        `done` is told after every batch how many results it had.
        """
        counted, seconds = Counted(denoiser), 0.0
        features: list[list[Tensor]] = [[] for _ in range(self.rounds)]
        near, apart = [], []
        for batch in given.batches(self.batch_size):
            truth, results, shown = batch.images.to(_device(denoiser)), [], []
            known = batch.masks(mask[1]).to(truth.device)
            for k in range(self.rounds):
                started = _now(truth.device)
                results.append(self.completed(counted, batch, known, sampler[1], k))
                seconds += _now(truth.device) - started
                _check_known(results[-1], truth, known, sampler[0], mask[0])
                shown.append(self.decode(results[-1]))
                if self.frechet is not None:
                    features[k].append(self._features(shown[-1]))
                done(len(truth))
            if self.lpips is not None:
                true = self.decode(truth)
                near.append(_mean([self.lpips(result, true) for result in shown]))
                if self.rounds > 1:
                    apart.append(_mean([self.lpips(a, b) for a, b in itertools.combinations(shown, 2)]))
        count = len(given.images) * self.rounds
        return Completion(
            mask[0],
            sampler[0],
            [self._distance(rows) for rows in features if rows],
            torch.cat(near) if near else None,
            torch.cat(apart) if apart else None,
            counted.rows / count,
            counted.patches / count,
            seconds / count,
        )

    @torch.no_grad()
    def completed(
        self, denoiser: Denoiser, batch: HeldOut, known: KnownPixels, sampler: ImageSampler, k: int = 0
    ) -> Image:
        """Result k of every image, on the denoiser's device."""
        device, images = _device(denoiser), batch.images
        with evaluation_mode(denoiser):
            return sampler(
                denoiser,
                seeds=[counter_key(self.seed, index, k) for index in batch.indices],
                shape=(images.shape[1], images.shape[2], images.shape[3]),
                label=None if batch.labels is None else batch.labels.to(device),
                image=images,
                known=known,
                device=device,
            )

    def floor(self, given: HeldOut, device: torch.device | str = "cpu") -> float | None:
        """The Fréchet distance that the true images reach: the floor at their number; None if it is not measured."""
        if self.frechet is None:
            return None
        batches = given.batches(self.batch_size)
        return self._distance([self._features(self.decode(batch.images.to(device))) for batch in batches])

    @torch.no_grad()
    def _features(self, images: Image) -> Float[Tensor, "b d"]:
        assert self.frechet is not None
        network = self.frechet.features.to(images.device).eval()
        features: Tensor = network(images)
        return features.cpu()

    def _distance(self, rows: list[Tensor]) -> float:
        assert self.frechet is not None
        self.frechet.reset()
        self.frechet.update_features(torch.cat(rows), real=False)
        return self.frechet.compute().item()


@dataclass(frozen=True)
class InpaintingResults:
    """All completions, and how to read them.

    Attributes:
        rows: in the order of the table.
        masks: share of unknown pixels and of known patches by the name of each mask set.
        images: number of images.
        rounds: results per image.
        floor: Fréchet distance of the true images, None if it is not measured.
        lpips: what the distance is called, None if it is not measured.
        features: what the Fréchet distance's space is called, None if it is not measured.
        dim: numbers per image in that space.
        reference: real images that the Fréchet distance is measured from.
    """

    rows: Sequence[Completion]
    masks: Mapping[str, Mapping[str, float]]
    images: int
    rounds: int
    floor: float | None = None
    lpips: str | None = None
    features: str | None = None
    dim: int = 0
    reference: int = 0

    def table(self) -> str:
        """Markdown: one row per mask set and sampler, and what the numbers were made of."""
        columns = self._columns()
        lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        lines += [f"| {' | '.join(cell(row) for cell in columns.values())} |" for row in self.rows]
        return "\n".join([*lines, "", *self._notes()])

    def card(self) -> dict[str, Any]:
        """The numbers as plain containers."""
        return {
            "images": self.images,
            "frechet_real": self.floor,
            "masks": {name: dict(shares) for name, shares in self.masks.items()},
            "rows": [row.card() for row in self.rows],
        }

    def metrics(self) -> dict[str, float]:
        """Means of what was measured, by METRIC/MASK/SAMPLER."""
        found: dict[str, float] = {}
        for row in self.rows:
            measured = {"frechet": mean(row.frechet), "lpips": None if row.lpips is None else row.lpips.mean().item()}
            place = f"{row.mask}/{row.sampler}"
            found |= {f"{name}/{place}": value for name, value in measured.items() if value is not None}
        return found

    def _columns(self) -> dict[str, Callable[[Completion], str]]:
        """The cells of each column by its head."""
        columns: dict[str, Callable[[Completion], str]] = {
            "mask": lambda row: row.mask,
            "unknown": lambda row: f"{100 * self.masks[row.mask]['unknown']:.0f} %",
            "sampler": lambda row: row.sampler,
        }
        if self.features is not None:
            columns[f"Fréchet, {self.features}"] = lambda row: f"{mean(row.frechet):.2f}"
        if self.lpips is not None:
            columns[f"{self.lpips} to the truth"] = lambda row: _cell(row.lpips)
        if self.lpips is not None and self.rounds > 1:
            columns["diversity"] = lambda row: _cell(row.diversity)
        return columns | {
            "evaluations": lambda row: f"{row.evaluations:.5g}",
            "patches": lambda row: f"{row.patches:.7g}",
            "seconds": lambda row: f"{row.seconds:.3g}",
        }

    def _notes(self) -> list[str]:
        each = "one result each" if self.rounds == 1 else f"{self.rounds} results each"
        notes = [f"{self.images} images, {each}; evaluations of the network, patches and seconds per result"]
        if self.features is not None:
            notes.append(
                f"Fréchet distance from {self.reference} real images in {self.dim} dimensions; "
                f"the {self.images} true images lie at {self.floor:.2f}"
            )
            if self.images <= self.dim:
                notes.append("no more images than dimensions: biased upwards, compare within this table only")
        return notes


def shares(known: KnownPixels, grid: tuple[int, int]) -> dict[str, float]:
    """Share of unknown pixels, and of patches of a level map of (gh, gw) that are known, where all their pixels are."""
    return {
        "unknown": 1 - known.double().mean().item(),
        "known_patches": known_patches(known, grid).double().mean().item(),
    }


def mean(values: Sequence[float]) -> float | None:
    """Their mean, None if there are none."""
    return sum(values) / len(values) if values else None


def _with_error(values: PerImage | None) -> dict[str, float] | None:
    if values is None:
        return None
    error = (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else math.nan
    return {"mean": values.mean().item(), "standard_error": error}


def _cell(values: PerImage | None) -> str:
    told = _with_error(values)
    return "" if told is None else f"{told['mean']:.4f} ± {told['standard_error']:.4f}"


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(0).cpu()


def _check_known(results: Image, truth: Image, known: KnownPixels, sampler: str, mask: str) -> None:
    changed = int(((results != truth) & known[:, None]).sum())
    if changed:
        raise RuntimeError(
            f"known values must come back bit for bit, got {changed} changed ones from {sampler} with {mask}: "
            "ImageSampler puts them back, unless its __call__ is overridden"
        )


def _device(denoiser: nn.Module) -> torch.device:
    return next(denoiser.parameters()).device


def _now(device: torch.device) -> float:
    """Seconds, once the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
