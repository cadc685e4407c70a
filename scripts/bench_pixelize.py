"""Times PixelLinear beside the image that it never builds: FlattenHistogramAndNormalize, flatten, nn.Linear.

Same weights, same spectra, one run: seconds forward and forward + backward (weights' gradients included), their ratios,
and the largest difference of outputs and gradients.

    python scripts/bench_pixelize.py
    python scripts/bench_pixelize.py --batch-size 1024 --json bench_pixelize.json
"""

from __future__ import annotations

__all__ = ["main"]

from collections.abc import Sequence
from typing import Any

import torch
from common import argument_parser, positive, print_table, rng_of, seconds, start, write_json
from torch import Tensor, nn

import specfit
from specfit.net.pixelize import FlattenHistogramAndNormalize, Grid, PixelLinear

EDGES, WIDTH, FEATURES = "250:3000:50:log", 101, 256
GRIDS: tuple[Grid, ...] = ("linear", "log")


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the script; returns one row a grid."""
    parser = argument_parser(__doc__)
    parser.add_argument("--batch-size", type=positive, default=256, help="spectra a call (default: %(default)s)")
    parser.add_argument("--repeat", type=positive, default=20, help="calls, of which the fastest counts")
    options = parser.parse_args(arguments)
    generator = specfit.SpectrumGenerator(specfit.io.parse_edges(EDGES))
    counts = generator.sample(options.batch_size, rng=rng_of(options.seed)).counts
    rows = [_row(grid, counts, repeat=options.repeat) for grid in GRIDS]
    n_bins = counts.shape[-1]
    print_table(f"{options.batch_size} spectra of {n_bins} bins, {WIDTH} pixels, {FEATURES} features; ms", rows)
    write_json(options.json, options, {"rows": rows})
    return rows


def _row(grid: Grid, counts: Tensor, *, repeat: int) -> dict[str, Any]:
    sparse, dense = _make_pair(grid, counts.shape[-1])
    with torch.no_grad():
        forward = [1e3 * seconds(lambda net=net: net(counts), repeat=repeat) for net in (sparse, dense)]
    both = [1e3 * seconds(lambda net=net: _gradient(net, counts), repeat=repeat) for net in (sparse, dense)]
    outputs = sparse(counts) - dense(counts)
    gradients = _gradient(sparse, counts) - _gradient(dense, counts).T
    return {
        "grid": grid,
        "forward": forward[0],
        "forward_image": forward[1],
        "forward_ratio": forward[1] / forward[0],
        "both": both[0],
        "both_image": both[1],
        "both_ratio": both[1] / both[0],
        "output_diff": outputs.abs().max().item(),
        "gradient_diff": gradients.abs().max().item(),
    }


def _make_pair(grid: Grid, n_bins: int) -> tuple[nn.Module, nn.Module]:
    """Makes the layer and its equal on the built image, with the same weights."""
    pixelize = FlattenHistogramAndNormalize(width=WIDTH, grid=grid)
    sparse, linear = PixelLinear(pixelize, n_bins, FEATURES), nn.Linear(n_bins * WIDTH, FEATURES)
    with torch.no_grad():
        linear.weight.copy_(sparse.weight.T)
        linear.bias.copy_(sparse.bias)
    return sparse, nn.Sequential(pixelize, nn.Flatten(), linear)


def _gradient(net: nn.Module, counts: Tensor) -> Tensor:
    """Runs forward and backward; returns the gradient of the weights of a sum of squares."""
    weight = next(parameter for name, parameter in net.named_parameters() if name.endswith("weight"))
    (gradient,) = torch.autograd.grad(net(counts).square().mean(), weight)
    return gradient


if __name__ == "__main__":
    start(main)
