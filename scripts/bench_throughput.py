"""Times fits: very many spectra at once, with all threads of a machine, and one after the other.

python scripts/bench_throughput.py
python scripts/bench_throughput.py --checkpoint any_binning --size 4096
"""

from __future__ import annotations

__all__ = ["main"]

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from common import argument_parser, print_table, rng_of, seconds, start, write_json

import specfit

# A spectrum takes one to three times as long as another, by what it needs.
ONE_BY_ONE = 200


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the script; returns one row for each way to fit."""
    options = argument_parser(__doc__, size=32_768).parse_args(arguments)
    fitter = specfit.SpectrumFitter.from_checkpoint(options.checkpoint)
    edges = fitter.edges if fitter.edges is not None else specfit.SpectrumFitter.from_checkpoint().edges
    generator = specfit.SpectrumGenerator(edges, n_backgrounds=(1, 7))
    counts = generator.sample(options.size, rng=rng_of(options.seed)).counts.double()
    rows = []
    for name, rule in {"no refit": None, "refit": True}.items():
        took = seconds(lambda rule=rule: fitter.fit(counts, edges, refit=rule), repeat=3)
        rows.append(
            {"fit": name, "spectra": options.size, "threads": torch.get_num_threads(), "a_second": options.size / took}
        )
    print_table("Spectra fitted with their covariance", rows)
    single = []
    for name, rule in {"no refit": None, "refit": True}.items():
        times = [seconds(lambda row=row, rule=rule: fitter.fit(row, edges, refit=rule)) for row in counts[:ONE_BY_ONE]]
        single.append({"fit": name, "spectra": len(times), "median ms": 1e3 * statistics.median(times)})
    print_table("One spectrum at a time", single)
    write_json(options.json, options, {"rows": rows, "single": single})
    return rows


if __name__ == "__main__":
    start(main)
