"""Judges the net for any binning: on the reference task, on other binnings, totals and families, on measured spectra.

Simulated spectra are pure backgrounds, fitted without refit. Printed for each kind: RMS of (fit - truth) / sqrt(truth)
in bins with more than half an event expected, and its median over spectra (the limit where it is known); bias; the
width of the pulls (fit - truth) / uncertainty and how often they stay within 1 and 1.96, for bins and for windows of 2
to 20 bins, of spectra that are not flagged; the share of spectra that miss a bin by more than 8 statistical errors
without being flagged; the share flagged. The families marked "held out" are not in the prior that the net learned from.

Measured spectra (a folder of .csv files; skipped where it is absent) are fitted as `specfit predict` does, with refit.

    python scripts/evaluate_default.py
    python scripts/evaluate_default.py --checkpoint runs/default --size 500 --spectra my/spectra
"""

from __future__ import annotations

__all__ = ["main"]

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from common import (
    REFERENCE_EDGES,
    TASKS,
    argument_parser,
    limit_of,
    print_table,
    relative_residuals,
    rng_of,
    start,
    write_json,
)
from torch import Tensor

import specfit
from specfit.background_fit import BackgroundFit
from specfit.generator import FAMILIES, HELD_OUT, Batch, WideGenerator

SPECTRA = Path(__file__).parents[2] / "shared" / "data" / "spectra"
BATCH, WINDOWS, FAR = 64, (2, 5, 10, 20), 8.0


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the script; returns the figures by kind."""
    parser = argument_parser(__doc__, size=2000)
    parser.add_argument("--spectra", type=Path, default=SPECTRA, help="folder of measured spectra")
    options = parser.parse_args(arguments)
    fitter = specfit.SpectrumFitter.from_checkpoint(options.checkpoint)
    figures = {name: judged(fitter, batches) for name, batches in kinds(options.size, options.seed)}
    edges = specfit.io.parse_edges(REFERENCE_EDGES)
    for n in TASKS:
        limit = limit_of(specfit.SpectrumGenerator(edges, n_backgrounds=n), size=500, seed=options.seed).rms
        row = figures[f"reference N={n}"]
        figures[f"reference N={n}"] = {"rms": row.pop("rms"), "limit": limit, **row}
    print_table(
        f"Simulated, {options.size} spectra each", [{"kind": k, "limit": None, **v} for k, v in figures.items()]
    )
    measured = measured_spectra(fitter, options.spectra) if options.spectra.is_dir() else {}
    if measured:
        print_table("Measured", [{"spectrum": name[:40], **row} for name, row in measured.items()])
    write_json(options.json, options, {"simulated": figures, "measured": measured})
    return {"simulated": figures, "measured": measured}


def kinds(size: int, seed: int) -> Iterator[tuple[str, Iterator[Batch]]]:
    """Yields every kind of simulated spectra with its batches."""
    edges = specfit.io.parse_edges(REFERENCE_EDGES)
    for n in TASKS:
        yield f"reference N={n}", sampled(specfit.SpectrumGenerator(edges, n_backgrounds=n), size, seed)
    for n in (17, 30, 100, 200):
        task = specfit.SpectrumGenerator(torch.logspace(2.39794, 3.477121, n + 1), n_backgrounds=5)
        yield f"reference N=5, {n} bins", sampled(task, size, seed)
    common = {"n_bins": (20, 100), "signal": 0.0, "masked": 0.0}
    for low in range(2, 10):
        wide = WideGenerator(total=(10.0**low, 10.0 ** (low + 1)), **common)  # type: ignore[arg-type]
        yield f"1e{low} to 1e{low + 1} events", sampled(wide, size, seed)
    for name in FAMILIES | HELD_OUT:
        label = name + (" (held out)" if name in HELD_OUT else "")
        wide = WideGenerator(families={name: 1.0}, total=(1e2, 1e9), **common)  # type: ignore[arg-type]
        yield label, sampled(wide, size, seed)


def sampled(generator: specfit.SpectrumGenerator | WideGenerator, size: int, seed: int) -> Iterator[Batch]:
    """Samples batches."""
    rng = rng_of(seed)
    for _ in range(-(-size // BATCH)):
        yield generator.sample(BATCH, rng=rng)


def judged(fitter: specfit.SpectrumFitter, batches: Iterator[Batch]) -> dict[str, float | None]:
    """Fits batches and computes the figures of their kind."""
    parts = [figures_of(fit, truth) for batch in batches for fit, truth in fits_of(fitter, batch)]
    of_bin, pulls, window_pulls, of_spectrum, far, flagged = (torch.cat(p) for p in zip(*parts, strict=True))
    return {
        "rms": of_bin.square().mean().sqrt().item(),
        "rms_median": of_spectrum.median().item(),
        "bias": of_bin.mean().item(),
        "pull_width": pulls.clamp(-FAR, FAR).std().item(),
        "within_1": (pulls.abs() < 1).double().mean().item(),
        "within_1.96": (pulls.abs() < 1.96).double().mean().item(),
        "windows_1": (window_pulls.abs() < 1).double().mean().item(),
        "windows_1.96": (window_pulls.abs() < 1.96).double().mean().item(),
        "far_unflagged": (far & ~flagged).double().mean().item(),
        "flagged": flagged.double().mean().item(),
    }


def fits_of(fitter: specfit.SpectrumFitter, batch: Batch) -> Iterator[tuple[BackgroundFit, Tensor]]:
    """Fits a batch, as a whole where the edges are common, else spectrum by spectrum."""
    if batch.edges.ndim == 1:
        yield fitter.fit(batch.counts, batch.edges, refit=None), batch.background
        return
    for counts, edges, truth in zip(batch.counts, batch.edges, batch.background, strict=True):
        if counts.sum() > 0:
            yield fitter.fit(counts[None], edges, refit=None), truth[None]


def figures_of(fit: BackgroundFit, truth: Tensor) -> tuple[Tensor, ...]:
    """Computes residuals, pulls and pulls of windows of used bins, and of spectra RMS, far misses and flags."""
    residual, used = relative_residuals(fit.background, truth)
    difference, factor = fit.background - truth.double(), fit.factor
    pulls = difference / fit.uncertainty
    trusted, window_pulls = fit.converged[:, None], []
    for width in WINDOWS:
        if width < truth.shape[1]:
            sums = difference.unfold(1, width, width).sum(-1)
            error = factor.unfold(1, width, width).sum(-1).square().sum(-1).sqrt()
            window_pulls.append((sums / error)[(truth.unfold(1, width, width).sum(-1) > 1) & trusted])
    rms = ((residual.square() * used).sum(-1) / used.sum(-1).clamp(min=1)).sqrt()
    far = ((residual.abs() > FAR) & used).any(-1)
    return residual[used], pulls[used & trusted], torch.cat(window_pulls), rms, far, ~fit.converged


def measured_spectra(fitter: specfit.SpectrumFitter, folder: Path) -> dict[str, dict[str, Any]]:
    """Fits every file of a folder."""
    rows = {}
    for path in sorted(folder.glob("*.csv")):
        fit = fitter.fit(path)
        pull = fit.significance
        rows[path.stem] = {
            "bins": fit.spectrum.n_bins,
            "events": fit.spectrum.total.item(),
            "deviance": fit.deviance.item(),
            "ndf": fit.ndf.item(),
            "p_value": fit.p_value.item(),
            "first": pull[0].item(),
            "last": pull[-1].item(),
            "masked": int(fit.mask.sum()),
            "converged": str(bool(fit.converged)),
        }
    return rows


if __name__ == "__main__":
    start(main)
