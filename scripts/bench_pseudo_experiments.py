"""Times the engine of pseudo-experiments beside a plain loop: what a chunk costs besides its own work.

The job samples spectra and keeps the largest significance of a bin. The plain loop calls it chunk by chunk, keeps its
answers in memory and loses them at a stop.

    python scripts/bench_pseudo_experiments.py
    python scripts/bench_pseudo_experiments.py --workers 8 --chunks 400 --json bench_pseudo_experiments.json
"""

from __future__ import annotations

__all__ = ["LargestExcess", "main"]

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import argument_parser, positive, print_table, start, write_json
from torch import Tensor

import specfit
from specfit.randomness import independent_rng
from specfit.search import run_pseudo_experiments

EDGES = "250:3000:50:log"


@dataclass(frozen=True)
class LargestExcess:
    """Samples backgrounds of five components and looks for the largest excess over the true one."""

    edges: str = EDGES

    def __call__(self, size: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Returns the significance of the largest excess, shape `(size,)`."""
        batch = specfit.SpectrumGenerator(specfit.io.parse_edges(self.edges), n_backgrounds=5).sample(size, rng=rng)
        return {"largest": specfit.bin_significance(batch.counts, batch.background).amax(1)}

    def identity(self) -> dict[str, Any]:
        """Names the job."""
        return {"job": "largest excess", "edges": self.edges}


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the script; returns one row a way of drawing."""
    parser = argument_parser(__doc__)
    parser.add_argument("--chunks", type=positive, default=100, help="how many (default: %(default)s)")
    parser.add_argument("--chunk-size", type=positive, default=500, help="pseudo-experiments in each")
    parser.add_argument("--workers", type=positive, default=2, help="processes of the last row; 1 leaves it out")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, dict[str, Any]] = {"in memory": {}, "stored": {"store": Path(folder) / "toys"}}
        ways["read again"] = ways["stored"]
        if options.workers > 1:
            ways[f"{options.workers} workers"] = {"workers": options.workers}
        rows = [_plain(options), *(_engine(way, settings, options) for way, settings in ways.items())]
    for row in rows:
        row["ratio"] = row["ms_per_chunk"] / rows[0]["ms_per_chunk"]
    print_table(f"{options.chunks} chunks of {options.chunk_size} pseudo-experiments", rows)
    write_json(options.json, options, {"rows": rows})
    return rows


def _plain(options: Any) -> dict[str, Any]:
    job, threads = LargestExcess(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        job(options.chunk_size, independent_rng((options.seed, 0)))
        begin = time.perf_counter()
        kept = [job(options.chunk_size, independent_rng((options.seed, i))) for i in range(options.chunks)]
        torch.cat([answer["largest"] for answer in kept])
        return _row("plain loop", 0.0, time.perf_counter() - begin, options)
    finally:
        torch.set_num_threads(threads)


def _engine(way: str, settings: dict[str, Any], options: Any) -> dict[str, Any]:
    times: list[float] = []
    begin = time.perf_counter()
    run_pseudo_experiments(
        LargestExcess(),
        options.chunks * options.chunk_size,
        seed=options.seed,
        chunk_size=options.chunk_size,
        progress=lambda *_: times.append(time.perf_counter()),
        **settings,
    )
    end = time.perf_counter()
    # Whatever comes before the first answer of a worker is its start; in this process there is nothing to start.
    first = times[1] if "workers" in settings else begin
    return _row(way, first - begin, (times[-1] if "workers" in settings else end) - first, options)


def _row(way: str, start_seconds: float, seconds: float, options: Any) -> dict[str, Any]:
    return {"way": way, "start_s": start_seconds, "ms_per_chunk": 1e3 * seconds / options.chunks}


if __name__ == "__main__":
    start(main)
