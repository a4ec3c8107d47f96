"""The bound of one model along several paths: the same images, the same noise, and how far the paths disagree."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.denoising.denoiser import DenoiserLike
from asyncdiff.denoising.likelihood import LEVEL_EDGES, Bound, CategoricalDecoder, Decoder, bound, finest_level
from asyncdiff.noise.masks import Mask
from asyncdiff.noise.orders import Raster, Wavefront
from asyncdiff.noise.paths import AsyncPatch, Ordered, Path, Synchronous, check_path
from asyncdiff.noise.processes import Process
from asyncdiff.noise.progress import ProgressSampler
from asyncdiff.randomness import per_image
from asyncdiff.shapes import Image, KnownPixels, Labels, known_patches

STANDARD_PATHS: Mapping[str, Path] = {
    "synchronous": Synchronous(),
    "async_patch": AsyncPatch(),
    "wavefront": Ordered(Wavefront(), overlap=0.5),
    "raster": Ordered(Raster()),
}
TERMS = ("prior", "diffusion", "reconstruction")

Rows = Float[Tensor, "n paths numbers"]  # terms, dims, level bins and patches of every image


@dataclass(frozen=True)
class PathBounds:
    """How the bounds of images are measured, the same for all of them.

    Attributes:
        paths: the path families by name.
        points: evaluations of the network per image and path.
        decoder: the pixels' values, see `asyncdiff.denoising.likelihood`.
        mask: what is known, by the image's seed where it is drawn: bounds -log p(unknown | known); nothing by default.
        spacing: where on the paths to look; importance sampling of s by default.
        t_min: floor of the paths that have none; what suits the decoder by default.
    """

    paths: Mapping[str, Path]
    points: int = 64
    decoder: Decoder = field(default_factory=CategoricalDecoder)
    mask: Mask | None = None
    progress_sampler: ProgressSampler | None = None
    t_min: float | None = None

    def check(self, denoiser: DenoiserLike, x: Image) -> None:
        """Raise ValueError before anything is measured, if on images like `x` nothing could be."""
        grid = denoiser.grid((x.shape[2], x.shape[3]))
        for name, path in self.paths.items():
            check_path(path, grid)
            if self.t_min is not None and path.t_min > 0:
                raise ValueError(f"t_min must be left out for paths with a floor, got both for {name}: {path.t_min}")
        if self.t_min is not None and not 0 < self.t_min < 1:
            raise ValueError(f"t_min must lie in (0, 1), got {self.t_min}: 0.002 suits 8-bit pixels")
        self.decoder.check(x)
        known = self._known(x, range(len(x)))
        if known is not None and (patches := known_patches(known, grid)).any() == patches.all():
            amount = "every" if patches.all() else "no"
            raise ValueError(
                f"mask must leave some patches of the level map known and some unknown, got {amount} patch known: "
                "a patch is known where all its pixels are; choose another mask"
            )

    def floors(self, process: Process) -> dict[str, float]:
        """The lowest level of every path."""
        floor = finest_level(process, self.decoder) if self.t_min is None else self.t_min
        return {name: path.t_min or floor for name, path in self.paths.items()}

    def rows(self, denoiser: DenoiserLike, x: Image, label: Labels | None, seeds: Sequence[int]) -> Rows:
        """Nats of every image along every path, laid out for `PathLikelihoods`; image i depends on seed i only.

        Every path starts from the same seeds, so that images and noise are the same along all of them.
        """
        found = []
        for path in self.paths.values():
            one = bound(
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
            found.append(_row(one))
        return torch.stack(found, dim=1)

    def summary(self, rows: Rows, grid: tuple[int, int]) -> "PathLikelihoods":
        """What the rows of all images say, on a level map of (gh, gw)."""
        return PathLikelihoods(rows.double(), list(self.paths), grid, self.decoder)

    def _known(self, x: Image, seeds: Sequence[int]) -> KnownPixels | None:
        if self.mask is None:
            return None
        return self.mask.per_image(x.shape[2], x.shape[3], seeds=seeds).to(x.device)


def check_labels(model: Any, classes: int | None, *, told: bool) -> None:
    """Raise ValueError unless a model's labels are those of the data, `classes` of them, and it can do without."""
    if not model.classes:
        return
    if told and classes is not None and classes != model.classes:
        raise ValueError(f"labels must be the model's, {model.classes} classes, got data with {classes}: other data?")
    if not told and model.label_dropout == 0:
        raise ValueError("labels must be told to a model that was trained with label_dropout 0: leave labels on")


