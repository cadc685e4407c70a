"""scan: looks for a signal at every mass of one spectrum, with the whole chain repeated on pseudo-experiments."""

from __future__ import annotations

__all__ = ["BackgroundOnly", "find_fitter", "fitted", "make_chain", "scan"]

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specfit.arrays import ArrayLike
from specfit.background_fit import BackgroundFit, draw_backgrounds
from specfit.errors import InputError
from specfit.inference import SpectrumFitter
from specfit.masks import left_out_bins
from specfit.net.posterior import gaussian_prediction
from specfit.search.chain import Chain
from specfit.search.excess import global_p_of_largest
from specfit.search.known import LEAST_SEEN, fitted_peaks, is_known, peak_templates
from specfit.search.limits import interval, upper_limits
from specfit.search.pseudo_experiments import Report, Running, whole
from specfit.search.result import ScanResult
from specfit.search.toys.chunks import digest
from specfit.search.toys.p_values import global_p_value
from specfit.signal.hypotheses import SignalHypotheses, Width, gaussian_hypotheses
from specfit.signal.joint_fit import TINY
from specfit.signal.look_elsewhere import gross_vitells
from specfit.signal.rows import Rows

# Level of the confidence limits, and upcrossings are counted at this significance.
LEVEL, UPCROSSINGS_AT = 0.95, 0.5
# From so many pseudo-experiments as extreme as the data on, counting them is better than any formula.
ENOUGH_TO_COUNT = 10
# A significance above this is explained where the yield over its error is larger by more than one.
REMARKABLE = 3.0
# Pseudo-experiments that are drawn from one seed.
CHUNK = 100


def scan(
    spectrum: Any,
    edges: ArrayLike | None = None,
    *,
    checkpoint: str | Path | SpectrumFitter | None = None,
    width: Width = 0.05,
    mass: ArrayLike | None = None,
    hypotheses: SignalHypotheses | None = None,
    known: Sequence[tuple[float, float]] = (),
    mask: ArrayLike | None = None,
    n_toys: int = 0,
    level: float = LEVEL,
    seed: int = 1,
    workers: int = 1,
    scheduler: str | None = None,
    store: str | Path | None = None,
    progress: bool | Report = False,
) -> ScanResult:
    """Searches one spectrum for a signal on its smooth background.

    Background and signal are fitted together at every hypothesis, so that the error of the background is in every
    yield, limit and significance.

    Args:
        spectrum: What `SpectrumFitter.fit` takes, one spectrum.
        edges: Bin edges for bare counts.
        checkpoint: A checkpoint, a run's folder, a `SpectrumFitter`, or None for the shipped net.
        width: Standard deviation of a Gaussian signal: a share of the mass, several, or a function of the mass.
        mass: Masses to try; None takes steps of half a width through the range.
        hypotheses: Signals of any shape instead of `width` and `mass` (`template_hypotheses`).
        known: Peaks, as (mass, standard deviation), that are fitted beside every hypothesis; a hypothesis that is one
            of them is not tried.
        mask: Bins to leave out, see `SpectrumFitter.fit`. Gaps are left out too, and signals of which less than 30 %
            lie beside all that are not tried.
        n_toys: Pseudo-experiments without signal on which the whole chain is repeated.
        level: Confidence level of the limits.
        seed: Decides the pseudo-experiments.
        workers: Processes for them; `scheduler`, `store` and `progress`: see `run_pseudo_experiments`.
        scheduler: Address of a Dask scheduler.
        store: Folder that keeps them.
        progress: Whether to draw a bar, or a function that is called with what is done.

    Raises:
        InputError: What came is not one spectrum, or an argument cannot be used.

    Example:
        >>> import numpy as np
        >>> counts = np.round(1e5 * np.exp(-np.arange(50) / 8))
        >>> counts[20:23] += [200, 400, 200]
        >>> found = scan(counts, width=0.05)
        >>> 650 < found.mass[found.best] < 800, found.global_p < 0.05
        (tensor(True), True)
    """
    if not 0 < level < 1:
        raise InputError(f"level: a number between 0 and 1 is expected, {level:g} came")
    n_toys = whole("n_toys", n_toys, 0)
    fitter, fit = fitted(spectrum, edges, checkpoint=checkpoint, mask=mask, instead="`scan_many` takes them all")
    chain = make_chain(fitter, fit, width=width, mass=mass, hypotheses=hypotheses, known=known, left_out=mask)
    rows = chain.rows((fit.spectrum.counts / fit.weights.of_bins)[None])
    toys = None
    if n_toys:
        running = Running(seed=seed, workers=workers, scheduler=scheduler, store=store, progress=progress)
        job = BackgroundOnly(chain, *_without_signal(chain, fit, rows))
        toys = running.values(job, n_toys, chunk_size=CHUNK)["local_z"]
    global_p = _global_p_values(chain, rows, toys, seed=seed)
    return _result(chain, fit, rows, global_p, known=known, level=level, n_toys=n_toys)


