"""Files of very many spectra: fitted piece by piece in bounded memory, written as they come, continued after a stop.

The file is a two-dimensional `.npy` array of counts, one spectrum a row, and is mapped, never read as a whole. Results
grow in a folder `NAME.partial` beside the output and take their names at the end: the backgrounds as `.npy` of the same
shape, and `NAME_fits.npy`, a table with one row a spectrum (fields of `FITS`). A stopped run goes on only with the same
data, settings and net.
"""

from __future__ import annotations

__all__ = ["FITS", "StreamedFits", "fit_file", "is_large"]

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from specfit import io
from specfit.background_fit import BackgroundFit
from specfit.errors import InputError
from specfit.inference import EdgesMismatchError, SpectrumFitter, refit_rule
from specfit.io.files import finite_or_none, write_json
from specfit.masks import left_out_bins
from specfit.spectrum import Spectrum, check_events

# Files of more rows are streamed, this many at a time.
LARGE, CHUNK = 4096, 4096
FITS = np.dtype(
    [
        ("events", "f8"),
        ("deviance", "f8"),
        ("ndf", "f8"),
        ("p_value", "f8"),
        ("largest_excess", "f8"),
        ("largest_excess_bin", "i4"),
        ("masked_bins", "i4"),
        ("converged", "?"),
    ]
)
"""What is kept of every fit beside its background."""


class StreamedFits(NamedTuple):
    """Where results are, and the table of all fits."""

    background: Path
    """Array of shape `(n_spectra, n_bins)`, events."""
    table: Path
    """Array of `FITS`, shape `(n_spectra,)`."""
    fits: npt.NDArray[Any]
    """The same, mapped."""


def is_large(source: str) -> bool:
    """Tells whether a file holds more spectra than are fitted at once."""
    path = Path(source)
    if path.suffix.lower() != ".npy" or not path.is_file():
        return False
    try:
        shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    except (ValueError, OSError, EOFError):
        return False  # whoever reads it says what is wrong
    return len(shape) == 2 and shape[0] > LARGE


def fit_file(
    fitter: SpectrumFitter,
    source: str,
    target: str,
    *,
    progress: Callable[[int, int], None] = lambda *_: None,
    **options: Any,
) -> StreamedFits:
    """Fits every row of a `.npy` file; the same call continues where it was stopped.

    Args:
        fitter: What fits.
        source: A `.npy` file of counts, shape `(n_spectra, n_bins)`.
        target: Where the backgrounds go, ending in `.npy`.
        progress: Called with the number of spectra that are done and of all.
        **options: `edges`, `mask` and `refit` of `SpectrumFitter.fit`.

    Raises:
        InputError: A row is no spectrum (the message says which), `target` ends otherwise, or a stopped run there had
            other data, settings or another net. Nothing is kept but in the last case.
        EdgesMismatchError: As `SpectrumFitter.fit`.
    """
    counts, out = np.load(source, mmap_mode="r", allow_pickle=False), Path(target)
    if out.suffix.lower() != ".npy":
        raise InputError(f"--out: {len(counts)} spectra are written to a .npy file, {out.name} came")
    first = slice(0, min(CHUNK, len(counts)))
    with _naming_rows(first):
        reading = fitter.read(np.asarray(counts[first], dtype=np.float64), options.get("edges"))
    shape, fitter = counts.shape, reading.fitter
    del counts  # pages of a map that stays open count as memory of the process
    _check_rows(source, reading.spectrum.edges, options.get("mask"))
    partial, table = out.with_name(f"{out.name}.partial"), out.with_name(f"{out.stem}_fits.npy")
    done = _start_or_continue(partial, shape, _card(fitter, source, shape, options))
    progress(done, shape[0])
    while done < shape[0]:
        rows = slice(done, min(done + CHUNK, shape[0]))
        try:
            fit = _fit_rows(fitter, source, rows, options)
        except InputError:  # with another source or other options this run is over
            _remove(partial)
            raise
        _store(partial / "background.npy", rows, fit.background.numpy())
        _store(partial / "fits.npy", rows, _table(fit))
        done = rows.stop
        write_json(partial / "progress.json", {"done": done})
        progress(done, shape[0])
    for name, final in (("background.npy", out), ("fits.npy", table)):
        if (partial / name).exists():  # a run that was killed between the two has moved one
            (partial / name).replace(final)
    _remove(partial)
    return StreamedFits(out, table, np.load(table, mmap_mode="r", allow_pickle=False))


