"""Evaluate likelihood bounds of a model along several paths with the same images and noise, and their gap."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.denoising.denoiser import DenoiserLike
from asyncdiff.denoising.likelihood import LEVEL_EDGES, Bound, CategoricalDecoder, Decoder, bound, default_t_min
from asyncdiff.markdown import markdown_table
from asyncdiff.model import Model
from asyncdiff.noise.masks import Mask
from asyncdiff.noise.orders import Raster, Wavefront
from asyncdiff.noise.paths import AsyncPatch, Ordered, Path, Synchronous, check_path
from asyncdiff.noise.processes import Process
from asyncdiff.noise.progress_samplers import ProgressSampler
from asyncdiff.randomness import per_image
from asyncdiff.shapes import Image, KnownPixels, Labels, known_patches

STANDARD_PATHS: Mapping[str, Path] = {
    "synchronous": Synchronous(),
    "async_patch": AsyncPatch(),
    "wavefront": Ordered(Wavefront(), overlap=0.5),
    "raster": Ordered(Raster()),
}
TERMS = ("prior", "diffusion", "reconstruction")

Rows = Float[Tensor, "n paths numbers"]  # for each image and path: terms, dims, level bins and patches


@dataclass(frozen=True)
class PathLikelihoodEvaluator:
    """Evaluates likelihood bounds along several paths, with the same settings for all images.

    Attributes:
        paths: noise paths by name.
        points: number of network evaluations per image and path.
        decoder: distribution of the pixel values, see `asyncdiff.denoising.likelihood`.
        mask: random mask of known pixels, drawn with the image's seed, to bound -log p(unknown | known); by default all
            pixels are unknown.
        progress_sampler: distribution of the progress s on the paths (default: importance sampling).
        t_min: lowest level of the paths that do not define one (default: a level suited to the decoder).
    """

    paths: Mapping[str, Path]
    points: int = 64
    decoder: Decoder = field(default_factory=CategoricalDecoder)
    mask: Mask | None = None
    progress_sampler: ProgressSampler | None = None
    t_min: float | None = None

    def check(self, denoiser: DenoiserLike, x: Image) -> None:
        """Raise ValueError if the bounds cannot be evaluated for images like `x`; call this first."""
        grid = denoiser.grid((x.shape[2], x.shape[3]))
        for name, path in self.paths.items():
            check_path(path, grid)
            if self.t_min is not None and path.t_min > 0:
                raise ValueError(
                    f"path {name} already has t_min {path.t_min}, got t_min {self.t_min} as well: set only one of them"
                )
        if self.t_min is not None and not 0 < self.t_min < 1:
            raise ValueError(f"t_min must lie in (0, 1), got {self.t_min}: use 0.002 for 8-bit pixels")
        self.decoder.check(x)
        known = self._known(x, range(len(x)))
        if known is not None and (patches := known_patches(known, grid)).any() == patches.all():
            amount = "every" if patches.all() else "no"
            raise ValueError(
                f"mask must leave some patches of the level map known and some unknown, got {amount} patch known: "
                "choose another mask; a patch is known if all its pixels are"
            )

    def lowest_levels(self, process: Process) -> dict[str, float]:
        """Return the lowest level of each path by name."""
        t_min = default_t_min(process, self.decoder) if self.t_min is None else self.t_min
        return {name: path.t_min or t_min for name, path in self.paths.items()}

    def evaluate(self, denoiser: DenoiserLike, x: Image, label: Labels | None, seeds: Sequence[int]) -> Rows:
        """Return the bounds in nats for each image and path, to concatenate over batches and pass to `summarize`.

        The bounds of image i depend only on seed i. All paths use the same seeds, so that they share images and noise.
        """
        columns = []
        for path in self.paths.values():
            result = bound(
                denoiser,
                x,
                path,
                label=label,
                known=self._known(x, seeds),
                points=self.points,
                progress_sampler=self.progress_sampler,
                t_min=self.t_min,
                decoder=self.decoder,
                generator=per_image(seeds),
            )
            columns.append(_flatten_bound(result))
        return torch.stack(columns, dim=1)

    def summarize(self, rows: Rows, grid: tuple[int, int]) -> "PathLikelihoods":
        """Return the likelihoods from the `evaluate` results of all images, with a level map of (gh, gw)."""
        return PathLikelihoods(rows.double(), list(self.paths), grid, self.decoder)

    def _known(self, x: Image, seeds: Sequence[int]) -> KnownPixels | None:
        if self.mask is None:
            return None
        return self.mask.per_image(x.shape[2], x.shape[3], seeds=seeds)


def check_labels(model: Model, classes: int | None, *, conditioned: bool, label_dropout: float | None) -> None:
    """Raise ValueError unless a model can be evaluated with the labels of the data, or without labels.

    An unconditional model always passes. A conditional one can do without labels if it was trained with label dropout.

    Args:
        model: model to evaluate.
        classes: number of classes in the data; None if unknown.
        conditioned: whether the model is conditioned on labels.
        label_dropout: label dropout that the model was trained with; None if unknown.
    """
    if not model.classes:
        return
    if conditioned and classes is not None and classes != model.classes:
        raise ValueError(
            f"the model has {model.classes} classes, but the data has {classes}: use the data it was trained on"
        )
    if not conditioned and label_dropout == 0:
        raise ValueError(
            "the model was trained with label_dropout 0 and needs class labels, got labels false: set labels to true"
        )


@dataclass(frozen=True)
class PathLikelihoods:
    """Likelihood bounds for a set of images along several paths, and their statistics.

    Attributes:
        rows: terms in nats, dims, level bins and patches from `PathLikelihoodEvaluator.evaluate`.
        names: names of the paths.
        grid: size (gh, gw) of the level map.
        decoder: decoder that the bounds were computed with; it determines the unit.
    """

    rows: Rows
    names: Sequence[str]
    grid: tuple[int, int]
    decoder: Decoder

    @property
    def unit(self) -> str:
        """Unit of the bounds, bits/dim or nats/dim."""
        return self.decoder.unit

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.rows)

    def rates(self) -> Float[Tensor, "n paths"]:
        """Return the bound per dimension for each image and path."""
        return self._per_dim(self.rows[..., : len(TERMS)].sum(2))

    def mean(self, name: str) -> float:
        """Return the mean bound of a path over the images."""
        return self.rates()[:, self._index(name)].mean().item()

    def standard_error(self, name: str) -> float:
        """Return the standard error of `mean` due to the choice of images and the noise."""
        return standard_error(self.rates()[:, self._index(name)])

    def term(self, name: str, term: str) -> float:
        """Return the mean per dimension of one of the `TERMS`."""
        return self._per_dim(self.rows[..., TERMS.index(term)])[:, self._index(name)].mean().item()

    def difference(self, name: str, baseline: str) -> tuple[float, float]:
        """Return the mean paired difference from another path and its standard error; shared noise makes it small."""
        rates = self.rates()
        pairs = rates[:, self._index(name)] - rates[:, self._index(baseline)]
        return pairs.mean().item(), standard_error(pairs)

    def gap(self) -> tuple[float, float]:
        """Return the path gap (the bound of the loosest path minus that of the tightest) and its standard error.

        Its expectation is 0 for a consistent joint score, whose bound is the same along all paths. The two paths are
        selected on one half of the images and compared on the other half, and vice versa, because the maximum minus the
        minimum of several noisy means would always be positive.
        """
        rates = self.rates()
        halves = (rates[0::2], rates[1::2])
        if len(halves[1]) < 2:
            ordered = sorted(self.names, key=self.mean)
            return self.difference(ordered[-1], ordered[0])
        gaps, errors = [], []
        for selection, compared in (halves, halves[::-1]):
            means = selection.mean(0)
            pairs = compared[:, int(means.argmax())] - compared[:, int(means.argmin())]
            gaps.append(pairs.mean().item())
            errors.append(standard_error(pairs))
        # The errors are averaged, not divided by sqrt(2): halves that select the same paths are correlated.
        return sum(gaps) / 2, sum(errors) / 2

    @property
    def dims(self) -> float:
        """Mean number of unknown values per image."""
        return self.rows[:, 0, len(TERMS)].mean().item()

    def level_contributions(self, name: str) -> Float[Tensor, " bins"]:
        """Return the diffusion term per dimension in bins of the patch level, each up to one of `LEVEL_EDGES`."""
        first = len(TERMS) + 1
        return self._per_dim(self.rows[..., first : first + len(LEVEL_EDGES)])[:, self._index(name)].mean(0)

    def patch_means(self, name: str) -> Float[Tensor, "gh gw"]:
        """Return the mean bound of each patch, scaled so that unknown patches average to the bound per dimension."""
        patches = self.rows[:, self._index(name), len(TERMS) + 1 + len(LEVEL_EDGES) :].reshape(-1, *self.grid)
        dims = self.rows[:, 0, len(TERMS)].clamp(min=1)[:, None, None]
        moving = (patches != 0).flatten(1).sum(1).clamp(min=1)[:, None, None]
        return (patches * moving / dims / self.decoder.nats).mean(0)

    def table(self) -> str:
        """Return a Markdown table with the bound, terms and difference from the first path, and then the path gap."""
        first = self.names[0]
        rows = []
        for name in self.names:
            change, noise = self.difference(name, first)
            rate = f"{self.mean(name):.4f} ± {self.standard_error(name):.4f}"
            against = "" if name == first else f"{change:+.4f} ± {noise:.4f}"
            rows.append([name, rate, *(f"{self.term(name, term):.4f}" for term in TERMS), against])
        lines: list[str] = [markdown_table(["path", self.unit, *TERMS, f"against {first}"], rows)]
        lines += ["", f"{self.images} images of {self.dims:g} unknown values each"]
        if len(self.names) > 1:
            gap, noise = self.gap()
            lines.append(f"path gap: {gap:.4f} ± {noise:.4f} {self.unit}")
        return "\n".join(lines)

    def scalars(self) -> dict[str, float]:
        """Return the bound of each path and the path gap, by logger tag."""
        rate = self._tag()
        scalars = {f"{rate}/{name}": self.mean(name) for name in self.names}
        return scalars | ({f"{rate}/path_gap": self.gap()[0]} if len(self.names) > 1 else {})

    def details(self) -> dict[str, float]:
        """Return the terms and level bins of each path, by logger tag."""
        rate = self._tag()
        scalars: dict[str, float] = {}
        for name in self.names:
            summary = self._summary(name)
            scalars |= {f"{rate}_parts/{name}/{part}": summary[part] for part in (*TERMS, "standard_error")}
            scalars |= {f"{rate}_by_level/{name}/up_to_{edge}": bits for edge, bits in summary["by_level"].items()}
        return scalars

    def card(self) -> dict[str, object]:
        """Return all results with standard errors as plain dicts and lists, for a result card."""
        paths = {name: self._summary(name) | {"per_patch": self.patch_means(name).tolist()} for name in self.names}
        card: dict[str, object] = {
            "unit": self.unit,
            "images": self.images,
            "unknown_values": self.dims,
            "paths": paths,
        }
        if len(self.names) > 1:
            gap, noise = self.gap()
            card["path_gap"] = {"value": gap, "standard_error": noise}
        return card

    def _summary(self, name: str) -> dict[str, Any]:
        return {
            "rate": self.mean(name),
            "standard_error": self.standard_error(name),
            **{term: self.term(name, term) for term in TERMS},
            "by_level": dict(zip(map(str, LEVEL_EDGES), self.level_contributions(name).tolist(), strict=True)),
        }

    def _per_dim(self, nats: Tensor) -> Tensor:
        dims = self.rows[..., len(TERMS)].clamp(min=1)
        return nats / dims.reshape(dims.shape + (1,) * (nats.ndim - 2)) / self.decoder.nats

    def _tag(self) -> str:
        return self.unit.replace("/", "_per_")

    def _index(self, name: str) -> int:
        return list(self.names).index(name)


def _flatten_bound(result: Bound) -> Float[Tensor, "b numbers"]:
    scalars = torch.stack([result.prior, result.diffusion, result.reconstruction, result.dims], dim=1)
    return torch.cat([scalars, result.by_level, result.per_patch.flatten(1)], dim=1)


def standard_error(values: Float[Tensor, " n"]) -> float:
    """Return the standard error of the mean of independent values, NaN for a single one."""
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else math.nan
