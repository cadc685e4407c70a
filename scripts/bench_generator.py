"""Times the generator beside plain torch: spectra a second, N = 5 and N = 1 to 7, on one thread and on all cores.

The baseline is what one writes first: densities of all components of all spectra at 4 Gauss-Legendre nodes a bin in one
array, torch.special.log_ndtr, a sum, a Poisson draw. It is also less exact: the generator plans its nodes.

    python scripts/bench_generator.py
    python scripts/bench_generator.py --batch-size 512 --json bench_generator.json
"""

from __future__ import annotations

__all__ = ["main"]

import os
from collections.abc import Sequence
from typing import Any

import torch
from common import argument_parser, positive, print_table, rng_of, seconds, start, write_json
from torch import Tensor

import specfit
from specfit.shapes import quadrature

EDGES = "250:3000:50:log"
TASKS = {"N = 5": (5, 5), "N = 1 to 7": (1, 7)}
NODES = 4


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the script; returns one row a task and number of threads."""
    parser = argument_parser(__doc__)
    parser.add_argument("--batch-size", type=positive, default=2048, help="spectra a call (default: %(default)s)")
    parser.add_argument("--repeat", type=positive, default=10, help="calls, of which the fastest counts")
    options = parser.parse_args(arguments)
    before, rows = torch.get_num_threads(), []
    try:
        for threads in sorted({1, os.cpu_count() or 1}):
            torch.set_num_threads(threads)
            rows += [_row(task, n, options.batch_size, options.repeat, options.seed) for task, n in TASKS.items()]
    finally:
        torch.set_num_threads(before)
    print_table(f"Sampling batches of {options.batch_size} spectra of 50 bins", rows)
    write_json(options.json, options, {"rows": rows})
    return rows


def _row(task: str, n_backgrounds: tuple[int, int], size: int, repeat: int, seed: int) -> dict[str, Any]:
    edges, rng = specfit.io.parse_edges(EDGES), rng_of(seed)
    generator = specfit.SpectrumGenerator(edges, n_backgrounds=n_backgrounds)
    product = size / seconds(lambda: generator.sample(size, rng=rng), repeat=repeat)
    plain = size / seconds(lambda: sample_plainly(edges, size, n_backgrounds, rng=rng), repeat=repeat)
    return {
        "task": task,
        "threads": torch.get_num_threads(),
        "generator_per_second": product,
        "plain_per_second": plain,
        "ratio": product / plain,
    }


def sample_plainly(
    edges: Tensor, size: int, n_backgrounds: tuple[int, int], *, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Samples counts and backgrounds, each of shape `(size, n_bins)`, the way one writes it first."""
    low, high = n_backgrounds

    def uniform(first: float, last: float, *shape: int) -> Tensor:
        return first + (last - first) * torch.rand(size, *shape, generator=rng)

    x, log_weights = (t.float().flatten() for t in quadrature(edges, NODES))  # (n_bins * NODES,) each
    rho, alpha = uniform(0.5, 1.5, high, 1), uniform(25.0, 200.0, high, 1)
    mu, sigma = uniform(325.0, 375.0, high, 1), uniform(10.0, 30.0, high, 1)
    log_density = torch.special.log_ndtr((x - mu) / sigma) - x**rho / alpha + log_weights  # (size, high, n_nodes)
    share = torch.softmax(log_density, -1).unflatten(-1, (-1, NODES)).sum(-1)  # (size, high, n_bins)
    n = torch.randint(low, high + 1, (size, 1), generator=rng)
    fraction = uniform(0.0, 1.0, high) * (torch.arange(high) < n)
    mixture = (fraction[..., None] * share).sum(1) / fraction.sum(-1, keepdim=True)
    background = uniform(2e4, 1.8e5, 1) * mixture
    return torch.poisson(background, generator=rng), background


if __name__ == "__main__":
    start(main)
