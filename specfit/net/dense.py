"""Dense nets: pixels in, softmax over bins out, times the total of the input.

- `TalkNet`: the two-layer net of the talk, to the letter.
- `DenseNet`: the same idea made to work: a logarithmic grid, residual blocks, the total as an input.

Both always return the normalisation of their input. They carry no error of their own: `predict` propagates the Poisson
errors of the counts. For a background at the limit of the information, with a covariance, use `LearnedBasisNet`.

Source: S. Calvet, "Fitting a spectrum using ML" (2021).
"""

from __future__ import annotations

__all__ = ["DenseNet", "ResidualBlock", "TalkNet"]

import torch
from torch import Tensor, nn

from specfit.net.base import BackgroundNet, Prediction, propagate_poisson_errors
from specfit.net.pixelize import FlattenHistogramAndNormalize, Grid, PixelLinear


class _WithoutLikelihood(BackgroundNet):
    """A net that answers with a background alone: its error is that of the counts, propagated."""

    def predict(
        self,
        counts: Tensor,
        *,
        edges: Tensor | None = None,  # noqa: ARG002
        mask: Tensor | None = None,  # noqa: ARG002
        exposure: Tensor | None = None,
    ) -> Prediction:
        """Computes the background and propagates the Poisson errors of the counts."""
        return propagate_poisson_errors(self.forward, counts, exposure)


class TalkNet(_WithoutLikelihood):
    """Pixelize, Dense(n_bins, relu), Dense(n_bins, softmax), times the total.

    Kernels start uniform in (-0.05, 0.05), biases at 0, as Keras' `"uniform"` initialiser did.

    Args:
        n_bins: Number of bins.
        width: Pixels a row.
        n_sigma: Images of the statistical error, see `FlattenHistogramAndNormalize`.
        grid: What is placed on the grid.
    """

    def __init__(self, n_bins: int, *, width: int = 101, n_sigma: int = 0, grid: Grid = "linear") -> None:
        arguments = {"n_bins": n_bins, "width": width, "n_sigma": n_sigma, "grid": grid}
        super().__init__(n_bins, keeps_total=True, arguments=arguments)
        pixelize = FlattenHistogramAndNormalize(width=width, n_sigma=n_sigma, grid=grid)
        self.hidden = PixelLinear(pixelize, n_bins, n_bins)
        self.out = nn.Linear(n_bins, n_bins)
        for layer in (self.hidden, self.out):
            nn.init.uniform_(layer.weight, -0.05, 0.05)
            nn.init.zeros_(layer.bias)

    def stages(self, counts: Tensor, *, edges: Tensor | None = None, mask: Tensor | None = None) -> list[Tensor]:  # noqa: ARG002
        """Computes the background; one stage."""
        counts = counts.to(self.out.weight.dtype)
        features = torch.relu(self.hidden(counts))
        return [torch.softmax(self.out(features), -1) * counts.sum(-1, keepdim=True)]


class DenseNet(_WithoutLikelihood):
    """Pixelize on a logarithmic grid, residual dense blocks, softmax, times the total.

    Args:
        n_bins: Number of bins.
        width: Pixels a row.
        hidden: Features between the blocks.
        depth: Number of residual blocks.
        n_sigma: Images of the statistical error.
        grid: What is placed on the grid.
    """

    def __init__(
        self,
        n_bins: int,
        *,
        width: int = 101,
        hidden: int = 256,
        depth: int = 3,
        n_sigma: int = 0,
        grid: Grid = "log",
    ) -> None:
        arguments = {"width": width, "hidden": hidden, "depth": depth, "n_sigma": n_sigma, "grid": grid}
        super().__init__(n_bins, keeps_total=True, arguments={"n_bins": n_bins} | arguments)
        self.trunk = Trunk(n_bins, FlattenHistogramAndNormalize(width=width, n_sigma=n_sigma, grid=grid), hidden, depth)
        self.out = nn.Linear(hidden, n_bins)

    def stages(self, counts: Tensor, *, edges: Tensor | None = None, mask: Tensor | None = None) -> list[Tensor]:  # noqa: ARG002
        """Computes the background; one stage."""
        counts = counts.to(self.out.weight.dtype)
        shape = torch.softmax(self.out(self.trunk(counts)), -1)
        return [shape * counts.sum(-1, keepdim=True)]


class Trunk(nn.Module):
    """Counts to features: pixels, the log of the total, residual blocks, a last normalisation.

    Args:
        n_bins: Number of bins.
        pixelize: How a histogram becomes an image.
        hidden: Features.
        depth: Number of residual blocks.
    """

    def __init__(self, n_bins: int, pixelize: FlattenHistogramAndNormalize, hidden: int, depth: int) -> None:
        super().__init__()
        self.pixels = PixelLinear(pixelize, n_bins, hidden)
        self.total = nn.Linear(1, hidden)
        self.blocks = nn.Sequential(*(ResidualBlock(hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(hidden)

    def forward(self, counts: Tensor) -> Tensor:
        """Maps counts `(m, n_bins)` to features `(m, hidden)`."""
        log_total = counts.sum(-1, keepdim=True).clamp(min=1.0).log()
        features: Tensor = self.norm(self.blocks(self.pixels(counts) + self.total(log_total / 10)))
        return features


class ResidualBlock(nn.Module):
    """x + Linear(GELU(Linear(LayerNorm(x)))), twice as wide inside.

    Args:
        features: Size of the last dimension.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.LayerNorm(features), nn.Linear(features, 2 * features), nn.GELU(), nn.Linear(2 * features, features)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(m, features)` to the same shape."""
        refined: Tensor = x + self.inner(x)
        return refined
