"""What the scripts share: the reference task, its limit, fits in bounded memory, timings, tables, JSON, the start.

The reference task: backgrounds of N components with the generator's default ranges on the edges of the checkpoint,
pure, fitted without refit, judged by residuals (fit - truth) / sqrt(truth) in bins with more than half an event
expected.
"""

from __future__ import annotations

__all__ = [
    "REFERENCE_EDGES",
    "SEED",
    "TASKS",
    "argument_parser",
    "chain_of",
    "fit_functions",
    "fitted_parts",
    "limit_of",
    "positive",
    "print_table",
    "relative_residuals",
    "rms",
    "rng_of",
    "seconds",
    "start",
    "tracked",
    "write_json",
]

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

import specfit
from specfit.background_fit import BackgroundFit
from specfit.functional import ErfExpSum
from specfit.generator import Batch
from specfit.inference import RefitRule
from specfit.information_limit import USED_ABOVE, InformationLimit, information_limit
from specfit.io import files
from specfit.progress import progress_bar
from specfit.search import SignalHypotheses
from specfit.search.chain import Chain

T = TypeVar("T")

REFERENCE_EDGES = "250:3000:50:log"
TASKS = (1, 5, 7)
"""Numbers of components of the reference task, those of the talk."""
SEED = 20_210_316
# So many spectra are held with their covariances at a time.
SPECTRA_IN_MEMORY = 4096
# Of a table that goes to a file; on a terminal it is as wide as that.
WIDTH = 150


class TimedFits(NamedTuple):
    """Functional fits of several spectra, one after another."""

    fit: BackgroundFit
    """All of them as one."""
    seconds: float
    """Time of all, on the clock that was given."""


def argument_parser(description: str | None, *, size: int | None = None) -> argparse.ArgumentParser:
    """Makes a parser with the options of all scripts.

    Args:
        description: The docstring of the script, shown as it is.
        size: Default number of spectra; None for a script without a net.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if size is not None:
        parser.add_argument("--checkpoint", type=Path, help="checkpoint file or folder of a run (default: the shipped)")
        parser.add_argument("--size", type=positive, default=size, help="spectra of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="decides every spectrum (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser


def positive(text: str) -> int:
    """Reads a whole number from 1 upwards."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 upwards is expected, {text!r} came")
    return int(text)


def start(main: Callable[[], Any]) -> None:
    """Runs a script; the caller's mistake is one line and exit code 2."""
    try:
        main()
    except (specfit.InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def chain_of(fitter: specfit.SpectrumFitter, edges: Tensor, signals: SignalHypotheses) -> Chain:
    """Makes the chain of a search without known peaks and with every bin."""
    n_bins = len(edges) - 1
    return Chain(fitter, edges, signals, edges.new_zeros(0, n_bins), torch.zeros(n_bins, dtype=torch.bool))


def tracked(label: str, steps: Sequence[T]) -> Iterator[T]:
    """Goes through steps and draws a bar with the time left, if someone is looking."""
    with progress_bar(label, len(steps), speed_memory=600.0) as move:
        for done, step in enumerate(steps):
            yield step
            move(done + 1)


def rng_of(seed: int) -> torch.Generator:
    """Makes a source of randomness on the CPU."""
    return torch.Generator().manual_seed(seed)


def limit_of(generator: specfit.SpectrumGenerator, *, size: int, seed: int) -> InformationLimit:
    """Computes the information limit for the backgrounds of a generator."""
    return information_limit(generator, size=size, rng=rng_of(seed))


def fitted_parts(
    fitter: specfit.SpectrumFitter,
    generator: specfit.SpectrumGenerator,
    *,
    size: int,
    seed: int,
    refit: RefitRule = None,
) -> Iterator[tuple[Batch, BackgroundFit]]:
    """Samples and fits `size` spectra, some thousand at a time."""
    rng = rng_of(seed)
    for first in range(0, size, SPECTRA_IN_MEMORY):
        batch = generator.sample(min(SPECTRA_IN_MEMORY, size - first), rng=rng)
        yield batch, fitter.fit(batch.counts, generator.edges, refit=refit)


def fit_functions(
    counts: Tensor, edges: Tensor, *, n_components: int, starts: int = 3, clock: Callable[[], float] = time.perf_counter
) -> TimedFits:
    """Fits the true form to each spectrum with iminuit, one after another."""
    function, begin = ErfExpSum(n_components), clock()
    fits = [specfit.functional_fit(row, edges, function=function, starts=starts).fit for row in counts]
    spent = clock() - begin
    names = ("background", "factor", "n_parameters", "mask", "iterations", "converged")
    parts = {name: torch.stack([getattr(fit, name) for fit in fits]) for name in names}
    return TimedFits(BackgroundFit(specfit.Spectrum(counts, edges), **parts, message="one after another"), spent)


def relative_residuals(values: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Computes (values - truth) / sqrt(truth), float64, and where it counts, both shape `(m, n_bins)`."""
    t = truth.double()
    used = t > USED_ABOVE
    return (values.double() - t) / torch.where(used, t, 1.0).sqrt(), used


def rms(background: Tensor, truth: Tensor) -> float:
    """Computes the root mean square residual of fits, pooled over spectra and bins."""
    residual, used = relative_residuals(background, truth)
    return residual[used].square().mean().sqrt().item()


def seconds(function: Callable[[], Any], *, repeat: int = 5, clock: Callable[[], float] = time.perf_counter) -> float:
    """Times a call: the shortest of several, after one that is not counted."""
    function()
    times = []
    for _ in range(repeat):
        begin = clock()
        function()
        times.append(clock() - begin)
    return min(times)


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows that share their keys as a table."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for name, value in rows[0].items():
        table.add_column(name, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH)).print(table)


def write_json(path: Path | None, options: argparse.Namespace, results: Mapping[str, Any]) -> None:
    """Writes results with what they depend on, whole or not at all; nothing where `path` is None."""
    if path is None:
        return
    written = {
        "script": Path(sys.argv[0]).name,
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
        "versions": {"specfit": specfit.__version__, "torch": torch.__version__},
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "results": files.finite_or_none(results),
    }
    files.write_json(path, written)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 100:
        return f"{value:.3f}"
    return f"{value:,.0f}" if 1 <= abs(value) < 1e9 else f"{value:.1e}"
