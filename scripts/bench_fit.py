"""Times the shipped net beside a functional fit with iminuit, on the same spectra of the reference task.

The net in a batch with its covariances, without and with refit, and one spectrum at a time; the functional fit is told
the true form and the true number of components. RMS and its ratio to the information limit are those of the spectra
that both fitted; `rms_all` is the net's on all. Everything is timed in one run, on one process.

    python scripts/bench_fit.py
    python scripts/bench_fit.py --functional 100 --json bench_fit.json
"""

from __future__ import annotations

__all__ = ["main"]

from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import (
    argument_parser,
    fit_functions,
    limit_of,
    positive,
    print_table,
    rms,
    rng_of,
    seconds,
    start,
    write_json,
)
from torch import Tensor

import specfit
from specfit.generator import Batch
from specfit.inference import REFITS, RefitRule

TASKS = (1, 5)
STARTS = 3
BATCH_REPEATS, LIMIT_SIZE = 3, 300
MOST_ALONE = 100


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the script; returns one row a task and method."""
    parser = argument_parser(__doc__, size=4096)
    parser.add_argument("--functional", type=positive, default=30, help="functional fits (default: %(default)s)")
    options = parser.parse_args(arguments)
    fitter = specfit.SpectrumFitter.from_checkpoint(options.checkpoint)
    size, rows = max(options.size, options.functional), []
    for n in TASKS:
        generator = specfit.SpectrumGenerator(fitter.edges, n_backgrounds=n)
        limit = limit_of(generator, size=LIMIT_SIZE, seed=options.seed).rms
        batch = generator.sample(size, rng=rng_of(options.seed))
        rows += _rows(fitter, n, batch, limit=limit, n_functional=options.functional)
    print_table(f"Fits of {size} spectra by the net, {options.functional} by iminuit ({STARTS} starts)", rows)
    write_json(options.json, options, {"rows": rows})
    return rows


def _rows(
    fitter: specfit.SpectrumFitter, n: int, batch: Batch, *, limit: float, n_functional: int
) -> list[dict[str, Any]]:
    """Measures every method on one task."""
    few = Batch(*(part[:n_functional] for part in batch[:3]), edges=batch.edges)
    functions = fit_functions(few.counts, fitter.edges, n_components=n, starts=STARTS)
    slowest = functions.seconds / n_functional
    rules: dict[str, RefitRule] = {"net, batch": None} | {f"net, batch, refit {rule}": rule for rule in REFITS}
    measured: list[tuple[str, Tensor, float]] = []
    for name, rule in rules.items():
        background = fitter.fit(batch.counts, fitter.edges, refit=rule).background
        spent = seconds(_covariances(fitter, batch.counts, rule), repeat=BATCH_REPEATS)
        measured.append((name, background, spent / len(batch.counts)))
    measured.append(("net, one at a time", measured[0][1], _seconds_alone(fitter, batch.counts[:MOST_ALONE])))
    measured.append(("functional fit, told N", functions.background, slowest))
    return [
        {
            "task": f"N={n}",
            "method": name,
            "rms": rms(background[:n_functional], few.background),
            "rms_over_limit": rms(background[:n_functional], few.background) / limit,
            "rms_all": rms(background, batch.background) if len(background) == len(batch.counts) else None,
            "spectra_per_second": 1 / spent,
            "ms": 1e3 * spent,
            "times_faster": slowest / spent,
        }
        for name, background, spent in measured
    ]


def _covariances(fitter: specfit.SpectrumFitter, counts: Tensor, refit: RefitRule) -> Callable[[], Tensor]:
    return lambda: fitter.fit(counts, fitter.edges, refit=refit).covariance


def _seconds_alone(fitter: specfit.SpectrumFitter, counts: Tensor) -> float:
    """Times a fit of one spectrum, with its covariance: the median over spectra."""
    return torch.tensor([seconds(_covariances(fitter, row, None), repeat=1) for row in counts]).median().item()


if __name__ == "__main__":
    start(main)
