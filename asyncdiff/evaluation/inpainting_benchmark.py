"""Benchmark inpainting: quality and cost of samplers with the same validation images, masks and noise."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asyncdiff.denoising.denoiser import Denoiser, Prediction
from asyncdiff.devices import HostCopy, to_device
from asyncdiff.evaluation.features.base import check_range
from asyncdiff.evaluation.frechet import FrechetDistance
from asyncdiff.evaluation.likelihood_by_path import standard_error
from asyncdiff.markdown import markdown_table
from asyncdiff.noise.masks import Mask
from asyncdiff.randomness import counter_key
from asyncdiff.sampling import engine
from asyncdiff.sampling.samplers import ImageSampler
from asyncdiff.shapes import Image, KnownPixels, Labels, Levels, known_patches

PerImage = Float[Tensor, " n"]


class CountingDenoiser(Denoiser):
    """Wrapper that counts the network evaluations of a denoiser and does not change its predictions.

    Args:
        denoiser: denoiser to wrap; the wrapper shares its network.

    Attributes:
        evaluations: number of network evaluations, summed over images.
    """

    def __init__(self, denoiser: Denoiser):
        super().__init__(denoiser.network, denoiser.process)
        self.denoiser = denoiser
        self.evaluations = 0
        self._patches: Tensor | int = 0  # on the denoiser's device once partial updates are counted

    def forward(self, x_t: Image, t: Levels, label: Labels | None = None, *, kv_cache: Any | None = None) -> Prediction:
        moving = getattr(kv_cache, "moving", None)
        patches_per_image: Tensor | int
        if moving is None:
            patches_per_image = math.prod(self.grid((x_t.shape[2], x_t.shape[3])))
        else:  # all images in a batch cost as much as the one with the most moving patches
            patches_per_image = moving.flatten(1).sum(1).amax().clamp(min=1)
        self.evaluations += len(x_t)
        self._patches = self._patches + len(x_t) * patches_per_image
        options = {} if kv_cache is None else {"kv_cache": kv_cache}
        prediction: Prediction = self.denoiser(x_t, t, label, **options)
        return prediction

    @property
    def patches(self) -> int:
        """Number of patches computed in the evaluations; partial updates (KV cache) skip some."""
        return int(self._patches)


@dataclass(frozen=True)
class ValidationImages:
    """Validation images to inpaint, with the indices that seed their masks and noise.

    Attributes:
        images: images (n, c, h, w) in [-1, 1], on any device.
        indices: index of each image in the split.
        labels: class label of each image, None for unconditional sampling.
    """

    images: Image
    indices: Sequence[int]
    labels: Sequence[int] | None = None

    def batches(self, size: int) -> Iterator["ValidationImages"]:
        """Return the images in batches of `size`."""
        for first in range(0, len(self.images), size):
            rows = slice(first, first + size)
            labels = None if self.labels is None else self.labels[rows]
            yield ValidationImages(self.images[rows], self.indices[rows], labels)

    def select(self, positions: Sequence[int]) -> "ValidationImages":
        """Return the images at the given positions."""
        labels = None if self.labels is None else [self.labels[i] for i in positions]
        return ValidationImages(self.images[list(positions)], [self.indices[i] for i in positions], labels)

    def masks(self, mask: Mask) -> KnownPixels:
        """Return the mask of each image, True = known, drawn with the image's index as seed."""
        return mask.per_image(self.images.shape[2], self.images.shape[3], seeds=self.indices)


