"""Exact denoisers for Gaussian mixtures, whose density is known: a reference for testing samplers and bounds.

With images x = (x_1 .. x_d) flattened and x_t = A x + S eps, A and S diagonal with the pixels' own alpha and sigma,
component k of a mixture of Gaussians gives x_t ~ N(A m_k, T_k) with T_k = A C_k A + S^2, and with
y = T_k^-1 (x_t - A m_k) the posterior means E[x] = m_k + C_k A y and E[eps] = S y. Neither divides by sigma or alpha,
so both also hold at t = 0 and t = 1. The posterior weight of a component is its share of p(x_t).
"""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from asyncdiff.checks import at_least
from asyncdiff.denoising.denoiser import Prediction
from asyncdiff.noise.processes import Process, RectifiedFlow
from asyncdiff.shapes import Image, KnownPixels, Labels, LevelMap, Levels, check_grid, level_map, to_pixels

Flat = Float[Tensor, "b d"]  # flattened images
Nats = Float[Tensor, " b"]
Mixture = tuple[Float[Tensor, " k"], Float[Tensor, "k d"], Float[Tensor, "k d d"]]


class MixtureOracle:
    """Exact denoiser E[v | x_t] for images from a mixture of Gaussians, with exact samples and densities.

    Works for any level map. Predictions and densities have the device and data type of their input (densities at least
    float32); samples have those of `means`.

    Args:
        weights: probability of each component; positive, with sum 1.
        means: mean of each component, a flattened image of c h w pixels.
        covs: covariance of each component over these pixels, symmetric and positive definite.
        patches: grid (gh, gw) that `grid` reports to samplers; level maps passed to calls may have any grid.
        process: noise process; default: rectified flow.

    Examples:
        >>> oracle = MixtureOracle(*random_mixture(3, 16), patches=(2, 2))
        >>> x = oracle.sample(5, (1, 4, 4), generator=torch.Generator().manual_seed(0))
        >>> prediction = oracle(x, torch.zeros(5, 2, 2, dtype=x.dtype))  # t = 0: x_t is the image itself
        >>> bool(torch.allclose(prediction.x, x)), oracle.log_prob(x).shape
        (True, torch.Size([5]))
    """

    def __init__(
        self,
        weights: Float[Tensor, " n_weights"],
        means: Float[Tensor, "n_means d_means"],
        covs: Float[Tensor, "n_covs rows columns"],
        patches: tuple[int, int],
        process: Process | None = None,
    ):
        _check_mixture(weights, means, covs)
        self.weights, self.means, self.covs = weights, means, covs
        self.patches = patches
        self.process = process or RectifiedFlow()

    @property
    def null_label(self) -> int:
        """Label that means "any component", like the null label of a network."""
        return len(self.weights)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return `patches`, for images of any size (h, w) that it divides."""
        check_grid(self.patches, size)
        return self.patches

    def __call__(self, x_t: Image, t: Levels, label: Labels | None = None) -> Prediction:
        """Return the exact prediction; at t = 0 the predicted noise is 0, so v = alpha'/W x_t.

        Args:
            x_t: noisy images.
            t: level maps of `x_t`.
            label: component of each image; None, or the number of components, means any component.

        Returns:
            The exact posterior means.
        """
        exact = torch.promote_types(x_t.dtype, torch.float32)  # there is no Cholesky factorization in half precision
        levels = level_map(t)
        x, eps = self._posterior_means(x_t.to(exact), levels.to(exact), label)
        v = self.process.velocity(x.reshape(x_t.shape), eps.reshape(x_t.shape), levels.to(exact))
        return Prediction(self.process, x_t, levels, v.to(x_t.dtype))

    def sample(
        self, count: int, shape: tuple[int, int, int], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Draw `count` exact samples of `shape` (c, h, w), all from one generator."""
        at_least("count", count, 1, "use 1 for a single image")
        self._check_pixels("shape", shape)
        component = self.weights.multinomial(count, replacement=True, generator=generator)
        noise = torch.randn(
            count, self.means.shape[1], generator=generator, dtype=self.means.dtype, device=self.means.device
        )
        roots = torch.linalg.cholesky(self.covs)[component]
        return (self.means[component] + (roots @ noise[:, :, None])[:, :, 0]).reshape(count, *shape)

    def log_prob(self, x: Image) -> Nats:
        """Return log p(x) in nats."""
        return self.marginal_log_prob(x, torch.ones(x.shape[2:], dtype=torch.bool, device=x.device))

    def marginal_log_prob(self, x: Image, known: Shaped[Tensor, "*batch rows columns"]) -> Nats:
        """Return log p(known pixels) in nats, 0 if no pixel is known; unknown pixels are never read.

        Args:
            x: images.
            known: True = known, in all channels; one mask (h, w) for all images or one per image, (b, h, w).

        Returns:
            The marginal log density per image.
        """
        self._check_pixels("x", x.shape[1:])
        mask, x = _expand_mask(x, known), x.to(torch.promote_types(x.dtype, torch.float32))
        keep = mask.to(x.dtype)
        # Unknown pixels become independent N(0, 1) pixels with value 0, which contribute only their normalization.
        flat = x.flatten(1).masked_fill(~mask, 0)
        log_prob = torch.logsumexp(self._log_weights(x) + self._solve(flat, keep, 1 - keep)[1], dim=1)
        return log_prob + 0.5 * math.log(2 * math.pi) * (1 - keep).sum(1)

    def conditional_log_prob(self, x: Image, known: Shaped[Tensor, "*batch rows columns"]) -> Nats:
        """Return log p(unknown pixels | known pixels) in nats; `known` as for `marginal_log_prob`."""
        return self.log_prob(x) - self.marginal_log_prob(x, known)

    def _posterior_means(self, x_t: Image, t: LevelMap, label: Labels | None) -> tuple[Flat, Flat]:
        """Return E[x | x_t] and E[eps | x_t]."""
        self._check_pixels("x_t", x_t.shape[1:])
        size = (x_t.shape[2], x_t.shape[3])
        alpha, sigma = (
            to_pixels(k, size).expand_as(x_t).flatten(1) for k in (self.process.alpha(t), self.process.sigma(t))
        )
        y, log_prob = self._solve(x_t.flatten(1), alpha, sigma)
        share = (self._log_weights(x_t, label) + log_prob).softmax(1)
        means, covs = self.means.to(x_t), self.covs.to(x_t)
        x = means + torch.einsum("kij,bkj->bki", covs, alpha[:, None] * y)
        return torch.einsum("bk,bki->bi", share, x), sigma * torch.einsum("bk,bki->bi", share, y)

    def _solve(
        self, x_t: Flat, alpha: Flat, sigma: Flat
    ) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b components"]]:
        """Return y = T_k^-1 (x_t - A m_k) and log N(x_t; A m_k, T_k), per component."""
        innovation = x_t[:, None] - alpha[:, None] * self.means.to(x_t)
        total = (alpha[:, :, None] * alpha[:, None, :])[:, None] * self.covs.to(x_t)
        total.diagonal(dim1=-2, dim2=-1).add_(sigma.square()[:, None])
        root = torch.linalg.cholesky(total)
        white = torch.linalg.solve_triangular(root, innovation[..., None], upper=False)
        y = torch.linalg.solve_triangular(root.mT, white, upper=True)[..., 0]
        log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        square = white.square().sum((-2, -1))
        return y, -0.5 * (square + log_det + math.log(2 * math.pi) * x_t.shape[1])

    def _log_weights(self, like: Tensor, label: Labels | None = None) -> Float[Tensor, "b_or_1 k"]:
        """Return normalized log p(component); with a label, all probability is on that component."""
        log_weights = self.weights.to(like).log().log_softmax(0)[None]
        if label is None:
            return log_weights
        components = len(self.weights)
        if not bool(((label >= 0) & (label <= components)).all()):
            raise ValueError(
                f"label must lie in 0 .. {components}, got {label.tolist()}: use {components} for any component"
            )
        others = torch.arange(components, device=label.device) != label[:, None]
        return log_weights.masked_fill(others & (label[:, None] < components), -math.inf)

    def _check_pixels(self, name: str, shape: tuple[int, ...]) -> None:
        if math.prod(shape) != self.means.shape[1]:
            raise ValueError(
                f"{name} must have (c, h, w) with {self.means.shape[1]} values in all, as the means have, "
                f"got {tuple(shape)}: use the shape for which the oracle was made"
            )


