"""calibrate_yields: simulation teaches a net how far the errors of yields fitted beside its backgrounds are off.

Pure backgrounds are searched at random places with signals of random widths; the pulls, yield over error, are those of
a search that finds nothing. The factor on the error, a function of the features of `specfit.signal.yield_error`, is
learned to give them a root mean square of 1, and is 1 where that would make an error smaller. It is right on average;
that some backgrounds are missed by far more is in the significance (`specfit.signal.uncertain_error`).
"""

from __future__ import annotations

__all__ = ["YieldCalibration", "calibrate_yields"]

from typing import NamedTuple

import torch
from torch import Tensor

from specfit.generator import SpectrumGenerator, WideGenerator
from specfit.guard import LEAST_P_VALUE
from specfit.net.error_scale import LARGEST_LOG_FACTOR, CalibratedNet, YieldScale
from specfit.randomness import independent_rng
from specfit.shapes import Gaussian
from specfit.signal.extraction import extract
from specfit.signal.hypotheses import edges_at
from specfit.significance import deviance_p_value
from specfit.training.scales import learn_log_factor, untrained

# Spectra on the same edges, and signals that are looked for in each of them.
SPECTRA, SIGNALS = 32, 6
STEPS, ROWS_A_STEP = 2500, 4096
# A signal is at least so many bins wide and at most this share of all bins (standard deviations), and lies at least one
# of them, or this many bins, inside the range; so many background events compete with it at least.
NARROWEST, WIDEST, INSIDE, FEWEST_EVENTS = 0.5, 0.1, 1.0, 20.0
# Pulls beyond this many standard errors count as these: a net that misses a spectrum by far misses it by any amount.
LARGEST_PULL = 8.0


class YieldCalibration(NamedTuple):
    """Pulls of the yields of signals that are not there, yield / error, over simulated spectra."""

    yield_width_before: float
    """Root mean square, of pulls up to 8, without the calibration."""
    yield_width: float
    """The same with it."""
    yield_beyond_3: float
    """Share beyond three standard errors after it; 0.0027 of normal ones."""


def calibrate_yields(
    net: CalibratedNet, generator: SpectrumGenerator | WideGenerator, *, size: int, seed: int
) -> YieldCalibration:
    """Learns the net's scale of the errors of yields from pure backgrounds.

    Args:
        net: A net whose errors are calibrated; changed in place.
        generator: What it was trained on; signals are left out.
        size: Number of spectra to learn from; a quarter as many more judge the result.
        seed: Decides the spectra, the signals and the first weights of the scale.
    """
    net.eval()
    # What is emphasised is hard to learn, not likely.
    prior = generator.without_emphasis() if isinstance(generator, WideGenerator) else generator
    pure = prior.without_signal()
    n_batches = -(-size // SPECTRA)
    net.yield_scale.load_state_dict(untrained(YieldScale, seed=seed).state_dict())
    features, pulls = _searched(net, pure, n_batches, (seed, 4))
    _learn(net.yield_scale, features, pulls, rng=independent_rng((seed, 5)))
    features, judged = _searched(net, pure, -(-n_batches // 4), (seed, 6))
    before = judged * net.yield_scale(features).float()
    return YieldCalibration(_width(before), _width(judged), (judged.abs() > 3).double().mean().item())


def _searched(
    net: CalibratedNet, pure: SpectrumGenerator | WideGenerator, n_batches: int, seed: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Returns features `(n, n_features)` and pulls `(n,)` of signals that are not there."""
    parts = [_searched_batch(net, pure, independent_rng((*seed, i))) for i in range(n_batches)]
    features, pulls, described = (torch.cat(part) for part in zip(*parts, strict=True))
    # What the joint fit does not describe is flagged, and no measure; of a net that describes nothing yet all counts.
    rows = described if described.any() else slice(None)
    return features[rows], pulls[rows]


@torch.no_grad()
def _searched_batch(
    net: CalibratedNet, pure: SpectrumGenerator | WideGenerator, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns features, pulls and whether the data are described, of signals with enough events below them."""
    edges, background = _backgrounds(pure, rng)
    counts = torch.poisson(background, generator=rng)
    templates = _signals(edges, rng)
    spectrum = torch.arange(len(counts)).repeat_interleave(len(templates))
    columns = templates.repeat(len(counts), 1)[:, None]
    rows = extract(net, counts, columns, spectrum=spectrum, edges=edges, mask=torch.zeros_like(counts).bool())
    information = (columns[:, 0].square() / background[spectrum].clamp(min=1e-12)).sum(-1)
    used = columns.sum((1, 2)).square() / information > FEWEST_EVENTS
    described = deviance_p_value(2 * rows.fit.nll, torch.full_like(rows.fit.nll, counts.shape[1])) > LEAST_P_VALUE
    return rows.features[used], (rows.fit.yields[:, 0] / rows.error)[used].float(), described[used]


def _backgrounds(pure: SpectrumGenerator | WideGenerator, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws edges `(n_bins + 1,)` and expected backgrounds on them, `(SPECTRA, n_bins)`."""
    batch = pure.sample(SPECTRA, rng=rng)
    if batch.edges.ndim == 1:
        return batch.edges, batch.background.double()
    edges = batch.edges[:1]  # a generator of any binning gives every spectrum edges of its own
    assert isinstance(pure, WideGenerator)
    return edges[0], pure.sample_background(edges.expand(SPECTRA, -1), rng=rng)


def _signals(edges: Tensor, rng: torch.Generator) -> Tensor:
    """Draws templates of signals, `(SIGNALS, n_bins)`."""
    n_bins = len(edges) - 1
    share = torch.rand(SIGNALS, generator=rng, dtype=torch.float64)
    width = NARROWEST * (max(1.0, WIDEST * n_bins / NARROWEST)) ** share  # in bins
    inside = width.clamp(min=INSIDE)
    center = inside + (n_bins - 2 * inside) * torch.rand(SIGNALS, generator=rng, dtype=torch.float64)
    low, mass, high = (edges_at(edges, center + side * width) for side in (-0.5, 0.0, 0.5))
    return Gaussian(mass, high - low).log_bins(edges).exp()


def _width(pulls: Tensor) -> float:
    return pulls.clamp(-LARGEST_PULL, LARGEST_PULL).square().mean().sqrt().item()


def _learn(scale: YieldScale, features: Tensor, pulls: Tensor, *, rng: torch.Generator) -> None:
    largest = pulls.clamp(-LARGEST_PULL, LARGEST_PULL)
    sizes = {"steps": STEPS, "rows_a_step": ROWS_A_STEP}
    learn_log_factor(scale, features, largest, loss=_of_mean_square, **sizes, rng=rng)


def _of_mean_square(log_factor: Tensor, pulls: Tensor) -> Tensor:
    """Computes a loss that is least where the mean square is 1: the negative log-likelihood of normal pulls."""
    # Below its least value a factor must learn on, or rows that need more would be lost with them.
    log_factor = log_factor.clamp(max=LARGEST_LOG_FACTOR)
    return (log_factor + (pulls * (-log_factor).exp()).square() / 2).mean()
