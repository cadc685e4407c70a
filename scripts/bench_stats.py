"""Fits of toys beside pyhf, and the unbinned likelihood, in one run on one machine.

Toys: a workspace of two channels, 50 bins each and ten nuisances; the same toys (auxiliary measurements included) are
fitted by specfit, all together, and by pyhf one after the other with each of its backends and minimisers that are
installed. Events: three samples with two systematics each, simulated densities, value and gradient of the likelihood.

    python scripts/bench_stats.py --toys 1000 --events 2772426 --json stats.json
"""

from __future__ import annotations

__all__ = ["main"]

import importlib.util
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyhf
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import common
import events
import workspaces

from specfit.stats import StatisticalModel, Workspace, fit, fit_many, toys

PEER_SETTINGS = {"normsys": {"interpcode": "code4"}, "histosys": {"interpcode": "code4p"}}
PEERS = (("numpy", "minuit"), ("jax", "minuit"), ("jax", "scipy"), ("pytorch", "scipy"))


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures, prints and returns the rows of the toys, then those of the events."""
    parser = common.argument_parser(__doc__)
    parser.add_argument("--toys", type=common.positive, default=1000, help="toys of specfit (default: %(default)s)")
    parser.add_argument("--peer-toys", type=common.positive, default=20, help="of each peer (default: %(default)s)")
    parser.add_argument("--events", type=common.positive, default=2_772_426, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    rows = _toys(options.toys, options.peer_toys, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        event_rows = _events(Path(folder), options.events)
    common.print_table("Fits of toys: 2 channels, 100 bins, 11 parameters", rows)
    common.print_table(f"Unbinned: {options.events} events, 3 samples, 2 systematics", event_rows)
    common.write_json(options.json, options, {"toys": rows, "unbinned": event_rows})
    return rows + event_rows


def _toys(size: int, peer_size: int, seed: int) -> list[dict[str, Any]]:
    document = workspaces.two_channels()
    model = StatisticalModel(document)
    many = toys(model, size, rng=common.rng_of(seed))
    fit_many(many.with_data(many.data[:8]))
    found, ours = _timed(lambda: fit_many(many))
    rows = [_row("specfit", size, ours, ours / size, 0.0)]
    peer = pyhf.Workspace(document).model(modifier_settings=PEER_SETTINGS)
    order = [model.parameter_names.index(name) for name in peer.config.par_names]
    for backend, minimiser in PEERS:
        module = {"pytorch": "torch"}.get(backend, backend)
        if importlib.util.find_spec(module) is None:
            continue
        pyhf.set_backend(backend, minimiser, precision="64b")
        data = [pyhf.tensorlib.astensor(_as_peer(model, peer, toy)) for toy in many.data[:peer_size]]
        pyhf.infer.mle.fit(data[0], peer)  # compiles
        fits, seconds = _timed(lambda data=data: [pyhf.infer.mle.fit(one, peer) for one in data])
        away = [(np.asarray(pyhf.tensorlib.tolist(one)) - found.values[i][order].numpy()) for i, one in enumerate(fits)]
        who = f"pyhf {pyhf.__version__} {backend} {minimiser}"
        rows.append(_row(who, len(data), seconds, ours / size, float(np.abs(away).max())))
    pyhf.set_backend("numpy")
    torch.set_default_dtype(torch.float32)  # pyhf's torch backend leaves float64 behind
    return rows


def _row(who: str, fits: int, seconds: float, ours: float, away: float) -> dict[str, Any]:
    """One line; `ours` is the time of a fit of specfit, `away` the largest difference of a value from specfit's."""
    return {
        "who": who,
        "fits": fits,
        "fits / s": fits / seconds,
        "specfit is faster by": seconds / fits / ours,
        "largest difference": away,
    }


def _as_peer(model: StatisticalModel, peer: Any, toy: torch.Tensor) -> list[float]:
    """Brings a toy into the order of pyhf: channels by name, then auxiliary measurements by parameter."""
    counts = [x for channel in peer.config.channels for x in toy[model.compiled.channels[channel]].tolist()]
    names = [model.parameter_names[i] for i in model.compiled.constraints.normal.tolist()]
    auxiliary = dict(zip(names, toy[model.compiled.n_bins :].tolist(), strict=True))
    return counts + [auxiliary[name] for name in peer.config.auxdata_order]


def _events(folder: Path, size: int) -> list[dict[str, Any]]:
    document = events.write_workspace(folder, per_sample=-(-size // 3))
    model = StatisticalModel(Workspace(document, folder=folder))
    model.nll(model.initial_values)
    seconds, cpu = [], []
    for i in range(5):  # at other values each time, so that nothing is remembered
        x = (model.initial_values + 0.01 * (i + 1)).requires_grad_()
        wall, processor = time.perf_counter(), time.process_time()
        model.nll(x).backward()
        seconds.append(time.perf_counter() - wall)
        cpu.append(time.process_time() - processor)
    processor = time.process_time()
    best, fitting = _timed(lambda: fit(model))
    fitting_cpu = time.process_time() - processor
    return [
        {"what": "nll and gradient", "wall s": min(seconds), "processor s": min(cpu)},
        {"what": f"fit, {best.n_steps} steps and exact covariance", "wall s": fitting, "processor s": fitting_cpu},
    ]


def _timed(work: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    answer = work()
    return answer, time.perf_counter() - start


if __name__ == "__main__":
    common.start(main)
