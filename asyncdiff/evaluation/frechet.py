"""Compute the Fréchet distance between two sets of images, which any number of processes can share."""

import warnings
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float, Float64
from torch import Tensor, nn

from asyncdiff.checks import at_least
from asyncdiff.devices import to_device
from asyncdiff.evaluation.features.base import LateRangeCheck
from asyncdiff.precision import full_float32
from asyncdiff.shapes import Image

Mean = Float64[Tensor, " d"]
Covariance = Float64[Tensor, "d d"]


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


class Moments:
    """Running mean and covariance of features, accumulated in float64 batch by batch.

    Deviations from the means are accumulated, so that a mean far from zero costs no precision.

    Args:
        dim: number of features per image.

    Attributes:
        count: number of images so far.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.count = 0
        self._mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, features: Float[Tensor, "n d"]) -> None:
        """Add the features of a batch of images by Chan, Golub and LeVeque's update, which sums no large squares."""
        if not len(features):
            return
        device = torch.device("cpu") if features.device.type == "mps" else features.device  # Apple's GPU has no float64
        features = features.to(device, torch.float64)
        count, mean = self.count + len(features), features.mean(0)
        self._mean, self._scatter = to_device(self._mean, device), to_device(self._scatter, device)
        shift, centered = mean - self._mean, features - mean
        between = torch.outer(shift, shift) * (self.count * len(features) / count)
        self._scatter = torch.addmm(self._scatter + between, centered.T, centered)
        self._mean = self._mean + shift * (len(features) / count)
        self.count = count

    def over_processes(self) -> "Moments":
        """Return the moments of the images of all processes, which must all call this; the own ones do not change."""
        if not _distributed():
            return self
        device, total = _collective_device(), Moments(self.dim)
        own = torch.tensor([float(self.count)]).double()
        sums = torch.cat([own, self.count * self._mean.cpu()]).to(device)
        dist.all_reduce(sums)
        total.count, total._mean = int(sums[0]), sums[1:].cpu() / sums[0].clamp(min=1).cpu()
        shift = self._mean.cpu() - total._mean
        scatter = (self._scatter.cpu() + self.count * torch.outer(shift, shift)).to(device)
        dist.all_reduce(scatter)  # gathering would take 34 MB per process for 2048 features
        total._scatter = scatter.cpu()
        return total

    def gaussian(self, images: str = "images") -> Gaussian:
        """Return the mean and unbiased covariance; raise ValueError for fewer than 2 of the images named `images`."""
        at_least(
            f"number of {images}", self.count, 2, "a covariance needs 2 images, a reliable one many more than features"
        )
        return Gaussian(self._mean.cpu(), self._scatter.cpu() / (self.count - 1))