def find_fitter(checkpoint: str | Path | SpectrumFitter | None) -> SpectrumFitter:
    """Returns the fitter that `checkpoint` stands for, as everywhere in `specfit.search`.

    Raises:
        InputError: A fitter on another device than the CPU came.
    """
    fitter = checkpoint if isinstance(checkpoint, SpectrumFitter) else SpectrumFitter.from_checkpoint(checkpoint)
    if fitter.device.type != "cpu":
        raise InputError(
            f"checkpoint: a fitter on {str(fitter.device)!r} came, a search runs on the CPU; "
            "make the fitter with device='cpu'"
        )
    return fitter


def fitted(
    spectrum: Any,
    edges: ArrayLike | None,
    *,
    checkpoint: str | Path | SpectrumFitter | None,
    mask: ArrayLike | None,
    instead: str = "take them one at a time",
) -> tuple[SpectrumFitter, BackgroundFit]:
    """Fits the background of one spectrum (arguments as for `scan`).

    Args:
        spectrum: The data.
        edges: Bin edges for bare counts.
        checkpoint: Of the net.
        mask: Bins to leave out.
        instead: What who comes with several may do.

    Raises:
        InputError: Several spectra came.
    """
    fitter = find_fitter(checkpoint)
    fit = fitter.fit(spectrum, edges, mask=mask)
    if fit.spectrum.is_batch:
        raise InputError(f"spectrum: one is expected, {len(fit.spectrum.counts)} came; {instead}")
    return fitter.read(fit.spectrum).fitter, fit


def make_chain(
    fitter: SpectrumFitter,
    fit: BackgroundFit,
    *,
    width: Width = 0.05,
    mass: ArrayLike | None = None,
    hypotheses: SignalHypotheses | None = None,
    known: Sequence[tuple[float, float]] = (),
    left_out: ArrayLike | None = None,
) -> Chain:
    """Makes the chain of a search for one spectrum (arguments as for `scan`)."""
    edges = fit.spectrum.edges
    signals = gaussian_hypotheses(edges, width=width, mass=mass) if hypotheses is None else hypotheses
    if signals.templates.shape[-1] != fit.spectrum.n_bins:
        n = signals.templates.shape[-1]
        raise InputError(f"hypotheses: templates of {n} bins came, the spectrum has {fit.spectrum.n_bins}")
    out = left_out_bins(fit.spectrum, left_out)
    if (out != out[:1]).any():
        raise InputError("mask: the same bins are expected in every spectrum of a search")
    out = out[0]
    seen = signals.share_seen(~out) > LEAST_SEEN
    if not seen.any():
        covers = "mask: it covers" if fit.spectrum.gaps is None else "mask and gaps of the spectrum: they cover"
        raise InputError(f"{covers} every signal that was to be looked for; leave some bins")
    peaks = peak_templates(known, edges, out)
    seen &= ~is_known(signals.templates, peaks, out)
    if not seen.any():
        raise InputError("known: every signal that was to be looked for is one of these peaks; leave it out of them")
    return Chain(fitter, edges, signals[seen], peaks, out, fit.weights.exposure)