@dataclass(frozen=True)
class InpaintingScores:
    """Scores of one sampler with one mask set.

    Attributes:
        mask: name of the mask set.
        sampler: name of the sampler.
        frechet: Fréchet distance from the reference for each round (one result per image); empty if not computed.
        lpips: mean distance of each image's results from the true image, None if not computed.
        diversity: mean distance between the results of each image, None with one result or without LPIPS.
        evaluations: network evaluations per result.
        patches: patches computed in these evaluations, per result.
        seconds: sampling time per result.
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
        """Return the scores as plain dicts and lists."""
        return vars(self) | {
            "frechet": _mean(self.frechet) if self.frechet else None,
            "frechet_by_round": self.frechet,
            "lpips": _mean_and_error(self.lpips),
            "diversity": _mean_and_error(self.diversity),
        }


@dataclass(frozen=True)
class InpaintingBenchmark:
    """Evaluates inpainting, with the same settings for all mask sets and samplers.

    Attributes:
        lpips: distance between images, such as `evaluation.features.lpips.LPIPS`; None to skip it.
        frechet: Fréchet distance that already contains its real images; None to skip it.
        rounds: number of results per image, each from different noise.
        seed: result k of image i starts from the noise of counter_key(seed, i, k).
        batch_size: maximum number of images per network call.
        decode: function applied to results and true images before they are compared; a codec's decoder for latents.
        context: function that returns the context to inpaint in, such as `DiffusionModel.sampling_context`; images are
            compared in float32, whatever the context.
    """

    lpips: nn.Module | None = None
    frechet: FrechetDistance | None = None
    rounds: int = 1
    seed: int = 0
    batch_size: int = 128
    decode: Callable[[Image], Image] = lambda images: images
    context: Callable[[], AbstractContextManager[Any]] = nullcontext

    @torch.no_grad()
    def evaluate(
        self,
        denoiser: Denoiser,
        data: ValidationImages,
        mask: tuple[str, Mask],
        sampler: tuple[str, ImageSampler],
        *,
        progress: Callable[[int], Any] = lambda results: None,
    ) -> InpaintingScores:
        """Inpaint all images with one sampler and one mask set, and return the scores.

        Args:
            denoiser: denoiser to evaluate.
            data: validation images.
            mask: mask set with its name.
            sampler: sampler with its name.
            progress: function called after every batch with its number of results.

        Returns:
            The scores, averaged over images.

        Raises:
            RuntimeError: a result differs from the true image at a known pixel.
        """
        check_range("images", data.images)
        device = engine.device_of(denoiser)
        counting, watch, changed = CountingDenoiser(denoiser), _Stopwatch(device), _ChangedPixels(sampler[0], mask[0])
        features: list[list[HostCopy]] = [[] for _ in range(self.rounds)]
        errors: list[HostCopy] = []
        diversities: list[HostCopy] = []
        for batch in data.batches(self.batch_size):
            truth, decoded = to_device(batch.images, device), []
            known = batch.masks(mask[1])  # samplers read masks on the host
            known_there = to_device(known, device)
            for k in range(self.rounds):
                with watch:
                    results = self.inpaint(counting, batch, known, sampler[1], k)
                changed.check(results, truth, known_there)
                decoded.append(self.decode(results))
                if self.frechet is not None:
                    features[k].append(HostCopy(self.frechet.extract(decoded[-1])))
                progress(len(truth))
            if self.lpips is not None:
                decoded_truth = self.decode(truth)
                errors.append(_copied_mean([self.lpips(result, decoded_truth) for result in decoded]))
                if self.rounds > 1:
                    diversities.append(_copied_mean([self.lpips(a, b) for a, b in itertools.combinations(decoded, 2)]))
        changed.finish()
        count = len(data.images) * self.rounds
        return InpaintingScores(
            mask[0],
            sampler[0],
            [] if self.frechet is None else [_distance(self.frechet, batches) for batches in features],
            _concatenated(errors) if errors else None,
            _concatenated(diversities) if diversities else None,
            counting.evaluations / count,
            counting.patches / count,
            watch.seconds() / count,
        )

    def inpaint(
        self, denoiser: Denoiser, batch: ValidationImages, known: KnownPixels, sampler: ImageSampler, k: int = 0
    ) -> Image:
        """Return result k for every image, on the denoiser's device."""
        seeds = [counter_key(self.seed, index, k) for index in batch.indices]
        images = engine.ImageBatch(seeds, batch.labels, batch.images, known)
        channels, height, width = batch.images.shape[1:]
        with self.context():
            return engine.sample(denoiser, sampler, images, (channels, height, width), batch_size=self.batch_size)

    def frechet_of_real(self, data: ValidationImages, device: torch.device | str = "cpu") -> float | None:
        """Return the Fréchet distance of the true images, the best result to expect; None without `frechet`."""
        if self.frechet is None:
            return None
        decoded = (self.decode(to_device(batch.images, device)) for batch in data.batches(self.batch_size))
        return _distance(self.frechet, [HostCopy(self.frechet.extract(images)) for images in decoded])


