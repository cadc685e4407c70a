"""Optimises the two published toys of categorisation and times an epoch beside gato-hep, in one run, on one thread.

gato-hep needs TensorFlow, so it runs in an environment of its own, named by --peer; without it only specfit is
measured. Both use the same events, those behind the published figures; times are processor times, medians over epochs.
Published significances take S / sqrt(B) where S < 0.1 B, which is larger than the Asimov significance by up to 1.7 %:
columns "S/sqrt(B)" and "pub." follow them, all others are Asimov significances. Those of the diphoton toy come with
three backgrounds: "est." scales each category by its fitted mass spectrum, which is what is optimised; "exp." is what
the known mass shapes expect; "win." counts the simulated events in the window. "B" is the background of the category
that tells most about the second signal.

    python -m venv gato && gato/bin/pip install gato-hep==0.2.1
    python scripts/bench_categories.py --peer gato/bin/python --json bench_categories.json
    python scripts/bench_categories.py --example sigmoid --restarts 1
"""

from __future__ import annotations

__all__ = ["main"]

import itertools
import json
import math
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import argument_parser, positive, print_table, rng_of, start, write_json

import specfit
from specfit.categories import (
    Evaluation,
    Events,
    GaussianMixtureBins,
    MassWindow,
    Objective,
    Optimized,
    Sample,
    Schedule,
    SigmoidBins,
    evaluate_events,
    optimal_boundaries,
    optimize,
    toy_1d,
    toy_diphoton,
)

SIGNAL, RESONANCES = ["signal"], ["signal1", "signal2"]
SLOPES = (0.05, 0.04, 0.035, 0.03, 0.025)  # of the continua of the diphoton toy, per GeV
LIMITS = Objective(least_background=5.0, largest_uncertainty=1e9, constrained=True)
SWITCH = 0.1
PUBLISHED_EQUAL = {2: 0.7518, 5: 1.0145, 10: 1.1835, 20: 1.3342}
PUBLISHED = {3: 1.5809, 5: 1.8487, 10: 1.9012, 20: 1.9494}
CANDIDATES = 1200


class EpochClock:
    """Collects the processor time at the end of each epoch."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, _done: int) -> None:
        self.times.append(time.process_time())

    @property
    def ms(self) -> float:
        """Processor time of an epoch, the median."""
        return 1e3 * statistics.median(b - a for a, b in itertools.pairwise(self.times))


def main(arguments: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Runs the script; returns the rows of each table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--example", choices=["sigmoid", "diphoton", "both"], default="both")
    parser.add_argument("--peer", type=Path, help="interpreter of an environment with gato-hep")
    parser.add_argument("--peer-epochs", type=positive, default=10, help="epochs of the peer (default: %(default)s)")
    parser.add_argument(
        "--restarts", type=positive, default=3, help="starts of each optimisation (default: %(default)s)"
    )
    parser.add_argument("--numbers", type=positive, nargs="+", help="numbers of categories (default: 3 5 10 20, 3 5 8)")
    parser.add_argument("--small", type=positive, default=1, help="divide events and epochs by this, to try the script")
    options = parser.parse_args(arguments)
    tables: dict[str, list[dict[str, Any]]] = {}
    if options.example != "diphoton":
        toy = toy_1d(100_000 // options.small, 300_000 // options.small)
        tables["equal bins"] = equal_rows(toy)
        tables["1-d toy"] = [sigmoid_row(toy, n, options) for n in options.numbers or (3, 5, 10, 20)]
    if options.example != "sigmoid":
        toy = toy_diphoton(100_000 // options.small, 1_000_000 // options.small)
        numbers = options.numbers or (3, 5, 8)
        tables["diphoton toy"] = [row for n in numbers for row in diphoton_rows(toy, n, options)]
    for title, rows in tables.items():
        print_table(title, rows)
    write_json(options.json, options, tables)
    return tables


def equal_rows(toy: Events) -> list[dict[str, Any]]:
    """Measures bins at equal distances."""
    rows = []
    for n, published in PUBLISHED_EQUAL.items():
        reached = evaluate_events(SigmoidBins(n), toy, signals=SIGNAL)
        rows.append(
            {
                "bins": n,
                "Z": reached.combined,
                "error": reached.combined_error,
                "S/sqrt(B)": by_published_formula(reached)[0],
                "published": published,
            }
        )
    return rows


def by_published_formula(reached: Evaluation) -> list[float]:
    """Computes each signal's significance as the published program does, S / sqrt(B) where S < 0.1 B."""
    signal = reached.yields.signal
    background = reached.yields.background + signal.sum(0) - signal
    ratio = signal / background
    exact = 2 * ((signal + background) * torch.log1p(ratio) - signal)
    z: list[float] = torch.where(ratio < SWITCH, signal * ratio, exact).sum(1).sqrt().tolist()
    return z


