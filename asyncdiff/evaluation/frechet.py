"""Compute the Fréchet distance between two sets of images, with sums that any number of processes can share."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors
from torchmetrics.utilities.prints import rank_zero_warn

from asyncdiff.shapes import Image

Mean = Float64[Tensor, " d"]
Covariance = Float64[Tensor, "d d"]
SIDES = ("real", "fake")


class Gaussian(NamedTuple):
    """Mean and unbiased covariance of the features of one side, float64 on the CPU."""

    mean: Mean
    cov: Covariance


def square_root(cov: Covariance) -> Float64[Tensor, "r d"]:
    """Return a matrix B of full row rank r with B^T B = `cov`, from the eigenvectors whose variance exceeds round-off.

    Directions without variance do not contribute to the distance, so omitting them is exact. Each of them would add the
    square root of a rounding error, about 1e-8 of the largest variance.
    """
    variances, directions = torch.linalg.eigh(cov)
    round_off = torch.finfo(cov.dtype).eps * len(cov) * variances[-1].clamp(min=0)
    significant = variances > round_off
    return (directions[:, significant] * variances[significant].sqrt()).T


def frechet(
    mean1: Mean, cov1: Covariance, mean2: Mean, cov2: Covariance, *, root1: Float64[Tensor, "r d"] | None = None
) -> Float64[Tensor, ""]:
    """Return the squared Fréchet distance between two Gaussians, in squared feature units (arXiv:1706.08500, eq. 6).

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (B S2 B^T)^(1/2) with B^T B = S1: the matrix under the root is symmetric, so its
    eigenvalues are real and `eigvalsh` replaces a general matrix square root. The distance of equal Gaussians is 0.

    Args:
        mean1: mean m1 of the first Gaussian, (d,).
        cov1: covariance S1 of the first Gaussian, (d, d).
        mean2: mean m2 of the second Gaussian, (d,).
        cov2: covariance S2 of the second Gaussian, (d, d).
        root1: `square_root(cov1)`, to avoid computing it again; None to compute it.

    Returns:
        The distance, a float64 scalar; NaN if a mean or covariance is not finite.
    """
    if not all(part.isfinite().all() for part in (mean1, cov1, mean2, cov2)):
        return mean1.new_tensor(torch.nan)
    root1 = square_root(cov1) if root1 is None else root1
    overlap = torch.linalg.eigvalsh(root1 @ cov2 @ root1.T).clamp(min=0).sqrt().sum()
    # Round-off alone can push the distance of equal sets below zero.
    return ((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * overlap).clamp(min=0)


class FrechetDistance(Metric):
    """Fréchet distance between real and generated images in the space of `features`; 0 for equal sets.

    The state of each side consists of three sums over its images: their count, their features (d,), and the outer
    products of the features (d, d). They can be split over batches and processes in any way, so no image is lost or
    counted twice: give each process a disjoint subset without padding. The sums are uncentered but in float64: a mean
    of a thousand standard deviations costs six of sixteen digits. Do not make the metric an attribute of a
    LightningModule, or its state ends up in the checkpoints.

    Args:
        features: module that maps images (b, c, h, w) in [-1, 1] to features (b, d), with d in its attribute `dim`; it
            runs in eval mode, in float32 and without gradients.
        keep_reference: whether `reset` keeps the sums over the real images, which then need only one pass per run.

    Raises:
        ValueError: `features` has no `dim`, or `compute` is called with fewer than 2 images on a side.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    def __init__(self, features: nn.Module, *, keep_reference: bool = True) -> None:
        # Without caching: a rank without new images would return its cached value while the others wait for its sums.
        super().__init__(compute_with_cache=False)
        dim = getattr(features, "dim", None)
        if not isinstance(dim, int) or dim < 1:
            raise ValueError(
                f"features must have a positive integer attribute `dim`, got {dim!r} from "
                f"{type(features).__name__}: wrap the module with as_features(module, dim=...)"
            )
        # `dim` is known before the first image, so that ranks without images contribute zeros of the right shape.
        self.features = features
        self.dim = dim
        self.keep_reference = keep_reference
        for side in SIDES:
            for name, shape in (("n", ()), ("sum", (dim,)), ("outer", (dim, dim))):
                zeros = torch.zeros(shape, dtype=torch.float64)
                self.add_state(f"{side}_{name}", zeros, dist_reduce_fx="sum")
        self._reference: tuple[Tensor, Tensor] | None = None
        self._warned = False

    def update(self, images: Image, *, real: bool) -> None:
        """Add images in [-1, 1] to the real or the generated side; the metric moves to their device."""
        with torch.inference_mode(False):  # a module moved inside inference mode could not be used outside it
            self.to(images.device)
        self._add(self._extract(images), "real" if real else "fake")

    def update_features(self, features: Float[Tensor, "b d"], *, real: bool) -> None:
        """Add features that were already computed to the real or the generated side."""
        self._update_count += 1  # as torchmetrics' wrapper around `update` does
        self._add(features, "real" if real else "fake")

    def compute(self) -> Float64[Tensor, ""]:
        """Return the distance from the images of all processes, float64 on the CPU; warn once if there are too few."""
        real, fake = (self.statistics(real=side == "real") for side in SIDES)
        if not (real.cov.isfinite().all() and fake.cov.isfinite().all()):
            rank_zero_warn("the Fréchet distance is NaN because some features are NaN or infinite: check the images")
            return real.mean.new_tensor(torch.nan)
        return frechet(*real, *fake, root1=self._reference_root(real.cov))

    def statistics(self, *, real: bool) -> Gaussian:
        """Return the mean and covariance of one side from the current sums of this process."""
        side = "real" if real else "fake"
        n, total, outer = (getattr(self, f"{side}_{name}").to("cpu") for name in ("n", "sum", "outer"))
        if n < 2:
            raise ValueError(
                f"the {side} side has {int(n)} images, but a covariance needs at least 2: call update first"
            )
        if n < self.dim and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"the Fréchet distance of {int(n)} {side} images in {self.dim} feature dimensions is biased upwards "
                f"and not comparable: use more than {self.dim} images, 50000 for published numbers"
            )
        mean = total / n
        return Gaussian(mean, (outer - n * torch.outer(mean, mean)) / (n - 1))

    def reset(self) -> None:
        """Discard the generated images, and unless `keep_reference` also the real ones."""
        names = [name for name in self._defaults if name.startswith("real") and self.keep_reference]
        saved = {name: getattr(self, name) for name in names}
        super().reset()
        for name, value in saved.items():
            setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raise NotImplementedError, since torchmetrics would count the reference twice."""
        raise NotImplementedError(
            "forward is not defined for a single batch: call update(images, real=...) and then compute()"
        )

    @torch.no_grad()
    def _extract(self, images: Tensor) -> Tensor:
        self.features.eval()
        with torch.autocast(images.device.type, enabled=False):
            return self.features(images.float())

    @torch.no_grad()
    def _add(self, features: Tensor, side: str) -> None:
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(
                f"features must have shape (batch, {self.dim}), got {tuple(features.shape)}: check the attribute dim"
            )
        old = {name: getattr(self, f"{side}_{name}") for name in ("n", "sum", "outer")}
        features = features.to(old["sum"].device, torch.float64)
        # Not in place: tensors that `reset` created in inference mode must not be modified outside it.
        setattr(self, f"{side}_n", old["n"] + len(features))
        setattr(self, f"{side}_sum", old["sum"] + features.sum(0))
        setattr(self, f"{side}_outer", torch.addmm(old["outer"], features.T, features))

    def _reference_root(self, cov: Tensor) -> Tensor:
        """Return the square root of the real covariance, recomputed only if the covariance has changed."""
        if self._reference is None or not torch.equal(self._reference[0], cov):
            self._reference = cov, square_root(cov)
        return self._reference[1]

    def _sync_dist(
        self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any | None = None
    ) -> None:
        """All-reduce the sums; gathering them would take 67 MB per process for 2048 features."""
        if dist_sync_fn is not gather_all_tensors:
            super()._sync_dist(dist_sync_fn, process_group=process_group)
            return
        group = process_group or self.process_group
        for name in self._reductions:
            local = getattr(self, name)
            # A rank without images still has its sums on the CPU, where NCCL cannot use them.
            total = local.to(_collective_device(group), copy=True)
            dist.all_reduce(total, group=group)
            setattr(self, name, total.to(local.device))

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        """Move to the device of `fn` but ignore its dtype: half-precision sums would be worthless."""
        device = fn(torch.empty(0, device=self.device)).device
        # Apple's GPU has no float64: the sums stay on the CPU there.
        device_of = {torch.float64: torch.device("cpu") if device.type == "mps" else device}
        return super()._apply(lambda tensor: tensor.to(device_of.get(tensor.dtype, device)), exclude_state)


def _collective_device(group: Any | None) -> torch.device:
    """Return the device on which the backend of `group` expects tensors."""
    if "gloo" in dist.get_backend(group) or not torch.accelerator.is_available():
        return torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator()
    return torch.device(accelerator.type, torch.accelerator.current_device_index())  # type: ignore[union-attr]