class FrechetDistance:
    """Fréchet distance between real and generated images in the space of `features`; 0 for equal sets.

    Both sides can be split over batches and processes in any way, and `compute` includes the images of all processes.
    No image is lost or counted twice: give each process a disjoint subset without padding.

    Args:
        features: module that maps images (b, c, h, w) in [-1, 1] to features (b, d), with d in its attribute `dim`; it
            runs in eval mode, in float32 without TF32, and without gradients.
        keep_reference: whether `reset` keeps the real images, which then need only one pass per run.

    Raises:
        ValueError: `features` has no `dim`, or `compute` is called with fewer than 2 images on a side.
    """

    def __init__(self, features: nn.Module, *, keep_reference: bool = True) -> None:
        dim = getattr(features, "dim", None)
        if not isinstance(dim, int) or dim < 1:
            raise ValueError(
                f"features must have a positive integer attribute `dim`, got {dim!r} from "
                f"{type(features).__name__}: wrap the module with as_features(module, dim=...)"
            )
        self.features = features
        self.dim = dim
        self.keep_reference = keep_reference
        self._real, self._fake = Moments(dim), Moments(dim)
        self._reference: tuple[Tensor, Tensor] | None = None
        self._shape: torch.Size | None = None  # (c, h, w) of all images
        self._warned = False
        self._check_range = LateRangeCheck()

    @property
    def real_n(self) -> int:
        """Number of real images of this process."""
        return self._real.count

    @property
    def fake_n(self) -> int:
        """Number of generated images of this process."""
        return self._fake.count

    def to(self, device: torch.device | str) -> "FrechetDistance":
        """Move the features to `device`, and return this metric."""
        with torch.inference_mode(False):  # a module moved inside inference mode could not be used outside it
            self.features.to(device)
        return self

    @torch.no_grad()
    def extract(self, images: Image) -> Float[Tensor, "b d"]:
        """Return the features of images in [-1, 1]; the extractor moves to their device.

        Raises:
            ValueError: their shape differs from that of earlier images, or they certainly have another range, which is
                noticed on a GPU with the next images, or by `compute`.
        """
        self._check_range("images", images)
        self._shape = images.shape[1:] if self._shape is None else self._shape
        if images.shape[1:] != self._shape:
            raise ValueError(
                f"real and generated images must have the same shape, got {tuple(self._shape)} and "
                f"{tuple(images.shape[1:])}: resize one of the sets"
            )
        self.to(images.device)
        self.features.eval()
        with full_float32(images.device):
            return self.features(images.float())

    def update(self, images: Image, *, real: bool) -> None:
        """Add images in [-1, 1] to the real or the generated side; the features move to their device."""
        self.update_features(self.extract(images), real=real)

    @torch.no_grad()
    def update_features(self, features: Float[Tensor, "b d"], *, real: bool) -> None:
        """Add features that were already computed to the real or the generated side."""
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(
                f"features must have shape (batch, {self.dim}), got {tuple(features.shape)}: check the attribute dim"
            )
        (self._real if real else self._fake).add(features)

    def compute(self) -> Float64[Tensor, ""]:
        """Return the distance from the images of all processes, float64 on the CPU; warn once if there are too few."""
        self._check_range.finish()
        real, fake = (self._gaussian(side.over_processes(), side is self._real) for side in (self._real, self._fake))
        if not (real.cov.isfinite().all() and fake.cov.isfinite().all()):
            _warn("the Fréchet distance is NaN because some features are NaN or infinite: check the images")
            return real.mean.new_tensor(torch.nan)
        if self._reference is None or not torch.equal(self._reference[0], real.cov):
            self._reference = real.cov, square_root(real.cov)
        return frechet(*real, *fake, root1=self._reference[1])

    def statistics(self, *, real: bool) -> Gaussian:
        """Return the mean and covariance of one side from the images of this process."""
        return self._gaussian(self._real if real else self._fake, real)

    def reset(self) -> None:
        """Discard the generated images, and unless `keep_reference` also the real ones."""
        self._fake = Moments(self.dim)
        if not self.keep_reference:
            self._real, self._shape = Moments(self.dim), None

    def _gaussian(self, moments: Moments, real: bool) -> Gaussian:
        side = "real" if real else "fake"
        gaussian = moments.gaussian(f"{side} images")
        if not self._warned:
            self._warned = warn_if_biased(moments.count, side, self.dim)
        return gaussian


def warn_if_biased(count: int, side: str, dim: int) -> bool:
    """Warn on the first process if a side has fewer images than features, and return whether it does."""
    if biased := count < dim:
        _warn(
            f"the Fréchet distance of {count} {side} images in {dim} feature dimensions is biased upwards and not "
            f"comparable: use more than {dim} images, 50000 for published numbers"
        )
    return biased


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _warn(message: str) -> None:
    """Warn, on the first process only."""
    if not _distributed() or dist.get_rank() == 0:
        warnings.warn(message, stacklevel=4)


def _collective_device() -> torch.device:
    """Return the device on which the backend of the processes expects tensors."""
    if "gloo" in dist.get_backend() or not torch.accelerator.is_available():
        return torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator()
    return torch.device(accelerator.type, torch.accelerator.current_device_index())  # type: ignore[union-attr]