def _fit_rows(fitter: SpectrumFitter, source: str, rows: slice, options: dict[str, Any]) -> BackgroundFit:
    with _naming_rows(rows):
        return fitter.fit(_read_rows(source, rows), **options)


def _read_rows(source: str, rows: slice) -> npt.NDArray[np.float64]:
    # Mapped anew for every piece: pages of a map that stays open count as memory of the process.
    counts = np.load(source, mmap_mode="r", allow_pickle=False)
    return np.array(counts[rows], dtype=np.float64)


def _check_rows(source: str, edges: Tensor, mask: Any) -> None:
    """Refuses a file with a row that cannot be fitted, before hours of work."""
    n_rows = len(np.load(source, mmap_mode="r", allow_pickle=False))
    for start in range(0, n_rows, CHUNK):
        rows = slice(start, min(start + CHUNK, n_rows))
        with _naming_rows(rows):
            spectra = Spectrum(_read_rows(source, rows), edges)
            check_events(spectra.counts)
            left_out_bins(spectra, mask)


@contextlib.contextmanager
def _naming_rows(rows: slice) -> Iterator[None]:
    """Says in which rows something is wrong."""
    try:
        yield
    except (EdgesMismatchError, io.MissingEdgesError):
        raise  # no fault of these rows
    except InputError as error:
        named, n = re.subn(r"spectrum (\d+)", lambda found: f"row {rows.start + int(found[1])}", str(error))
        where = "" if n else f" in one of rows {rows.start} to {rows.stop - 1}"
        raise InputError(f"{named}{where} (rows are counted from 0)") from None


def _store(path: Path, rows: slice, values: npt.NDArray[Any]) -> None:
    """Writes some rows of an array file to the disk."""
    array = open_memmap(path, mode="r+")
    array[rows] = values
    array.flush()


def _table(fit: BackgroundFit) -> npt.NDArray[Any]:
    rows = np.empty(len(fit.background), dtype=FITS)
    largest, at = fit.significance.max(-1)
    values = (
        fit.events, fit.deviance, fit.ndf, fit.p_value, largest, at, fit.mask.sum(-1), fit.converged
    )  # fmt: skip
    for name, value in zip(FITS.names or (), values, strict=True):
        rows[name] = value.numpy()
    return rows


def _card(fitter: SpectrumFitter, source: str, shape: tuple[int, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Writes down what a continued run must agree in, under the names that a message can use."""
    edges, mask, rule = options.get("edges"), options.get("mask"), options.get("refit", True)
    state = Path(source).stat()
    return {
        "input": str(Path(source).resolve()),
        "content of the input": [state.st_size, state.st_mtime_ns, *shape],
        "edges": None if edges is None else io.parse_edges(edges).tolist(),
        "mask": [] if mask is None else finite_or_none(torch.as_tensor(mask).tolist()),
        "refit": refit_rule(rule, fitter.net),
        "net": _digest(fitter),
    }


def _digest(fitter: SpectrumFitter) -> str:
    """Returns what two fitters share only if their nets answer alike."""
    edges = None if fitter.edges is None else fitter.edges.tolist()
    digest = hashlib.sha256(repr((type(fitter.net).__name__, fitter.net.arguments, edges)).encode())
    for name, tensor in fitter.net.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _start_or_continue(partial: Path, shape: tuple[int, ...], card: dict[str, Any]) -> int:
    """Returns how many spectra are done already, after making the arrays for a new run."""
    if (partial / "progress.json").exists():
        before = json.loads((partial / "card.json").read_text())
        differing = [name for name, value in card.items() if before.get(name) != value]
        if differing:
            raise InputError(
                f"{partial} holds a stopped run with another {', '.join(differing)}; "
                "give what it began with to continue it, or delete the folder to start anew"
            )
        return int(json.loads((partial / "progress.json").read_text())["done"])
    try:
        partial.mkdir(exist_ok=True)
    except OSError as error:
        raise type(error)(f"{partial}: cannot be written ({error.strerror or error})") from None
    open_memmap(partial / "background.npy", mode="w+", dtype=np.float64, shape=shape).flush()
    open_memmap(partial / "fits.npy", mode="w+", dtype=FITS, shape=shape[:1]).flush()
    write_json(partial / "card.json", card)
    write_json(partial / "progress.json", {"done": 0})
    return 0


def _remove(partial: Path) -> None:
    for left in partial.iterdir():
        left.unlink()
    partial.rmdir()
