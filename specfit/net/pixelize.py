r"""FlattenHistogramAndNormalize ("pixelize"): a histogram as an image, so that a small dense net can read it.

Each bin becomes a row of `width` pixels. Its content, divided by the histogram's total, is placed on a grid; the two
nodes around it light up by linear interpolation, so that a row sums to 1 and only a handful of pixels are active
whatever the order of magnitude. `n_sigma` adds the images of :math:`x + j\sqrt{x}` for :math:`j = -k \dots k`.

Grids:

- `"linear"`: the fraction of the total, from 0 to 1, step 0.01 for 101 pixels. A bin below 1 % of the total lies
  between the first two nodes: tails stay a linear input.
- `"log"`: the logarithm of the fraction, which resolves tails over ten orders of magnitude.
- `"sqrt"`: the square root of the fraction, in which the Poisson error has the same size everywhere.

What to use when: `FlattenHistogramAndNormalize` makes the image (to look at, to test); `PixelLinear` is a linear layer
on that image that never builds it: with two active pixels a row it is a weighted sum of two rows of a table, so it
costs :math:`2 n H` multiplications instead of :math:`n W H`.

Source: S. Calvet, "Fitting a spectrum using ML" (2021), and github.com/sam-cal/PixelateHistogram for the hat function.
"""

from __future__ import annotations

__all__ = ["FlattenHistogramAndNormalize", "PixelLinear"]

import math
from typing import Literal

import torch
from torch import Tensor, nn

from specfit.errors import InputError

Grid = Literal["linear", "log", "sqrt"]
# Waves over the grid that smooth weights of a bin start from, the amplitude of each that of the first over its number.
WAVES = 6
GRID_RANGES: dict[str, tuple[float, float]] = {"linear": (0.0, 1.0), "log": (-16.0, 0.0), "sqrt": (0.0, 1.0)}


