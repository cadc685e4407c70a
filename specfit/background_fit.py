"""BackgroundFit: what a fit answers: the smooth background, its covariance and how well the data agree.

One class for every fitter (net or function) and for one spectrum or many on the same edges: `(*,)` below is empty for
one spectrum and `(n_spectra,)` for many. Everything is a float64 tensor; `numpy.asarray` of a field costs nothing.

Conventions: masked bins (replaced or left out by a refit) enter neither the deviance nor its degrees of freedom. Nor do
gaps of the spectrum and what the caller left out (to blind it, say), which also count in no total, have no significance
and are not drawn: there the background is the interpolation.
Weighted contents are treated as scaled Poisson counts, each stretch of like weights with its own (`specfit.weights`).
"""

from __future__ import annotations

__all__ = ["BackgroundFit", "draw_backgrounds"]

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from specfit import io, plots
from specfit.errors import InputError
from specfit.significance import bin_significance, deviance_p_value, poisson_deviance
from specfit.spectrum import Spectrum
from specfit.weights import Weights, event_weights

if TYPE_CHECKING:
    import hist
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class BackgroundFit:
    r"""A fitted background with everything needed to judge it.

    Args:
        spectrum: What was fitted.
        background: Expected background events per bin, shape `(*, n_bins)`.
        factor: Square root :math:`F` of the covariance of the background, :math:`V = F F^T` in events squared, shape
            `(*, n_bins, n_directions)`.
        n_parameters: Effective number of parameters that the data determined, shape `(*,)`; may be fractional.
        mask: True where a refit did not believe the data, what was left out and gaps included, shape `(*, n_bins)`.
        iterations: How often the refit evaluated the fitter again, shape `(*,)`.
        converged: Whether the answer can be used, shape `(*,)`.
        message: What happened and, if it did not work out, which knob to turn; one for the whole fit.
        left_out: True where the caller left bins out, shape `(*, n_bins)`; None where nothing was.
    """

    spectrum: Spectrum
    background: Tensor
    factor: Tensor = field(repr=False)
    n_parameters: Tensor
    mask: Tensor = field(repr=False)
    iterations: Tensor
    converged: Tensor
    message: str
    left_out: Tensor | None = field(default=None, repr=False)

    @property
    def covariance(self) -> Tensor:
        """Covariance of the background between bins, events squared, shape `(*, n_bins, n_bins)`."""
        return self.factor @ self.factor.mT

    @property
    def uncertainty(self) -> Tensor:
        """Standard deviation of the background per bin, events, shape `(*, n_bins)`."""
        return self.factor.square().sum(-1).sqrt()

    @property
    def significance(self) -> Tensor:
        """Significance of data against background with its uncertainty per bin, shape `(*, n_bins)`; 0 if not shown."""
        scale = self.weights.of_bins
        z: Tensor = bin_significance(
            self.spectrum.counts / scale, self.background / scale, uncertainty=self.uncertainty / scale
        )
        return torch.where(self.shown, z, 0.0)

    @functools.cached_property
    def weights(self) -> Weights:
        """What an event stands for in each bin and on average, as far as the bins tell that were not left out."""
        return event_weights(self.spectrum, self.left_out)

    @property
    def is_weighted(self) -> bool:
        """Whether events stand for anything but 1, as far as the bins tell that were not left out."""
        return not self.weights.are_one

    @property
    def shown(self) -> Tensor:
        """True for bins that are in no gap and that the caller did not leave out, shape `(*, n_bins)`."""
        measured = self.spectrum.measured.expand_as(self.background)
        return measured if self.left_out is None else measured & ~self.left_out

    @property
    def events(self) -> Tensor:
        """Sum of the contents that are shown, shape `(*,)`."""
        return self.spectrum.counts.masked_fill(~self.shown, 0.0).sum(-1)

    @property
    def deviance(self) -> Tensor:
        """Poisson deviance of data and background, summed over unmasked bins, shape `(*,)`."""
        scale = self.weights.of_bins
        terms: Tensor = poisson_deviance(self.spectrum.counts / scale, self.background / scale)
        return terms.masked_fill(self.mask, 0.0).sum(-1)

    @property
    def ndf(self) -> Tensor:
        """Degrees of freedom: unmasked bins less the effective parameters, at least 1, shape `(*,)`."""
        return ((~self.mask).sum(-1) - self.n_parameters).clamp(min=1.0)

    @property
    def p_value(self) -> Tensor:
        """Probability of a deviance at least this large, shape `(*,)`."""
        p: Tensor = deviance_p_value(self.deviance, self.ndf)
        return p

    def window(self, low: float, high: float) -> tuple[Tensor, Tensor]:
        """Sums the background over the bins that lie within `[low, high]`; a bin that is cut by an end is left out.

        Returns:
            Background events and their uncertainty with all correlations, both of shape `(*,)`.

        Raises:
            InputError: No bin lies within.
        """
        edges = self.spectrum.edges
        inside = (edges[:-1] >= low) & (edges[1:] <= high)
        if not inside.any():
            raise InputError(
                f"window: no bin lies within {low:g} to {high:g}; edges go from {edges[0]:g} to {edges[-1]:g}"
            )
        return self.background[..., inside].sum(-1), self.factor[..., inside, :].sum(-2).square().sum(-1).sqrt()

    def sample(self, n: int, *, rng: torch.Generator) -> Tensor:
        r"""Draws backgrounds that the data allow, with all correlations between bins; see `draw_backgrounds`.

        Args:
            n: Number of draws.
            rng: Source of randomness.

        Returns:
            Backgrounds of shape `(n, *, n_bins)`.
        """
        return draw_backgrounds(self.background, self.factor, n, rng=rng)

    def summary(self) -> list[dict[str, Any]]:
        """Returns one plain dictionary a spectrum: events, bins, deviance, p-value, largest excess, masked bins.

        Numbers of bins and totals leave out gaps, which stand beside them as (low, high), and what the caller left out.
        """
        return [self._summary_of(i) for i in range(self.background[..., 0].numel())]

    def plot(self, index: int = 0) -> Figure:
        """Draws data, background with its band, and the significance of each bin.

        Args:
            index: Which spectrum of a batch.
        """
        fit = self[index] if self.spectrum.is_batch else self
        return plots.draw_fit(fit)

    def to_hist(self) -> hist.Hist[Any]:
        """Returns the background as a `hist.Hist` with its uncertainty squared as variance (one spectrum only).

        A histogram has no gaps: the interpolation fills bins like all others.
        """
        return io.to_hist(self.to_spectrum())

    def to_spectrum(self) -> Spectrum:
        """Returns the background as a Spectrum with its uncertainty squared as variances and the same gaps."""
        s = self.spectrum
        return Spectrum(self.background, s.edges, variances=self.uncertainty**2, gaps=s.gaps)

    def save(self, path: str | Path) -> Path:
        """Writes the background to `.npy`, `.npz`, `.csv` or `file.root:path`, by the ending of `path`.

        A `.csv` file leaves out gaps; the others hold the interpolation there.
        """
        return io.write(self.to_spectrum(), path)

    def __getitem__(self, index: int) -> BackgroundFit:
        """Takes one spectrum out of a batch."""
        if not self.spectrum.is_batch:
            raise IndexError("this fit holds one spectrum, not a batch")
        s = self.spectrum
        variances = None if s.variances is None else s.variances[index]
        one = Spectrum(s.counts[index], s.edges, variances=variances, gaps=s.gaps)
        parts = {name: getattr(self, name)[index] for name in _BATCHED}
        parts["left_out"] = None if self.left_out is None else self.left_out[index]
        return BackgroundFit(spectrum=one, message=self.message, **parts)

    def _summary_of(self, index: int) -> dict[str, Any]:
        fit = self[index] if self.spectrum.is_batch else self
        edges, shown = fit.spectrum.edges, fit.shown
        best = int(fit.significance.masked_fill(~shown, -torch.inf).argmax())
        return {
            "events": fit.events.item(),
            "weighted": fit.is_weighted,
            "bins": int(shown.sum()),
            "gaps": fit.spectrum.gap_intervals,
            "background_total": fit.background[shown].sum().item(),
            "background_total_uncertainty": fit.factor[shown].sum(-2).square().sum(-1).sqrt().item(),
            "median_relative_uncertainty": (fit.uncertainty / fit.background)[shown].median().item(),
            "deviance": fit.deviance.item(),
            "ndf": fit.ndf.item(),
            "p_value": fit.p_value.item(),
            "largest_excess": fit.significance[best].item(),
            "largest_excess_low": edges[best].item(),
            "largest_excess_high": edges[best + 1].item(),
            "masked_bins": (fit.mask & fit.spectrum.measured).nonzero().flatten().tolist(),
            "iterations": int(fit.iterations),
            "converged": bool(fit.converged),
            "message": fit.message,
        }


_BATCHED = ("background", "factor", "n_parameters", "mask", "iterations", "converged")


def draw_backgrounds(background: Tensor, factor: Tensor, n: int, *, rng: torch.Generator) -> Tensor:
    r"""Draws backgrounds around a fitted one, all of them positive.

    With :math:`u = F z / b` and normal z, a draw is :math:`b\,(1 + u)` above the fit and :math:`b\,e^u` below it: the
    normal distribution of the fit where errors are small, and neither negative nor without bounds where they are not.

    Args:
        background: Fitted events b, shape `(*, n_bins)`, positive.
        factor: F of the covariance F F^T, shape `(*, n_bins, k)`.
        n: Number of draws.
        rng: Source of randomness.

    Returns:
        Shape `(n, *, n_bins)`.
    """
    relative = factor / background[..., None]
    z = torch.randn(n, *relative.shape[:-2], relative.shape[-1], 1, generator=rng, dtype=relative.dtype)
    return background * (1 + torch.nn.functional.elu((relative @ z)[..., 0]))