def sigmoid_row(toy: Events, n: int, options: Any) -> dict[str, Any]:
    """Optimises n bins of one discriminant: free, within limits, with a test sample; and the peer."""
    climb = partial(
        optimize, signals=SIGNAL, restarts=options.restarts, epochs=max(250 // options.small, 10), record_every=25
    )

    clock = EpochClock()

    def best(**how: Any) -> Optimized:
        rng = rng_of(options.seed)
        return climb(SigmoidBins(n, rng=rng), toy, rng=rng, **how)

    free, limited = best(test_fraction=0.0, progress=clock), best(test_fraction=0.0, objective=LIMITS)
    tested = best(objective=LIMITS)
    exact = optimal_boundaries(
        Sample.of(toy, signals=SIGNAL), n, signal="signal", objective=LIMITS, candidates=CANDIDATES
    )
    peer = peer_row(options, "sigmoid", n)
    unseen = tested.test
    return {
        "bins": n,
        "Z free": free.train.combined,
        "S/sqrt(B)": by_published_formula(free.train)[0],
        "peer": peer.get("z", [None])[0] if peer.get("full") else None,
        "published": PUBLISHED.get(n),
        "Z, B>=5": limited.train.combined,
        "/ exact": limited.train.combined / exact.significance,
        "bias, free": free.train.mean_bias,
        "train": tested.train.combined,
        "test": unseen.combined if unseen else None,
        "+-": unseen.combined_error if unseen else None,
        "ms/epoch": clock.ms,
        "peer ms": peer.get("ms"),
        "ratio": peer["ms"] / clock.ms if peer else None,
    }


def diphoton_rows(toy: Events, n: int, options: Any) -> list[dict[str, Any]]:
    """Optimises n categories of a resonance search in four ways, and the peer.

    The ways: as the example does, with the background under the resonance estimated from all masses; the same at
    constant temperature; with larger first steps; and with the simulated events in the window alone, whatever their
    fluctuation.
    """
    window = MassWindow()
    counting = replace(window, scaled=())
    ways: dict[str, dict[str, Any]] = {
        "specfit": {},
        "T = 1": {"hardening": Schedule(1.0, 1.0)},
        "rate 0.2": {"learning_rate": Schedule(0.2, 0.001)},
        "window": {"window": counting},
    }
    usual = {
        "window": window,
        "epochs": max(200 // options.small, 10),
        "learning_rate": Schedule(0.05, 0.001),
        "hardening": Schedule(1.0, 0.02, "exponential"),
        "restarts": options.restarts,
        "test_fraction": 0.0,
        "record_every": 50,
    }
    rows, peer = [], peer_row(options, "diphoton", n)
    for way, how in ways.items():
        clock = EpochClock()
        rng = rng_of(options.seed)
        bins = GaussianMixtureBins(n, 2, rng=rng)
        best = optimize(bins, toy, signals=RESONANCES, rng=rng, progress=clock, **(usual | how))
        judge = partial(evaluate_events, best.bins, signals=RESONANCES)
        estimated, counted, likely = judge(toy, window=window), judge(toy, window=counting), judge(expected(toy))
        second = int(counted.by_category[1].argmax())
        reached = {
            "estimated": estimated.significances.tolist(),
            "expected": likely.significances.tolist(),
            "z": counted.significances.tolist(),
            "formula": by_published_formula(counted),
            "background": [part.yields.background[second].item() for part in (likely, counted)],
            "error": counted.yields.variance[second].sqrt().item(),
        }
        ratio = peer["ms"] / clock.ms if peer else None
        rows.append(resonance_row(n, way, reached, bias=estimated.mean_bias, ms=clock.ms, ratio=ratio))
    if peer:
        rows.append(resonance_row(n, "gato-hep", peer if peer["full"] else {}, bias=None, ms=peer["ms"], ratio=1.0))
    return rows


def resonance_row(
    n: int, way: str, reached: dict[str, Any], *, bias: float | None, ms: float, ratio: float | None
) -> dict[str, Any]:
    """Makes a row of the diphoton table: both significances by each way of counting the background."""
    names = {"estimated": "est.", "expected": "exp.", "z": "win.", "formula": "pub."}
    pairs = {short: reached.get(name, (None, None)) for name, short in names.items()}
    background = reached.get("background", (None, None))
    return {
        "n": n,
        "way": way,
        **{f"Z{i + 1} {short}": pair[i] for short, pair in pairs.items() for i in range(2)},
        "B exp.": background[0],
        "B win.": background[1],
        "+-": reached.get("error"),
        "bias": bias,
        "ms": ms,
        "ratio": ratio,
    }


def expected(toy: Events) -> Events:
    """Weighs every event with the probability of its process to lie in the window: no count there fluctuates."""
    window = MassWindow()
    slopes = torch.tensor(SLOPES, dtype=torch.float64)
    shares = [math.erf(math.sqrt(0.5))] * len(RESONANCES) + window.share_of(slopes).tolist()
    return replace(toy, weights=toy.weights * torch.tensor(shares, dtype=torch.float64)[toy.process])


def peer_row(options: Any, example: str, n: int) -> dict[str, Any]:
    """Runs the peer on the same example; empty without one. Its significances count after all epochs only."""
    if options.peer is None:
        return {}
    full = options.peer_epochs >= {"sigmoid": 250, "diphoton": 200}[example]
    script = Path(__file__).with_name("peer_categories.py")
    command = [str(options.peer), str(script), example, str(options.peer_epochs), str(n)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        lines = answer.stderr.strip().splitlines() or ["no message"]
        raise specfit.InputError(f"--peer: {lines[-1]}; it needs an environment with gato-hep 0.2.1")
    return {**json.loads(answer.stdout.strip().splitlines()[-1]), "full": full}


if __name__ == "__main__":
    torch.set_num_threads(1)
    start(main)
