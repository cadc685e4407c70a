"""Contents: what the panels of a fit show, as numpy arrays, per bin or per unit of x."""

from __future__ import annotations

__all__ = ["Contents", "DrawableFit", "Points", "is_density", "not_drawn", "poisson_interval", "to_numpy"]

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from specfit.arrays import ArrayLike, as_float64
from specfit.errors import InputError
from specfit.spectrum import Spectrum

DENSITY_ABOVE = 1.2  # ratio of bin widths
LOG_Y_ABOVE = 30.0  # ratio of positive contents


class DrawableFit(Protocol):
    """What a fit must offer to be drawn, for one spectrum; `BackgroundFit` does.

    `background` and `uncertainty` (events), `significance` and `mask` have shape `(n_bins,)`; `deviance`, `ndf`,
    `p_value` and `converged` are scalars. What is true in `left_out`, of shape `(n_bins,)`, where there is such a field
    and it is not None, is not drawn.
    """

    @property
    def spectrum(self) -> Spectrum: ...  # noqa: D102
    @property
    def background(self) -> Tensor: ...  # noqa: D102
    @property
    def uncertainty(self) -> Tensor: ...  # noqa: D102
    @property
    def significance(self) -> Tensor: ...  # noqa: D102
    @property
    def mask(self) -> Tensor: ...  # noqa: D102
    @property
    def deviance(self) -> Tensor: ...  # noqa: D102
    @property
    def ndf(self) -> Tensor: ...  # noqa: D102
    @property
    def p_value(self) -> Tensor: ...  # noqa: D102
    @property
    def converged(self) -> Tensor: ...  # noqa: D102
    @property
    def message(self) -> str: ...  # noqa: D102


class Points(NamedTuple):
    """Contents with their error bars, events per bin or per unit of x; NaN where none are shown, shape `(n_bins,)`."""

    data: np.ndarray
    low: np.ndarray
    high: np.ndarray
    unit: np.ndarray
    """What each bin was divided by: its width, or 1."""

    @classmethod
    def of(cls, spectrum: Spectrum, *, left_out: Tensor | None = None) -> Points:
        """Takes the contents of one spectrum but for what is left out, divided by the bin widths where these vary."""
        counts, hidden = to_numpy(spectrum.counts), ~to_numpy(spectrum.measured)
        hidden = hidden if left_out is None else hidden | to_numpy(left_out)
        unit = to_numpy(spectrum.widths) if is_density(spectrum) else np.ones_like(counts)
        data, low, high = (np.where(hidden, np.nan, values) / unit for values in (counts, *_error_bars(spectrum)))
        return cls(data, low, high, unit)

    @property
    def errors(self) -> np.ndarray:
        """Lengths of the error bars below and above, shape `(2, n_bins)`."""
        return np.stack((self.data - self.low, self.high - self.data))


@dataclass(frozen=True, eq=False)
class Contents:
    """Everything drawn in the two panels of a fit; events per bin or per unit of x, shape `(n_bins,)`.

    Args:
        edges: Bin edges, shape `(n_bins + 1,)`.
        data: Contents.
        low: Lower ends of the error bars.
        high: Upper ends of the error bars.
        background: Fitted background.
        uncertainty: Standard deviation of the background.
        truth: Background from which the data were sampled, where it is known.
        significance: Significance of each bin.
        mask: True where a refit did not believe the data.
        gaps: True where there are none; data and error bars are NaN there.
        left_out: True where the caller left out what there is; data and error bars are NaN there too.
    """

    edges: np.ndarray
    data: np.ndarray
    low: np.ndarray
    high: np.ndarray
    background: np.ndarray
    uncertainty: np.ndarray
    truth: np.ndarray | None
    significance: np.ndarray
    mask: np.ndarray
    gaps: np.ndarray
    left_out: np.ndarray

    @classmethod
    def of(cls, fit: DrawableFit, truth: ArrayLike | None) -> Contents:
        """Takes the contents of a fit, divided by the bin widths where these vary.

        Raises:
            InputError: the fit holds a batch, or `truth` has another number of bins.
        """
        if fit.spectrum.is_batch:
            raise InputError(f"fit: {len(fit.spectrum.counts)} spectra came, one is drawn; take fit[i]")
        counts, edges = to_numpy(fit.spectrum.counts), to_numpy(fit.spectrum.edges)
        expected = None if truth is None else to_numpy(as_float64(truth, "truth"))
        if expected is not None and expected.shape != counts.shape:
            raise InputError(f"truth: shape {counts.shape} is expected as for the spectrum, {expected.shape} came")
        gaps, hidden = ~to_numpy(fit.spectrum.measured), not_drawn(fit)
        data, low, high, unit = Points.of(fit.spectrum, left_out=getattr(fit, "left_out", None))
        return cls(
            edges=edges,
            data=data,
            low=low,
            high=high,
            background=to_numpy(fit.background) / unit,
            uncertainty=to_numpy(fit.uncertainty) / unit,
            truth=None if expected is None else expected / unit,
            significance=to_numpy(fit.significance),
            mask=to_numpy(fit.mask).astype(bool) & ~hidden,
            gaps=gaps,
            left_out=hidden & ~gaps,
        )

    @property
    def needs_log(self) -> bool:
        """Whether the largest content exceeds the smallest positive one more than thirtyfold."""
        positive = self.data[self.data > 0]
        return bool(positive.max() > LOG_Y_ABOVE * positive.min())

    @property
    def y_limits(self) -> tuple[float, float]:
        """Range with every error bar and room for a legend; a background far below one event may leave a log axis."""
        ends = np.concatenate((self.high, self.background + self.uncertainty))
        highest = float(ends[np.isfinite(ends)].max())
        if not self.needs_log:
            return 0.0, 1.3 * highest
        lowest = 0.5 * float(np.where(self.low > 0, self.low, self.data)[self.data > 0].min())
        return lowest, highest * (highest / lowest) ** 0.12


def not_drawn(fit: DrawableFit) -> np.ndarray:
    """Tells the bins of gaps and those that the caller left out, shape `(n_bins,)`."""
    gaps, left_out = ~to_numpy(fit.spectrum.measured), getattr(fit, "left_out", None)
    return gaps if left_out is None else gaps | to_numpy(left_out)


def is_density(spectrum: Spectrum) -> bool:
    """Whether bin widths differ so much that only events per unit of x make a smooth curve."""
    return bool(spectrum.widths.max() > DENSITY_ABOVE * spectrum.widths.min())


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Returns the values of a tensor, wherever it lies."""
    return tensor.detach().cpu().numpy()


def _error_bars(spectrum: Spectrum) -> tuple[np.ndarray, np.ndarray]:
    """Computes the ends: Garwood's central 68 % interval for counts, one standard deviation if weighted."""
    counts = to_numpy(spectrum.counts)
    if spectrum.is_weighted and spectrum.variances is not None:
        spread = np.sqrt(to_numpy(spectrum.variances))
        return counts - spread, counts + spread
    return poisson_interval(counts)


def poisson_interval(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes the ends of Garwood's central 68 % interval of a Poisson mean, shape of `counts` each."""
    import scipy.special  # results can be drawn, so that this module comes with every fit

    tail = float(scipy.special.ndtr(-1.0))
    # For n = 0 the lower end is 0, where the inverse is not defined.
    low = np.where(counts > 0, scipy.special.gammaincinv(np.where(counts > 0, counts, 1.0), tail), 0.0)
    return low, scipy.special.gammaincinv(counts + 1, 1 - tail)