class GaussianOracle(MixtureOracle):
    """Exact denoiser E[v | x_t] for Gaussian images x ~ N(mean, cov): a mixture of one component.

    Args:
        mean: mean, a flattened image of c h w pixels.
        cov: covariance over these pixels, symmetric and positive definite.
        patches: grid (gh, gw) that `grid` reports to samplers; level maps passed to calls may have any grid.
        process: noise process; default: rectified flow.
    """

    def __init__(
        self,
        mean: Float[Tensor, " d"],
        cov: Float[Tensor, "rows columns"],
        patches: tuple[int, int],
        process: Process | None = None,
    ):
        super().__init__(mean.new_ones(1), mean[None], cov[None], patches, process)
        self.mean, self.cov = mean, cov


def random_gaussian(pixels: int, seed: int = 0) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Return a random mean and a well-conditioned covariance with correlated pixels, float64."""
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(pixels, pixels, generator=g, dtype=torch.float64) / pixels**0.5
    mean = torch.randn(pixels, generator=g, dtype=torch.float64) / 2
    return mean, root @ root.T + 0.1 * torch.eye(pixels, dtype=torch.float64)


def random_mixture(components: int, pixels: int, seed: int = 0) -> Mixture:
    """Return random weights, means and covariances of overlapping components, float64.

    Every weight is at least 1 / (2 components).
    """
    at_least("components", components, 1, "use 1 for a single Gaussian")
    means, covs = zip(*(random_gaussian(pixels, seed * components + k) for k in range(components)), strict=True)
    g = torch.Generator().manual_seed(seed)
    weights = 1 + torch.rand(components, generator=g, dtype=torch.float64)
    return weights / weights.sum(), 2 * torch.stack(means), torch.stack(covs) / 2


def _expand_mask(x: Image, known: Tensor) -> Shaped[Tensor, "b d"]:
    """Expand `known` to every image and channel, and flatten it."""
    size = tuple(x.shape[2:])
    if known.dtype != torch.bool:
        raise ValueError(f"known must be bool, True = known, got {known.dtype}: use mask > 0.5")
    if tuple(known.shape) not in (size, (len(x), *size)):
        raise ValueError(
            f"known must have shape {size} or {(len(x), *size)}, got {tuple(known.shape)}: use (h, w) of x"
        )
    per_image: KnownPixels = known.to(x.device).expand(len(x), *size)
    return per_image[:, None].expand(x.shape).flatten(1)


def _check_mixture(weights: Tensor, means: Tensor, covs: Tensor, tolerance: float = 1e-5) -> None:
    components, pixels = means.shape
    if tuple(weights.shape) != (components,):
        raise ValueError(
            f"weights needs one number per mean, got shape {tuple(weights.shape)} for {components} means: "
            "pass one weight for each mean"
        )
    if tuple(covs.shape) != (components, pixels, pixels):
        raise ValueError(
            f"covs must have shape {(components, pixels, pixels)}, got {tuple(covs.shape)}: pass one matrix per mean"
        )
    if not bool((weights > 0).all()):
        raise ValueError(f"weights must be positive, got {weights.tolist()}: remove components that never occur")
    if not abs(total := weights.sum().item() - 1) < tolerance:
        raise ValueError(f"weights must sum to 1, got a sum of {1 + total:g}: divide them by their sum")
    if not bool(means.isfinite().all()):
        raise ValueError("means must be finite, got NaN or infinity: check how they were computed")
    for k, cov in enumerate(covs):
        asymmetry = (cov - cov.mT).abs().max().item()
        if not asymmetry <= tolerance * cov.abs().max().item():  # also rejects NaN
            raise ValueError(
                f"covs must be symmetric, got a difference of {asymmetry:g} in covs[{k}]: use (C + C^T) / 2"
            )
        if torch.linalg.cholesky_ex(cov).info:
            raise ValueError(
                f"covs must be positive definite, got an eigenvalue of {torch.linalg.eigvalsh(cov).min().item():g} "
                f"in covs[{k}]: add a small positive number to the diagonal"
            )
