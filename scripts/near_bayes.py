r"""Compares a net with what knowing the prior allows: a near-Bayes estimate from simulated shapes, for any task.

For every task very many shapes are simulated. Of a spectrum the nearest to the data are taken (largest likelihood),
then the nearest to what these say; their mean and covariance, in the logarithm of the expected events, are the local
prior, and the maximum of prior times Poisson likelihood is the estimate: local regression with the noise taken exactly.
It needs neither the parameters of a shape nor derivatives in them, so it also serves where no information limit can be
computed. With too few shapes for the data the prior is too wide and the estimate too noisy: it is an upper bound on the
best RMS. The net of any binning is judged on every task, the net of a binning where its edges fit.

The first two tasks are a check of the method: RMS of 0.49 to 0.51 and of 0.647 are known for 17 bins (N = 1, 5).

    python scripts/near_bayes.py
    python scripts/near_bayes.py --size 200 --shapes 300000 --only "17 bins"
"""

from __future__ import annotations

__all__ = ["main", "near_bayes"]

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from common import argument_parser, positive, print_table, rms, rng_of, start, write_json
from torch import Tensor

import specfit
from specfit.generator import HELD_OUT, WideGenerator
from specfit.information_limit import information_limit

# The 17 bins of the talk's public example.
TALK_EDGES = [350, 355, 360, 365, 370, *range(380, 480, 10), 500, 600, 700]
HELD_OUT_BINS, HELD_OUT_RATIO, HELD_OUT_TOTAL = 40, 6.0, (2e4, 1.8e5)
LEAST_SHARE = 1e-12
SPECTRA_AT_A_TIME = 32
# Directions of the local prior that are kept, the variance below which none is, and steps of Newton's method.
MOST_DIRECTIONS, LEAST_VARIANCE, NEWTON_STEPS = 25, 1e-4, 8
LIMIT_SIZE = 300
ANY_BINNING = "any_binning"


