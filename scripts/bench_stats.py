"""Fits of toys beside pyhf, and the unbinned likelihood, in one run on one machine.

Toys: a workspace of two channels, 50 bins each and ten nuisances; the same toys (auxiliary measurements included) are
fitted by specfit, all together, and by pyhf one after the other with each of its backends and minimisers that are
installed. Events: three samples with two systematics each, simulated densities: value and gradient of the likelihood,
the fit with its exact covariance, the scan of mu. Every time is on the clock and as processor time of all threads,
which says more on a machine that has other work. OMP_NUM_THREADS sets the threads.

    python scripts/bench_stats.py --toys 2048 --events 2772426 --json stats.json
"""

from __future__ import annotations

__all__ = ["main"]

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyhf
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import common
import events
import workspaces

from specfit.progress import changing_bar
from specfit.stats import StatisticalModel, Workspace, fit, fit_many, scan, toys

Progress = Callable[[str, int, int], None]
PEER_SETTINGS = {"normsys": {"interpcode": "code4"}, "histosys": {"interpcode": "code4p"}}
REPEAT = 3  # the shortest counts, for specfit and for its peers
PEERS = (("numpy", "minuit"), ("jax", "minuit"), ("jax", "scipy"), ("pytorch", "scipy"))


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures, prints and returns the rows of the toys, then those of the events."""
    parser = common.argument_parser(__doc__)
    parser.add_argument("--toys", type=common.positive, default=2048, help="toys of specfit (default: %(default)s)")
    parser.add_argument("--peer-toys", type=common.positive, default=20, help="of each peer (default: %(default)s)")
    parser.add_argument("--events", type=common.positive, default=2_772_426, help="(default: %(default)s)")
    parser.add_argument("--points", type=common.positive, default=31, help="of the scan (default: %(default)s)")
    options = parser.parse_args(arguments)
    with changing_bar() as progress:
        rows = _toys(options.toys, options.peer_toys, options.seed, progress)
    common.print_table("Fits of toys: 2 channels, 100 bins, 11 parameters", rows)
    with changing_bar() as progress, tempfile.TemporaryDirectory() as folder:
        event_rows = _events(Path(folder), options.events, options.points, progress)
    common.print_table(f"Unbinned: {options.events} events, 3 samples, 2 systematics", event_rows)
    common.write_json(options.json, options, {"toys": rows, "unbinned": event_rows})
    return rows + event_rows


def _toys(size: int, peer_size: int, seed: int, progress: Progress) -> list[dict[str, Any]]:
    document = workspaces.two_channels()
    model = StatisticalModel(document)
    many = toys(model, size, rng=common.rng_of(seed))
    fit_many(many.with_data(many.data[:8]))
    progress("toys: specfit", 0, 1)
    found, ours = _timed(lambda: fit_many(many), repeat=REPEAT)
    rows = [_row("specfit, all together", size, ours, ours, 0.0)]
    peer = pyhf.Workspace(document).model(modifier_settings=PEER_SETTINGS)
    order = [model.parameter_names.index(name) for name in peer.config.par_names]
    for backend, minimiser in PEERS:
        module = {"pytorch": "torch"}.get(backend, backend)
        if importlib.util.find_spec(module) is None:
            continue
        pyhf.set_backend(backend, minimiser, precision="64b")
        data = [pyhf.tensorlib.astensor(_as_peer(model, peer, toy)) for toy in many.data[:peer_size]]
        pyhf.infer.mle.fit(data[0], peer)  # compiles
        who = f"pyhf {pyhf.__version__} {backend} {minimiser}"
        fits, theirs = _timed(lambda data=data, who=who: _fits_of_peer(data, peer, who, progress), repeat=REPEAT)
        away = [(np.asarray(pyhf.tensorlib.tolist(one)) - found.values[i][order].numpy()) for i, one in enumerate(fits)]
        scale = [seconds * len(data) / size for seconds in ours]
        rows.append(_row(who, len(data), theirs, scale, float(np.abs(away).max())))
    pyhf.set_backend("numpy")
    torch.set_default_dtype(torch.float32)  # pyhf's torch backend leaves float64 behind
    return rows


def _fits_of_peer(data: Sequence[Any], peer: Any, who: str, progress: Progress) -> list[Any]:
    fits = []
    for i, one in enumerate(data):
        progress(f"toys: {who}", i, len(data))
        fits.append(pyhf.infer.mle.fit(one, peer))
    return fits


def _row(who: str, fits: int, theirs: Sequence[float], ours: Sequence[float], away: float) -> dict[str, Any]:
    """One line; `theirs` and `ours` are times for so many fits, `away` is the largest difference from our values."""
    (wall, processor), (our_wall, our_processor) = theirs, ours
    return {
        "who": who,
        "fits": fits,
        "fits / s": fits / wall,
        "fits / processor s": fits / processor,
        "specfit is faster by": wall / our_wall,
        "by processor time": processor / our_processor,
        "largest difference": away,
    }


def _as_peer(model: StatisticalModel, peer: Any, toy: torch.Tensor) -> list[float]:
    """Brings a toy into the order of pyhf: channels by name, then auxiliary measurements by parameter."""
    counts = [x for channel in peer.config.channels for x in toy[model.compiled.channels[channel]].tolist()]
    names = [model.parameter_names[i] for i in model.compiled.constraints.normal.tolist()]
    auxiliary = dict(zip(names, toy[model.compiled.n_bins :].tolist(), strict=True))
    return counts + [auxiliary[name] for name in peer.config.auxdata_order]


def _events(folder: Path, size: int, points: int, progress: Progress) -> list[dict[str, Any]]:
    progress("events: simulating", 0, 4)
    document = events.write_workspace(folder, per_sample=-(-size // 3))
    model, opening = _timed(lambda: StatisticalModel(Workspace(document, folder=folder)))
    model.nll(model.initial_values)
    progress("events: value and gradient", 1, 4)
    passes = [_timed(lambda i=i: _value_and_gradient(model, 0.01 * (i + 1)))[1] for i in range(10)]
    progress("events: fit", 2, 4)
    best, fitting = _timed(lambda: fit(model, start=model.initial_values + 0.1))
    progress("events: scan", 3, 4)
    curve, scanning = _timed(lambda: scan(model, size=points, best=best))
    if not (best.converged and curve.converged):
        raise RuntimeError(best.message)
    what = {
        "files opened and checked": opening,
        "nll and gradient": [min(times) for times in zip(*passes, strict=True)],
        f"fit, {best.n_steps} steps, and exact covariance": fitting,
        f"scan of mu, {points} points, with and without systematics": scanning,
    }
    return [{"what": name, "wall s": wall, "processor s": processor} for name, (wall, processor) in what.items()]


def _value_and_gradient(model: StatisticalModel, shift: float) -> None:
    """At other values each time, so that nothing is remembered."""
    model.nll((model.initial_values + shift).requires_grad_()).backward()


def _timed(work: Callable[[], Any], *, repeat: int = 1) -> tuple[Any, list[float]]:
    """Returns the answer, and the least times that it took: on the clock, and of the processor."""
    times = []
    for _ in range(repeat):
        wall, processor = time.perf_counter(), time.process_time()
        answer = work()
        times.append((time.perf_counter() - wall, time.process_time() - processor))
    return answer, [min(one) for one in zip(*times, strict=True)]


if __name__ == "__main__":
    common.start(main)
