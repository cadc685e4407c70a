"""Fits a measurement in 48 x 30 x 2 cells of 60 mass bins, beside Minuit cell by cell and dense matrices.

A peak with a free norm and an exponential with free size and slope in every cell, 60 systematics that all cells share:
172 800 bins, 8700 parameters. `fit_cells` gives the best fit and the exact uncertainty of every parameter. Minuit fits
some of the same cells, each alone and without systematics (numpy, its own numerical gradients), scaled up to all; the
product does the same beside it. `dense` inverts the Hessian of the large fit as a full matrix. Then toys: pulls of
every parameter of a smaller model whose cells share slopes and a systematic.

    python scripts/bench_cells.py
    python scripts/bench_cells.py --toys 1000 --dense --json bench_cells.json
"""

from __future__ import annotations

__all__ = ["main"]

import resource
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import hist
import numpy as np
import torch
from common import argument_parser, positive, print_table, start, write_json

from specfit.stats.cells import (
    AxisExp,
    AxisNorm,
    CellFit,
    CellLikelihood,
    Channel,
    Composite,
    LogNormal,
    Shape,
    fit_cells,
)

CELLS, N_MASS, N_SYSTEMATICS = (48, 30, 2), 60, 60
AXES = ("eta", "pt", "charge")
X = np.arange(N_MASS) / (N_MASS - 1)
PEAK = np.exp(-0.5 * ((X - 0.5) / 0.05) ** 2)
PEAK /= PEAK.sum()


class Simulated(NamedTuple):
    """A channel and what it was made of."""

    channel: Channel
    signal: np.ndarray
    """Template, shape `(*cells, n_mass)`."""
    background: np.ndarray
    counts: np.ndarray
    truth: dict[str, np.ndarray]
    """Physical values by stem, shape `cells` each."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the script; returns all figures."""
    parser = argument_parser(__doc__)
    parser.add_argument("--minuit", type=positive, default=60, help="cells that Minuit fits (default: %(default)s)")
    parser.add_argument("--toys", type=int, default=200, help="toys of the smaller model (default: %(default)s)")
    parser.add_argument("--events", type=float, default=600.0, help="signal events a cell (default: %(default)s)")
    parser.add_argument("--dense", action="store_true", help="also invert the full matrix (minutes, gigabytes)")
    options = parser.parse_args(arguments)
    simulated = simulate(CELLS, events=options.events, seed=options.seed, n_systematics=N_SYSTEMATICS)
    results: dict[str, Any] = {}
    found, row = _large(simulated)
    results["large"], results["pulls"] = [row], _pulls(found, simulated)
    print_table("172 800 bins, 60 shared systematics", results["large"])
    print_table("Its pulls on the simulated truth, over the cells", results["pulls"])
    if options.dense:
        results["dense"] = [_dense(found)]
        print_table("Uncertainties from the full matrix and from its blocks", results["dense"])
    results["cells_alone"] = _beside_minuit(simulated, n_cells=options.minuit)
    print_table(
        f"The same cells without systematics, beside Minuit on {options.minuit} of them", results["cells_alone"]
    )
    if options.toys:
        results["toys"] = _toys(options.toys, options.seed)
        print_table(f"Pulls of {options.toys} toys, slopes and a systematic shared", results["toys"])
    write_json(options.json, options, results)
    return results


def simulate(cells: tuple[int, ...], *, events: float, seed: int, n_systematics: int = 0) -> Simulated:
    """Draws a truth and counts."""
    random = np.random.default_rng(seed)
    shape = (*cells, 1)
    truth = {
        "norm": random.uniform(0.7, 1.3, shape),
        "lnAmpl": np.exp(random.normal(0, 0.3, shape)),
        "slope": random.normal(-1, 0.3, shape),
    }
    signal = random.uniform(0.5, 1.5, shape) * events * PEAK
    background = np.full((*cells, N_MASS), events / N_MASS)
    varied = np.ones_like(signal)
    if n_systematics:  # each at a value of its own, as in nature
        values = random.normal(0, 1, n_systematics)
        varied = np.exp(sum(value * _variation(k, cells[0]) for k, value in enumerate(values)))
    mean = signal * varied * truth["norm"] + background * truth["lnAmpl"] * np.exp(truth["slope"] * X)
    counts = random.poisson(mean).astype(float)
    templates = {"signal": _histogram(signal), "background": _histogram(background)}
    channel = Channel.of("z", templates, data=_histogram(counts), signals=["signal"])
    return Simulated(channel, signal, background, counts, {key: value[..., 0] for key, value in truth.items()})


