"""An exact denoiser for Gaussian images: what a perfect network would answer, in closed form."""

import torch
from torch import Tensor

from asyncdiff.denoiser import Prediction
from asyncdiff.processes import Process, RectifiedFlow
from asyncdiff.shapes import to_pixels


class GaussianOracle:
    """E[x | x_t] for images x ~ N(mean, cov) flattened, at any level map."""

    def __init__(self, mean: Tensor, cov: Tensor, patches: tuple[int, int], process: Process | None = None):
        self.mean, self.cov, self.patches = mean, cov, patches
        self.process = process or RectifiedFlow()

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.patches

    def __call__(self, x_t: Tensor, t: Tensor, label: Tensor | None = None, *, distinct=None) -> Prediction:
        size = (x_t.shape[2], x_t.shape[3])
        alpha, sigma = (
            to_pixels(k, size).expand_as(x_t).flatten(1) for k in (self.process.alpha(t), self.process.sigma(t))
        )
        innovation = x_t.flatten(1) - alpha * self.mean
        total = alpha[:, :, None] * self.cov * alpha[:, None] + torch.diag_embed(sigma.square())
        x = self.mean + (self.cov @ (alpha * torch.linalg.solve(total, innovation))[:, :, None])[:, :, 0]
        a = to_pixels(self.process.dsigma(t) / self.process.wronskian(t), size).expand_as(x_t).flatten(1)
        v = torch.where(sigma > 0, (a * x_t.flatten(1) - x) / sigma.masked_fill(sigma == 0, 1), 0)
        return Prediction(self.process, x_t, t, v.reshape(x_t.shape))


def gaussian(pixels: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A mean and a well-conditioned covariance with correlated pixels, float64."""
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(pixels, pixels, generator=g, dtype=torch.float64) / pixels**0.5
    return torch.randn(pixels, generator=g, dtype=torch.float64) / 2, root @ root.T + 0.1 * torch.eye(pixels)


def draw(mean: Tensor, cov: Tensor, count: int, shape: tuple[int, int, int], seed: int = 1) -> Tensor:
    """`count` exact samples."""
    z = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (mean + z @ torch.linalg.cholesky(cov).T).reshape(count, *shape)