@dataclass(frozen=True, eq=False)
class BackgroundOnly:
    r"""Pseudo-experiments without signal: a background that the data allow, Poisson counts of it, the whole chain.

    A fitted background is smoother than the one that made the data, and its pseudo-experiments show too little. So each
    has a background of its own (`draw_backgrounds`), and what is expected beside it.

    Args:
        chain: The search.
        background: Fitted events per bin, shape `(n_bins,)`.
        factor: Of its covariance F F^T, shape `(n_bins, k)`; without columns the background is exact.
        peaks: Events of known peaks per bin, shape `(n_bins,)`.
    """

    chain: Chain
    background: Tensor
    factor: Tensor
    peaks: Tensor

    def __call__(self, size: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Draws and searches; the significances of each, shape `(size, h)`."""
        drawn = draw_backgrounds(self.background.clamp(min=TINY), self.factor, size, rng=rng)
        expected = drawn + self.peaks
        return {"local_z": self.chain(torch.poisson(expected.clamp(min=0.0), generator=rng)).local_z}

    def identity(self) -> dict[str, Any]:
        """Tells one job from another."""
        return {
            "job": "background only",
            **self.chain.identity(),
            "background": digest([self.background, self.factor, self.peaks]),
        }


class _GlobalP(NamedTuple):
    """Fields of a `ScanResult` that begin with `global_p`."""

    chosen: float
    by: dict[str, float]
    interval: tuple[float, float] | None


def _result(
    chain: Chain,
    fit: BackgroundFit,
    rows: Rows,
    global_p: _GlobalP,
    *,
    known: Sequence[tuple[float, float]],
    level: float,
    n_toys: int,
) -> ScanResult:
    """Puts together what was found, in the unit of the contents."""
    unit, weight, best = fit.weights.unit, chain.weight(rows.data), int(rows.local_z.argmax())
    low, high = interval(rows, weight)
    limits = upper_limits(rows, weight, level=level)
    return ScanResult(
        spectrum=fit.spectrum,
        mass=chain.hypotheses.mass,
        width=chain.hypotheses.width,
        yields=rows.fit.yields[:, 0] * unit,
        error=rows.error * unit,
        error_low=low * unit,
        error_high=high * unit,
        local_z=rows.local_z,
        limit=limits.observed * unit,
        expected_limits=limits.expected * unit,
        level=level,
        global_p=global_p.chosen,
        global_p_by=global_p.by,
        global_p_interval=global_p.interval,
        n_toys=n_toys,
        background=rows.fit.background[best] * fit.weights.of_bins,
        signal=rows.columns[best, 0] * rows.fit.yields[best, :1] * fit.weights.of_bins,
        known=fitted_peaks(rows, best, known, float(unit)),
        mask=chain.mask,
        converged=bool(fit.converged),
        message="; ".join([fit.message, *_describe(rows.of(torch.tensor([best])))]),
    )


def _describe(best: Rows) -> list[str]:
    """Says what has to be known of the best signal: a misfit, and a significance below its yield over its error."""
    notes, factor, z = [], float(best.misfit), float(best.local_z)
    if factor > 1:
        notes.append(
            "background and the best signal together do not describe the data well: "
            f"its error was made {factor:.3g} times as wide; other widths may do (width, --width)"
        )
    ratio = float(best.fit.yields[0, 0] / best.error)
    if z > REMARKABLE and ratio > z + 1:
        notes.append(
            f"the best signal is {ratio:.3g} times its error and {z:.3g} sigma: a background may imitate it, "
            "and how far is itself uncertain"
        )
    return notes


def _global_p_values(chain: Chain, rows: Rows, toys: Tensor | None, *, seed: int) -> _GlobalP:
    """Computes the global p-value of the largest excess by every method there are numbers for."""
    best = rows.of(rows.local_z.argmax()[None])
    by = {"correlation": float(global_p_of_largest(chain, best, seed=(seed, 0)))}
    if toys is None:
        return _GlobalP(by["correlation"], by, None)
    z = float(best.local_z)
    counted = global_p_value(z, toys.amax(1))
    ordered = toys[:, chain.hypotheses.mass.argsort(stable=True)]
    by |= {"gross_vitells": gross_vitells(z, ordered, level=UPCROSSINGS_AT), "toys": counted.p_value}
    chosen = by["toys" if counted.n_as_extreme >= ENOUGH_TO_COUNT else "correlation"]
    return _GlobalP(chosen, by, (counted.low, counted.high))


def _without_signal(chain: Chain, fit: BackgroundFit, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Returns background, factor of its covariance and known peaks, as fitted without the tested signal, events."""
    if rows.columns.shape[1] == 1:
        weights = fit.weights.of_bins
        background = (fit.background / weights).clamp(min=0.0)
        return background, fit.factor / weights[:, None], torch.zeros_like(background)
    best = int(rows.local_z.argmax())
    background = rows.without.background[best]
    log_rate, basis = background.clamp(min=TINY).log()[None], rows.model.basis[best, None]
    factor = gaussian_prediction(log_rate, basis, chain.weight(log_rate)).factor[0]
    return background, factor, rows.without.yields[best] @ rows.columns[best, 1:]