def _large(simulated: Simulated) -> tuple[CellFit, dict[str, Any]]:
    begin = time.perf_counter()
    likelihood = CellLikelihood([simulated.channel], _model(), _systematics(simulated))
    built = time.perf_counter()
    found = fit_cells(likelihood)
    done = time.perf_counter()
    return found, {
        "parameters": likelihood.n_parameters,
        "bins": len(likelihood.counts(likelihood.initial_values)),
        "build_s": built - begin,
        "fit_s": done - built,
        "hessians": found.iterations,
        "edm": found.edm,
        "converged": found.converged,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def _dense(found: CellFit) -> dict[str, Any]:
    """Times uncertainties from the full matrix, and compares them."""
    begin = time.perf_counter()
    inverse = torch.linalg.inv(found.likelihood.hessian(found.values))
    spent = time.perf_counter() - begin
    begin = time.perf_counter()
    found.likelihood.expand(found.values).hessian.factorize().inverse_diagonal()
    structured = time.perf_counter() - begin
    ratio = inverse.diagonal().sqrt() / found.uncertainties - 1
    return {"dense_s": spent, "arrow_s": structured, "largest_difference": ratio.abs().max().item()}


def _beside_minuit(simulated: Simulated, *, n_cells: int) -> list[dict[str, Any]]:
    begin = time.perf_counter()
    found = fit_cells(CellLikelihood([simulated.channel], _model()))
    ours = time.perf_counter() - begin
    n_all = int(np.prod(CELLS))
    which = np.linspace(0, n_all - 1, n_cells).astype(int)
    rows = [part.reshape(n_all, N_MASS)[which] for part in (simulated.signal, simulated.background, simulated.counts)]
    begin = time.perf_counter()
    fits = [_minuit(*cell) for cell in zip(*rows, strict=True)]
    theirs = (time.perf_counter() - begin) * n_all / n_cells
    # Parameters come stem by stem, each in C order of the cells.
    values, errors = (part[: 3 * n_all].reshape(3, n_all)[:, which].T for part in (found.values, found.uncertainties))
    their_values, their_errors = (torch.tensor(np.array(part)) for part in zip(*fits, strict=True))
    return [
        {
            "method": "fit_cells, all",
            "seconds": ours,
            "times_faster": theirs / ours,
            "pull_off": None,
            "error_off": None,
        },
        {
            "method": "Minuit, scaled",
            "seconds": theirs,
            "times_faster": 1.0,
            "pull_off": ((their_values - values).abs() / errors).max().item(),
            "error_off": (their_errors / errors - 1).abs().max().item(),
        },
    ]


def _minuit(signal: np.ndarray, background: np.ndarray, counts: np.ndarray) -> tuple[list[float], list[float]]:
    """Fits one cell; returns values and errors of the raw norm, the amplitude and the slope."""
    from iminuit import Minuit

    def nll(raw: float, amplitude: float, slope: float) -> float:
        nu = signal * raw**2 + background * np.exp(amplitude + slope * X)
        return float((nu - counts * np.log(nu)).sum())

    minuit = Minuit(nll, raw=1.0, amplitude=0.0, slope=0.0)
    minuit.errordef, minuit.strategy = Minuit.LIKELIHOOD, 1
    minuit.migrad()
    minuit.hesse()
    return list(minuit.values), list(minuit.errors)


def _toys(size: int, seed: int) -> list[dict[str, Any]]:
    simulated = simulate((2, 2, 1), events=1000.0, seed=seed)
    model = Composite(AxisNorm("z", "signal", AXES), AxisExp("z", "background", "mass", AXES, slope_axes=["eta"]))
    likelihood = CellLikelihood([simulated.channel], model, [LogNormal("luminosity", 1.03, "signal")])
    truth, rng = likelihood.initial_values, torch.Generator().manual_seed(seed)
    begin = time.perf_counter()
    pulls = []
    for data in likelihood.sample(truth.expand(size, -1), rng=rng):
        found = fit_cells(likelihood.with_data(data))
        pulls.append((found.values - truth) / found.uncertainties)
    spent = (time.perf_counter() - begin) / size
    by_parameter = torch.stack(pulls)
    columns = zip(likelihood.parameter_names, by_parameter.mean(0).tolist(), by_parameter.std(0).tolist(), strict=True)
    rows: list[dict[str, Any]] = [{"parameter": name, "mean": mean, "spread": spread} for name, mean, spread in columns]
    together = {"parameter": "all", "mean": by_parameter.mean().item(), "spread": by_parameter.std().item()}
    return [*rows, together, {"parameter": "seconds a toy", "mean": spent, "spread": None}]


def _model() -> Composite:
    return Composite(AxisNorm("z", "signal", AXES), AxisExp("z", "background", "mass", AXES))


def _systematics(simulated: Simulated) -> list[Shape]:
    return [
        Shape(f"systematic{k}", "z", "signal", simulated.signal * np.exp(_variation(k, CELLS[0])))
        for k in range(N_SYSTEMATICS)
    ]


def _variation(k: int, n_eta: int) -> np.ndarray:
    """Returns the logarithm of what systematic k does, shape `(n_eta, 1, 1, n_mass)`."""
    eta = np.linspace(0, np.pi, n_eta)[:, None, None, None]
    return 0.02 * np.cos((k + 1) * eta) * np.cos((k % 7 + 1) * X)


def _pulls(found: CellFit, simulated: Simulated) -> list[dict[str, Any]]:
    """Returns mean and spread of (fit - truth) / error over the cells, for each kind of parameter."""
    n, rows = int(np.prod(CELLS)), []
    for i, (stem, truth) in enumerate(simulated.truth.items()):
        part = slice(i * n, (i + 1) * n)
        raw = {"norm": np.sqrt, "lnAmpl": np.log, "slope": np.asarray}[stem](truth.reshape(-1))
        pulls = (found.values[part] - torch.from_numpy(raw)) / found.uncertainties[part]
        rows.append({"parameter": stem, "mean": pulls.mean().item(), "spread": pulls.std().item()})
    return rows


def _histogram(values: np.ndarray) -> hist.Hist[Any]:
    names = (*AXES, "mass")
    axes = [hist.axis.Regular(n, 0.0, 1.0, name=name) for n, name in zip(values.shape, names, strict=True)]
    h: hist.Hist[Any] = hist.Hist(*axes)
    h[...] = values
    return h


if __name__ == "__main__":
    start(main)
