"""scan_many: every spectrum of a file searched, ranked by its global p-value, in bounded memory.

All spectra share their edges and hypotheses. Each gets its own background, its own correlation of the hypotheses and
from these its own global p-value; over all m spectra the smallest counts as :math:`1 - (1 - p)^m`. Pieces are kept in a
folder, so that a stopped search goes on where it was.
"""

from __future__ import annotations

__all__ = ["FOUND", "ManyScans", "scan_many"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.stats
from torch import Tensor

from specfit import io
from specfit.arrays import ArrayLike
from specfit.background_fit import BackgroundFit
from specfit.errors import InputError
from specfit.inference import EdgesMismatchError, SpectrumFitter
from specfit.io.files import check_readable, finite_or_none, replacing, write_json
from specfit.masks import left_out_bins
from specfit.search.chain import Chain
from specfit.search.excess import largest_excess
from specfit.search.scanning import find_fitter, make_chain
from specfit.search.tables import checked_ending, write_csv
from specfit.search.toys.chunks import Chunk, chunks_of, digest
from specfit.search.toys.software import software
from specfit.search.toys.store import SOFTWARE, open_store
from specfit.signal.hypotheses import SignalHypotheses, Width

CHUNK = 512
# Samples of the field of significances for each global p-value.
SAMPLES = 4000
LEVELS = (3.0, 4.0, 5.0)
FOUND = ("events", "mass", "width", "yields", "error", "local_z", "global_p", "p_value", "converged")
"""What is kept of every spectrum: of its largest excess, and of its background."""
ENDINGS = (".csv", ".json", ".npz")


@dataclass(frozen=True, eq=False)
class ManyScans:
    """The largest excess of every spectrum.

    Args:
        table: One array `(m,)` for each of `FOUND`: total events; mass, width, yield, error and local significance of
            the best hypothesis; the spectrum's global p-value; p-value of the background; whether it converged.
        n_hypotheses: Number of hypotheses for each spectrum.
    """

    table: dict[str, npt.NDArray[Any]]
    n_hypotheses: int

    def __len__(self) -> int:
        return len(self.table["local_z"])

    @property
    def ranking(self) -> npt.NDArray[np.intp]:
        """Rows by global p-value, the smallest first; those whose background could not be fitted come last."""
        return np.lexsort((-self.table["local_z"], self.table["global_p"], ~self.table["converged"]))

    @property
    def global_p(self) -> float:
        """Probability that pure backgrounds show so small a global p-value in any of the spectra that converged."""
        used = self.table["converged"]
        if not used.any():
            return float("nan")
        return float(-np.expm1(used.sum() * np.log1p(-min(self.table["global_p"][used].min(), 1 - 1e-15))))

    def summary(self) -> dict[str, Any]:
        """Returns what counts, as plain data; both p-values of all spectra are None if none converged."""
        used = self.table["converged"]
        z, p = self.table["local_z"][used], self.table["global_p"][used]
        return {
            "spectra": len(self),
            "not_converged": int((~used).sum()),
            "hypotheses": self.n_hypotheses,
            "global_p_over_all": finite_or_none(self.global_p),
            "global_p_uniform": float(scipy.stats.kstest(p, "uniform").pvalue) if len(p) else None,
            "above": {f"{level:g}": int((z > level).sum()) for level in LEVELS},
            "top": [self.row(i) for i in self.ranking[:10]],
        }

    def row(self, index: int) -> dict[str, Any]:
        """Returns what was found in one spectrum, as plain data."""
        return {"spectrum": int(index)} | {name: column[index].item() for name, column in self.table.items()}

    def save(self, path: str | Path) -> Path:
        """Writes the table, ranked, to `.csv`, `.npz` (in the order of the file) or, with the summary, `.json`.

        Raises:
            InputError: Another ending.
        """
        target = checked_ending(path, ENDINGS)
        if target.suffix == ".npz":
            with replacing(target) as temporary, temporary.open("wb") as stream:
                np.savez(stream, **self.table)  # type: ignore[arg-type]
            return target
        rows = [self.row(i) for i in self.ranking]
        if target.suffix == ".json":
            return write_json(target, finite_or_none({"summary": self.summary(), "spectra": rows}))
        return write_csv(target, {name: [row[name] for row in rows] for name in rows[0]})


def scan_many(
    spectra: Any,
    edges: ArrayLike | None = None,
    *,
    checkpoint: str | Path | SpectrumFitter | None = None,
    width: Width = 0.05,
    mass: ArrayLike | None = None,
    hypotheses: SignalHypotheses | None = None,
    known: Sequence[tuple[float, float]] = (),
    mask: ArrayLike | None = None,
    seed: int = 1,
    store: str | Path | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> ManyScans:
    """Searches every row of a two-dimensional array or `.npy` file, on all cores.

    Args:
        spectra: Counts, shape `(m, n_bins)`: an array, or the path of a `.npy` file, which is mapped and never read as
            a whole; or a batch of anything that `SpectrumFitter.fit` takes.
        edges: Bin edges.
        checkpoint: A checkpoint, a run's folder, a `SpectrumFitter`, or None for the shipped net.
        width: As for `scan`, like `mass`, `hypotheses`, `known` and `mask`.
        mass: Masses to try.
        hypotheses: Signals of any shape.
        known: Peaks that are fitted beside every hypothesis.
        mask: Bins to leave out beside gaps.
        seed: Decides the samples behind the global p-values.
        store: Folder that keeps finished pieces; the same call goes on there.
        progress: Called with the number of spectra that are done and of all.

    Raises:
        InputError: A row is no spectrum (the message says which), an argument cannot be used, or the store holds
            another search or pieces of other versions.
    """
    fitter = find_fitter(checkpoint)
    rows, limits, mask = _rows(spectra, edges, mask, fitter)
    first = _Searcher(fitter, limits, mask, seed).fit(rows, Chunk(0, 0, 1))
    fitter = fitter.read(first.spectrum).fitter
    searcher = _Searcher(fitter, limits, mask, seed)
    options: dict[str, Any] = {"width": width, "mass": mass, "hypotheses": hypotheses, "known": known}
    chain = make_chain(fitter, first, left_out=mask, **options)
    kept = None if store is None else open_store(store, _card(chain, rows, seed))
    parts, done = [], 0
    progress(0, len(rows))
    for chunk in chunks_of(len(rows), CHUNK):
        found = kept.read(chunk) if kept else None
        if found is None:
            if kept:
                kept.check_can_grow()
            found = searcher.search(chain, rows, chunk)
            if kept:
                kept.write(chunk, found)
        parts.append(found)
        done += chunk.size
        progress(done, len(rows))
    table = {name: np.concatenate([part[name] for part in parts]) for name in FOUND}
    return ManyScans(table, len(chain.hypotheses))


@dataclass(frozen=True, eq=False)
class _Searcher:
    fitter: SpectrumFitter
    edges: ArrayLike | None
    mask: ArrayLike | None
    seed: int

    def fit(self, rows: Any, chunk: Chunk) -> BackgroundFit:
        """Fits the backgrounds of a chunk."""
        counts = np.asarray(rows[chunk.first : chunk.end], dtype=np.float64)
        try:
            return self.fitter.fit(counts, self.edges, mask=self.mask)
        except (EdgesMismatchError, io.MissingEdgesError):
            raise  # no fault of these rows
        except InputError as error:
            where = f"rows {chunk.first} to {chunk.end - 1} (counted from {chunk.first})"
            raise InputError(f"{where}: {error}") from None

    def search(self, chain: Chain, rows: Any, chunk: Chunk) -> dict[str, npt.NDArray[Any]]:
        """Returns what is kept of a chunk."""
        fit = self.fit(rows, chunk)
        counts = fit.spectrum.counts
        found = largest_excess(chain, counts, seed=(self.seed, 0), samples=SAMPLES)
        signals = chain.hypotheses
        columns = (
            fit.events,
            signals.mass[found.number],
            signals.width[found.number],
            found.yields,
            found.error,
            found.local_z,
            found.global_p,
            fit.p_value,
            fit.converged,
        )
        return {name: column.numpy() for name, column in zip(FOUND, columns, strict=True)}


def _rows(
    spectra: Any, edges: ArrayLike | None, mask: ArrayLike | None, fitter: SpectrumFitter
) -> tuple[Any, ArrayLike | None, ArrayLike | None]:
    """Returns something that gives rows of counts when it is sliced, edges, and what to leave out, gaps included."""
    flags = mask.cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if flags.dtype == bool and flags.ndim > 1:
        raise InputError(
            f"mask: shape {flags.shape} came, the same bins are left out of every spectrum of a search; give windows, "
            "or one flag for each bin, shape (n_bins,)"
        )
    if isinstance(spectra, str | Path) and str(spectra).endswith(".npy"):
        check_readable(Path(spectra))
        rows = np.load(spectra, mmap_mode="r", allow_pickle=False)
        limits = edges
    elif isinstance(spectra, np.ndarray | Tensor):
        rows, limits = np.asarray(spectra), edges
    else:
        read = fitter.read(spectra, edges).spectrum
        if read.is_weighted:
            raise InputError("spectra: weighted contents came; `scan` takes them, one at a time")
        rows, limits = np.atleast_2d(read.counts.masked_fill(~read.measured, 0.0).numpy()), read.edges
        if read.gaps is not None:
            mask = left_out_bins(read, mask)[0]
    if rows.ndim != 2 or len(rows) == 0:
        raise InputError(f"spectra: shape (n_spectra, n_bins) is expected, {rows.shape} came")
    return rows, limits, mask


def _card(chain: Chain, rows: Any, seed: int) -> dict[str, Any]:
    """Writes down what a continued search must agree in."""
    return {
        "job": "scan of many spectra",
        "spectra": list(rows.shape),
        "data": _data_identity(rows),
        **chain.identity(),
        "seed": seed,
        "chunk": CHUNK,
        SOFTWARE: software(),
    }


def _data_identity(rows: Any) -> Any:
    """Tells data from others: arrays by all they hold, a mapped file by size, time and a thousand of its rows."""
    if isinstance(rows, np.memmap):
        state, probe = Path(str(rows.filename)).stat(), rows[:: max(1, len(rows) // 1000)]
        return [state.st_size, state.st_mtime_ns, digest(np.asarray(probe, np.float64))]
    return digest([digest(np.asarray(rows[c.first : c.end], np.float64)) for c in chunks_of(len(rows), CHUNK)])