@dataclass(frozen=True)
class InpaintingResults:
    """Scores of all samplers with all mask sets.

    Attributes:
        rows: scores in the order of the table rows.
        masks: result of `mask_fractions` by the name of the mask set.
        images: number of images.
        rounds: number of results per image.
        frechet_real: Fréchet distance of the true images, None if not computed.
        lpips: name of the image distance, None if not computed.
        features: name of the feature space of the Fréchet distance, None if not computed.
        dim: number of features in that space.
        reference: number of real images in the reference for the Fréchet distance.
    """

    rows: Sequence[InpaintingScores]
    masks: Mapping[str, Mapping[str, float]]
    images: int
    rounds: int
    frechet_real: float | None = None
    lpips: str | None = None
    features: str | None = None
    dim: int = 0
    reference: int = 0

    def table(self) -> str:
        """Return a Markdown table with one row per mask set and sampler, followed by notes on the scores."""
        rows = [self._cells(row) for row in self.rows]
        table = markdown_table(list(rows[0]), [list(cells.values()) for cells in rows])
        return "\n".join([table, "", *self._notes()])

    def card(self) -> dict[str, Any]:
        """Return all scores as plain dicts and lists, for a result card."""
        return {
            "images": self.images,
            "frechet_real": self.frechet_real,
            "masks": {name: dict(fractions) for name, fractions in self.masks.items()},
            "rows": [row.card() for row in self.rows],
        }

    def metrics(self) -> dict[str, float]:
        """Return the mean scores, with the names METRIC/MASK/SAMPLER."""
        metrics: dict[str, float] = {}
        for row in self.rows:
            if row.frechet:
                metrics[f"frechet/{row.mask}/{row.sampler}"] = _mean(row.frechet)
            if row.lpips is not None:
                metrics[f"lpips/{row.mask}/{row.sampler}"] = row.lpips.mean().item()
        return metrics

    def _cells(self, row: InpaintingScores) -> dict[str, str]:
        """Return the cells of a row by column header."""
        cells = {"mask": row.mask, "unknown": f"{100 * self.masks[row.mask]['unknown']:.0f} %", "sampler": row.sampler}
        if self.features is not None:
            cells[f"Fréchet, {self.features}"] = f"{_mean(row.frechet):.2f}"
        if self.lpips is not None:
            cells[f"{self.lpips} to the truth"] = _format_cell(row.lpips)
        if self.lpips is not None and self.rounds > 1:
            cells["diversity"] = _format_cell(row.diversity)
        cells |= {"evaluations": f"{row.evaluations:.5g}", "patches": f"{row.patches:.7g}"}
        return cells | {"seconds": f"{row.seconds:.3g}"}

    def _notes(self) -> list[str]:
        each = "one result each" if self.rounds == 1 else f"{self.rounds} results each"
        notes = [f"{self.images} images, {each}; network evaluations, patches and seconds per result"]
        if self.features is not None:
            notes.append(
                f"Fréchet distance from {self.reference} real images in {self.dim} dimensions; "
                f"the {self.images} true images lie at {self.frechet_real:.2f}"
            )
            if self.images <= self.dim:
                notes.append("no more images than dimensions: biased upwards, compare within this table only")
        return notes


def mask_fractions(known: KnownPixels, grid: tuple[int, int]) -> dict[str, float]:
    """Return the fraction of unknown pixels, and of known patches (all pixels known) in a level map (gh, gw)."""
    return {
        "unknown": 1 - known.double().mean().item(),
        "known_patches": known_patches(known, grid).double().mean().item(),
    }


def _distance(metric: FrechetDistance, features: Sequence[HostCopy]) -> float:
    """Return the distance of images from the metric's real images, from the features of their batches."""
    metric.reset()
    metric.update_features(_concatenated(features), real=False)
    return metric.compute().item()


def _concatenated(batches: Sequence[HostCopy]) -> Tensor:
    return torch.cat([batch.read() for batch in batches])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_and_error(values: PerImage | None) -> dict[str, float] | None:
    return None if values is None else {"mean": values.mean().item(), "standard_error": standard_error(values)}


def _format_cell(values: PerImage | None) -> str:
    estimate = _mean_and_error(values)
    return "" if estimate is None else f"{estimate['mean']:.4f} ± {estimate['standard_error']:.4f}"


def _copied_mean(values: Sequence[Tensor]) -> HostCopy:
    return HostCopy(torch.stack(list(values)).mean(0))


@dataclass
class _ChangedPixels:
    """Check that a sampler preserves known pixels; it is one batch late, so that nothing waits."""

    sampler: str
    mask: str
    last: HostCopy | None = None

    def check(self, results: Image, truth: Image, known: KnownPixels) -> None:
        self.finish()
        self.last = HostCopy(((results != truth) & known[:, None]).sum())

    def finish(self) -> None:
        """Raise RuntimeError if the last results differ from the true images at known pixels."""
        if self.last is not None and (changed := int(self.last.read())):
            raise RuntimeError(
                f"{self.sampler} changed {changed} known values with {self.mask}, but must preserve them bit for bit: "
                "do not override ImageSampler.frames, which restores them"
            )
        self.last = None


class _Stopwatch:
    """Context that measures the time of what runs in it, on the device: the host does not wait for a GPU."""

    def __init__(self, device: torch.device):
        self._marks: list[Any] = []
        self._device, self._is_gpu = device, device.type == "cuda"

    def __enter__(self) -> None:
        self._mark()

    def __exit__(self, *_: object) -> None:
        self._mark()

    def seconds(self) -> float:
        """Return the time within all contexts so far, after the GPU has finished them."""
        pairs = zip(self._marks[::2], self._marks[1::2], strict=True)
        if not self._is_gpu:
            return sum(end - start for start, end in pairs)
        if self._marks:
            self._marks[-1].synchronize()
        return sum(start.elapsed_time(end) for start, end in pairs) / 1000

    def _mark(self) -> None:
        if self._is_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())
