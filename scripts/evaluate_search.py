"""Judges a search: what it sees in pure backgrounds, and whether injected signals come back.

On background-only spectra of the reference task and, with a net of any binning, of dijet functions (random parameters,
1e5 to 1e7 events, 50 bins from 1100 to 8000), at masses from the 10th to the 90th percentile of the range: mean and
width of (fitted yield) / (its error), mean and width of the local significance, and the shares beyond 3 and 4 standard
deviations over those of a normal distribution. With signals of 0, 2, 5 and 10 times the statistical error of a known
background, of several widths: the bias of the fitted yields over their mean error, and mean, median and width of the
pulls, yield by yield over its own error (where few events are, that is smaller the smaller the yield).

    python scripts/evaluate_search.py
    python scripts/evaluate_search.py --checkpoint any_binning --size 2000 --json search.json
    python scripts/evaluate_search.py --components 5 --size 1000 --injected 20 --global-p 1000
"""

from __future__ import annotations

__all__ = ["background_only", "global_p_values", "injected", "main"]

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import scipy.stats
import torch
from common import argument_parser, chain_of, positive, print_table, start, tracked, write_json
from torch import Tensor

import specfit
from specfit.generator import Batch, WideGenerator
from specfit.randomness import independent_rng
from specfit.search import SignalHypotheses, gaussian_hypotheses
from specfit.search.excess import largest_excess
from specfit.search.injection import known_background_error

