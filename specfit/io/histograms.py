"""Histogram objects: anything with axes and values (hist, boost-histogram, uproot, other UHI objects) and `hist.Hist`.

Flow bins are left out on the way in and zero on the way out. A histogram cannot say that nothing was measured in a
bin: a spectrum with empty gaps is refused, a background that was interpolated over them is not.
"""

from __future__ import annotations

__all__ = ["from_histogram", "is_histogram", "refill", "to_hist"]

import logging
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from specfit.errors import InputError
from specfit.io.raw import RawSpectrum, join_bins
from specfit.spectrum import Spectrum

if TYPE_CHECKING:
    import boost_histogram
    import hist

log = logging.getLogger(__name__)

# Edges this close to equal steps, in bin widths, are an axis of equal bins.
EQUAL_STEPS = 1e-9

H = TypeVar("H", bound="boost_histogram.Histogram[Any]")


def is_histogram(source: Any) -> bool:
    """Tells whether an object offers axes and values as histograms do (the protocol of the uhi package)."""
    return hasattr(source, "axes") and callable(getattr(source, "values", None))


def from_histogram(histogram: Any) -> RawSpectrum:
    """Takes contents, edges and, where they differ from the contents, variances out of a histogram object.

    Raises:
        InputError: It has several axes, is a profile, or its axis has categories.
    """
    axes = tuple(histogram.axes)
    if len(axes) != 1:
        raise InputError(f"a histogram with {len(axes)} axes came, one is expected; project it onto one axis first")
    if getattr(histogram, "kind", "COUNT") != "COUNT":
        raise InputError("a profile (means per bin) came; contents must be events per bin")
    counts = np.asarray(histogram.values())
    return RawSpectrum(counts, _axis_edges(axes[0]), _variances(histogram, counts))


def to_hist(spectrum: Spectrum) -> hist.Hist[Any]:
    """Returns a `hist.Hist`, with an axis of equal bins where they are, and weighted storage where there are variances.

    Raises:
        InputError: `spectrum` is a batch, or has gaps with nothing in them.

    Example:
        >>> to_hist(Spectrum([40, 30], edges=[0, 1, 2])).sum()
        70.0
    """
    import hist

    edges = spectrum.edges.detach().cpu().numpy()
    n, low, high = spectrum.n_bins, edges[0], edges[-1]
    is_regular = abs(edges - np.linspace(low, high, n + 1)).max() <= EQUAL_STEPS * (high - low) / n
    axis = hist.axis.Regular(n, low, high) if is_regular else hist.axis.Variable(edges)
    return _filled(hist.Hist(axis, storage=_storage(spectrum)), spectrum)


def refill(histogram: Any, spectrum: Spectrum) -> Any:
    """Returns a histogram of the same class, axis, name and label with the contents of `spectrum`.

    What is not from hist or boost-histogram becomes a `hist.Hist`.

    Raises:
        InputError: `spectrum` is a batch, has another number of bins, or gaps with nothing in them.
    """
    import boost_histogram

    if not isinstance(histogram, boost_histogram.Histogram):
        return to_hist(spectrum)
    if len(histogram.axes[0]) != spectrum.n_bins:
        raise InputError(f"spectrum: {spectrum.n_bins} bins came, the histogram has {len(histogram.axes[0])}")
    empty = type(histogram)(*histogram.axes, storage=_storage(spectrum))
    for name in ("name", "label"):  # hist has them, boost-histogram has not
        if hasattr(histogram, name):
            setattr(empty, name, getattr(histogram, name))
    return _filled(empty, spectrum)


def _storage(spectrum: Spectrum) -> Any:
    import boost_histogram

    return boost_histogram.storage.Double() if spectrum.variances is None else boost_histogram.storage.Weight()


def _filled(histogram: H, spectrum: Spectrum) -> H:
    if spectrum.is_batch:
        raise InputError(
            f"spectrum: a batch of {len(spectrum.counts)} spectra came, a histogram holds one; take one of them"
        )
    if spectrum.gaps is not None and not (spectrum.counts[spectrum.gaps] > 0).all():
        (low, high), *_ = spectrum.gap_intervals
        raise InputError(
            f"spectrum: nothing was measured from {low:g} to {high:g}, which a histogram can only show as empty bins; "
            "write .csv or .npz, or take one histogram for each side of the gap"
        )
    view: Any = histogram.view(flow=False)
    counts = spectrum.counts.detach().cpu().numpy()
    if spectrum.variances is None:
        view[...] = counts
    else:
        view["value"], view["variance"] = counts, spectrum.variances.detach().cpu().numpy()
    return histogram


def _axis_edges(axis: Any) -> npt.NDArray[np.float64]:
    bins = [axis[i] for i in range(len(axis))]
    if any(isinstance(limits, str) for limits in bins):
        raise InputError(f"the axis has categories ({bins[0]}, ...), not intervals; there is no spectrum over them")
    # A discrete axis of whole numbers: each value is a bin of width 1.
    pairs = [limits if np.ndim(limits) else (limits, limits + 1) for limits in bins]
    names = [f"bin {i}" for i in range(len(pairs))]
    return join_bins([low for low, _ in pairs], [high for _, high in pairs], names)


def _variances(histogram: Any, counts: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    if not hasattr(histogram, "variances"):
        return None
    variances = histogram.variances()
    if variances is None:
        log.warning(
            "the histogram does not know its variances (weights in storage without them?): taken as Poisson counts"
        )
        return None
    variances = np.asarray(variances)
    return None if np.array_equal(variances, counts) else variances
