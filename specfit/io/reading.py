"""Whatever holds a spectrum becomes a `Spectrum`; whatever means edges becomes a row of edges."""

from __future__ import annotations

__all__ = ["MissingEdgesError", "parse_edges", "read"]

import math
import os
from collections.abc import Callable
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from specfit.arrays import ArrayLike, as_float64
from specfit.errors import InputError
from specfit.io.files import Place, check_readable, locate
from specfit.io.histograms import from_histogram, is_histogram
from specfit.io.numpy_files import read_npy, read_npy_edges, read_npz, read_npz_edges
from specfit.io.raw import JOIN_TOLERANCE, RawSpectrum
from specfit.io.root_files import read_root, read_root_edges
from specfit.io.text_files import read_csv, read_text_edges
from specfit.spectrum import Spectrum

READERS: dict[str, Callable[[Place], RawSpectrum]] = {
    ".npy": read_npy,
    ".npz": read_npz,
    ".csv": read_csv,
    ".root": read_root,
}
EDGE_READERS: dict[str, Callable[[Place], ArrayLike | None]] = {
    ".npy": read_npy_edges,
    ".npz": read_npz_edges,
    ".csv": read_text_edges,
    ".txt": read_text_edges,
    ".root": read_root_edges,
}
HOW_TO_GIVE_EDGES = "give them with --edges FILE|lo:hi:n|lo:hi:n:log on the command line or edges= in Python"
# More bins than this are a slip of the pen.
MOST_BINS = 1_000_000


class MissingEdgesError(InputError):
    """Counts came without edges.

    Args:
        message: What came and what to do.
        n_bins: Number of bins that came.
    """

    def __init__(self, message: str, n_bins: int) -> None:
        super().__init__(message)
        self.n_bins = n_bins


def read(
    source: Any,
    edges: ArrayLike | str | os.PathLike[str] | None = None,
    *,
    variances: ArrayLike | None = None,
    default_edges: ArrayLike | None = None,
) -> Spectrum:
    """Reads a spectrum, or many on the same edges, from a file or an object.

    Args:
        source: A path (`.npy`, `.npz`, `.csv`, `file.root:path`), a one-dimensional histogram object (hist,
            boost-histogram, uproot, any with axes and values), a tuple `(counts, edges)` or
            `(counts, edges, variances)`, an array of counts, or a Spectrum, which is returned as it is. Rows that a
            `.csv` leaves out in between become `gaps` of the spectrum, filled with bins like those on either side.
        edges: Bin edges for a source that has none, as `parse_edges` takes them. For a source with its own edges they
            must agree with these; the own ones stay.
        variances: Variances for a source that has none, same shape as the counts.
        default_edges: Edges for a source that has none when `edges` is None too, used only if they make as many bins
            as there are counts.

    Raises:
        InputError: What came is no spectrum; the message names the file, the argument and what to do.
        MissingEdgesError: It is one, but without edges.
        FileNotFoundError: There is no such file.
        OSError: The file cannot be read.

    Example:
        >>> read([40, 30, 20], edges="0:300:3")
        Spectrum(3 bins, 0 to 300, 90 events)
    """
    try:
        raw = _take(source)
        shape = tuple(np.shape(raw.counts))
        if len(shape) not in (1, 2):
            raise InputError(f"counts: shape (n_bins,) or (n_spectra, n_bins) is expected, {shape} came")
        limits = _settle_edges(raw, edges, default_edges)
        if raw.variances is not None and variances is not None:
            raise InputError("variances: the source has its own; leave the argument out")
        if isinstance(source, Spectrum) and variances is None:
            return source
        spread = raw.variances if variances is None else variances
        return Spectrum(raw.counts, limits, variances=spread, gaps=raw.gaps)
    except InputError as error:
        if not _is_path(source):
            raise
        message = f"{os.fspath(source)}: {error}"
        if isinstance(error, MissingEdgesError):
            raise MissingEdgesError(message, error.n_bins) from None
        raise InputError(message) from None


