"""Compares the search with pyBumpHunter: the same test statistic, what the background's error does to it, and the time.

Two tasks, pseudo-data of one background of 50 bins each: a reference background of five components with the net for
that binning, and a dijet-like one with the net for any binning. Three tables:

1. the background taken as exact: -ln of the smallest local p-value of windows, toy by toy, from both codes;
2. global p-values of pseudo-data, background alone and with a signal of 5 % width, by what is done with the background:
   pyBumpHunter given the truth, the fit to the data, or the fit to other data of that size, each taken as exact as it
   does; the same windows with the fit repeated on each toy; specfit's own scan. Toys of the last two come from all
   the fitted backgrounds in turn;
3. the time of 1000 pseudo-experiments.

pyBumpHunter 0.5.1 is what this was written for: `pip install pyBumpHunter==0.5.1`.

    python scripts/bench_search.py
    python scripts/bench_search.py --size 500 --toys 2000 --json bench_search.json
"""

from __future__ import annotations

__all__ = ["main"]

import contextlib
import importlib.util
import io
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import scipy.stats
import torch
from common import argument_parser, chain_of, positive, print_table, start, write_json
from torch import Tensor

import specfit
from specfit.randomness import independent_rng
from specfit.search import gaussian_hypotheses, global_p_value
from specfit.search.chain import Chain
from specfit.search.excess import largest_excess
from specfit.search.windows import scan_windows
from specfit.shapes import Dijet

# Windows in bins, hypotheses of the scan, and the signal: so many statistical errors of a known background.
NARROWEST, WIDEST, N_MASSES, WIDTH = 1, 10, 40, 0.05
STRENGTH = 4.0
# The peer draws so many toys for every pseudo-data.
PEER_TOYS = 200
LEVELS = (0.05, 0.01)
DIJET_EVENTS, SQRT_S = 1e6, 13_000.0