COMPONENTS, WIDTHS, STRENGTHS, WIDTH = (1, 5, 7), (0.02, 0.05, 0.1), (0.0, 2.0, 5.0, 10.0), 0.05
N_MASSES, N_INJECTED_MASSES, AT_A_TIME = 9, 5, 1000
DIJET_EVENTS = (1e5, 1e7)
# Fewer expected events in the peak than this, and a normal distribution is not to be expected.
FEW_EVENTS = 30.0


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the script; returns the rows of both tables."""
    parser = argument_parser(__doc__, size=20_000)
    parser.add_argument("--injected", type=positive, default=400, help="spectra for each injected signal")
    parser.add_argument("--components", type=positive, nargs="+", default=COMPONENTS, help="of the backgrounds, each N")
    parser.add_argument("--global-p", type=positive, default=1000, help="spectra whose global p-value is computed")
    parser.add_argument("--toys", type=positive, default=19, help="toys for each of them (default: %(default)s)")
    options = parser.parse_args(arguments)
    fitter = specfit.SpectrumFitter.from_checkpoint(options.checkpoint)
    pure, with_signal, uniform = [], [], []
    for name, generator in _tasks(fitter, options):
        pure += background_only(fitter, generator, size=options.size, seed=options.seed, name=name)
        with_signal += injected(fitter, generator, size=options.injected, seed=options.seed, name=name)
        sizes = {"size": options.global_p, "n_toys": options.toys, "seed": options.seed}
        uniform += global_p_values(fitter, generator, **sizes, name=name)
    print_table(f"Pure backgrounds, {options.size} spectra each, signals of {100 * WIDTH:g} %", pure)
    print_table(f"Injected signals, {options.injected} spectra each", with_signal)
    print_table(f"Global p-values of {options.global_p} pure backgrounds", uniform)
    figures = {"background_only": pure, "injected": with_signal, "global_p": uniform}
    write_json(options.json, options, figures)
    return figures


class DijetLike:
    """Samples dijet functions of random parameters on common edges."""

    edges = specfit.io.parse_edges("1100:8000:50:log")

    def __init__(self) -> None:
        n = len(self.edges) - 1
        self.wide = WideGenerator(n_bins=(n, n), families={"dijet": 1.0}, total=DIJET_EVENTS, turn_on=0.0)

    def sample(self, size: int, *, rng: torch.Generator) -> Batch:
        """Draws pure backgrounds."""
        background = self.wide.sample_background(self.edges.expand(size, -1), rng=rng)
        counts = torch.poisson(background, generator=rng)
        return Batch(counts, background, torch.zeros_like(background), self.edges)


Sampler = specfit.SpectrumGenerator | DijetLike


def _tasks(fitter: specfit.SpectrumFitter, options: Any) -> Iterator[tuple[str, Sampler]]:
    """Yields what is sampled, by name."""
    edges = fitter.edges if fitter.edges is not None else specfit.SpectrumFitter.from_checkpoint().edges
    for n in options.components:
        yield f"N={n}", specfit.SpectrumGenerator(edges, n_backgrounds=n)
    if fitter.edges is None:
        yield "dijet", DijetLike()


def background_only(
    fitter: specfit.SpectrumFitter, generator: Sampler, *, size: int, seed: int, name: str
) -> list[dict[str, Any]]:
    """Searches pure backgrounds; one row for each mass."""
    signals = gaussian_hypotheses(generator.edges, width=WIDTH, mass=_masses(generator.edges, N_MASSES))
    chain = chain_of(fitter, generator.edges, signals)
    pulls, significances, used = [], [], []
    for i, first in enumerate(tracked(f"{name}, pure backgrounds", range(0, size, AT_A_TIME))):
        batch = generator.sample(min(AT_A_TIME, size - first), rng=independent_rng((seed, 0, i)))
        found = chain(batch.counts)
        pulls.append(found.yields / found.error)
        significances.append(found.local_z)
        used.append(_in_peak(batch.background.double(), signals) > FEW_EVENTS)
    pull, z, enough = (torch.cat(parts) for parts in (pulls, significances, used))
    return [
        {"task": name, "mass": round(mass)} | _of_pure(pull[:, j][enough[:, j]], z[:, j][enough[:, j]])
        for j, mass in enumerate(signals.mass.tolist())
    ]


def injected(
    fitter: specfit.SpectrumFitter, generator: Sampler, *, size: int, seed: int, name: str
) -> list[dict[str, Any]]:
    """Searches backgrounds with signals; one row for each width and strength, the worst of the masses."""
    rows = []
    masses = _masses(generator.edges, N_INJECTED_MASSES)
    batch = generator.sample(size, rng=independent_rng((seed, 1)))
    background = batch.background.double()
    for width, strength in tracked(f"{name}, injected signals", list(itertools.product(WIDTHS, STRENGTHS))):
        judged = []
        for j, mass in enumerate(masses):
            signals = gaussian_hypotheses(generator.edges, width=width, mass=mass[None])
            template, enough = signals.templates[0], _in_peak(background, signals)[:, 0] > FEW_EVENTS
            sigma0 = known_background_error(template, background, torch.ones_like(template, dtype=torch.bool))
            expected = background + (strength * sigma0)[:, None] * template
            counts = torch.poisson(expected, generator=independent_rng((seed, 2, j)))
            found = chain_of(fitter, generator.edges, signals)(counts)
            missed, error = (found.yields[:, 0] / sigma0 - strength)[enough], (found.error[:, 0] / sigma0)[enough]
            pull = missed / error
            bias = (missed.mean() / error.mean()).item()
            judged.append((bias, pull.median().item(), pull.mean().item(), pull.std().item()))
        biases, medians, means, widths = zip(*judged, strict=True)
        rows.append(
            {
                "task": name,
                "width": width,
                "strength": strength,
                "worst_bias": max(biases, key=abs),
                "mean_pull": sum(means) / len(means),
                "worst_mean": max(means, key=abs),
                "worst_median": max(medians, key=abs),
                "smallest_width": min(widths),
                "largest_width": max(widths),
            }
        )
    return rows


def global_p_values(
    fitter: specfit.SpectrumFitter,
    generator: Sampler,
    *,
    size: int,
    n_toys: int,
    seed: int,
    name: str,
) -> list[dict[str, Any]]:
    """Computes global p-values of pure backgrounds; one row for each way."""
    chain = chain_of(fitter, generator.edges, gaussian_hypotheses(generator.edges, width=WIDTH))
    by_correlation, by_toys = [], []
    at_a_time = max(1, AT_A_TIME // n_toys)
    for i, first in enumerate(tracked(f"{name}, global p-values", range(0, size, at_a_time))):
        rng = independent_rng((seed, 3, i))
        counts = generator.sample(min(at_a_time, size - first), rng=rng).counts.double()
        found = largest_excess(chain, counts)
        # As in a scan, each from a background that the data allow.
        backgrounds = fitter.fit(counts, generator.edges).sample(n_toys, rng=rng).transpose(0, 1)
        toys = torch.poisson(backgrounds.flatten(0, 1), generator=rng)
        drawn = chain(toys).local_z.amax(1).view(-1, n_toys)
        z = found.local_z[:, None]
        above, equal = (drawn > z).sum(1), (drawn == z).sum(1)
        broken = torch.rand(len(z), dtype=torch.float64, generator=rng)
        by_correlation.append(found.global_p)
        by_toys.append((above + broken * (equal + 1)) / (n_toys + 1))
    ways = {"correlation": by_correlation, f"{n_toys} toys each": by_toys}
    return [{"task": name, "global p by": way} | _of_global(torch.cat(parts)) for way, parts in ways.items()]


def _of_global(p: Tensor) -> dict[str, float]:
    return {
        "spectra": len(p),
        "KS p": float(scipy.stats.kstest(p.numpy(), "uniform").pvalue),
        "mean p": p.mean().item(),
        "p < 0.05": (p < 0.05).double().mean().item(),
        "p < 0.01": (p < 0.01).double().mean().item(),
    }


def _of_pure(pull: Tensor, z: Tensor) -> dict[str, float]:
    def over_normal(level: float) -> float:
        share = torch.special.ndtr(torch.tensor(-level, dtype=torch.float64))
        return ((z > level).double().mean() / share).item()

    return {
        "spectra": len(z),
        "mean_pull": pull.mean().item(),
        "width": pull.std().item(),
        "mean_z": z.mean().item(),
        "width_z": z.std().item(),
        "3_sigma_over_normal": over_normal(3.0),
        "4_sigma_over_normal": over_normal(4.0),
        "largest_z": z.max().item() if len(z) else float("nan"),
    }


def _masses(edges: Tensor, n: int) -> Tensor:
    low, high = (edges[0] + share * (edges[-1] - edges[0]) for share in (0.1, 0.9))
    return torch.linspace(float(low), float(high), n, dtype=torch.float64)


def _in_peak(background: Tensor, signals: SignalHypotheses) -> Tensor:
    """Computes the background that a peak competes with, `(m, h)`: that of bins above a tenth of its height."""
    return background @ (signals.templates > 0.1 * signals.templates.amax(1, keepdim=True)).double().T


if __name__ == "__main__":
    start(main)
