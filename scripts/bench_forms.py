"""What functions of few parameters beside the any-binning net bring: the net alone, and with them, family by family.

Backgrounds of every family, those of the training and those held out, with and without a turn-on of their own, on 40
geometric bins that span a factor of 6. RMS is that of (fit - truth) / sqrt(truth); "near" is the share of the spectra
whose fit a function changed; of these, the width of the pulls (fit - truth) / error, up to 6, before and after.

    python scripts/bench_forms.py
    python scripts/bench_forms.py --size 200 --total 1e4 1e5
"""

from __future__ import annotations

__all__ = ["main"]

from collections.abc import Sequence
from typing import Any

import torch
from common import argument_parser, print_table, relative_residuals, rms, rng_of, seconds, start, tracked, write_json
from torch import Tensor

import specfit
from specfit.generator import FAMILIES, HELD_OUT, WideGenerator
from specfit.net import AnyBinningNet, Prediction
from specfit.net.forms import with_functional_form

ANY_BINNING, N_BINS, RATIO = "any_binning", 40, 6.0
TOTALS = ((2e4, 2e5), (1e6, 3e7))
OWN_TURN_ON = "turn_on_mixture"
LARGEST_PULL = 6.0


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the script; returns one row a family and range of totals."""
    parser = argument_parser(__doc__, size=400)
    parser.add_argument("--total", type=float, nargs=2, action="append", help="range of events (default: two ranges)")
    options = parser.parse_args(arguments)
    net = specfit.SpectrumFitter.from_checkpoint(options.checkpoint or ANY_BINNING).net
    if not isinstance(net, AnyBinningNet):
        raise specfit.InputError(f"--checkpoint: a net of any binning is expected, a {type(net).__name__} came")
    edges = torch.logspace(0, torch.tensor(RATIO).log10().item(), N_BINS + 1, dtype=torch.float64)
    kinds = [
        (total, family, turn_on)
        for total in options.total or TOTALS
        for family in (*FAMILIES, *HELD_OUT)
        for turn_on in ((0.0,) if family == OWN_TURN_ON else (0.0, 1.0))
    ]
    rows = [_row(net, edges, *kind, options.size, options.seed) for kind in tracked("families", kinds)]
    print_table(f"{options.size} backgrounds each, {N_BINS} bins", rows)
    write_json(options.json, options, {"rows": rows})
    return rows


def _row(
    net: AnyBinningNet, edges: Tensor, total: tuple[float, float], family: str, turn_on: float, size: int, seed: int
) -> dict[str, Any]:
    generator = WideGenerator(families={family: 1.0}, total=tuple(total), turn_on=turn_on)
    rng = rng_of(seed)
    truth = generator.sample_background(edges.expand(size, -1), rng=rng)
    counts, each, mask = torch.poisson(truth, generator=rng), edges.expand(size, -1), torch.zeros_like(truth).bool()
    with torch.inference_mode():
        described = net.described(counts, edges=edges)
        spent = seconds(lambda: with_functional_form(described, net.n_basis, counts, each, mask=mask), repeat=2)
        model, log_rate = with_functional_form(described, net.n_basis, counts, each, mask=mask)
        alone = net.calibrated(described.model, described.log_rate, None)
        beside = net.calibrated(model, log_rate, None)
    near = (log_rate != described.log_rate).any(1)
    before, after = (rms(one.background, truth) for one in (alone, beside))
    return {
        "family": family + (" x turn-on" if turn_on else ""),
        "events": f"{total[0]:.0e} to {total[1]:.0e}",
        "rms_alone": before,
        "rms": after,
        "ratio": after / before,
        "near": near.double().mean().item(),
        "pulls_alone": _width(alone, truth, near),
        "pulls": _width(beside, truth, near),
        "parameters_alone": alone.n_parameters.mean().item(),
        "parameters": beside.n_parameters.mean().item(),
        "ms": 1e3 * spent / size,
    }


def _width(prediction: Prediction, truth: Tensor, rows: Tensor) -> float | None:
    if not rows.any():
        return None
    _, used = relative_residuals(prediction.background, truth)
    pull = (prediction.background - truth) / prediction.factor.square().sum(-1).sqrt()
    return pull[rows][used[rows]].clamp(-LARGEST_PULL, LARGEST_PULL).square().mean().sqrt().item()


if __name__ == "__main__":
    start(main)
