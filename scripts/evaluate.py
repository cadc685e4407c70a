"""Judges a checkpoint on the reference task: N = 1, 5 and 7 components, fresh pure backgrounds, no refit.

Printed for each N: RMS of (fit - truth) / sqrt(truth) pooled over bins with more than half an event expected; the
information limit, the RMS of an efficient estimator on this task; their ratio, the figure that compares nets; bias, the
mean of the same residual, and its largest absolute value in any tenth of the bins and in any bin; the median over
spectra of the RMS of each;
the width of the pulls (fit - truth) / uncertainty, how often they stay within 1 and 1.96 (68.3 % and 95 % are right)
and how often they leave 5: a few such widen the width beyond all meaning.

    python scripts/evaluate.py
    python scripts/evaluate.py --checkpoint runs/mine --size 5000 --json mine.json
"""

from __future__ import annotations

__all__ = ["evaluate", "evaluate_all", "main"]

from collections.abc import Sequence

import torch
from common import (
    REFERENCE_EDGES,
    TASKS,
    argument_parser,
    fitted_parts,
    limit_of,
    positive,
    print_table,
    relative_residuals,
    start,
    write_json,
)
from torch import Tensor

import specfit

LIMIT_SIZE = 1000
# Within so many standard deviations lie 95 % of a normal distribution.
TWO_SIDED_95 = 1.96
FAR = 5.0
# Neighbouring bins whose bias is averaged.
REGIONS = 10


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Runs the script; returns the figures by task."""
    parser = argument_parser(__doc__, size=20_000)
    parser.add_argument("--limit-size", type=positive, default=LIMIT_SIZE, help="truths for the information limit")
    options = parser.parse_args(arguments)
    fitter = specfit.SpectrumFitter.from_checkpoint(options.checkpoint)
    figures = evaluate_all(fitter, size=options.size, limit_size=options.limit_size, seed=options.seed)
    rows = [{"task": task, **values} for task, values in figures.items()]
    print_table(f"Reference task, {options.size} spectra each", rows)
    write_json(options.json, options, figures)
    return figures


def evaluate_all(
    fitter: specfit.SpectrumFitter, *, size: int, seed: int, limit_size: int = LIMIT_SIZE
) -> dict[str, dict[str, float]]:
    """Evaluates a fitter for every number of components of the reference task; figures by task, "N=1" and so on."""
    figures, edges = {}, specfit.io.parse_edges(REFERENCE_EDGES) if fitter.edges is None else fitter.edges
    for n in TASKS:
        generator = specfit.SpectrumGenerator(edges, n_backgrounds=n)
        limit = limit_of(generator, size=limit_size, seed=seed).rms
        measured = evaluate(fitter, generator, size=size, seed=seed)
        rms = measured.pop("rms")
        figures[f"N={n}"] = {"rms": rms, "limit": limit, "rms_over_limit": rms / limit} | measured
    return figures


def evaluate(
    fitter: specfit.SpectrumFitter, generator: specfit.SpectrumGenerator, *, size: int, seed: int
) -> dict[str, float]:
    """Evaluates a fitter on fresh spectra in bounded memory."""
    sums, per_spectrum = [], []
    for batch, fit in fitted_parts(fitter, generator, size=size, seed=seed):
        residual, used = relative_residuals(fit.background, batch.background)
        sums.append(_sums(residual, (fit.background - batch.background) / fit.uncertainty, used))
        per_spectrum.append(((residual.square() * used).sum(-1) / used.sum(-1)).sqrt())
    return _figures(torch.stack(sums).sum(0)) | {"rms_median": torch.cat(per_spectrum).median().item()}


def _sums(residual: Tensor, pull: Tensor, used: Tensor) -> Tensor:
    """Sums over spectra all that the figures need, shape `(8, n_bins)`."""
    inside = [pull.abs() < width for width in (1.0, TWO_SIDED_95, FAR)]
    terms = [torch.ones_like(pull), residual, residual.square(), pull, pull.square(), *inside]
    return torch.stack([torch.where(used, term.double(), 0.0).sum(0) for term in terms])


def _figures(sums: Tensor) -> dict[str, float]:
    n, residual, squares, pull, pull_squares, inside, inside_95, near = sums
    mean_pull = pull.sum() / n.sum()
    figures = {
        "rms": (squares.sum() / n.sum()).sqrt(),
        "bias": residual.sum() / n.sum(),
        "region_bias": _largest_bias(residual, n, regions=REGIONS),
        "largest_bias": _largest_bias(residual, n, regions=len(n)),
        "pull_width": (pull_squares.sum() / n.sum() - mean_pull**2).sqrt(),
        "coverage_68": inside.sum() / n.sum(),
        "coverage_95": inside_95.sum() / n.sum(),
        "beyond_5": 1 - near.sum() / n.sum(),
    }
    return {name: value.item() for name, value in figures.items()}


def _largest_bias(residual: Tensor, n: Tensor, *, regions: int) -> Tensor:
    """Returns the largest absolute mean of residuals in any region of neighbouring bins, of sums over spectra."""
    parts = [torch.stack([part.sum() for part in torch.tensor_split(t, min(regions, len(n)))]) for t in (residual, n)]
    return (parts[0] / parts[1])[parts[1] > 0].abs().max()


if __name__ == "__main__":
    start(main)
