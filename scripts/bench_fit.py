"""Puts every way to fit a background side by side, on the same spectra of the reference task, in one run.

- the nets in a batch with their covariances, without and with refit, and one spectrum at a time;
- the functional fit, told the true form and the true number of components: one at a time with iminuit, and batched;
- Gaussian processes with two public libraries (see `peer_processes.py`); one that is not installed is named as such.

All are judged on the same first spectra (`--functional`): RMS of (fit - truth) / sqrt(truth) in bins with more than
half an event expected, its ratio to the information limit, deviance over degrees of freedom, share of bins within one
uncertainty of the truth, width of the pulls (fit - truth) / uncertainty (a pull beyond 8 counts as 8). Batches are
timed on all `--size` spectra. Times are processor times of a spectrum; `times_faster` is against iminuit. Pin the run
to one core and one thread, and the ratios say what one core does:

    OMP_NUM_THREADS=1 taskset -c 0 python scripts/bench_fit.py
    python scripts/bench_fit.py --functional 100 --json bench_fit.json
"""

from __future__ import annotations

__all__ = ["main"]

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from common import (
    argument_parser,
    fit_functions,
    limit_of,
    positive,
    print_table,
    relative_residuals,
    rms,
    rng_of,
    seconds,
    start,
    write_json,
)
from peer_processes import PROCESSES, fit_with_processes
from torch import Tensor

import specfit
from specfit.background_fit import BackgroundFit
from specfit.functional import ErfExpSum
from specfit.generator import Batch
from specfit.inference import RefitRule

TASKS = (1, 5)
# Other work on the machine does not count.
CLOCK = time.process_time
STARTS = 3
BATCH_REPEATS, LIMIT_SIZE = 3, 300
MOST_ALONE = 30
FAR = 8.0
ANY_BINNING = "any_binning"


class Measured(NamedTuple):
    """Fits by one method."""

    method: str
    fit: BackgroundFit | None
    """None where a library is not installed."""
    seconds: float | None
    """A spectrum."""


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the script; returns one row a task and method."""
    parser = argument_parser(__doc__, size=1024)
    parser.add_argument("--functional", type=positive, default=30, help="fits one at a time (default: %(default)s)")
    options = parser.parse_args(arguments)
    fitter = specfit.SpectrumFitter.from_checkpoint(options.checkpoint)
    any_binning = specfit.SpectrumFitter.from_checkpoint(ANY_BINNING)
    size, rows = max(options.size, options.functional), []
    for n in TASKS:
        generator = specfit.SpectrumGenerator(fitter.edges, n_backgrounds=n)
        limit = limit_of(generator, size=LIMIT_SIZE, seed=options.seed).rms
        batch = generator.sample(size, rng=rng_of(options.seed))
        few = Batch(*(part[: options.functional] for part in batch[:3]), edges=batch.edges)
        functions = _one_at_a_time(few, n)
        measured = [functions, *_batched(fitter, any_binning, batch, n), *_processes(few)]
        rows += [_row(n, one, few, limit=limit, slowest=functions.seconds) for one in measured]
    print_table(
        f"{options.functional} spectra by each method; batches timed on {size}; {torch.get_num_threads()} thread(s)",
        rows,
    )
    write_json(options.json, options, {"threads": torch.get_num_threads(), "rows": rows})
    return rows


def _one_at_a_time(few: Batch, n: int) -> Measured:
    functions = fit_functions(few.counts, few.edges, n_components=n, starts=STARTS, clock=CLOCK)
    return Measured("functional fit, iminuit, told N", functions.fit, functions.seconds / len(few.counts))


def _batched(
    fitter: specfit.SpectrumFitter, any_binning: specfit.SpectrumFitter, batch: Batch, n: int
) -> Iterator[Measured]:
    counts, m = batch.counts, len(batch.counts)
    begin = CLOCK()
    functions = specfit.functional_fit_many(counts, batch.edges, function=ErfExpSum(n), starts=STARTS).fit
    yield Measured("functional fit, batched, told N", functions, (CLOCK() - begin) / m)
    nets: tuple[tuple[str, specfit.SpectrumFitter, RefitRule], ...] = (
        ("net, batch", fitter, None),
        ("net, batch, refit", fitter, True),
        ("any-binning net, batch", any_binning, None),
    )
    for name, net, rule in nets:
        spent = seconds(_covariances(net, counts, batch.edges, rule), repeat=BATCH_REPEATS, clock=CLOCK)
        yield Measured(name, net.fit(counts, batch.edges, refit=rule), spent / m)
    for name, net in (("net", fitter), ("any-binning net", any_binning)):
        alone = [
            seconds(_covariances(net, row, batch.edges, None), repeat=1, clock=CLOCK) for row in counts[:MOST_ALONE]
        ]
        fit = net.fit(counts, batch.edges, refit=None)
        yield Measured(f"{name}, one at a time", fit, torch.tensor(alone).median().item())


def _processes(few: Batch) -> Iterator[Measured]:
    for name in PROCESSES:
        begin = CLOCK()
        fit = fit_with_processes(name, few.counts, few.edges)
        spent = (CLOCK() - begin) / len(few.counts)
        yield Measured(f"Gaussian process, {name}", fit, spent if fit else None)


def _row(n: int, measured: Measured, few: Batch, *, limit: float, slowest: float | None) -> dict[str, Any]:
    """Judges one method on the first spectra."""
    method, fit, spent = measured
    if fit is None or spent is None or slowest is None:
        names = ("rms", "rms_over_limit", "deviance_over_ndf", "coverage_68", "pull_width", "ms", "times_faster")
        return {"task": f"N={n}", "method": f"{method}: not installed", **dict.fromkeys(names)}
    some = slice(len(few.counts))
    background, truth = fit.background[some], few.background.double()
    used = relative_residuals(background, truth)[1]
    pulls = ((background - truth) / fit.uncertainty[some])[used]
    error = rms(background, truth)
    return {
        "task": f"N={n}",
        "method": method,
        "rms": error,
        "rms_over_limit": error / limit,
        "deviance_over_ndf": (fit.deviance[some].sum() / fit.ndf[some].sum()).item(),
        "coverage_68": (pulls.abs() < 1).double().mean().item(),
        "pull_width": pulls.clamp(-FAR, FAR).std().item(),
        "ms": 1e3 * spent,
        "times_faster": slowest / spent,
    }


def _covariances(
    fitter: specfit.SpectrumFitter, counts: Tensor, edges: Tensor, refit: RefitRule
) -> Callable[[], Tensor]:
    return lambda: fitter.fit(counts, edges, refit=refit).covariance


if __name__ == "__main__":
    start(main)