@dataclass(frozen=True)
class PathLikelihoods:
    """The rows of all images, and what to read in them.

    Attributes:
        rows: from `PathBounds`, of any number of images.
        names: of the paths.
        grid: (gh, gw) of the level map.
        decoder: that of the rows: says the unit.
    """

    rows: Rows
    names: Sequence[str]
    grid: tuple[int, int]
    decoder: Decoder

    @property
    def unit(self) -> str:
        """bits/dim or nats/dim."""
        return self.decoder.unit

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.rows)

    def rates(self) -> Float[Tensor, "n paths"]:
        """The bound of every image along every path, per dimension."""
        return self._per_dim(self.rows[..., : len(TERMS)].sum(2))

    def mean(self, name: str) -> float:
        """Mean over the images."""
        return self.rates()[:, self._place(name)].mean().item()

    def standard_error(self, name: str) -> float:
        """Standard error of `mean`: of the images drawn and of the noise together."""
        return _standard_error(self.rates()[:, self._place(name)])

    def term(self, name: str, term: str) -> float:
        """Mean of one of the `TERMS` per dimension."""
        return self._per_dim(self.rows[..., TERMS.index(term)])[:, self._place(name)].mean().item()

    def difference(self, name: str, other: str) -> tuple[float, float]:
        """Mean of the pairwise difference of two paths and its standard error, which shared images and noise reduce."""
        rates = self.rates()
        pairs = rates[:, self._place(name)] - rates[:, self._place(other)]
        return pairs.mean().item(), _standard_error(pairs)

    def gap(self) -> tuple[float, float]:
        """The path gap, how far the loosest path lies above the tightest, and its standard error.

        Its expectation is 0 for a consistent joint score, whose bound is the same on every path: the two paths are
        chosen on one half of the images and compared on the other, both ways, since the largest less the smallest of
        several noisy means would be positive in any case.
        """
        rates = self.rates()
        halves = (rates[0::2], rates[1::2])
        if len(halves[1]) < 2:
            ordered = sorted(self.names, key=self.mean)
            return self.difference(ordered[-1], ordered[0])
        gaps, errors = [], []
        for chosen, compared in (halves, halves[::-1]):
            means = chosen.mean(0)
            pairs = compared[:, int(means.argmax())] - compared[:, int(means.argmin())]
            gaps.append(pairs.mean().item())
            errors.append(_standard_error(pairs))
        return sum(gaps) / 2, sum(errors) / 2  # halves that agree on the extremes err together: no gain of sqrt(2)

    @property
    def dims(self) -> float:
        """Unknown values of an image, on average."""
        return self.rows[:, 0, len(TERMS)].mean().item()

    def by_level(self, name: str) -> Float[Tensor, " bins"]:
        """The diffusion term per dimension by the level of the patches, bins up to each of `LEVEL_EDGES`."""
        first = len(TERMS) + 1
        return self._per_dim(self.rows[..., first : first + len(LEVEL_EDGES)])[:, self._place(name)].mean(0)

    def per_patch(self, name: str) -> Float[Tensor, "gh gw"]:
        """Where in the image the bound comes from: its mean by patch, per dimension of one patch were all alike."""
        patches = self.rows[:, self._place(name), len(TERMS) + 1 + len(LEVEL_EDGES) :].reshape(-1, *self.grid)
        dims = self.rows[:, 0, len(TERMS)].clamp(min=1)[:, None, None]
        moving = (patches != 0).flatten(1).sum(1).clamp(min=1)[:, None, None]
        return (patches * moving / dims / self.decoder.nats).mean(0)

    def table(self) -> str:
        """Markdown: one row per path, with its parts and its difference from the first, and the path gap."""
        first = self.names[0]
        lines = [
            f"| path | {self.unit} | prior | diffusion | reconstruction | against {first} |",
            "|---|---|---|---|---|---|",
        ]
        for name in self.names:
            change, noise = self.difference(name, first)
            parts = " | ".join(f"{self.term(name, term):.4f}" for term in TERMS)
            against = "" if name == first else f"{change:+.4f} ± {noise:.4f}"
            lines.append(f"| {name} | {self.mean(name):.4f} ± {self.standard_error(name):.4f} | {parts} | {against} |")
        lines += ["", f"{self.images} images of {self.dims:g} unknown values each"]
        if len(self.names) > 1:
            gap, noise = self.gap()
            lines.append(f"path gap: {gap:.4f} ± {noise:.4f} {self.unit}")
        return "\n".join(lines)

    def scalars(self) -> dict[str, float]:
        """The rate of each path and the gap, by the tags of a logger."""
        rate = self._tag()
        found = {f"{rate}/{name}": self.mean(name) for name in self.names}
        return found | ({f"{rate}/path_gap": self.gap()[0]} if len(self.names) > 1 else {})

    def details(self) -> dict[str, float]:
        """The terms and levels of each path, by the tags of a logger."""
        rate = self._tag()
        found: dict[str, float] = {}
        for name in self.names:
            found |= {f"{rate}_parts/{name}/{term}": self.term(name, term) for term in TERMS}
            found[f"{rate}_parts/{name}/standard_error"] = self.standard_error(name)
            levels = zip(LEVEL_EDGES, self.by_level(name).tolist(), strict=True)
            found |= {f"{rate}_by_level/{name}/up_to_{edge}": value for edge, value in levels}
        return found

    def card(self) -> dict[str, object]:
        """The same as plain containers for a JSON file, with standard errors."""
        paths = {
            name: {
                "rate": self.mean(name),
                "standard_error": self.standard_error(name),
                **{term: self.term(name, term) for term in TERMS},
                "by_level": dict(zip(map(str, LEVEL_EDGES), self.by_level(name).tolist(), strict=True)),
                "per_patch": self.per_patch(name).tolist(),
            }
            for name in self.names
        }
        card: dict[str, object] = {"unit": self.unit, "images": self.images, "unknown_values": self.dims}
        card["paths"] = paths
        if len(self.names) > 1:
            gap, noise = self.gap()
            card["path_gap"] = {"value": gap, "standard_error": noise}
        return card

    def _per_dim(self, nats: Tensor) -> Tensor:
        dims = self.rows[..., len(TERMS)].clamp(min=1)
        return nats / dims.reshape(dims.shape + (1,) * (nats.ndim - 2)) / self.decoder.nats

    def _tag(self) -> str:
        return self.unit.replace("/", "_per_")

    def _place(self, name: str) -> int:
        return list(self.names).index(name)


def _row(found: Bound) -> Float[Tensor, "b numbers"]:
    single = torch.stack([found.prior, found.diffusion, found.reconstruction, found.dims], dim=1)
    return torch.cat([single, found.by_level, found.per_patch.flatten(1)], dim=1)


def _standard_error(values: Tensor) -> float:
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else math.nan