def parse_edges(source: ArrayLike | str | os.PathLike[str]) -> Tensor:
    """Returns bin edges as a float64 tensor of shape `(n_bins + 1,)`.

    Args:
        source: `lo:hi:n` for n equal bins, `lo:hi:n:log` for n bins of equal ratio, a file of edges (`.npy`, `.npz`
            with an array `edges`, `.csv` or `.txt` with one row or column of edges or with columns low_edge and
            high_edge, the histogram `file.root:path`), or an array. Gaps of a table are filled as by `read`.

    Raises:
        InputError: The text is none of these, or the edges do not increase strictly.
        FileNotFoundError: There is no such file.

    Example:
        >>> parse_edges("100:400:3").tolist(), parse_edges("1:100:2:log").tolist()
        ([100.0, 200.0, 300.0, 400.0], [1.0, 10.0, 100.0])
    """
    if not _is_path(source):
        return _checked(source)
    text: str = os.fspath(source)
    try:
        place = locate(text)
        if place.ending in EDGE_READERS:
            check_readable(place.file)
            return _checked(EDGE_READERS[place.ending](place))
        return _checked(_range(text))
    except InputError as error:
        raise InputError(f"edges {text!r}: {error}") from None


def _take(source: Any) -> RawSpectrum:
    if isinstance(source, Spectrum):
        gaps = None if source.gaps is None else source.gaps.numpy()
        return RawSpectrum(source.counts, source.edges, source.variances, gaps=gaps)
    if _is_path(source):
        return _take_file(locate(source))
    if is_histogram(source):
        return from_histogram(source)
    if is_row_of_arrays(source):
        return RawSpectrum(*source)
    try:
        return RawSpectrum(as_float64(source, "counts"))
    except InputError as error:
        expected = "a path, a histogram, (counts, edges), an array of counts and a Spectrum can be read"
        raise InputError(f"{error}; {expected}, a {type(source).__name__} came") from None


def _take_file(place: Place) -> RawSpectrum:
    if place.ending not in READERS:
        raise InputError(f"the ending {place.ending!r} is not known; {', '.join(READERS)} can be read")
    check_readable(place.file)
    return READERS[place.ending](place)


def is_row_of_arrays(source: Any) -> bool:
    """Tells whether `source` is a tuple `(counts, edges)` or `(counts, edges, variances)` and not a row of numbers."""
    return isinstance(source, tuple) and len(source) in (2, 3) and all(hasattr(part, "__len__") for part in source)


def _settle_edges(raw: RawSpectrum, edges: Any, default_edges: Any) -> Tensor:
    given = None if edges is None else parse_edges(edges)
    if raw.edges is not None:
        own = _checked(raw.edges)
        if given is not None and not _agree(own, given):
            raise InputError(
                f"edges: the source has its own ({_described(own)}) and others came ({_described(given)}); "
                "leave the argument out"
            )
        return own
    if given is not None:
        return given
    n_bins = as_float64(raw.counts, "counts").shape[-1:].numel()
    if default_edges is None:
        message = f"edges: {raw.edges_missing}; {n_bins} bins came without them: {HOW_TO_GIVE_EDGES}"
        raise MissingEdgesError(message, n_bins)
    default = parse_edges(default_edges)
    if len(default) != n_bins + 1:
        raise InputError(
            f"edges: {raw.edges_missing}, and its {n_bins} bins do not fit the default edges "
            f"({_described(default)}); {HOW_TO_GIVE_EDGES}"
        )
    return default


def _agree(own: Tensor, given: Tensor) -> bool:
    if own.shape != given.shape:
        return False
    return bool(((own - given).abs() <= JOIN_TOLERANCE * own.diff().min()).all())


def _described(edges: Tensor) -> str:
    return f"{len(edges) - 1} bins, {edges[0]:g} to {edges[-1]:g}"


def _range(text: str) -> Any:
    parts = text.split(":")
    is_log = len(parts) == 4 and parts[3] == "log"
    if len(parts) != 3 and not is_log:
        raise InputError(f"expected lo:hi:n, lo:hi:n:log or a file that ends in {', '.join(EDGE_READERS)}")
    try:
        low, high = float(parts[0]), float(parts[1])
    except ValueError:
        raise InputError(f"lo and hi must be numbers, {parts[0]!r} and {parts[1]!r} came") from None
    if not parts[2].strip().isdecimal() or not 2 <= int(parts[2]) <= MOST_BINS:
        raise InputError(f"n, the number of bins, must be a whole number from 2 to {MOST_BINS}, {parts[2]!r} came")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"hi must be larger than lo, {low:g} and {high:g} came")
    if is_log and low <= 0:
        raise InputError(f"log needs lo above 0, {low:g} came")
    return (np.geomspace if is_log else np.linspace)(low, high, int(parts[2]) + 1)


def _checked(edges: Any) -> Tensor:
    # A flat spectrum on them: the one place that knows what edges must be like looks at them.
    limits = as_float64(edges, "edges")
    return Spectrum(torch.ones(max(limits.numel() - 1, 1)), limits).edges


def _is_path(source: Any) -> TypeGuard[str | os.PathLike[str]]:
    return isinstance(source, str | os.PathLike)