class Task(NamedTuple):
    """What is simulated."""

    name: str
    edges: Tensor
    backgrounds: Callable[[int, torch.Generator], Tensor]
    """Draws expected events, shape `(size, n_bins)`."""
    generator: specfit.SpectrumGenerator | None
    """What has an information limit; None for families without parameters."""


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the script; returns one row a task."""
    parser = argument_parser(__doc__, size=64)
    parser.add_argument("--shapes", type=positive, default=300_000, help="simulated shapes (default: %(default)s)")
    parser.add_argument("--neighbours", type=positive, default=2000, help="nearest taken (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="tasks whose name contains this")
    options = parser.parse_args(arguments)
    if options.neighbours > options.shapes:
        raise specfit.InputError(f"--neighbours: at most --shapes = {options.shapes}, {options.neighbours} came")
    nets = {
        "net": specfit.SpectrumFitter.from_checkpoint(options.checkpoint),
        "any_binning": specfit.SpectrumFitter.from_checkpoint(ANY_BINNING),
    }
    chosen = [task for task in tasks() if options.only in task.name]
    if not chosen:
        raise specfit.InputError(f"--only: no task has {options.only!r} in its name")
    rows = [_row(task, nets, options) for task in chosen]
    print_table(f"{options.size} spectra a task, {options.shapes} shapes, {options.neighbours} nearest", rows)
    write_json(options.json, options, {"rows": rows})
    return rows


def tasks() -> Iterator[Task]:
    """Yields all tasks."""
    for n in (1, 5):
        yield _mixture(f"17 bins, N={n}", TALK_EDGES, n)
    for n in (1, 5):
        yield _mixture(f"reference, 50 bins, N={n}", np.geomspace(250, 3000, 51), n)
    for n_bins in (30, 100, 200):
        yield _mixture(f"{n_bins} bins, N=5", np.geomspace(250, 3000, n_bins + 1), 5)
    edges = torch.logspace(0, np.log10(HELD_OUT_RATIO), HELD_OUT_BINS + 1, dtype=torch.float64)
    for name in HELD_OUT:
        wide = WideGenerator(families={name: 1.0}, total=HELD_OUT_TOTAL, turn_on=0.0)

        def draw(size: int, rng: torch.Generator, wide: WideGenerator = wide) -> Tensor:
            return wide.sample_background(edges.expand(size, -1), rng=rng)

        yield Task(f"{name} (held out)", edges, draw, None)


def near_bayes(counts: Tensor, shapes: Tensor, *, neighbours: int) -> Tensor:
    """Estimates the expected events of spectra.

    Args:
        counts: Events per bin, shape `(m, n_bins)`.
        shapes: Simulated shares of the total, shape `(n_shapes, n_bins)`.
        neighbours: How many of them make the local prior.
    """
    log_shapes = shapes.clamp(min=LEAST_SHARE).log().float()
    return torch.cat([_estimate(some.double(), log_shapes, neighbours) for some in counts.split(SPECTRA_AT_A_TIME)])


def _estimate(counts: Tensor, log_shapes: Tensor, neighbours: int) -> Tensor:
    total = counts.sum(-1, keepdim=True)
    estimate = counts
    for _ in range(2):  # near the data, then near what they say
        nearest = (estimate.float() @ log_shapes.T).topk(neighbours, dim=-1).indices  # (m, neighbours)
        estimate = torch.stack(
            [
                _local_fit(n, log_shapes[rows].double() + t.log())
                for n, rows, t in zip(counts, nearest, total, strict=True)
            ]
        )
    return estimate


def _local_fit(counts: Tensor, log_rates: Tensor) -> Tensor:
    """Maximises Poisson likelihood times the normal distribution of the log rates, shape `(neighbours, n_bins)`."""
    mean = log_rates.mean(0)
    root = mean.exp().sqrt().clamp(min=1e-3)  # in units of the statistical error the prior is what matters
    _, spread, directions = torch.linalg.svd((log_rates - mean) * root, full_matrices=False)
    variance = spread.square() / (len(log_rates) - 1)
    keep = (variance > LEAST_VARIANCE)[:MOST_DIRECTIONS].sum()
    basis = (directions[:keep] * variance[:keep, None].sqrt() / root).T  # (n_bins, n_directions)
    z = torch.zeros(basis.shape[1], dtype=torch.float64)
    for _ in range(NEWTON_STEPS):
        rate = (mean + basis @ z).clamp(max=50.0).exp()
        gradient = basis.T @ (rate - counts) + z
        hessian = (basis.T * rate) @ basis + torch.eye(len(z)).double()
        step = torch.linalg.solve(hessian, gradient)
        z = z - step * (1.0 / (basis @ step).abs().max().clamp(min=1.0))  # at most one e-fold at a time
    return (mean + basis @ z).exp()


def _mixture(name: str, edges: Any, n: int) -> Task:
    generator = specfit.SpectrumGenerator(edges, n_backgrounds=n)
    return Task(name, generator.edges, lambda size, rng: generator.sample_background(size, rng=rng), generator)


def _row(task: Task, nets: dict[str, specfit.SpectrumFitter], options: Any) -> dict[str, Any]:
    rng = rng_of(options.seed)
    truth = task.backgrounds(options.size, rng)
    counts = torch.poisson(truth, generator=rng).double()
    parts = [task.backgrounds(min(20_000, options.shapes - i), rng).float() for i in range(0, options.shapes, 20_000)]
    shapes = torch.cat(parts)
    shapes /= shapes.sum(-1, keepdim=True)
    best = near_bayes(counts, shapes, neighbours=options.neighbours)
    generator = task.generator
    limit = information_limit(generator, size=LIMIT_SIZE, rng=rng_of(options.seed)).rms if generator else None
    row: dict[str, Any] = {"task": task.name, "limit": limit, "near_bayes": rms(best, truth)}
    row["near_bayes / limit"] = row["near_bayes"] / limit if limit else None
    for name, net in nets.items():
        fits = net.edges is None or (len(net.edges) == len(task.edges) and torch.allclose(net.edges, task.edges))
        background = net.fit(counts, task.edges, refit=None).background if fits else None
        row[name] = None if background is None else rms(background, truth)
        row[f"{name} / near_bayes"] = None if background is None else row[name] / row["near_bayes"]
    return row


if __name__ == "__main__":
    start(main)