class FlattenHistogramAndNormalize(nn.Module):
    """Turns histograms of shape `(m, n_bins)` into images of shape `(m, 2 n_sigma + 1, n_bins, width)`.

    Args:
        width: Pixels a row; the step of the linear grid is 1 / (width - 1).
        n_sigma: Largest number of standard deviations among the images; 0 gives one image.
        grid: What is placed on the grid, see the module.
        limits: Range of the grid; by default (0, 1), for `"log"` (-16, 0). Contents beyond it light the end node.
        floor: Events that an empty bin counts as on the `"log"` grid.

    Example:
        >>> image = FlattenHistogramAndNormalize(width=5)(torch.tensor([[10.0, 70.0]]))
        >>> image[0, 0]
        tensor([[0.5000, 0.5000, 0.0000, 0.0000, 0.0000],
                [0.0000, 0.0000, 0.0000, 0.5000, 0.5000]])
    """

    def __init__(
        self,
        *,
        width: int = 101,
        n_sigma: int = 0,
        grid: Grid = "linear",
        limits: tuple[float, float] | None = None,
        floor: float = 0.5,
    ) -> None:
        super().__init__()
        if width < 2 or n_sigma < 0:
            raise InputError(f"width must be at least 2 and n_sigma at least 0, {width} and {n_sigma} came")
        if grid not in GRID_RANGES:
            raise InputError(f"grid: one of {', '.join(GRID_RANGES)} is expected, {grid!r} came")
        if floor <= 0:
            raise InputError(f"floor: a number of events above 0 is expected, {floor} came")
        self.width, self.n_sigma, self.grid, self.floor = width, n_sigma, grid, floor
        self.low, self.high = limits or GRID_RANGES[grid]
        if not self.low < self.high:
            raise InputError(f"limits: (low, high) with low < high is expected, {limits} came")

    @property
    def n_images(self) -> int:
        """Number of images of one histogram."""
        return 2 * self.n_sigma + 1

    def active_pixels(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Finds the lower of the two active pixels of each row and the share of the upper one.

        Args:
            counts: Events per bin, shape `(m, n_bins)`.

        Returns:
            Column of the lower pixel (int64) and share of the pixel above it, both `(m, n_images, n_bins)`.
        """
        # Fewer events than this count as none: every derivative of a share is then a finite float32.
        total = counts.sum(-1, keepdim=True)[:, None].clamp(min=1e-12)  # (m, 1, 1)
        shifts = torch.arange(-self.n_sigma, self.n_sigma + 1, dtype=counts.dtype, device=counts.device)
        # The root has an infinite slope at 0, where the shifted image adds nothing to learn from.
        error = counts.clamp(min=1e-24).sqrt() if self.n_sigma else counts
        shifted = counts[:, None] + shifts[:, None] * error[:, None]  # (m, n_images, n_bins)
        value = self._on_grid(shifted.clamp(min=0.0), total)
        position = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0) * (self.width - 1)
        lower = position.detach().floor().clamp(max=self.width - 2)
        return lower.long(), position - lower

    def forward(self, counts: Tensor) -> Tensor:
        """Builds the images, shape `(m, n_images, n_bins, width)`."""
        lower, upper_share = self.active_pixels(counts)
        image = counts.new_zeros(*lower.shape, self.width)
        image.scatter_(-1, lower[..., None], (1 - upper_share)[..., None])
        return image.scatter_(-1, lower[..., None] + 1, upper_share[..., None])

    def _on_grid(self, content: Tensor, total: Tensor) -> Tensor:
        if self.grid == "log":
            return (content.clamp(min=self.floor) / total).log()
        fraction = content / total
        return fraction if self.grid == "linear" else fraction.clamp(min=1e-24).sqrt()


class PixelLinear(nn.Module):
    """A linear layer on the flattened image that never builds the image.

    Equal to `nn.Linear(n_images * n_bins * width, out_features)` on `pixelize(counts).flatten(1)`.

    Args:
        pixelize: How a histogram becomes an image.
        n_bins: Number of bins.
        out_features: Number of outputs H.
    """

    def __init__(self, pixelize: FlattenHistogramAndNormalize, n_bins: int, out_features: int) -> None:
        super().__init__()
        self.pixelize = pixelize
        n_rows = pixelize.n_images * n_bins
        self.weight = nn.Parameter(torch.empty(n_rows * pixelize.width, out_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        nn.init.normal_(self.weight, std=1 / math.sqrt(2 * n_rows))
        self.register_buffer("row_start", torch.arange(n_rows) * pixelize.width, persistent=False)
        self.row_start: Tensor

    @torch.no_grad()
    def start_smooth(self) -> None:
        """Starts from weights that are smooth along the grid, waves of random amplitude.

        To independent weights histograms that hardly differ have nothing in common, and a net first has to learn from
        examples that they do.
        """
        width, out_features = self.pixelize.width, self.weight.shape[1]
        n_rows = len(self.weight) // width
        position = (torch.arange(width) + 0.5) / width
        waves = torch.stack([torch.cos(math.pi * k * position) / k for k in range(1, WAVES + 1)])
        waves /= waves.square().sum(0).mean().sqrt()
        amplitudes = torch.randn(n_rows, WAVES, out_features) / math.sqrt(n_rows)
        self.weight.copy_((waves.T @ amplitudes).flatten(0, 1))

    def forward(self, counts: Tensor) -> Tensor:
        """Maps counts of shape `(m, n_bins)` to features of shape `(m, out_features)`."""
        lower, upper_share = (t.flatten(1) for t in self.pixelize.active_pixels(counts))  # (m, n_images * n_bins)
        index = lower + self.row_start
        shares = torch.cat([1 - upper_share, upper_share], 1)
        summed = nn.functional.embedding_bag(
            torch.cat([index, index + 1], 1), self.weight, per_sample_weights=shares, mode="sum"
        )
        return summed + self.bias