class _Task(NamedTuple):
    name: str
    edges: Tensor
    background: Tensor
    fitter: specfit.SpectrumFitter

    @property
    def chain(self) -> Chain:
        """The search of both tasks: 40 masses."""
        masses = torch.logspace(*self.edges[[0, -1]].log10().tolist(), N_MASSES + 4, dtype=torch.float64)[2:-2]
        return chain_of(self.fitter, self.edges, gaussian_hypotheses(self.edges, width=WIDTH, mass=masses))

    def toys(self, size: int, *key: int) -> Tensor:
        """Draws data of background alone, `(size, n_bins)`."""
        return torch.poisson(self.background.expand(size, -1), generator=independent_rng(key))

    def fit(self, counts: Tensor) -> Tensor:
        """Fits backgrounds as a user would, `(m, n_bins)`."""
        return self.fitter.fit(counts, self.edges).background.clamp(min=0.0)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the script; returns the rows of the three tables."""
    parser = argument_parser(__doc__)
    parser.add_argument("--size", type=positive, default=200, help="pseudo-data of each kind (default: %(default)s)")
    parser.add_argument("--toys", type=positive, default=1000, help="pseudo-experiments (default: %(default)s)")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("pyBumpHunter") is None:
        raise specfit.InputError("pyBumpHunter is not installed: pip install pyBumpHunter==0.5.1")
    tasks = [_reference(options.seed), _dijet()]
    tables = {
        "exact": [_agreement(task, options) for task in tasks],
        "background_error": [row for task in tasks for row in _background_error(task, options)],
        "time": _times(tasks[0], options),
    }
    print_table(f"Background taken as exact: {options.toys} toys, windows of 1 to 10 bins", tables["exact"])
    title = f"Share of {options.size} pseudo-data with a small global p, background alone and with a signal"
    print_table(title, tables["background_error"])
    print_table(f"{options.toys} pseudo-experiments, {tasks[0].name}", tables["time"])
    write_json(options.json, options, tables)
    return tables


def _reference(seed: int) -> _Task:
    edges = specfit.io.parse_edges("250:3000:50:log")
    batch = specfit.SpectrumGenerator(edges, n_backgrounds=5).sample(1, rng=independent_rng((seed, 0)))
    return _Task("reference", edges, batch.background[0].double(), specfit.SpectrumFitter.from_checkpoint())


def _dijet() -> _Task:
    edges = specfit.io.parse_edges("1100:8000:50:log")
    p1, p2, p3 = torch.tensor([9.0, 5.0, 0.1], dtype=torch.float64)
    shape = torch.softmax(Dijet(p1, p2, p3, SQRT_S).log_bins(edges), -1)
    return _Task("dijet", edges, DIJET_EVENTS * shape, specfit.SpectrumFitter.from_checkpoint("any_binning"))


def _agreement(task: _Task, options: Any) -> dict[str, Any]:
    """Runs both codes on the same toys with the true background."""
    toys = task.toys(options.toys, options.seed, 1)
    begin = time.process_time()
    ours = scan_windows(toys, task.background, narrowest=NARROWEST, widest=WIDEST)
    spent = time.process_time() - begin
    found = [_peer(one, task.background, n_toys=0) for one in toys]
    t, first, n_bins = torch.tensor(found, dtype=torch.float64).T
    return {
        "task": task.name,
        "largest difference": (ours.statistic - t).abs().max().item(),
        "relative": ((ours.statistic - t).abs() / t.clamp(min=1.0)).max().item(),
        "same window": ((ours.first == first) & (ours.n_bins == n_bins)).double().mean().item(),
        "largest t": t.max().item(),
        "specfit cpu s": spent,
    }


def _peer(data: Tensor, background: Tensor, *, n_toys: int, seed: int = 1) -> tuple[float, int, int]:
    """Lets pyBumpHunter scan; t and its window, or with toys the global p-value in place of t."""
    hunter = _hunter(data, background, n_toys=n_toys, seed=seed)
    t = hunter.t_ar
    value = global_p_value(float(t[0]), t[1:]).p_value if n_toys else float(t[0])
    return value, int(hunter.min_loc_ar[0]), int(hunter.min_width_ar[0])


def _hunter(data: Tensor, background: Tensor, *, n_toys: int, seed: int) -> Any:
    import pyBumpHunter

    hunter = pyBumpHunter.BumpHunter1D(width_min=NARROWEST, width_max=WIDEST, npe=n_toys, nworker=1, seed=seed)
    with contextlib.redirect_stdout(io.StringIO()):
        hunter.bump_scan(data.double().numpy(), background.numpy(), is_hist=True, do_pseudo=n_toys > 0)
    return hunter


def _background_error(task: _Task, options: Any) -> list[dict[str, Any]]:
    """Computes global p-values in every way, of background alone and with a signal."""
    alone = task.toys(options.size, options.seed, 2)
    mass = task.edges[[0, -1]].log().mean().exp()
    template = gaussian_hypotheses(task.edges, width=WIDTH, mass=mass[None]).templates[0]
    events = STRENGTH * (template.square() / task.background).sum().rsqrt()
    added = torch.poisson((events * template).expand_as(alone), generator=independent_rng((options.seed, 3)))
    null = _null(task, alone, options)
    elsewhere = task.fit(task.toys(options.size, options.seed, 4))
    p, with_signal = (dict(_ways(task, counts, elsewhere, null)) for counts in (alone, alone + added))
    return [{"task": task.name, "background and toys": way} | _of(p[way], with_signal[way]) for way in p]


class _Null(NamedTuple):
    """Toys of background alone, the fit repeated on each: windows, and the largest local significance, `(n,)`."""

    t: Tensor
    z: Tensor


def _null(task: _Task, alone: Tensor, options: Any) -> _Null:
    """Draws from the backgrounds fitted to pseudo-data, in turn."""
    again = -(-options.toys // len(alone))
    backgrounds = task.fit(alone).repeat(again, 1)[: options.toys]
    toys = torch.poisson(backgrounds, generator=independent_rng((options.seed, 5)))
    return _Null(_windows(toys, task.fit(toys)), task.chain(toys).local_z.amax(1))


def _ways(task: _Task, counts: Tensor, elsewhere: Tensor, null: _Null) -> Iterator[tuple[str, Tensor]]:
    """Yields the global p-values of pseudo-data `(m, n_bins)` in every way."""
    fitted, truth = task.fit(counts), task.background.expand(len(counts), -1)
    exact = {"the truth": truth, "fit to the data": fitted, "fit to other data": elsewhere}
    for name, backgrounds in exact.items():
        p = [_peer(*pair, n_toys=PEER_TOYS, seed=i)[0] for i, pair in enumerate(zip(counts, backgrounds, strict=True))]
        yield f"pyBumpHunter, {name} as exact", torch.tensor(p, dtype=torch.float64)
    yield "windows, fit repeated on each toy", _counted(_windows(counts, fitted), null.t)
    found = largest_excess(task.chain, counts)
    yield "specfit scan, correlation", found.global_p
    yield "specfit scan, repeated on each toy", _counted(found.local_z, null.z)


def _windows(counts: Tensor, background: Tensor) -> Tensor:
    return scan_windows(counts, background, narrowest=NARROWEST, widest=WIDEST).statistic


def _counted(observed: Tensor, toys: Tensor) -> Tensor:
    return torch.tensor([global_p_value(float(one), toys).p_value for one in observed], dtype=torch.float64)


def _of(p: Tensor, with_signal: Tensor) -> dict[str, float]:
    row = {f"p <= {level:g}": (p <= level).double().mean().item() for level in LEVELS}
    row |= {"mean p": p.double().mean().item(), "KS p": float(scipy.stats.kstest(p.numpy(), "uniform").pvalue)}
    return row | {f"signal, p <= {level:g}": (with_signal <= level).double().mean().item() for level in LEVELS}


def _times(task: _Task, options: Any) -> list[dict[str, Any]]:
    """Times as many pseudo-experiments of every kind; the ratio is of processor times."""
    toys = task.toys(options.toys, options.seed, 6)
    any_binning = task._replace(fitter=specfit.SpectrumFitter.from_checkpoint("any_binning"))
    ways: dict[str, Callable[[Tensor], Any]] = {
        "pyBumpHunter, scan alone": lambda n: _hunter(n[0], task.background, n_toys=len(n), seed=1),
        "specfit, windows alone": lambda n: _windows(n, task.background),
        "specfit, fit and windows": lambda n: _windows(n, task.fit(n)),
        "specfit, whole chain": task.chain,
        "specfit, whole chain, any binning": any_binning.chain,
    }
    rows = []
    for way, compute in ways.items():
        compute(toys[:20])
        begin, begin_cpu = time.perf_counter(), time.process_time()
        compute(toys)
        rows.append({"way": way, "s": time.perf_counter() - begin, "cpu s": time.process_time() - begin_cpu})
    for row in rows:
        row["times pyBumpHunter"] = row["cpu s"] / rows[0]["cpu s"]
    return rows


if __name__ == "__main__":
    start(main)
